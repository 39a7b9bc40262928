"""A training step is one program: compiled once, on the device only, in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny

# Self-play and best response are Nash-MD's program with other players. EGPO has two passes.
KINDS = ("supervised", "preference", "nash_ema", "egpo")
LONG = ("reward", "nash_md", "rlhf", "ipo_md", "comal", "mnpo", "sppo")


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(k, marks=pytest.mark.long) for k in LONG)])
def test_a_step_compiles_once_stays_on_the_device_and_donates_its_state(kind):
    learner = tiny.learner(kind)
    batches = [learner.partitioner.place_batch(tiny.batch(kind, i)) for i in range(4)]
    state = learner.init()
    with jax.transfer_guard("disallow"):
        for batch in batches[:2]:
            previous = state
            state, metrics = learner.train_step(state, batch)
            # Arrays of one element are Adafactor's placeholders, which a step never reads.
            assert all(x.is_deleted() for x in jax.tree.leaves(previous) if x.size > 1)
    _assert_float32_scalars(metrics)
    assert state.step == 2

    # As after a restart: the same numbers, placed from the host.
    where = jax.tree.map(lambda x: x.sharding, learner.abstract_state())
    state = learner.partitioner.place(jax.device_get(state), where)
    with jax.transfer_guard("disallow"):
        for batch in batches[2:]:
            state, metrics = learner.train_step(state, batch)
    assert state.step == 4
    assert learner.compilations() == 1


@pytest.mark.parametrize("kind", ["supervised", "nash_ema"])
def test_the_abstract_state_is_that_of_the_first_state(kind):
    learner = tiny.learner(kind)
    abstract, state = learner.abstract_state(), learner.init()

    def assert_same(wanted, array):
        assert (wanted.shape, wanted.dtype) == (array.shape, array.dtype)
        assert wanted.sharding.is_equivalent_to(array.sharding, array.ndim)

    jax.tree.map(assert_same, abstract, state)


def test_no_array_of_the_state_shares_memory_with_another_or_with_the_reference():
    """A donated buffer is written over."""
    for dtype in ("float32", "bfloat16"):
        learner = tiny.learner("nash_ema", start_at_reference=True, frozen_dtype=dtype)
        state = learner.init()
        arrays = jax.tree.leaves([state.params, state.kept, learner._frozen["reference"]])
        assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)


def _assert_float32_scalars(metrics):
    assert "loss" in metrics
    for name, value in metrics.items():
        assert (value.shape, value.dtype) == ((), jnp.float32), name
        assert np.isfinite(value), name
