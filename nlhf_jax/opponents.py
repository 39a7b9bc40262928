"""Players: who writes a response. Each is a log-linear mixture of named parameter sets.

At every prefix a player's next token has the distribution softmax(sum_k weight_k * logits_k)
(Munos et al. 2024, sec. 7: the mixture is taken one token at a time). The parameter sets are
`policy` (being trained), `reference` (mu, the SFT model) and `average` (of past policies).
"""

from collections.abc import Mapping

from nlhf_jax.errors import UserError

Player = Mapping[str, float]

POLICY: Player = {"policy": 1.0}


def self_play() -> Player:
    """SP: the policy itself."""
    return {"policy": 1.0}


def geometric_mixture(beta: float) -> Player:
    """Nash-MD: pi^(1 - beta) mu^beta. `beta` in [0, 1]; 0 is self-play, 1 is best response."""
    if not 0.0 <= beta <= 1.0:
        raise UserError(f"BETA is {beta} but the weight of the reference must be in [0, 1]")
    return {name: w for name, w in (("policy", 1.0 - beta), ("reference", beta)) if w > 0.0}


def best_response() -> Player:
    """BR: the reference policy."""
    return {"reference": 1.0}


def moving_average() -> Player:
    """Nash-EMA: the exponential moving average of the policy's parameters."""
    return {"average": 1.0}
