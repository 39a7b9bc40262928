"""Opponents: who writes y'. Each is a log-linear mixture of named parameter sets.

At every prefix a player's next token has the distribution softmax(sum_k weight_k * logits_k)
(Munos et al. 2024, sec. 7: the mixture is taken one token at a time). The parameter sets are
`policy` (being trained), `reference` (mu, the SFT model), `lookahead` (the policy after a step
against itself), and those that the opponent keeps: each starts as a copy of the policy's first
parameters and follows it by a rule of its own. An objective may measure from what is kept, too:
see `nlhf_jax.objectives`.

An opponent of your own is a function that returns an `Opponent`, named in a gin file.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from nlhf_jax.errors import UserError
from nlhf_jax.models.language_model import PyTree

Player = Mapping[str, float]  # weights over parameter sets

# (the set, the policy's parameters after an update, steps taken: int32 scalar) -> the set.
Follow = Callable[[PyTree, PyTree, jax.Array], PyTree]

POLICY: Player = {"policy": 1.0}
REFERENCE: Player = {"reference": 1.0}
LOOKAHEAD = "lookahead"
_ALWAYS_THERE = ("policy", "reference", LOOKAHEAD)


@dataclasses.dataclass(frozen=True)
class Opponent:
    """Who writes y'.

    Attributes:
      weights: over parameter sets, `policy`, `reference`, `lookahead` or of `keeps`.
      keeps: parameter sets of its own: name -> how it follows the policy, traced into the step.
      evaluated: the player against whom validation plays: the reference, so that algorithms can be
        compared, or another where that is what the training is for.
    """

    weights: Player
    keeps: Mapping[str, Follow] = dataclasses.field(default_factory=dict)
    evaluated: Player = dataclasses.field(default_factory=lambda: REFERENCE)

    def __post_init__(self):
        for name in self.keeps:
            if name in (*_ALWAYS_THERE, "step", "params", "opt_state"):
                raise UserError(
                    f"an opponent keeps a parameter set {name!r}: that name is taken, use another"
                )
        for name in (*self.weights, *self.evaluated):
            if name not in (*_ALWAYS_THERE, *self.keeps):
                raise UserError(
                    f"an opponent has a weight on the parameter set {name!r} but keeps none of that"
                    " name"
                )


def self_play() -> Opponent:
    """SP: the policy itself."""
    return Opponent(POLICY)


def geometric_mixture(beta: float) -> Opponent:
    """Nash-MD: pi^(1 - beta) mu^beta. `beta` in [0, 1]; 0 is self-play, 1 is best response."""
    if not 0.0 <= beta <= 1.0:
        raise UserError(f"BETA is {beta} but the weight of the reference must be in [0, 1]")
    weights = {"policy": 1.0 - beta, "reference": beta}
    return Opponent({name: weight for name, weight in weights.items() if weight > 0.0})


def best_response() -> Opponent:
    """BR: the reference policy."""
    return Opponent(REFERENCE)


def frozen() -> Opponent:
    """The policy as it was at the start: what is trained is a best response to it.

    To a policy that has ended its training, that measures how far it can be exploited.
    """

    def stay(kept: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        return kept

    return Opponent({"frozen": 1.0}, {"frozen": stay}, evaluated={"frozen": 1.0})


def moving_average(decay: float | None = None) -> Opponent:
    """Nash-EMA: `avg_t = decay avg_{t-1} + (1 - decay) theta_t`, of the policy's parameters.

    `decay` is the paper's beta, in [0, 1]. Release 0.1 had it as `builders.policy.average_decay`:
    gin files from then call this without it, and a learner without either is refused.
    """

    def follow(average: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        if decay is None or not 0.0 <= decay <= 1.0:
            raise UserError(
                f"AVERAGE_DECAY is {decay} but a moving-average opponent needs it in [0, 1]"
            )
        return jax.tree.map(lambda avg, new: decay * avg + (1.0 - decay) * new, average, params)

    return Opponent({"average": 1.0}, {"average": follow})


def lookahead() -> Opponent:
    """EGPO's (Zhou et al. 2025, arXiv 2503.08942): the policy after a step against itself.

    A training step then has two passes: the policy plays itself and takes the optimiser's step,
    for a look only; against what that gives, it takes the step that counts, from where it was.
    """
    return Opponent({LOOKAHEAD: 1.0})


def previous(period: int, magnet_period: int | None = None) -> Opponent:
    """The policy of `period` steps ago at most: pi_t, where an outer iteration is `period` steps.

    SPPO and INPO sample from it and measure from it.

    Args:
      period: training steps between two copies of the policy, >= 1.
      magnet_period: between two copies to the set `magnet`, for an objective that measures from it
        in place of the reference (COMAL); None keeps no magnet.
    """
    keeps = {"previous": _copied_every(period, "PREVIOUS_PERIOD")}
    if magnet_period is not None:
        keeps["magnet"] = _copied_every(magnet_period, "MAGNET_PERIOD")
    return Opponent({"previous": 1.0}, keeps)


def magnetic(period: int) -> Opponent:
    """MPO's (Wang et al. 2025, arXiv 2410.16714): self-play beside a magnet that moves.

    The set `magnet`, which takes the place of the reference in the objective, is the policy as it
    was when the step was last a multiple of `period`.
    """
    return Opponent(POLICY, {"magnet": _copied_every(period, "MAGNET_PERIOD")})


def past(count: int, period: int) -> Opponent:
    """MNPO's (Wu et al. 2025, arXiv 2509.23102): self-play that remembers its last iterations.

    The sets `past_0`, `past_1`, ... are the policy at the last `count` multiples of `period`, in no
    order: at each one of them is copied anew.
    """
    if not isinstance(count, int) or count < 1:
        raise UserError(f"PAST is {count!r} but must be a number of policies, at least 1")
    turns = {f"past_{n}": _copied_every(period, "PAST_PERIOD", n, count) for n in range(count)}
    return Opponent(POLICY, turns)


def _copied_every(period: int, setting: str, turn: int = 0, turns: int = 1) -> Follow:
    """A set that becomes the policy every `period` steps, or, of `turns`, when it is its turn."""
    if not isinstance(period, int) or period < 1:
        raise UserError(f"{setting} is {period!r} but must be a number of steps, at least 1")

    def follow(kept: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        now = (step % period == 0) & (step // period % turns == turn)
        return jax.tree.map(lambda old, new: jnp.where(now, new, old), kept, params)

    return follow
