"""Early stopping ends a training where it would have ended without an interruption."""

import pytest

from nlhf_jax import checkpoints
from nlhf_jax.errors import UserError
from nlhf_jax.patience import Patience
from nlhf_jax.train import Preempted
from tests.test_train import (
    EVALUATING,
    Evaluated,
    assert_same,
    assert_same_record,
    by_hand,
    lines,
    run,
    saved_steps,
    signalled,
)

# The loss falls, so that of "max" the first evaluation, at step 6, stays the best; there is one at
# every sixth step and, since a best is looked for, at every save, each tenth.
PATIENT = EVALUATING | {"patience": 3}
END = 18


def train(workdir, *batches_and_learner, evaluated=None, **settings):
    settings = PATIENT | {"eval_batches": evaluated or Evaluated()} | settings
    return run(workdir, 40, *batches_and_learner, **settings)


@pytest.mark.parametrize(
    ("mode", "values", "over"),
    [
        ("max", [1.0, 2.0, 2.0, 1.5], [False, False, False, True]),
        ("min", [1.0, 2.0, 0.5, 0.6, 0.5], [False, False, False, False, True]),
    ],
)
def test_evaluations_without_a_better_value_are_counted(mode, values, over):
    patience, other = Patience(2, "loss", mode), Patience(2, "loss", mode)
    for value, wanted in zip(values, over, strict=True):
        patience.observe({"loss": value, "accuracy": -value})
        patience.observe({"accuracy": 3.0})
        assert patience.is_over == wanted
        other.restore(patience.to_json())
        assert other.is_over == wanted and other.to_json() == patience.to_json()


def test_without_patience_nothing_ends():
    patience = Patience(None, None, "max")
    for _ in range(9):
        patience.observe({"loss": 1.0})
    assert not patience.is_over


def test_a_training_ends_saved_and_says_why(tmp_path, capfd):
    assert_same(train(tmp_path), by_hand(END)[0])
    assert list(lines(tmp_path, "validation")) == [6, 10, 12, END]
    assert saved_steps(tmp_path)[-1] == END
    assert checkpoints.load(f"{tmp_path}#best").step == 10  # the best of those that were saved
    assert "ends before 40, with no better loss than" in capfd.readouterr().err
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert_same(train(tmp_path), by_hand(END)[0])
    assert f"ended after {END} steps of 40, with no better loss than" in capfd.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_more_patience_goes_on(tmp_path):
    train(tmp_path)
    assert_same(train(tmp_path, patience=None), by_hand(40)[0])


@pytest.mark.parametrize("stops", [(7,), (10, 17), (END,)])
def test_an_interrupted_training_ends_where_it_would_have(tmp_path, stops):
    train(tmp_path / "whole")
    for step in stops:
        with pytest.raises(Preempted):
            train(tmp_path / "it", None, signalled(step))
    assert_same(train(tmp_path / "it"), by_hand(END)[0])
    assert_same_record(tmp_path)


def test_so_does_one_that_had_no_time_for_the_evaluation_that_ends_it(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(Preempted, match=f"after step {END} of 40"):
        train(tmp_path / "it", evaluated=Evaluated(signal_at_reading=4))
    assert_same(train(tmp_path / "it"), by_hand(END)[0])
    assert_same_record(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"best_metric": None}, "PATIENCE is 3 but there is no BEST_METRIC"),
        ({"patience": 0}, "PATIENCE is 0 but counts evaluations"),
    ],
)
def test_patience_needs_something_to_wait_for(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tmp_path, **settings)
