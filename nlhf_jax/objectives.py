"""Objectives: what a policy learner optimises, and who writes the responses for that.

Munos et al. 2024, sec. 7: the policy writes y, the opponent y', and the policy ascends
`grad log pi(y) * (P(y > y') - 1/2 - tau log(pi(y) / mu(y)))`: `policy_gradient`. RLHF is the same
with a reward in place of the preference, and nobody writes y'.

Calandriello et al. 2024: one player writes both y and y', the policy (online IPO) or Nash-MD's
mixture (IPO-MD), and the log ratio of the pair is regressed on its preference: `ipo`.

From where a policy is measured, the *anchor*, is the reference in these. Others measure from what
the opponent keeps (`nlhf_jax.opponents`), alone or as a log-linear mixture with the reference: the
policy of the last outer iteration (`sppo`, `inpo`), or a magnet that moves (MPO, COMAL).

An objective of your own is an object with the four members of `Objective`, named in a gin file.
"""

import abc
import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.errors import UserError
from nlhf_jax.opponents import POLICY, REFERENCE, Player
from nlhf_jax.raters import Scorer


class Scored(NamedTuple):
    """What a loss reads: those G responses to each of B prompts that the policy learns from.

    Gradients flow through what the policy computes: `logits`, `log_probs` and `kl`.

    Attributes:
      responses: int32 `[B, G, T]`.
      mask: float32 `[B, G, T]`, 1 for their tokens up to and including EOS.
      logits, reference_logits: float32 `[B, G, T, V]`, of the policy and of the reference.
      log_probs, reference_log_probs: float32 `[B, G, T]`, of the responses' tokens, in nats.
      kl: float32 `[B, T]`, KL(policy, reference) at every prefix of the first response, in nats.
      anchor_log_probs: float32 `[B, G, T]`, the sum over the objective's anchor of weight times
        log-probability; the reference's where that is the anchor.
      anchor_kl: float32 `[B, T]`, the sum over the anchor of weight times KL(policy, its set).
      targets: float32 `[B]`, what `Objective.targets` made of the scores.
      row_weights: float32 `[B]`, each row's part of the batch; they sum to 1.
    """

    responses: jax.Array
    mask: jax.Array
    logits: jax.Array
    reference_logits: jax.Array
    log_probs: jax.Array
    reference_log_probs: jax.Array
    kl: jax.Array
    anchor_log_probs: jax.Array
    anchor_kl: jax.Array
    targets: jax.Array
    row_weights: jax.Array


class Objective(Protocol):
    """What is optimised.

    Attributes:
      learned: G, of how many of a prompt's responses the loss reads log-probabilities: the first
        ones of `players`.

    One that measures from something else than the reference says so by an attribute `anchor`:
    weights over `reference` and the parameter sets that the opponent keeps. See `anchor_of`.
    """

    learned: int

    def players(self, opponent: Player | None, scorer: Scorer) -> Sequence[Player]:
        """Who writes a prompt's responses: y, and y', one or more, if there is an opponent.

        Raises UserError if the objective has no meaning for that opponent or scorer.
        """

    def targets(self, scorer: Scorer, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        """What the loss learns from, `[B]`, of `scorer.score`'s `[B]`; no gradient flows here."""

    def loss(self, scored: Scored) -> jax.Array:
        """A scalar to minimise that is a sum over rows, weighted by `scored.row_weights`."""


def anchor_of(objective: Objective) -> Player:
    """From where an objective measures the policy; the reference, if it does not say."""
    return getattr(objective, "anchor", REFERENCE)


def _sampled_kl(scored: Scored, tau: float) -> jax.Array:
    log_probs, anchor = scored.log_probs[:, 0], scored.anchor_log_probs[:, 0]
    return losses.policy_gradient_sampled_kl(
        log_probs, anchor, scored.targets, scored.mask[:, 0], scored.row_weights, tau
    )


def _exact_kl(scored: Scored, tau: float) -> jax.Array:
    return losses.policy_gradient_exact_kl(
        scored.log_probs[:, 0],
        scored.anchor_kl,
        scored.targets,
        scored.mask[:, 0],
        scored.row_weights,
        tau,
    )


_KL_FORMS = {"sampled": _sampled_kl, "exact": _exact_kl}


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """Ascends `E[score] - tau KL(policy, reference)`; see `policy_gradient`."""

    tau: float
    kl: str | None
    opponent_samples: int = 1
    towards: str = "reference"
    learned = 1

    @property
    def anchor(self) -> Player:
        return {self.towards: 1.0}

    def players(self, opponent: Player | None, scorer: Scorer) -> Sequence[Player]:
        if self.kl not in _KL_FORMS:
            raise UserError(f"KL is {self.kl!r} but must be 'sampled' or 'exact'")
        if self.tau < 0:
            raise UserError(f"TAU is {self.tau} but must not be negative")
        _check_samples(self.opponent_samples)
        if scorer.pairwise and opponent is None:
            raise UserError(
                "there is no opponent (RLHF), but the scorer compares two responses: give an "
                "opponent, or a reward model as RATER_CHECKPOINT"
            )
        return [POLICY] if opponent is None else [POLICY] + [opponent] * self.opponent_samples

    def targets(self, scorer: Scorer, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return scorer.advantages(scores, row_weights)

    def loss(self, scored: Scored) -> jax.Array:
        return _KL_FORMS[str(self.kl)](scored, self.tau)


def _check_samples(count: int) -> None:
    if not isinstance(count, int) or count < 1:
        raise UserError(f"OPPONENT_SAMPLES is {count!r} but must be a number, at least 1")


def policy_gradient(
    tau: float,
    kl: str | None,
    opponent_samples: int | None = None,
    towards: str | None = None,
) -> PolicyGradient:
    """The regularised policy gradient of Munos et al. 2024, sec. 7.1, and of RLHF.

    Args:
      tau: weight of KL(policy, reference), >= 0, in units of preference (or reward) per nat.
      kl: "sampled" log ratios as in the paper, or the "exact" KL at every prefix, of less variance.
      opponent_samples: K, how many responses of the opponent y is compared with; its preference is
        the mean over them, of less variance. A preference embedding reads K + 1 responses for that,
        other raters 2 K pairs.
      towards: the parameter set to which the KL is taken: the reference (None), or the opponent's
        `magnet` (MPO).
    """
    samples = 1 if opponent_samples is None else opponent_samples
    return PolicyGradient(tau, kl, samples, towards or "reference")


class _OfPairs(abc.ABC):
    """An objective that learns from both responses of a pair, and from their preference."""

    learned = 2

    def players(self, opponent: Player | None, scorer: Scorer) -> Sequence[Player]:
        if opponent is None or not scorer.pairwise:
            raise UserError(
                f"{type(self).__name__} learns from preferences, but RLHF has rewards; use the "
                "objective policy_gradient, or give an opponent and a preference model"
            )
        self._check()
        return [opponent, opponent]

    @abc.abstractmethod
    def _check(self) -> None:
        """Raises UserError for a setting without a meaning."""

    def targets(self, scorer: Scorer, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return scores


_Five = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _pairs(scored: Scored) -> _Five:
    """What a loss of pairs reads, measured from the anchor."""
    log_probs, anchor = scored.log_probs, scored.anchor_log_probs
    return log_probs, anchor, scored.targets, scored.mask, scored.row_weights


@dataclasses.dataclass(frozen=True)
class IPO(_OfPairs):
    """Regresses the log ratio of a pair on its preference; see `ipo`."""

    tau: float

    def _check(self) -> None:
        if self.tau <= 0:
            raise UserError(
                f"TAU is {self.tau} but IPO needs it positive: the log ratios that it regresses to "
                "are preferences divided by TAU"
            )

    def loss(self, scored: Scored) -> jax.Array:
        return losses.ipo(*_pairs(scored), self.tau)


def ipo(tau: float) -> IPO:
    """Online IPO and IPO-MD (Calandriello et al. 2024); the opponent writes both responses.

    `tau` weighs the squared log ratio of a pair, > 0.
    """
    return IPO(tau)


@dataclasses.dataclass(frozen=True)
class DPO(_OfPairs):
    """Fits the log ratio of a pair to its preference as a logit; see `dpo`."""

    tau: float

    def _check(self) -> None:
        if self.tau <= 0:
            raise UserError(f"TAU is {self.tau} but DPO needs it positive")

    def loss(self, scored: Scored) -> jax.Array:
        return losses.dpo(*_pairs(scored), self.tau)


def dpo(tau: float) -> DPO:
    """Online DPO (Guo et al. 2024): the opponent, usually the policy, writes both responses.

    `tau` is the paper's beta, > 0: what a nat of the log ratio is worth as a logit of preference.
    It learns the Bradley-Terry reward of what the policy writes: no equilibrium of a game.
    """
    return DPO(tau)


@dataclasses.dataclass(frozen=True)
class Proximal(_OfPairs):
    """IPO measured from a mixture of where the policy is drawn to and where it was; see `inpo`."""

    tau: float
    eta: float
    anchor: Player

    def _check(self) -> None:
        if self.eta <= 0 or min(self.anchor.values()) < 0:
            raise UserError(
                f"ETA is {self.eta} but must be positive and at least TAU, {self.tau}: it weighs "
                "the way from where the policy was"
            )

    def loss(self, scored: Scored) -> jax.Array:
        return losses.ipo(*_pairs(scored), self.eta)


def inpo(tau: float, eta: float, towards: str | None = None) -> Proximal:
    """INPO (Zhang et al. 2025, arXiv 2407.00617), and COMAL where the reference is a magnet.

    An outer iteration is a step of mirror descent on the regularised game,

        pi_{t+1} ∝ pi_t^(1 - tau / eta) mu^(tau / eta) exp(P(y > pi_t) / eta),

    as a regression: with `h(y, y')` the log ratio of a pair to that mixture of pi_t and mu, a pair
    of pi_t's responses costs `(h - (P(y > y') - 1/2) / eta)^2`, here times eta, the vote averaged
    out. It needs the opponent `previous`, whose `previous` is pi_t.

    Args:
      tau: weight of the KL to the reference in the game, >= 0.
      eta: weight of the KL to pi_t, at least tau: one over the step size.
      towards: the parameter set that is mu: the reference (None), or the opponent's `magnet`
        (COMAL, Liu et al. 2024, arXiv 2410.23223), with which the game loses its regularisation in
        the limit.
    """
    share = tau / eta if eta else 0.0
    return Proximal(tau, eta, {towards or "reference": share, "previous": 1.0 - share})


def mnpo(eta: float, share: float, past: int) -> Proximal:
    """MNPO (Wu et al. 2025, arXiv 2509.23102), time-dependent: INPO with several past policies.

    Needs the opponent `past` of as many policies, all with the same weight.

    Args:
      eta: as in `inpo`.
      share: weight of the reference in the mixture from which the pair is measured, in [0, 1].
      past: n, the number of past policies; each has the weight `(1 - share) / n`.
    """
    if not 0.0 <= share <= 1.0:
        raise UserError(f"SHARE is {share} but must be in [0, 1]: the reference's part")
    weights = {f"past_{n}": (1.0 - share) / past for n in range(past)}
    return Proximal(eta * share, eta, {"reference": share} | weights)


@dataclasses.dataclass(frozen=True)
class SPPO:
    """Regresses the log ratio of a response on its win rate; see `sppo`."""

    eta: float
    opponent_samples: int = 1
    anchor = MappingProxyType({"previous": 1.0})

    @property
    def learned(self) -> int:
        """With one opponent's response, each of the two is the other's opponent."""
        return 2 if self.opponent_samples == 1 else 1

    def players(self, opponent: Player | None, scorer: Scorer) -> Sequence[Player]:
        if opponent is None or not scorer.pairwise:
            raise UserError("SPPO learns from preferences: give an opponent and a preference model")
        if self.eta <= 0:
            raise UserError(f"ETA is {self.eta} but SPPO needs it positive")
        _check_samples(self.opponent_samples)
        return [opponent] * (1 + self.opponent_samples)

    def targets(self, scorer: Scorer, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return scores

    def loss(self, scored: Scored) -> jax.Array:
        win_rates = [scored.targets, 1.0 - scored.targets][: self.learned]
        return losses.sppo(
            scored.log_probs,
            scored.anchor_log_probs,
            jnp.stack(win_rates, axis=1),
            scored.mask,
            scored.row_weights,
            self.eta,
        )


def sppo(eta: float, opponent_samples: int | None = None) -> SPPO:
    """SPPO (Wu et al. 2024, arXiv 2405.00675): `pi_{t+1} ∝ pi_t exp(eta P(y > pi_t))`.

    Multiplicative weights on the game without regularisation, whose average converges to its
    equilibrium. It needs the opponent `previous`, whose `previous` is pi_t.

    Args:
      eta: the step size, > 0.
      opponent_samples: K of pi_t's responses, from which P(y > pi_t) is estimated; 1 by default,
        and then both responses of a pair are learned from.
    """
    return SPPO(eta, 1 if opponent_samples is None else opponent_samples)
