"""The game whose actions are policies: its Nash average and how exploitable each policy is.

Balduzzi et al. 2018, "Re-evaluating evaluation" (arXiv 1806.02643). In NumPy and float64: it
is small, and float32 would not do.
"""

import numpy as np
from numpy.typing import ArrayLike

_TAU = 1e-7  # of the entropy. Rates that differ by much less, as by float32's noise, are equal.
_ROUNDING = 1e-6  # that of float32 inputs
# Some 30 steps bring every mass within 1e-7 of its end, at K = 2 as at K = 30, ties and copies or
# not; the others are spare.
_STEPS = 60
_BARRIER_FALL = 0.1  # in one step
_TO_THE_BOUNDARY = 0.95  # the share of the way to a mass of 0 that a step may go


def nash_average(rate: ArrayLike) -> np.ndarray:
    """The Nash equilibrium of largest entropy: the mixture of policies that no policy beats.

    It is invariant to copies: those of a policy share its mass evenly and the other masses stay.

    The result is the equilibrium x of the game regularised towards the uniform mixture with
    tau = 1e-7, which tends to the one of largest entropy as tau vanishes. Hence no policy beats it
    with more than `1/2 + tau log K`, and its masses are biased by about tau over the differences of
    the rates that decide them: 1e-6 where these differ by 0.1, 1e-4 where they differ by 0.001.
    Writing S for P - 1/2, x solves

        S x - tau log x - c + z = 0,  sum(x) = 1,  x z = 0 and x, z >= 0.

    Solved by a primal-dual interior-point method, that is Newton's with `x z = barrier` while the
    barrier falls (Wright 1997, "Primal-dual interior-point methods"). For a tau this small,
    `nlhf_jax.games.equilibrium.regularized_equilibrium`, which follows the entropy alone, creeps
    or stalls on games that are nearly degenerate, as resampled tournaments are.

    Args:
      rate: `[..., K, K]`, `rate[..., i, j]` = P(policy i beats policy j) in [0, 1];
        `rate + rate.T == 1`.

    Returns:
      probabilities `[..., K]`.

    Raises:
      ValueError: the matrices are not such.
    """
    rate = as_win_rates(rate)
    policies = rate.shape[-1]
    skew = (rate - np.swapaxes(rate, -1, -2)).reshape(-1, policies, policies) / 2
    # Every equation but `x z = 0` holds at the start.
    x = np.full(skew.shape[:2], 1 / policies)
    c = np.ones((len(skew), 1))
    z = c + _TAU * np.log(x) - win_rate_over(skew, x)
    system = np.zeros((len(skew), policies + 1, policies + 1))
    system[:, :policies, policies] = 1
    for _ in range(_STEPS):
        barrier = _BARRIER_FALL * np.mean(x * z, axis=1, keepdims=True)
        # Newton's step in log x, in which masses fall to 0, and c; the step of z is eliminated.
        diagonal = np.eye(policies) * (_TAU + z)[:, None]
        system[:, :policies, :policies] = diagonal - skew * x[:, None]
        system[:, policies, :policies] = x
        ascent = win_rate_over(skew, x) - _TAU * np.log(x) - c + barrier / x
        sides = np.concatenate([ascent, 1 - x.sum(axis=1, keepdims=True)], axis=1)
        newton = np.linalg.solve(system, sides[..., None])[..., 0]
        of_log_x, of_c = newton[:, :policies], newton[:, policies:]
        of_z = barrier / x - z - z * of_log_x
        fall = np.max(np.maximum(-of_log_x, -of_z / z), axis=1, keepdims=True)
        step = np.minimum(1.0, _TO_THE_BOUNDARY / np.maximum(fall, 1e-9))
        x, z, c = x + step * x * of_log_x, z + step * of_z, c + step * of_c
    return (x / x.sum(axis=1, keepdims=True)).reshape(rate.shape[:-1])


def win_rate_over(rate: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """P(each policy beats a mixture of them): `[..., K, K]` and `[..., K]` to `[..., K]`.

    Over the Nash average it is at most 1/2, and 1/2 for the policies that are in it, up to the
    bias of `nash_average`.
    """
    return (rate @ mixture[..., None])[..., 0]


def exploitability(rate: np.ndarray) -> np.ndarray:
    """`max_j P(j beats i) - 1/2` of every policy i: `[..., K, K]` to `[..., K]`, in [0, 1/2].

    0 if none of these policies beats it; one that is not among them may.
    """
    return np.max(rate, axis=-2) - 0.5


def best_response(rate: np.ndarray) -> np.ndarray:
    """The j of `exploitability`: `[..., K, K]` to int `[..., K]`, i itself if none beats it."""
    beaten = np.max(rate, axis=-2) > 0.5
    return np.where(beaten, np.argmax(rate, axis=-2), np.arange(rate.shape[-1]))


def as_win_rates(rate: ArrayLike) -> np.ndarray:
    """`[..., K, K]` in float64; raises ValueError unless they are win rates."""
    rate = np.asarray(rate, np.float64)
    if rate.ndim < 2 or rate.shape[-1] != rate.shape[-2] or not rate.shape[-1]:
        raise ValueError(f"win rates have the shape {rate.shape} but must be [..., K, K]")
    both = rate + np.swapaxes(rate, -1, -2)
    in_range = np.all(abs(rate - 0.5) <= 0.5 + _ROUNDING)
    if not (in_range and np.all(abs(both - 1) <= _ROUNDING)):
        raise ValueError("win rates must be in [0, 1], and the two of a pair must sum to 1")
    return rate
