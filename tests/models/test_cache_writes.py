"""A cache is written at one position, under `vmap` over anything too."""

import itertools

import jax
import numpy as np
import pytest

from nlhf_jax.models.t5_layers import _write


@pytest.mark.parametrize("batched", [b for b in itertools.product([0, None], repeat=3) if 0 in b])
def test_under_vmap_each_is_written_as_it_would_be_alone(batched):
    rng = np.random.default_rng(0)
    operands = rng.normal(size=(4, 2, 5, 3)), rng.normal(size=(4, 2, 1, 3)), np.array([3, 0, 4, 1])
    given = [x if axis == 0 else x[0] for x, axis in zip(operands, batched, strict=True)]
    found = jax.jit(jax.vmap(_write, batched))(*given)
    for i in range(4):
        cache, new, position = (
            x[i] if axis == 0 else x for x, axis in zip(given, batched, strict=True)
        )
        wanted = cache.astype(np.float32)
        wanted[:, position] = new[:, 0]
        np.testing.assert_array_equal(found[i], wanted)
