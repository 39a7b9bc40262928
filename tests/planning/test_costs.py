"""Closed forms against what XLA counts in programs without loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from nlhf_jax.models.t5 import T5
from nlhf_jax.planning import costs
from nlhf_jax.planning.sizes import Mesh, Sizes
from tests.planning.networks import SMALL, shapes, tokens

# n prompts of S tokens, G responses of T tokens to each.
N, S, G, T = 2, 40, 3, 24
WHOLE = Sizes.of(SMALL)
MODEL = T5(SMALL)
CLOSE = 0.05
# Its weights outweigh activations, so that they are what a token's memory traffic is.
WIDE = dataclasses.replace(SMALL, emb_dim=512, mlp_dim=1024, num_decoder_layers=1)


def counted(function, *arguments, donate=()) -> dict[str, float]:
    compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    return compiled.cost_analysis()


@functools.cache
def context():
    return jax.eval_shape(MODEL.encode, shapes(SMALL), tokens(N, S))


def decoding(config, prompts, streams, length, cache):
    """Arguments of a decode step: weights, caches, position, tokens."""
    model = T5(config)
    read = jax.eval_shape(model.encode, shapes(config), tokens(prompts, length))
    params = jax.eval_shape(model.decoding_params, shapes(config))
    start = functools.partial(model.start_decoding, streams=streams, length=cache)
    caches = jax.eval_shape(start, params, read)
    return params, caches, jax.ShapeDtypeStruct((), jnp.int32), tokens(prompts, streams)


def test_flops_of_an_encoder():
    found = counted(lambda p, x: MODEL.encode(p, x).encoded, shapes(SMALL), tokens(N, S))
    assert costs.encoder_flops(WHOLE, N, S) == pytest.approx(found["flops"], rel=CLOSE)


def test_flops_of_a_teacher_forced_decoder():
    found = counted(MODEL.logits, shapes(SMALL), context(), tokens(N, T))
    assert costs.decoder_flops(WHOLE, N, T, S) == pytest.approx(found["flops"], rel=CLOSE)


def test_flops_before_the_first_token():
    params, *_ = decoding(SMALL, N, G, S, T)
    found = counted(lambda p, c: MODEL.start_decoding(p, c, G, T), params, context())
    assert costs.cross_keys_flops(WHOLE, N, S) == pytest.approx(found["flops"], rel=CLOSE)


def test_flops_of_a_token():
    found = counted(MODEL.decode_step, *decoding(SMALL, N, G, S, T))
    assert costs.decode_step_flops(WHOLE, N * G, T, S) == pytest.approx(found["flops"], rel=CLOSE)


@pytest.mark.parametrize("remat", [False, True])
def test_flops_of_a_gradient(remat):
    model = T5(dataclasses.replace(SMALL, remat=remat))

    def loss(params, inputs, targets):
        return model.logits(params, model.encode(params, inputs), targets).sum()

    # As JAX writes the program: XLA may remove what is computed twice.
    lowered = jax.jit(jax.grad(loss)).lower(shapes(SMALL), tokens(N, S), tokens(N, T))
    wanted = costs.gradient_flops(WHOLE, N, N, T, S, remat)
    assert wanted == pytest.approx(lowered.cost_analysis()["flops"], rel=CLOSE)


def test_what_a_token_reads_of_memory():
    found = counted(T5(WIDE).decode_step, *decoding(WIDE, 1, 1, 16, 8), donate=1)
    least, most = costs.decode_step_bytes(Sizes.of(WIDE), 1, 1, 8, 16)
    assert least == pytest.approx(found["bytes accessed"], rel=CLOSE)
    assert least <= most <= (1 + CLOSE) * least


def test_a_chip_of_a_mesh_does_its_part():
    """Along `tensor` every product is cut; what does not divide is computed by all."""
    part = Sizes.of(SMALL, Mesh(1, 1, 4))
    for count in (
        lambda s: costs.encoder_flops(s, N, S),
        lambda s: costs.decoder_flops(s, N, T, S),
        lambda s: costs.decode_step_flops(s, N, T, S),
        lambda s: costs.gradient_flops(s, N, N, T, S, True),
    ):
        assert 4 * count(part) == count(WHOLE)
    assert Sizes.of(SMALL, Mesh(1, 1, 3)) == WHOLE


def test_a_product_of_one_more_row_is_as_much_again():
    for count in (costs.encoder_flops, costs.cross_keys_flops):
        assert count(WHOLE, 2 * N, S) == 2 * count(WHOLE, N, S)


def test_at_least_is_not_more_than_at_most():
    s = WHOLE
    for found in (
        costs.encoder_bytes(s, N, S),
        costs.decoder_bytes(s, N, T, S),
        costs.decode_step_bytes(s, N, G, T, S),
        costs.gradient_bytes(s, N, N, T, S, True),
        costs.gradient_bytes(s, N, N, T, S, False),
        costs.weight_bytes(10, 40, 2, 4, 3),
        costs.weight_bytes(10, 10, 4, 4, 1),
        costs.update_bytes(100, 10, 1),
    ):
        assert 0 < found.least <= found.most
