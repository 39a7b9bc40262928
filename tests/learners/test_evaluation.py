"""Validation metrics are those of the whole split, however it is cut into batches."""

import jax
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.train import mean_metrics
from tests import tiny

VALID = np.ones(8, np.float32)


@pytest.mark.parametrize("metric", ["loss", "token_accuracy"])
def test_the_loss_of_sft_is_the_mean_over_the_tokens_of_all_batches(metric):
    """A batch of long texts counts for more than one of short ones."""
    learner = tiny.learner("supervised")
    state = learner.init()
    batches = [tiny.batch("supervised", index) | {"valid": VALID} for index in range(2)]
    batches[0]["targets"][:, 1:] = np.array([tiny.EOS, 0, 0])
    batches[1]["targets"][:] = np.array([2, 3, 4, tiny.EOS])
    batches[1]["valid"] = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    found, wanted = (mean_metrics(learner, state, b)[metric] for b in (batches, [whole]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    parts = [mean_metrics(learner, state, [batch])[metric] for batch in batches]
    assert abs(np.average(parts, weights=[8, 5]) - wanted) > 1e-2  # as it would be by examples


@pytest.mark.parametrize("kind", ["nash_md", "rlhf"])
def test_batches_of_one_evaluation_are_sampled_independently(kind):
    """Or a row of the second batch would get the draws of the first one's."""
    learner = tiny.learner(kind)
    state = learner.init()
    batch = tiny.batch(kind, 0) | {"valid": VALID}
    four, one = (mean_metrics(learner, state, [batch] * count) for count in (4, 1))
    assert abs(four["entropy"] - one["entropy"]) > 1e-3
    again = mean_metrics(learner, state, [batch] * 4)
    assert again == four
    placed = learner.partitioner.place_batch(batch)
    numbers = [learner.partitioner.place_batch({"n": np.full(8, n, np.int32)}) for n in range(4)]
    apart = [learner.eval_step(state, placed | {"batch_number": n["n"]}) for n in numbers]
    entropies = [float(jax.device_get(metrics["entropy"])) for metrics in apart]
    assert len(set(entropies)) == 4
    np.testing.assert_allclose(four["entropy"], np.mean(entropies), rtol=1e-6)


def test_rlhf_does_not_learn_from_a_row_without_others():
    learner = tiny.learner("rlhf")
    with pytest.raises(UserError, match="BATCH_SIZE is 1 but a reward is compared with the mean"):
        learner.train_step(learner.init(), tiny.batch("rlhf", 0, size=1))
