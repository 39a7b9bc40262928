"""Attention of a single query, as the decoder's tokens are: that of two, except on a CPU."""

import re

import jax
import numpy as np
import pytest

from nlhf_jax.models.t5_layers import _attend, _attend_as_two
from tests import tiny


@pytest.fixture(scope="module")
def operands():
    """Queries `[2, 3, 1, 4]`, seven keys and values, and a bias that masks some."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 3, n, 4)).astype(np.float32) for n in (1, 7, 7))
    masked = np.where(rng.uniform(size=(2, 1, 1, 7)) < 0.5, 0.0, -1e10).astype(np.float32)
    return query, key, value, masked


def test_two_equal_queries_are_one(operands):
    found, wanted = jax.jit(_attend_as_two)(*operands), jax.jit(_attend)(*operands)
    assert found.shape == wanted.shape == (2, 3, 1, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_so_are_their_gradients(operands):
    def gradient(attend):
        return jax.jit(jax.grad(lambda *x: (attend(*x) ** 2).sum(), argnums=(0, 1, 2)))(*operands)

    for found, wanted in zip(gradient(_attend_as_two), gradient(_attend), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["nash_md", "preference"])
def test_a_step_has_them_except_on_a_cpu(kind):
    """A rollout's tokens, and the single output of a rater, which has a gradient."""
    learner = tiny.learner(kind)
    batch = learner.partitioner.place_batch(tiny.batch(kind, 0))
    traced = learner._jitted_train_step.trace(learner.init(), learner._frozen, batch)
    for platform in ("cpu", "cuda", "tpu"):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        # A CPU's products with turned weights have barriers too, around matrices.
        pairs = re.search(r"optimization_barrier .*tensor<(\d+x){4}", program)
        assert (pairs is not None) == (platform != "cpu")
