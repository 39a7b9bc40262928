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

    All networks take a step together, as one batched over them, so that a collective serves all.
    Each runs on the streams of the players that have a weight on it, filled up to as many as the
    busiest has. The loop ends as soon as every response has.

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
    shape = (jax.tree.leaves(contexts)[0].shape[0], len(players))
    width = max(sum(name in player for player in players) for name in names)
    seats = {k: sorted(range(shape[1]), key=lambda g: k not in players[g])[:width] for k in names}

    def weights() -> PyTree:  # in this order nothing is gathered first and then copied
        return jax.vmap(model.decoding_params)(_stack([params[name] for name in names]))

    with sharding.decoding(shape[0], weights):
        sets = weights()  # Laid out for decoding once a rollout; what follows is at every token.
        reads = _stack([constrain_batch(contexts[name]) for name in names])
        caches = jax.vmap(lambda p, c: model.start_decoding(p, c, width, max_length))(sets, reads)
        decode_step = jax.vmap(model.decode_step, in_axes=(0, 0, None, 0))

        def step(state):
            position, tokens, ended, responses, caches = state
            # A list of ints would be a gather.
            own = _stack([jnp.stack([tokens[:, g] for g in seats[name]], axis=1) for name in names])
            logits, caches = decode_step(sets, caches, position, own)
            mixed = [
                sum(player[k] * logits[names.index(k), :, seats[k].index(g)] for k in player)
                for g, player in enumerate(players)
            ]
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
            return position + 1, drawn, ended | (drawn == model.tokens.eos), responses, caches

        def unfinished(state):
            position, _, ended, _, _ = state
            return (position < max_length) & ~jnp.all(ended)

        start = jnp.full(shape, model.tokens.start, jnp.int32)
        empty = jnp.full((*shape, max_length), model.tokens.pad, jnp.int32)
        start, ended, empty = constrain_batch((start, jnp.zeros(shape, bool), empty))
        state = (jnp.int32(0), start, ended, empty, caches)
        responses = jax.lax.while_loop(unfinished, step, state)[3]
    return constrain_batch(responses)


def _stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of arrays of the same shapes as one, with a leading axis for them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


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
