"""An update that is not finite is none: nothing but the step changes, whatever a learner keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny


def copied(tree):
    return jax.tree.map(np.array, jax.device_get(tree))


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, copied(left), copied(right))


def spoil(learner, batch):
    """A batch, or what is frozen, with a NaN in it; and how to take it out again."""
    if learner.kind == "preference":
        batch["vote_share"][3] = np.nan
        return lambda: batch["vote_share"].__setitem__(3, 0.75)
    good = learner._frozen["scorer"]
    learner._frozen["scorer"] = jax.tree.map(lambda x: x * jnp.float32(jnp.nan), good)
    return lambda: learner._frozen.update(scorer=good)


@pytest.mark.parametrize("kind", ["preference", "nash_ema"])
def test_a_step_without_a_finite_gradient_changes_the_step_alone(kind):
    learner = tiny.learner(kind)
    place = learner.partitioner.place_batch
    state, metrics = learner.train_step(learner.init(), place(tiny.batch(kind, 0)))
    assert metrics["skipped"] == 0
    before, batch = copied(state), tiny.batch(kind, 1)
    mend = spoil(learner, batch)
    state, metrics = learner.train_step(state, place(batch))
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    assert_same(state, before.replace(step=before.step + 1))
    # Where it went on is where it would be without that batch.
    mend()
    by_hand = jax.device_put(before.replace(step=before.step + 1), learner._factory.sharding)
    after, metrics = learner.train_step(state, place(batch))
    assert metrics["skipped"] == 0
    assert_same(after, learner.train_step(by_hand, place(batch))[0])
    assert float(np.abs(jax.tree.leaves(copied(after.params))[0]).sum()) != float(
        np.abs(jax.tree.leaves(before.params)[0]).sum()
    )
    assert learner.compilations() == 1
