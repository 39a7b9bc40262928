"""Several networks of one architecture that decode in lock step: the players of a rollout."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from nlhf_jax import sharding
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.sharding import constrain_batch

# After the tokens `[B, G]` at a position, from caches: logits `[B, V]` of the next token for each
# network and each stream that a player with a weight on it has, and caches.
Logits = Mapping[tuple[str, int], jax.Array]
DecodeStep = Callable[[PyTree, jax.Array, jax.Array], tuple[Logits, PyTree]]


def start_networks(
    model: LanguageModel,
    streams: Mapping[str, list[int]],
    params: Mapping[str, PyTree],
    contexts: Mapping[str, PyTree],
    max_length: int,
) -> tuple[PyTree, DecodeStep]:
    """Caches of all networks, and the step that they take for a token.

    Args:
      model: the architecture that they share.
      streams: name of each network -> which of a prompt's G streams of tokens it reads.
      params, contexts: by the same names; a context is what `model.encode` made of the prompts.
      max_length: most tokens of a stream.
    """
    how = _apart if sharding.alone_on_cpu() else _together
    return how(model, streams, params, contexts, max_length)


def _together(
    model: LanguageModel,
    streams: Mapping[str, list[int]],
    params: Mapping[str, PyTree],
    contexts: Mapping[str, PyTree],
    max_length: int,
) -> tuple[PyTree, DecodeStep]:
    """All networks take a step as one batched over them, so that a collective serves all.

    Each runs on its streams, filled up to as many as the busiest has.
    """
    width = max(len(own) for own in streams.values())
    count = 1 + max(g for own in streams.values() for g in own)
    seats = {
        name: [*own, *(g for g in range(count) if g not in own)][:width]
        for name, own in streams.items()
    }
    # Laid out for decoding once a rollout; what follows is at every token.
    sets = stacked_weights(model, params, streams)
    reads = _stack([constrain_batch(contexts[name]) for name in streams])
    caches = jax.vmap(lambda p, c: model.start_decoding(p, c, width, max_length))(sets, reads)
    decode_step = jax.vmap(model.decode_step, in_axes=(0, 0, None, 0))

    def step(caches, position, tokens):
        # A list of ints would be a gather.
        own = _stack([_of_streams(tokens, seats[name]) for name in streams])
        logits, caches = decode_step(sets, caches, position, own)
        found = {
            (name, g): logits[i, :, seats[name].index(g)]
            for i, name in enumerate(streams)
            for g in streams[name]
        }
        return found, caches

    return caches, step


def _apart(
    model: LanguageModel,
    streams: Mapping[str, list[int]],
    params: Mapping[str, PyTree],
    contexts: Mapping[str, PyTree],
    max_length: int,
) -> tuple[PyTree, DecodeStep]:
    """Each network takes a step by itself, on its own streams alone; two run at the same time.

    On a CPU, which is slow at products that are batched over networks.
    """
    sets = {name: model.decoding_params(params[name]) for name in streams}
    caches = {
        name: model.start_decoding(sets[name], contexts[name], len(own), max_length)
        for name, own in streams.items()
    }

    def step(caches, position, tokens):
        found, after = {}, {}
        for name, own in streams.items():
            asked = _of_streams(tokens, own)
            logits, after[name] = model.decode_step(sets[name], caches[name], position, asked)
            found |= {(name, g): logits[:, i] for i, g in enumerate(own)}
        return found, after

    return caches, step


def stacked_weights(
    model: LanguageModel, params: Mapping[str, PyTree], names: Iterable[str]
) -> PyTree:
    """Of several networks for `_together`: in this order nothing is gathered and then copied."""
    return jax.vmap(model.decoding_params)(_stack([params[name] for name in names]))


def _of_streams(tokens: jax.Array, own: Sequence[int]) -> jax.Array:
    return jnp.stack([tokens[:, g] for g in own], axis=1)


def _stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of arrays of the same shapes as one, with a leading axis for them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
