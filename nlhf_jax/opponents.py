"""Opponents: who writes y'. Each is a log-linear mixture of named parameter sets.

At every prefix a player's next token has the distribution softmax(sum_k weight_k * logits_k)
(Munos et al. 2024, sec. 7: the mixture is taken one token at a time). The parameter sets are
`policy` (being trained), `reference` (mu, the SFT model), and those that the opponent keeps: each
starts as a copy of the policy's first parameters and follows it by a rule of its own.

An opponent of your own is a function that returns an `Opponent`, named in a gin file.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from nlhf_jax.errors import UserError
from nlhf_jax.models.language_model import PyTree

Player = Mapping[str, float]  # weights over parameter sets

# (the set, the policy's parameters after an update, steps taken: int32 scalar) -> the set.
Follow = Callable[[PyTree, PyTree, jax.Array], PyTree]

POLICY: Player = {"policy": 1.0}
REFERENCE: Player = {"reference": 1.0}


@dataclasses.dataclass(frozen=True)
class Opponent:
    """Who writes y'.

    Attributes:
      weights: over parameter sets, `policy`, `reference` or of `keeps`.
      keeps: parameter sets of its own: name -> how it follows the policy, traced into the step.
      evaluated: the player against whom validation plays: the reference, so that algorithms can be
        compared, or another where that is what the training is for.
    """

    weights: Player
    keeps: Mapping[str, Follow] = dataclasses.field(default_factory=dict)
    evaluated: Player = dataclasses.field(default_factory=lambda: REFERENCE)

    def __post_init__(self):
        for name in self.keeps:
            if name in ("policy", "reference", "step", "params", "opt_state"):
                raise UserError(
                    f"an opponent keeps a parameter set {name!r}: that name is taken, use another"
                )
        for name in (*self.weights, *self.evaluated):
            if name not in ("policy", "reference", *self.keeps):
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
