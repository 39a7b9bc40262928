"""Sampling responses with KV caches, from one network or from a mixture of several."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from nlhf_jax import sharding
from nlhf_jax.models.language_model import LanguageModel, PyTree
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

    Each network runs only on the streams of the players that have a weight on it. The loop ends as
    soon as every response has ended.

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
    names = sorted(set().union(*players))
    streams = {name: [g for g, player in enumerate(players) if name in player] for name in names}
    shape = (jax.tree.leaves(contexts)[0].shape[0], len(players))

    def weights() -> dict[str, PyTree]:
        return {name: model.decoding_params(params[name]) for name in names}

    with sharding.decoding(shape[0], weights):
        sets = weights()  # Laid out for decoding once a rollout; what follows is at every token.
        reads = {name: constrain_batch(contexts[name]) for name in names}
        caches = {
            name: model.start_decoding(sets[name], reads[name], len(streams[name]), max_length)
            for name in names
        }

        def step(state):
            position, tokens, ended, responses, caches = state
            mixed, following = [0.0] * len(players), {}
            for name in names:
                # A list of ints would be a gather; the streams of a network are known here.
                own = jnp.stack([tokens[:, g] for g in streams[name]], axis=1)
                logits, following[name] = model.decode_step(sets[name], caches[name], position, own)
                for i, g in enumerate(streams[name]):
                    mixed[g] = mixed[g] + players[g][name] * logits[:, i]
            mixed = constrain(jnp.stack(mixed, axis=1), "batch", None, None)
            drawn = jnp.argmax(mixed, axis=-1)
            if temperature != 0:
                key = jax.random.fold_in(rng, position)
                drawn = jax.random.categorical(key, mixed / temperature, axis=-1)
            drawn = jnp.where(ended, model.tokens.pad, drawn).astype(jnp.int32)
            drawn = constrain(drawn, "batch", None)
            responses = jax.lax.dynamic_update_slice_in_dim(
                responses, drawn[:, :, None], position, axis=2
            )
            return position + 1, drawn, ended | (drawn == model.tokens.eos), responses, following

        def unfinished(state):
            position, _, ended, _, _ = state
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
