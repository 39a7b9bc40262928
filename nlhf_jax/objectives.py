"""Objectives: what a policy learner optimises, and who writes the responses for that.

Munos et al. 2024, sec. 7: the policy writes y, the opponent y', and the policy ascends
`grad log pi(y) * (P(y > y') - 1/2 - tau log(pi(y) / mu(y)))`: `policy_gradient`. RLHF is the same
with a reward in place of the preference, and nobody writes y'.

Calandriello et al. 2024: one player writes both y and y', the policy (online IPO) or Nash-MD's
mixture (IPO-MD), and the log ratio of the pair is regressed on its preference: `ipo`.

An objective of your own is an object with the four members of `Objective`, named in a gin file.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax

from nlhf_jax import losses
from nlhf_jax.errors import UserError
from nlhf_jax.opponents import POLICY, Player
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
    targets: jax.Array
    row_weights: jax.Array


class Objective(Protocol):
    """What is optimised.

    Attributes:
      learned: G, of how many of a prompt's responses the loss reads log-probabilities: the first
        ones of `players`.
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


def _sampled_kl(scored: Scored, tau: float) -> jax.Array:
    log_probs, reference = scored.log_probs[:, 0], scored.reference_log_probs[:, 0]
    return losses.policy_gradient_sampled_kl(
        log_probs, reference, scored.targets, scored.mask[:, 0], scored.row_weights, tau
    )


def _exact_kl(scored: Scored, tau: float) -> jax.Array:
    return losses.policy_gradient_exact_kl(
        scored.log_probs[:, 0],
        scored.kl,
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
    learned = 1

    def players(self, opponent: Player | None, scorer: Scorer) -> Sequence[Player]:
        if self.kl not in _KL_FORMS:
            raise UserError(f"KL is {self.kl!r} but must be 'sampled' or 'exact'")
        if self.tau < 0:
            raise UserError(f"TAU is {self.tau} but must not be negative")
        if not isinstance(self.opponent_samples, int) or self.opponent_samples < 1:
            raise UserError(
                f"OPPONENT_SAMPLES is {self.opponent_samples!r} but must be a number, at least 1"
            )
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


def policy_gradient(
    tau: float, kl: str | None, opponent_samples: int | None = None
) -> PolicyGradient:
    """The regularised policy gradient of Munos et al. 2024, sec. 7.1, and of RLHF.

    Args:
      tau: weight of KL(policy, reference), >= 0, in units of preference (or reward) per nat.
      kl: "sampled" log ratios as in the paper, or the "exact" KL at every prefix, of less variance.
      opponent_samples: K, how many responses of the opponent y is compared with; its preference is
        the mean over them, of less variance. A preference embedding reads K + 1 responses for that,
        other raters 2 K pairs.
    """
    return PolicyGradient(tau, kl, 1 if opponent_samples is None else opponent_samples)


@dataclasses.dataclass(frozen=True)
class IPO:
    """Regresses the log ratio of a pair on its preference; see `ipo`."""

    tau: float
    learned = 2

    def players(self, opponent: Player | None, scorer: Scorer) -> Sequence[Player]:
        if opponent is None or not scorer.pairwise:
            raise UserError(
                "IPO learns from preferences, but RLHF has rewards; use the objective "
                "policy_gradient, or give an opponent and a preference model"
            )
        if self.tau <= 0:
            raise UserError(
                f"TAU is {self.tau} but IPO needs it positive: the log ratios that it regresses to "
                "are preferences divided by TAU"
            )
        return [opponent, opponent]

    def targets(self, scorer: Scorer, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return scores

    def loss(self, scored: Scored) -> jax.Array:
        return losses.ipo(
            scored.log_probs,
            scored.reference_log_probs,
            scored.targets,
            scored.mask,
            scored.row_weights,
            self.tau,
        )


def ipo(tau: float) -> IPO:
    """Online IPO and IPO-MD (Calandriello et al. 2024); the opponent writes both responses.

    `tau` weighs the squared log ratio of a pair, > 0.
    """
    return IPO(tau)
