"""The relative position bias of L^2 pairs of positions, from its values at 2 L - 1 distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models.t5_layers import by_distance, relative_position_bucket

HEADS, BUCKETS, MAX_DISTANCE = 3, 32, 128


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_expanding_distances_is_a_gather_at_every_pair_of_positions(length, bidirectional):
    rng = np.random.default_rng(0)
    table, weights = rng.normal(size=(HEADS, BUCKETS)), rng.normal(size=(HEADS, length, length))
    positions = np.arange(length, dtype=np.int32)
    relative = (positions - positions[:, None], np.arange(1 - length, length, dtype=np.int32))
    pairs, distances = (
        relative_position_bucket(x, bidirectional, BUCKETS, MAX_DISTANCE) for x in relative
    )
    found, gradient = jax.vjp(lambda table: by_distance(table[:, distances]), jnp.float32(table))
    np.testing.assert_array_equal(found, np.float32(table)[:, pairs])
    expected = np.zeros_like(table)
    np.add.at(expected, (slice(None), pairs), weights)
    np.testing.assert_allclose(gradient(jnp.float32(weights))[0], expected, rtol=1e-5, atol=1e-5)
