"""Which tokens count, and what they score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.errors import UserError
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import (
    encode_once,
    encoded,
    logits_of_streams,
    response_mask,
    token_log_probs,
)
from tests import tiny


@pytest.mark.parametrize(
    ("response", "mask"),
    [
        ([5, 6, 1, 0, 0], [1, 1, 1, 0, 0]),
        ([1, 0, 0, 0, 0], [1, 0, 0, 0, 0]),
        ([5, 6, 7, 8, 1], [1, 1, 1, 1, 1]),
        ([5, 6, 7, 8, 9], [1, 1, 1, 1, 1]),  # no end: cut at the length
        ([5, 0, 6, 1, 0], [1, 1, 1, 1, 0]),  # padding that was sampled
        ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1]),
        ([5, 1, 6, 1, 0], [1, 1, 0, 0, 0]),  # only the first end counts
    ],
)
def test_a_response_reaches_to_its_first_end(response, mask):
    found = response_mask(jnp.asarray([response], jnp.int32), 1)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [mask])


def test_masks_keep_leading_dimensions():
    responses = jnp.asarray([[[5, 1, 0], [1, 0, 0]], [[5, 6, 7], [0, 1, 0]]])
    expected = [[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]]
    np.testing.assert_array_equal(response_mask(responses, 1), expected)


def test_token_log_probs_are_those_of_the_softmax():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 7)).astype(np.float32) * 5
    targets = rng.integers(0, 7, (3, 4))
    log_softmax = special.log_softmax(logits, axis=-1)
    expected = np.take_along_axis(log_softmax, targets[..., None], axis=-1)[..., 0]
    found = token_log_probs(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    shifted = token_log_probs(jnp.asarray(logits) + 100.0, jnp.asarray(targets))
    np.testing.assert_allclose(shifted, expected, atol=1e-4)


@pytest.mark.parametrize("network", [{}, {"scan_layers": True, "remat": True}])
def test_prompts_that_were_encoded_before_have_the_gradient_of_encoding_them(network):
    model = tiny.model(12, layers=2, **network)
    params = model.init(jax.random.key(0))
    inputs = jnp.asarray([[5, 6, 1, 0], [7, 8, 9, 1]])
    responses = jnp.asarray([[[5, 1, 0]], [[6, 7, 8]]])

    def loss(params, before):
        context = encoded(model, params, inputs, before)
        logits = logits_of_streams(model, params, context, responses)
        return jnp.sum(token_log_probs(logits[:, 0], responses[:, 0]))

    gradient = jax.jit(jax.value_and_grad(loss))
    before = jax.jit(lambda params: encode_once(model, params, inputs))(params)
    found, wanted = gradient(params, before), gradient(params, None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, wanted)
    of_encoder = jax.tree.leaves(found[1]["encoder"])
    assert all(np.any(x != 0) for x in of_encoder)


def test_a_model_is_built_again_from_its_description():
    network = tiny.model(12, layers=2, scan_layers=True, dtype="bfloat16")
    assert registry.build(network.description()).description() == network.description()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gpt"}, "the model family 'gpt' is unknown; there is t5"),
        ({"width": 3}, "the model's description does not fit T5Config: .*'width'"),
    ],
)
def test_a_description_of_another_model_is_an_error(change, message):
    with pytest.raises(UserError, match=message):
        registry.build(tiny.model(12).description() | change)
