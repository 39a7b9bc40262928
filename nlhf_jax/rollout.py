"""Sampling responses with KV caches, from one network or from a mixture of several."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from nlhf_jax import sharding
from nlhf_jax.models.language_model import LanguageModel, PyTree, drawn_tokens
from nlhf_jax.models.lockstep import stacked_weights, start_networks
from nlhf_jax.opponents import POLICY, Player
from nlhf_jax.sharding import constrain, constrain_batch


def rollout(
    model: LanguageModel,
    players: Sequence[Player],
    params: Mapping[str, PyTree],
    contexts: Mapping[str, PyTree],
    rng: jax.Array,
    max_length: int,
    temperature: float = 1.0,
) -> jax.Array:
    """One response of every player to every prompt, all decoded in the same loop.

    The loop ends as soon as every response has.

    Args:
      model: the architecture that all parameter sets share.
      players: G players; each gives weights to names in `params`.
      params: parameter sets by name.
      contexts: what `model.encode` made of the prompts with each of those parameter sets.
      rng: a key; the token at position t is drawn with `fold_in(rng, t)`.
      max_length: T; a response without EOS is cut there.
      temperature: divides the mixed logits; 0 takes the most likely token.

    Returns:
      int32 `[B, G, T]`: tokens up to and including EOS, then padding.
    """
    streams = {
        k: [g for g, p in enumerate(players) if k in p] for k in sorted(set().union(*players))
    }
    shape = (jax.tree.leaves(contexts)[0].shape[0], len(players))
    weights = functools.partial(stacked_weights, model, params, streams)
    with sharding.decoding(shape[0], weights):
        caches, decode_step = start_networks(model, streams, params, contexts, max_length)

        def step(state):
            position, tokens, ended, responses, caches = state
            logits, caches = decode_step(caches, position, tokens)
            mixed = [sum(p[k] * logits[k, g] for k in p) for g, p in enumerate(players)]
            mixed = constrain(jnp.stack(mixed, axis=1), "batch", None, None)
            drawn = jnp.argmax(mixed, axis=-1)
            if temperature != 0:
                drawn = drawn_tokens(jax.random.fold_in(rng, position), mixed / temperature)
            drawn = constrain(jnp.where(ended, model.tokens.pad, drawn), "batch", None)
            responses = jax.lax.dynamic_update_index_in_dim(responses, drawn, position, axis=2)
            return position + 1, drawn, ended | (drawn == model.tokens.eos), responses, caches

        def unfinished(state):
            position, _, ended, *_ = state
            return (position < max_length) & ~jnp.all(ended)

        start = jnp.full(shape, model.tokens.start, jnp.int32)
        empty = jnp.full((*shape, max_length), model.tokens.pad, jnp.int32)
        start, ended, empty = constrain_batch((start, jnp.zeros(shape, bool), empty))
        state = (jnp.int32(0), start, ended, empty, caches)
        responses = jax.lax.while_loop(unfinished, step, state)[3]
    return constrain_batch(responses)


def sample_responses(
    model: LanguageModel,
    params: PyTree,
    inputs: jax.Array,
    rng: jax.Array,
    max_length: int,
    temperature: float = 1.0,
) -> jax.Array:
    """One response of one network to each prompt `[B, S]`: int32 `[B, T]`. See `rollout`."""
    contexts = {"policy": model.encode(params, inputs)}
    responses = rollout(model, [POLICY], {"policy": params}, contexts, rng, max_length, temperature)
    return responses[:, 0]
