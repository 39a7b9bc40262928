"""Sampling responses with KV caches, from one network or from a mixture of several."""

import contextlib
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
    names = sorted({name for player in players for name in player})
    with contextlib.ExitStack() as stack:
        if (mesh := sharding.active()) is not None:
            rows = jax.tree.leaves(contexts)[0].shape[0]
            read = jax.eval_shape(lambda: [model.decoding_params(params[name]) for name in names])
            weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(read))
            stack.enter_context(mesh.decoding(rows, weights).activate())
        # Once a rollout; what follows is done at every token.
        sets = {name: model.decoding_params(params[name]) for name in names}
        read_prompts = {name: constrain_batch(contexts[name]) for name in names}
        responses = _decode(model, players, sets, read_prompts, rng, max_length, temperature)
    return constrain_batch(responses)


def _decode(
    model: LanguageModel,
    players: Sequence[Player],
    params: Mapping[str, PyTree],
    contexts: Mapping[str, PyTree],
    rng: jax.Array,
    max_length: int,
    temperature: float,
) -> jax.Array:
    """`rollout` in the layout that is active, from what `decoding_params` made."""
    streams = {name: [g for g, player in enumerate(players) if name in player] for name in params}
    caches = {
        name: model.start_decoding(params[name], contexts[name], len(players_of), max_length)
        for name, players_of in streams.items()
    }
    batch = jax.tree.leaves(contexts)[0].shape[0]

    def step(state):
        position, tokens, ended, responses, caches = state
        mixed = [0.0] * len(players)
        next_caches = {}
        for name, players_of in streams.items():
            # A list of ints would be a gather; the streams of a network are known here.
            own = jnp.stack([tokens[:, g] for g in players_of], axis=1)
            logits, next_caches[name] = model.decode_step(params[name], caches[name], position, own)
            for i, g in enumerate(players_of):
                mixed[g] = mixed[g] + players[g][name] * logits[:, i]
        mixed = constrain(jnp.stack(mixed, axis=1), "batch", None, None)
        if temperature == 0:
            drawn = jnp.argmax(mixed, axis=-1)
        else:
            key = jax.random.fold_in(rng, position)
            drawn = jax.random.categorical(key, mixed / temperature, axis=-1)
        drawn = jnp.where(ended, model.tokens.pad, drawn).astype(jnp.int32)
        drawn = constrain(drawn, "batch", None)
        responses = jax.lax.dynamic_update_slice_in_dim(
            responses, drawn[:, :, None], position, axis=2
        )
        return position + 1, drawn, ended | (drawn == model.tokens.eos), responses, next_caches

    def unfinished(state):
        position, _, ended, _, _ = state
        return (position < max_length) & ~jnp.all(ended)

    batch = jax.tree.leaves(contexts)[0].shape[0]
    shape = (batch, len(players))
    start = jnp.full(shape, model.tokens.start, jnp.int32)
    empty = jnp.full((*shape, max_length), model.tokens.pad, jnp.int32)
    start, ended, empty = constrain_batch((start, jnp.zeros(shape, bool), empty))
    state = (jnp.int32(0), start, ended, empty, caches)
    return jax.lax.while_loop(unfinished, step, state)[3]


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
