"""What raters read: a template of token segments, packed on the device.

Some segments are fixed (instruction, labels) and some are filled with the text and the summaries;
all are packed left without padding between them. The data pipeline packs the same segments in the
same way on the host, so a rater trained on text judges sampled tokens.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from nlhf_jax.models.language_model import LanguageModel, PyTree, SpecialTokens

# A segment is either fixed token ids or the name of what fills it: "text", "first", "second".
Template = Sequence[Sequence[int] | str]

PAIR_SLOTS = ("text", "first", "second")
REWARD_SLOTS = ("text", "first")


def pack(template: Template, slots: Mapping[str, jax.Array], special: SpecialTokens) -> jax.Array:
    """Fills a template and closes the gaps: int32 `[B, sum of segment lengths + 1]`.

    Padding and EOS inside the slots are dropped; one EOS closes the whole.

    Args:
      template: fixed segments (token ids) and names of slots.
      slots: int32 `[B, L]` for every name, with padding anywhere.
      special: the model's.
    """
    batch = next(iter(slots.values())).shape[0]
    segments = [
        slots[segment]
        if isinstance(segment, str)
        else jnp.broadcast_to(jnp.asarray(segment, jnp.int32), (batch, len(segment)))
        for segment in template
    ]
    tokens = jnp.concatenate(segments, axis=1)
    kept = (tokens != special.pad) & (tokens != special.eos)
    order = jnp.argsort(~kept, axis=1, stable=True)
    packed = jnp.take_along_axis(jnp.where(kept, tokens, special.pad), order, axis=1)
    packed = jnp.pad(packed, ((0, 0), (0, 1)), constant_values=special.pad)
    end = jnp.sum(kept, axis=1, keepdims=True)
    return jnp.where(jnp.arange(packed.shape[1]) == end, special.eos, packed)


def interleave(one: jax.Array, other: jax.Array) -> jax.Array:
    """The rows of two `[B, L]` arrays in turn, `[2 B, L]`.

    Unlike those of a concatenation, the two rows of an example stay on the device that has it.
    """
    return jnp.stack([one, other], axis=1).reshape(2 * one.shape[0], -1)


def first_logits(model: LanguageModel, params: PyTree, inputs: jax.Array) -> jax.Array:
    """Logits `[B, V]` of the first token that the network writes after reading `[B, L]`."""
    target = jnp.zeros((inputs.shape[0], 1), jnp.int32)  # teacher forcing looks at none of it
    return model.logits(params, model.encode(params, inputs), target)[:, 0]


def check_slots(template: Template, wanted: tuple[str, ...]) -> None:
    """Raises ValueError unless the template has each of the slots once."""
    found = tuple(segment for segment in template if isinstance(segment, str))
    if sorted(found) != sorted(wanted):
        raise ValueError(f"the template has the slots {found}, a rater of this kind fills {wanted}")
