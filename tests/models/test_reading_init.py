"""Networks that begin with an eye for like tokens and for what stands before them."""

import jax
import numpy as np
import pytest

from nlhf_jax.checkpoints.arrays import flattened
from nlhf_jax.models.t5_layers import relative_position_bucket
from tests import tiny

SIZES = {"vocab_size": 200, "emb_dim": 64, "heads": 8, "layers": 2}
MODELS = {drawn: tiny.model(**SIZES, reading_init=drawn) for drawn in (True, False)}
CONFIG = MODELS[False].config


@pytest.fixture(scope="module")
def params():
    """Drawn so or not -> parameters, of the same key."""
    key = jax.random.key(0)
    return {drawn: jax.device_get(jax.jit(model.init)(key)) for drawn, model in MODELS.items()}


def test_what_is_not_spoken_of_is_as_random_as_ever(params):
    mine, plain = flattened(params[True]), flattened(params[False])
    assert mine.keys() == plain.keys()
    changed = {name for name in mine if not np.array_equal(mine[name], plain[name])}
    assert {name.rsplit("/", 2)[-2] for name in changed} == {
        "key", "value", "out", "wo", "relpos_bias",
    }  # fmt: skip
    for name in changed:
        if "/key/" in name:
            query = plain[name.replace("/key/", "/query/")]
            np.testing.assert_allclose(mine[name], query * CONFIG.head_dim**0.5, rtol=1e-6)
            np.testing.assert_allclose(mine[name].std(), plain[name].std(), rtol=0.05)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bucket_of_the_token_before_is_its_own(bidirectional):
    places = np.arange(-20, 21)
    table = relative_position_bucket(places, bidirectional, 32, 128)
    assert places[table == 1].tolist() == [-1]


def attention_logits(drawn, params, texts, responses):
    """Of the decoder's first layer on the text: `[B, T, S]`, the mean over heads."""
    model = MODELS[drawn]

    def seen(module, name):
        return module.name in ("query", "key") and "encoder_decoder_attention" in module.path

    _, found = model._network.apply(
        {"params": params[drawn]},
        texts,
        responses,
        capture_intermediates=seen,
        mutable=["intermediates"],
    )
    layer = found["intermediates"]["decoder"]["layers_0"]["encoder_decoder_attention"]
    query, key = (np.asarray(layer[name]["__call__"][0]) for name in ("query", "key"))
    return np.einsum("bte,bse->bts", query, key) / CONFIG.num_heads


@pytest.mark.parametrize("drawn", [True, False])
def test_a_token_is_found_where_it_stands_and_most_where_it_follows_the_same(drawn, params):
    """A text in which a token stands three times: after the one that it follows in the response,
    and after two others."""
    rng = np.random.default_rng(0)
    texts = 5 + np.stack([rng.permutation(190)[:30] for _ in range(64)])
    responses = 5 + rng.integers(0, 190, (64, 6))
    token, before = texts[:, 4], texts[:, 3]
    texts[:, [14, 24]] = token[:, None]
    responses[:, 2], responses[:, 3] = before, token
    # The decoder reads a response one place later, after its start.
    logits = attention_logits(drawn, params, texts, responses)[:, 4]
    there, elsewhere = logits[:, 4], logits[:, [14, 24]]
    others = np.delete(logits, [4, 14, 24], axis=1)
    found = np.mean(np.minimum(there, elsewhere.min(axis=1)) > others.max(axis=1))
    most = np.mean(there > elsewhere.max(axis=1))
    assert (found > 0.5, most > 0.6) == (drawn, drawn), (found, most)


def test_a_checkpoint_says_nothing_of_it():
    assert MODELS[True].description() == MODELS[False].description()
