"""Raters: networks that turn a prompt and sampled responses into a number, on the device.

The rater reads a template: token segments, some fixed (instruction, labels) and some filled with
the text and the summaries, packed left without padding between them. The data pipeline packs the
same segments in the same way on the host, so a rater trained on text judges sampled tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax.models.language_model import EOS, PAD, LanguageModel, PyTree

# A segment is either fixed token ids or the name of what fills it: "text", "first", "second".
Template = Sequence[Sequence[int] | str]

_PREFERENCE_SLOTS = ("text", "first", "second")
_REWARD_SLOTS = ("text", "first")


def pack(template: Template, slots: Mapping[str, jax.Array]) -> jax.Array:
    """Fills a template and closes the gaps: int32 `[B, sum of segment lengths + 1]`.

    Padding and EOS inside the slots are dropped; one EOS closes the whole.

    Args:
      template: fixed segments (token ids) and names of slots.
      slots: int32 `[B, L]` for every name, padded with 0 anywhere.
    """
    batch = next(iter(slots.values())).shape[0]
    segments = [
        slots[segment]
        if isinstance(segment, str)
        else jnp.broadcast_to(jnp.asarray(segment, jnp.int32), (batch, len(segment)))
        for segment in template
    ]
    tokens = jnp.concatenate(segments, axis=1)
    kept = (tokens != PAD) & (tokens != EOS)
    order = jnp.argsort(~kept, axis=1, stable=True)
    packed = jnp.take_along_axis(jnp.where(kept, tokens, PAD), order, axis=1)
    packed = jnp.pad(packed, ((0, 0), (0, 1)))
    end = jnp.sum(kept, axis=1, keepdims=True)
    return jnp.where(jnp.arange(packed.shape[1]) == end, EOS, packed)


def interleave(one: jax.Array, other: jax.Array) -> jax.Array:
    """The rows of two `[B, L]` arrays in turn, `[2 B, L]`.

    Unlike those of a concatenation, the two rows of an example stay on the device that has it.
    """
    return jnp.stack([one, other], axis=1).reshape(2 * one.shape[0], -1)


@dataclasses.dataclass(frozen=True)
class PreferenceModel:
    """P(first > second | text) as a network answers it (Munos et al. 2024, sec. 3.3 and app. E).

    A text-to-text network reads the template and answers "1" or "2"; P is the two-way softmax of
    those two logits at its first output. No Bradley-Terry assumption: P may be intransitive.
    """

    model: LanguageModel
    template: Template
    labels: tuple[int, int]  # token ids of the answers "1" and "2"

    def __post_init__(self):
        _check_slots(self.template, _PREFERENCE_SLOTS)

    def description(self) -> dict[str, Any]:
        return {"template": list(self.template), "labels": list(self.labels)}

    def logit(self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array):
        """log(P / (1 - P)), float32 `[B]`, from token arrays `[B, S]`, `[B, T]`, `[B, T]`."""
        inputs = pack(self.template, {"text": text, "first": first, "second": second})
        logits = _first_logits(self.model, params, inputs)
        return logits[:, self.labels[0]] - logits[:, self.labels[1]]

    def both_orders(self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array):
        """The logits of P(first > second) and of P(second > first), `[B]` each, in one pass."""
        logits = self.logit(
            params, interleave(text, text), interleave(first, second), interleave(second, first)
        )
        return tuple(logits.reshape(-1, 2).T)

    def probability(
        self,
        params: PyTree,
        text: jax.Array,
        first: jax.Array,
        second: jax.Array,
        both_orders: bool = True,
    ) -> jax.Array:
        """P(first > second | text) in [0, 1], float32 `[B]`.

        Args:
          params: the rater's parameters.
          text: `[B, S]`.
          first: `[B, T]`.
          second: `[B, T]`.
          both_orders: average `P(y, y')` with `1 - P(y', y)`, which makes the answer exactly
            antisymmetric; otherwise ask once, in the order given, at half the cost.
        """
        if not both_orders:
            return jax.nn.sigmoid(self.logit(params, text, first, second))
        forward, backward = self.both_orders(params, text, first, second)
        return (jax.nn.sigmoid(forward) + jax.nn.sigmoid(-backward)) / 2


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """r(text, response): the network's last logit at its first output (ibid., app. E)."""

    model: LanguageModel
    template: Template

    def __post_init__(self):
        _check_slots(self.template, _REWARD_SLOTS)

    def description(self) -> dict[str, Any]:
        return {"template": list(self.template)}

    def reward(self, params: PyTree, text: jax.Array, response: jax.Array) -> jax.Array:
        """Float32 `[B]`, from `[B, S]` and `[B, T]`; only differences on a text mean something."""
        inputs = pack(self.template, {"text": text, "first": response})
        return _first_logits(self.model, params, inputs)[:, -1]


def _first_logits(model: LanguageModel, params: PyTree, inputs: jax.Array) -> jax.Array:
    target = jnp.zeros((inputs.shape[0], 1), jnp.int32)  # teacher forcing looks at none of it
    return model.logits(params, model.encode(params, inputs), target)[:, 0]


def _check_slots(template: Template, wanted: tuple[str, ...]) -> None:
    found = tuple(segment for segment in template if isinstance(segment, str))
    if sorted(found) != sorted(wanted):
        raise ValueError(f"the template has the slots {found}, a rater of this kind fills {wanted}")
