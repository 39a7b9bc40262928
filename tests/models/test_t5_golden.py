"""Parity with the real T5X: numbers and weights in `shared/golden`, written by T5X itself."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.checkpoints.arrays import nested, read_all
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.models.language_model import response_mask, token_log_probs
from nlhf_jax.models.t5 import T5, stack_layers, unstack_layers
from nlhf_jax.models.t5_layers import T5Config, relative_position_bucket
from nlhf_jax.rollout import sample_responses
from tests.paths import golden_directory

TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=["t5x_tiny", "t5x_tiny_v1_0"])
def golden(request):
    directory = golden_directory() / request.param
    settings = json.loads((directory / "model_config.json").read_text())
    fields = set(T5Config.__dataclass_fields__)
    model = T5(T5Config(**{k: v for k, v in settings.items() if k in fields}))
    return model, _params(directory), dict(np.load(directory / "golden.npz"))


def _params(directory: Path) -> dict:
    """As T5X restored them; as we read them where nobody has written that down (T5 1.0)."""
    restored = directory / "train_state_flat.npz"
    if not restored.exists():
        return read_all(open_checkpoint(str(directory / "native")).params)
    state = np.load(restored)
    names = [name for name in state.files if name.startswith("target/")]
    return nested({name.removeprefix("target/"): state[name] for name in names})


def test_parameter_tree_has_the_names_and_shapes_of_t5x(golden):
    model, params, _ = golden
    ours = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, ours) == jax.tree.map(lambda x: x.shape, params)


def test_every_parameter_has_logical_axis_names(golden):
    model, params, _ = golden
    axes = model.logical_axes()
    jax.tree.map(lambda x, names: np.testing.assert_equal(x.ndim, len(names)), params, axes)


@pytest.mark.parametrize("scanned", [False, True])
def test_encoder_logits_and_token_scores(golden, scanned):
    model, params, numbers = golden
    if scanned:
        model = T5(T5Config(**{**model.config.__dict__, "scan_layers": True}))
        params = stack_layers(params)
    inputs, targets = numbers["encoder_input_tokens"], numbers["decoder_target_tokens"]

    @jax.jit
    def run(params):
        context = model.encode(params, inputs)
        return context.encoded, model.logits(params, context, targets)

    encoded, logits = run(params)
    real_inputs, real_targets = inputs > 0, targets > 0
    np.testing.assert_allclose(
        encoded[real_inputs], numbers["encoder_output"][real_inputs], atol=TOLERANCE
    )
    np.testing.assert_allclose(
        logits[real_targets], numbers["logits"][real_targets], atol=TOLERANCE
    )
    scores = token_log_probs(logits, jnp.asarray(targets))
    np.testing.assert_allclose(
        scores[real_targets], numbers["token_log_probs"][real_targets], atol=TOLERANCE
    )
    np.testing.assert_allclose(
        np.sum(scores * response_mask(jnp.asarray(targets), 1), axis=-1),
        numbers["score_batch_sequence_scores"],
        atol=1e-4,  # a sum of up to ten token scores
    )


def test_long_inputs_reach_the_logarithmic_buckets(golden):
    model, params, numbers = golden
    inputs, targets = numbers["long_encoder_input_tokens"], numbers["long_decoder_target_tokens"]
    context = model.encode(params, inputs)
    real = inputs > 0
    np.testing.assert_allclose(
        context.encoded[real], numbers["long_encoder_output"][real], atol=TOLERANCE
    )
    scores = token_log_probs(model.logits(params, context, targets), jnp.asarray(targets))
    real = targets > 0
    np.testing.assert_allclose(scores[real], numbers["long_token_log_probs"][real], atol=TOLERANCE)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_relative_position_buckets(golden, bidirectional):
    _, _, numbers = golden
    name = "relpos_bucket_bidirectional" if bidirectional else "relpos_bucket_causal"
    buckets = relative_position_bucket(numbers["relpos"], bidirectional, 32, 128)
    np.testing.assert_array_equal(buckets, numbers[name])


def _cached_logits(model, params, inputs, decoder_inputs):
    decoding = model.decoding_params(params)
    cache = model.start_decoding(
        decoding, model.encode(params, inputs), streams=1, length=decoder_inputs.shape[1]
    )

    def step(cache, position_tokens):
        position, tokens = position_tokens
        logits, cache = model.decode_step(decoding, cache, position, tokens[:, None])
        return cache, logits[:, 0]

    positions = jnp.arange(decoder_inputs.shape[1])
    return jax.lax.scan(step, cache, (positions, decoder_inputs.T))[1].swapaxes(0, 1)


@pytest.mark.parametrize("scanned", [False, True])
def test_cached_decoding_gives_t5x_and_teacher_forced_logits(golden, scanned):
    model, params, numbers = golden
    if scanned:
        model = T5(T5Config(**{**model.config.__dict__, "scan_layers": True}))
        params = stack_layers(params)
    inputs, targets = numbers["encoder_input_tokens"], numbers["decoder_target_tokens"]
    cached = _cached_logits(model, params, inputs, numbers["decoder_input_tokens"])
    np.testing.assert_allclose(cached, numbers["cached_logits"], atol=TOLERANCE)
    forced = model.logits(params, model.encode(params, inputs), targets)
    real = targets > 0
    np.testing.assert_allclose(cached[real], forced[real], atol=TOLERANCE)


def test_greedy_decodes_are_those_of_t5x(golden):
    model, params, numbers = golden
    length = numbers["greedy_decodes"].shape[1]
    decodes = sample_responses(
        model, params, numbers["encoder_input_tokens"], jax.random.key(0), length, temperature=0.0
    )
    np.testing.assert_array_equal(decodes, numbers["greedy_decodes"])


def test_stacking_layers_and_back_changes_nothing(golden):
    _, params, _ = golden
    back = unstack_layers(stack_layers(params))
    jax.tree.map(np.testing.assert_array_equal, dict(back), params)
