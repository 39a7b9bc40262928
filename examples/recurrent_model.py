"""A family of models: one GRU reads the prompt and goes on to write the response."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    vocab_size: int
    width: int


class Network(nn.Module):
    config: RecurrentConfig

    @nn.compact
    def __call__(self, state, tokens):  # [..., width] and [...] to [..., width] and [..., V]
        embedded = nn.Embed(self.config.vocab_size, self.config.width)(tokens)
        state, y = nn.GRUCell(self.config.width)(state, embedded)
        return state, nn.Dense(self.config.vocab_size)(y)


class Recurrent(LanguageModel):
    def __init__(self, config: RecurrentConfig):
        self.config, self.vocab_size = config, config.vocab_size
        self._step = lambda params, *state: Network(config).apply({"params": params}, *state)

    def init(self, rng):
        state, token = jnp.zeros((1, self.config.width)), jnp.zeros(1, int)
        return Network(self.config).init(rng, state, token)["params"]

    def description(self):
        return registry.describe(self.config)

    def encode(self, params, inputs):
        def read(state, token):
            after, _ = self._step(params, state, token)
            return jnp.where((token != self.tokens.pad)[:, None], after, state), None

        return jax.lax.scan(read, jnp.zeros((len(inputs), self.config.width)), inputs.T)[0]

    def logits(self, params, context, targets):
        shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=self.tokens.start)
        _, logits = jax.lax.scan(lambda *x: self._step(params, *x), context, shifted.T)
        return logits.swapaxes(0, 1)

    def start_decoding(self, params, context, streams, length):
        return jnp.repeat(context[:, None], streams, axis=1)

    def decode_step(self, params, cache, position, tokens):
        return self._step(params, cache, tokens)[::-1]


registry.register("recurrent", Recurrent, RecurrentConfig)
