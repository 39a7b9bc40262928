"""Scorers: what an objective learns from.

A scorer says what a rater, or a function of your own, measures of responses, and which part of that
is an advantage.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.errors import UserError
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.raters.rater import Rater


class Scorer(Protocol):
    """What an objective learns from; a rater, or a function of your own.

    One that also has `score_and_more`, which returns the scores and a dict of float32 `[B]`, has
    the means of those among the metrics of a step.

    Each row is scored for itself: with MICROBATCHES the rows of a batch come in several calls.

    Attributes:
      measures: what the scores are, the name of their metric: "preference", "reward", ...
      pairwise: whether a score compares y with a second response.
    """

    @property
    def measures(self) -> str: ...

    @property
    def pairwise(self) -> bool: ...

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


def score_against(
    scorer: Scorer, params: PyTree, text: jax.Array, y: jax.Array, others: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`score_and_more` of y against K responses `[B, K, T]`, in the mean."""
    if hasattr(scorer, "score_against"):
        return scorer.score_against(params, text, y, others)
    count = others.shape[1]
    # A row's K questions are neighbours, so they stay on the device that has it.
    text, y = (jnp.repeat(rows, count, axis=0) for rows in (text, y))
    found = score_and_more(scorer, params, text, y, others.reshape(-1, others.shape[-1]))
    return jax.tree.map(lambda x: jnp.mean(x.reshape(-1, count), axis=1), found)


@dataclasses.dataclass(frozen=True)
class PreferenceScorer:
    """P(y > y' | x) by a rater, less the paper's control variate 1/2."""

    rater: Rater
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
        if not self.both_orders or self.rater.antisymmetric:
            return jax.nn.sigmoid(self.rater.logit(params, text, y, other)), {}
        forward, backward = self.rater.both_orders(params, text, y, other)
        first, second = jax.nn.sigmoid(forward), jax.nn.sigmoid(-backward)
        return (first + second) / 2, {"order_bias": first - second}

    def score_against(
        self, params: PyTree, text: jax.Array, y: jax.Array, others: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean preference over K others `[B, K, T]`, and its order bias."""
        forward, backward = self.rater.against(params, text, y, others, self.both_orders)
        first, second = jax.nn.sigmoid(forward), jax.nn.sigmoid(-backward)
        bias = {"order_bias": jnp.mean(first - second, axis=1)}
        asked_twice = self.both_orders and not self.rater.antisymmetric
        return jnp.mean(first + second, axis=1) / 2, bias if asked_twice else {}

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return losses.centred_preference(scores, row_weights)

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        return self.rater.probability(params, text, y, other, both_orders=True)


@dataclasses.dataclass(frozen=True)
class RewardScorer:
    """The reward of y, less the mean reward of the batch's other rows."""

    rater: Rater
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


@dataclasses.dataclass(frozen=True)
class EnsembleScorer:
    """Several raters as one: their mean score, less `pessimism` times their standard deviation.

    A policy climbs what a rater believes, also where it believes it by mistake; where raters of
    other seeds or kinds disagree, a mistake is likely (Coste et al. 2024, "worst-case" and
    "uncertainty-weighted" ensembles). Its parameters are a tuple of the members'. The spread of
    rewards means nothing, since each model's are only known up to a number for each text.
    """

    members: tuple[Scorer, ...]
    pessimism: float = 0.0

    def __post_init__(self):
        if not self.members or len({member.pairwise for member in self.members}) > 1:
            raise UserError("an ensemble needs raters that all rate pairs, or all one response")
        if self.pessimism < 0:
            raise UserError(f"PESSIMISM is {self.pessimism} but must be at least 0")
        if self.pessimism and not self.pairwise:
            raise UserError(
                f"PESSIMISM is {self.pessimism} but rewards have no common zero from which to tell "
                "their spread: use preference models, or 0"
            )

    @property
    def measures(self) -> str:
        return self.members[0].measures

    @property
    def pairwise(self) -> bool:
        return self.members[0].pairwise

    def score(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        return self.score_and_more(params, text, y, other)[0]

    def score_and_more(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`score`, and how far apart the members are; with pessimism it may be below 0."""
        found = self._of_each("score", params, text, y, other)
        spread = jnp.std(found, axis=0)
        return jnp.mean(found, axis=0) - self.pessimism * spread, {"rater_spread": spread}

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return self.members[0].advantages(scores, row_weights)

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        return jnp.mean(self._of_each("win_rate", params, text, y, other), axis=0)

    def _of_each(self, question: str, params: PyTree, *texts: jax.Array | None) -> jax.Array:
        asked = [
            getattr(member, question)(own, *texts)
            for member, own in zip(self.members, params, strict=True)
        ]
        return jnp.stack(asked)
