"""Heads that begin by asking for what is like the asking token."""

import jax
import numpy as np
import pytest

from nlhf_jax.checkpoints.arrays import flattened
from tests import tiny

SIZES = {"vocab_size": 200, "emb_dim": 64, "heads": 8, "layers": 2}
PLAIN = tiny.model(**SIZES)


@pytest.fixture(scope="module")
def drawn():
    """Alike or not -> parameters, of the same key."""
    models = {alike: tiny.model(**SIZES, alike_init=alike) for alike in (True, False)}
    return {
        alike: flattened(jax.device_get(jax.jit(model.init)(jax.random.key(0))))
        for alike, model in models.items()
    }


def test_keys_are_queries_at_their_own_size_and_nothing_else_changes(drawn):
    alike, plain = drawn[True], drawn[False]
    assert alike.keys() == plain.keys()
    keys = [name for name in alike if name.endswith("/key/kernel")]
    assert len(keys) == 2 + 2 * 2  # an attention in each encoder layer, two in each decoder layer
    for name, array in alike.items():
        if name in keys:
            query = plain[name.replace("/key/", "/query/")]
            np.testing.assert_allclose(array, query * PLAIN.config.head_dim**0.5, rtol=1e-6)
            np.testing.assert_allclose(array.std(), plain[name].std(), rtol=0.05)
        else:
            np.testing.assert_array_equal(array, plain[name])


@pytest.mark.parametrize("alike", [True, False])
def test_a_token_attends_to_itself_most_often(drawn, alike):
    """Of all tokens, in most heads of a layer, by the logits of embeddings alone."""
    params, config = drawn[alike], PLAIN.config
    tokens = params["token_embedder/embedding"]
    tokens = tokens / np.sqrt(np.mean(tokens**2, axis=-1, keepdims=True))
    query, key = (
        (tokens @ params[f"encoder/layers_0/attention/{name}/kernel"]).reshape(
            len(tokens), config.num_heads, config.head_dim
        )
        for name in ("query", "key")
    )
    logits = np.einsum("qhd,khd->hqk", query, key)
    own = np.diagonal(logits, axis1=1, axis2=2)
    # The square of a query's size, 1 on average, at the size of keys.
    wanted = config.head_dim**0.5 if alike else 0.0
    assert abs(own.mean() - wanted) < 0.2 * config.head_dim**0.5
    itself = np.mean(logits.sum(0).argmax(-1) == np.arange(len(tokens)))
    assert itself > 0.9 if alike else itself < 0.1


def test_a_checkpoint_says_nothing_of_it():
    assert tiny.model(**SIZES, alike_init=True).description() == PLAIN.description()
