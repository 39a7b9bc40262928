"""Raters: networks that turn a prompt and sampled responses into a number, on the device; scorers.

The rater reads a template: token segments, some fixed (instruction, labels) and some filled with
the text and the summaries, packed left without padding between them. The data pipeline packs the
same segments in the same way on the host, so a rater trained on text judges sampled tokens.

A scorer is what an objective learns from: it says what a rater, or a function of your own, measures
of responses, and which part of that is an advantage.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.models.language_model import LanguageModel, PyTree, SpecialTokens

# A segment is either fixed token ids or the name of what fills it: "text", "first", "second".
Template = Sequence[Sequence[int] | str]

_PREFERENCE_SLOTS = ("text", "first", "second")
_REWARD_SLOTS = ("text", "first")


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

    def logit(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> jax.Array:
        """log(P / (1 - P)), float32 `[B]`, from token arrays `[B, S]`, `[B, T]`, `[B, T]`."""
        slots = {"text": text, "first": first, "second": second}
        inputs = pack(self.template, slots, self.model.tokens)
        logits = _first_logits(self.model, params, inputs)
        return logits[:, self.labels[0]] - logits[:, self.labels[1]]

    def both_orders(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The logits of P(first > second) and of P(second > first), `[B]` each, in one pass."""
        logits = self.logit(
            params, interleave(text, text), interleave(first, second), interleave(second, first)
        )
        forward, backward = logits.reshape(-1, 2).T
        return forward, backward

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
        inputs = pack(self.template, {"text": text, "first": response}, self.model.tokens)
        return _first_logits(self.model, params, inputs)[:, -1]


def _first_logits(model: LanguageModel, params: PyTree, inputs: jax.Array) -> jax.Array:
    target = jnp.zeros((inputs.shape[0], 1), jnp.int32)  # teacher forcing looks at none of it
    return model.logits(params, model.encode(params, inputs), target)[:, 0]


def _check_slots(template: Template, wanted: tuple[str, ...]) -> None:
    found = tuple(segment for segment in template if isinstance(segment, str))
    if sorted(found) != sorted(wanted):
        raise ValueError(f"the template has the slots {found}, a rater of this kind fills {wanted}")


# --- scorers -------------------------------------------------------------------------------------


class Scorer(Protocol):
    """What an objective learns from; a rater, or a function of your own.

    One that also has `score_and_more`, which returns the scores and a dict of float32 `[B]`, has
    the means of those among the metrics of a step.

    Each row is scored for itself: with MICROBATCHES the rows of a batch come in several calls.

    Attributes:
      measures: what the scores are, the name of their metric: "preference", "reward", ...
      pairwise: whether a score compares y with a second response.
    """

    measures: str
    pairwise: bool

    def score(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        """What is measured, float32 `[B]`: if pairwise a preference P(y > other) in [0, 1].

        `text` is `[B, S]`, the responses `[B, T]`; `other` is None where nobody wrote a second one.
        """

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        """Scores less a baseline that does not depend on a row's own y, `[B]` to `[B]`."""

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        """Probability that y is preferred to the other response, float32 `[B]`; for evaluation."""


def score_and_more(
    scorer: Scorer, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A scorer's `score`, and what else it has to say of the rows by its own `score_and_more`."""
    if hasattr(scorer, "score_and_more"):
        return scorer.score_and_more(params, text, y, other)
    return scorer.score(params, text, y, other), {}


@dataclasses.dataclass(frozen=True)
class PreferenceScorer:
    """P(y > y' | x) by a preference model, less the paper's control variate 1/2."""

    rater: PreferenceModel
    both_orders: bool
    measures = "preference"
    pairwise = True

    def score(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        return self.score_and_more(params, text, y, other)[0]

    def score_and_more(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`score`, and by how much y is preferred more where the rater reads it first."""
        assert other is not None  # objectives see to it that pairwise scorers get pairs
        if not self.both_orders:
            return jax.nn.sigmoid(self.rater.logit(params, text, y, other)), {}
        forward, backward = self.rater.both_orders(params, text, y, other)
        first, second = jax.nn.sigmoid(forward), jax.nn.sigmoid(-backward)
        return (first + second) / 2, {"order_bias": first - second}

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return losses.centred_preference(scores, row_weights)

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        return self.rater.probability(params, text, y, other, both_orders=True)


@dataclasses.dataclass(frozen=True)
class RewardScorer:
    """The reward of y by a reward model, less the mean reward of the batch's other rows."""

    rater: RewardModel
    measures = "reward"
    pairwise = False

    def score(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        return self.rater.reward(params, text, y)

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return losses.leave_one_out(scores, row_weights)

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        return jax.nn.sigmoid(
            self.rater.reward(params, text, y) - self.rater.reward(params, text, other)
        )
