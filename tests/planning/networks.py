"""A T5 whose matrix products outweigh the rest, as those of published sizes do."""

import functools

import jax
import jax.numpy as jnp

from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config

SMALL = T5Config(
    vocab_size=1024,
    emb_dim=256,
    num_heads=4,
    head_dim=64,
    mlp_dim=512,
    num_encoder_layers=1,
    num_decoder_layers=2,
)


@functools.cache
def shapes(config: T5Config):
    return jax.eval_shape(T5(config).init, jax.random.key(0))


def tokens(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
