"""Intervals, and which of many claims hold together, in NumPy on the host.

`tests/evaluation/test_coverage.py` has how often each interval holds what it should.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval in the project, as in the paper
TAIL = (1 - LEVEL) / 2
RESAMPLES = 4000  # percentiles of 2.5 % and 97.5 % then rest on 100 resamples each
_COUNTS_AT_ONCE = 2**21  # 16 MB, whatever the number of prompts


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A probability or share with its two-sided 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def clipped(self) -> "Estimate":
        """Cut to [0, 1], where it is of values that are not confined to it."""
        return Estimate(*(min(max(x, 0.0), 1.0) for x in dataclasses.astuple(self)))


def clopper_pearson(wins: np.ndarray, n: int, tail: float = TAIL) -> tuple[np.ndarray, np.ndarray]:
    """The exact binomial interval: it covers the true rate at least 95 times in 100, at every rate
    and n.

    Args:
      wins: any shape, whole numbers in `[0, n]`.
      n: trials, at least 1.
      tail: in how many cases each end may be on the wrong side of the rate.

    Returns:
      low, high: of the shape of `wins`, in `[0, 1]`.

    Source: Clopper and Pearson, Biometrika 26 (1934); the interval of the paper's tables.
    """
    wins = np.asarray(wins, np.float64)
    if n < 1 or np.any(wins != np.round(wins)) or np.any((wins < 0) | (wins > n)):
        raise ValueError(f"Clopper-Pearson counts whole votes: got wins {wins} of n = {n}")
    low = np.where(wins > 0, stats.beta.ppf(tail, np.maximum(wins, 1), n - wins + 1), 0.0)
    high = np.where(wins < n, stats.beta.isf(tail, wins + 1, np.maximum(n - wins, 1)), 1.0)
    return low, high


def bootstrap(scores: np.ndarray, seed: int, tail: float = TAIL) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of the mean over prompts, by resampling prompts.

    All columns share their resamples, so that differences between columns are resampled in pairs
    too.

    Args:
      scores: `[N]` or `[N, ...]`, one row a prompt.
      seed: the same seed gives the same interval.
      tail: as of `clopper_pearson`.

    Returns:
      low, high: of shape `scores.shape[1:]`.
    """
    return percentiles(resampled_means(scores, seed), len(scores), tail)


def resampled_means(scores: np.ndarray, seed: int, sizes: np.ndarray | None = None) -> np.ndarray:
    """Means over rows that are drawn again and again: `[N, ...]` to `[RESAMPLES, ...]`.

    With `sizes [N]` a row is the sum over that many numbers, and the means are over those.
    """
    scores = np.asarray(scores, np.float64)
    n = len(scores)
    if n < 1:
        raise ValueError("an interval needs at least one prompt")
    columns = scores.reshape(n, -1)
    weights = np.ones(n) if sizes is None else np.asarray(sizes, np.float64)
    # A resampled mean is one row of a matrix product.
    means = [(times @ columns) / (times @ weights)[:, None] for times in _times_drawn(n, seed)]
    return np.concatenate(means).reshape(RESAMPLES, *scores.shape[1:])


def _times_drawn(n: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n rows is drawn, `[some, n]`, RESAMPLES rows in all."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _COUNTS_AT_ONCE // n)
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        yield rng.multinomial(n, np.full(n, 1 / n), size=count)


def percentiles(resampled: np.ndarray, n: int, tail: float = TAIL) -> tuple[np.ndarray, np.ndarray]:
    """The ends between which resampled values `[RESAMPLES, ...]` of n rows lie."""
    tail = _expanded(tail, n)
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def _expanded(tail: float, n: int) -> float:
    """Which percentile to take for one at `tail` where there are n rows.

    The plain percentiles are too narrow where n is small, as if a variance were divided by n and
    not by n - 1 and its error not counted. These go as far out as Student's interval does
    (Hesterberg 2015, "What teachers should know about the bootstrap", "expanded percentile").
    """
    if n == 1:
        return tail
    return float(stats.norm.sf(np.sqrt(n / (n - 1)) * stats.t.isf(tail, n - 1)))


def central(resampled: np.ndarray, n: int) -> np.ndarray:
    """The 95 % of the resamples `[RESAMPLES, ...]` of n rows in which no value is far out.

    How far, is counted in each value's standard deviations. Whatever is computed of all values at
    once lies between its least and its largest result on these, also where it jumps, as a Nash
    average does, and percentiles of it are no interval: with six equal policies theirs held the
    true mass in 75 of 100 cases (Woutersen and Ham 2013, "Confidence sets for discontinuous
    functions of parameters").
    """
    flat = resampled.reshape(len(resampled), -1)
    far = np.abs(flat - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1e-12)
    farthest = far.max(axis=1)
    return resampled[farthest <= np.quantile(farthest, 1 - 2 * _expanded(TAIL, n))]


def bootstrap_mean(scores: np.ndarray, seed: int) -> Estimate:
    """Mean of `scores [N]` over prompts with its bootstrap interval."""
    low, high = bootstrap(scores, seed)
    return Estimate(float(np.mean(scores)), float(low), float(high))


def bootstrap_means(scores: np.ndarray, seed: int) -> list[Estimate]:
    """Means of the columns of `scores [N, K]` over prompts with their bootstrap intervals."""
    low, high = bootstrap(scores, seed)
    return [Estimate(*map(float, one)) for one in zip(scores.mean(axis=0), low, high, strict=True)]


def bootstrap_mean_of_groups(scores: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """Mean of `scores [N]`, with its interval when all scores of a group come or stay together.

    Args:
      scores: numbers that may be alike within a group, such as votes on one post.
      groups: `[N]` int, from 0, which group each belongs to.
      seed: as of `bootstrap`.
    """
    sums, sizes = np.bincount(groups, weights=scores), np.bincount(groups)
    low, high = percentiles(resampled_means(sums, seed, sizes), len(sizes))
    return Estimate(float(np.mean(scores)), float(low), float(high))


# --- claims --------------------------------------------------------------------------------------


def p_values(scores: np.ndarray, votes: bool) -> np.ndarray:
    """How likely means at least as far from 1/2 are where the truth is 1/2, two-sided.

    Args:
      scores: `[N, ...]` in [0, 1].
      votes: they are 0 or 1: the exact binomial test. Else Student's, whose p is taken to be no
        smaller than the smallest that a test of signs has, 2 / 2^N: so few prompts show no more.

    Returns `[...]`.
    """
    scores = np.asarray(scores, np.float64)
    n = len(scores)
    if votes:
        wins = scores.sum(axis=0)
        return np.minimum(2 * stats.binom.sf(np.maximum(wins, n - wins) - 1, n, 0.5), 1.0)
    distance = np.abs(scores.mean(axis=0) - 0.5)
    if n == 1:
        return np.ones_like(distance)
    error = scores.std(axis=0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(distance > 1e-12, distance / error, 0.0)
    return np.maximum(2 * stats.t.sf(t, n - 1), 2.0 ** (1 - n))


def p_values_of_intervals(rate: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """About the p-values of rates of which only the intervals are known."""
    error = (high - low) / (2 * stats.norm.isf(TAIL))
    distance = np.abs(rate - 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * stats.norm.sf(np.where(distance > 0, distance / error, 0.0))


def hold_together(p: np.ndarray) -> np.ndarray:
    """Which claims, of p-values `[M]`, may be made at once: bool `[M]`.

    All of those made are true in at least 95 of 100 cases, however the tests hang together.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    order = np.argsort(p, kind="stable")
    held = p[order] * np.arange(len(p), 0, -1) <= 1 - LEVEL
    found = np.zeros(len(p), bool)
    found[order] = np.logical_and.accumulate(held)
    return found
