"""Win rates and how sure one may be of them, in NumPy on the host."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from nlhf_jax.games import meta_game

LEVEL = 0.95  # of every interval in the project, as in the paper
RESAMPLES = 4000  # percentiles of 2.5 % and 97.5 % then rest on 100 resamples each


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A probability or share with its two-sided 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class WinRates:
    """Who beats whom.

    Attributes:
      names: K players.
      rate: `[K, K]` float64, `rate[i, j]` = P(player i beats player j); `rate + rate.T == 1`,
        diagonal 1/2.
      low, high: `[K, K]` ends of the 95 % intervals; on the diagonal both are 1/2.
      n: number of comparisons behind every cell off the diagonal.
      interval: "Clopper-Pearson" (votes counted) or "bootstrap" (probabilities averaged).
    """

    names: tuple[str, ...]
    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    interval: str

    def between(self, row: str, column: str) -> Estimate:
        """P(row beats column)."""
        cell = self.names.index(row), self.names.index(column)
        return Estimate(float(self.rate[cell]), float(self.low[cell]), float(self.high[cell]))

    def is_decided(self, row: str, column: str) -> bool:
        """Whether the interval of this cell leaves out 1/2."""
        cell = self.between(row, column)
        return cell.low > 0.5 or cell.high < 0.5

    def first(self, players: int) -> "WinRates":
        """The table of the first so many players alone."""
        cells = np.s_[:players, :players]
        return dataclasses.replace(
            self,
            names=self.names[:players],
            rate=self.rate[cells],
            low=self.low[cells],
            high=self.high[cells],
        )


@dataclasses.dataclass(frozen=True)
class Standing:
    """One policy in the game between policies, where an action is to send one of them.

    Attributes:
      name: the policy's.
      nash: its probability in the Nash average (see `nlhf_jax.games.meta_game`), with its bootstrap
        interval over prompts. It jumps where a near tie turns: between policies that the prompts
        do not tell apart, the interval may be all of `[0, 1]`.
      win_rate_over_nash: P(it beats the Nash average), at most 1/2; the bootstrap resamples both.
      exploitability: `max_j P(j beats it) - 1/2`, in [0, 1/2]. The maximum of resampled rates is
        biased upwards, so the ends are the largest of the rates' own ends, as sure as single cells
        of the matrix: the lower one is above 0 if and only if some cell says so, and it is above
        the truth in up to K - 1 times 2.5 % of all cases, all K policies being tied.
      best_response: that j; None if no policy beats it.
    """

    name: str
    nash: Estimate
    win_rate_over_nash: Estimate
    exploitability: Estimate
    best_response: str | None


def clopper_pearson(wins: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact binomial interval: it covers the true rate at least 95 times in 100, at every rate
    and n.

    Args:
      wins: any shape, whole numbers in `[0, n]`.
      n: trials, at least 1.

    Returns:
      low, high: of the shape of `wins`, in `[0, 1]`.

    Source: Clopper and Pearson, Biometrika 26 (1934); the interval of the paper's tables.
    """
    wins = np.asarray(wins, np.float64)
    if n < 1 or np.any(wins != np.round(wins)) or np.any((wins < 0) | (wins > n)):
        raise ValueError(f"Clopper-Pearson counts whole votes: got wins {wins} of n = {n}")
    ends = [stats.binomtest(int(k), n).proportion_ci(LEVEL, "exact") for k in wins.ravel()]
    low, high = np.array(ends, np.float64).reshape(*wins.shape, 2).T
    return low.T, high.T


def bootstrap(scores: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of the mean over prompts, by resampling prompts.

    All columns share their resamples, so that differences between columns are resampled in pairs
    too.

    Args:
      scores: `[N]` or `[N, ...]`, one row a prompt.
      seed: the same seed gives the same interval.

    Returns:
      low, high: of shape `scores.shape[1:]`.
    """
    return _percentiles(_resampled_means(scores, seed))


def _resampled_means(scores: np.ndarray, seed: int) -> np.ndarray:
    """Means over prompts that are drawn again and again: `[N, ...]` to `[RESAMPLES, ...]`."""
    scores = np.asarray(scores, np.float64)
    n = scores.shape[0]
    if n < 1:
        raise ValueError("an interval needs at least one prompt")
    # How often each prompt is drawn, so that a resampled mean is one row of a matrix product.
    times_drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = (times_drawn / n) @ scores.reshape(n, -1)
    return means.reshape(RESAMPLES, *scores.shape[1:])


def _percentiles(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def bootstrap_mean(scores: np.ndarray, seed: int) -> Estimate:
    """Mean of `scores [N]` over prompts with its bootstrap interval."""
    low, high = bootstrap(scores, seed)
    return Estimate(float(np.mean(scores)), float(low), float(high))


def win_rates(names: Sequence[str], scores: np.ndarray, votes: bool, seed: int) -> WinRates:
    """Averages a judge's answers over prompts.

    Args:
      names: K players.
      scores: `[N, K, K]` in [0, 1], `scores[n, i, j]` = how far i's response to prompt n is
        preferred to j's; only the cells above the diagonal are read.
      votes: the scores are 0 or 1 and are counted (Clopper-Pearson), else averaged (bootstrap).
      seed: of the bootstrap.
    """
    n, players = scores.shape[0], len(names)
    if scores.shape != (n, players, players):
        raise ValueError(f"scores of shape {scores.shape} do not fit {players} players")
    above = np.triu_indices(players, k=1)
    judged = scores[:, above[0], above[1]]
    if votes:
        low, high = clopper_pearson(judged.sum(axis=0), n)
    else:
        low, high = bootstrap(judged, seed)

    def both_ways(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        matrix = np.full((players, players), 0.5)
        matrix[above] = upper
        matrix[above[::-1]] = 1 - lower
        return matrix

    mean = judged.mean(axis=0)
    return WinRates(
        names=tuple(names),
        rate=both_ways(mean, mean),
        low=both_ways(low, high),
        high=both_ways(high, low),
        n=n,
        interval="Clopper-Pearson" if votes else "bootstrap",
    )


def standings(rates: WinRates, scores: np.ndarray, seed: int) -> tuple[Standing, ...]:
    """What each player is worth in the game whose actions are the players.

    Args:
      rates: K players, as `win_rates` gives them for these scores.
      scores: `[N, K, K]` in [0, 1]; antisymmetric, 1/2 on the diagonal.
      seed: of the bootstrap.
    """

    def measure(rate):
        nash = meta_game.nash_average(rate)
        return nash, meta_game.win_rate_over(rate, nash)

    resampled = measure(_resampled_means(scores, seed))
    nash, over_nash = (
        _estimates(values, *_percentiles(again))
        for values, again in zip(measure(rates.rate), resampled, strict=True)
    )
    exploitability = _estimates(
        *(meta_game.exploitability(rate) for rate in (rates.rate, rates.low, rates.high))
    )
    best_response = meta_game.best_response(rates.rate)
    return tuple(
        Standing(
            name=name,
            nash=nash[index],
            win_rate_over_nash=over_nash[index],
            exploitability=exploitability[index],
            best_response=rates.names[best] if best != index else None,
        )
        for index, (name, best) in enumerate(zip(rates.names, best_response, strict=True))
    )


def _estimates(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Estimate]:
    return [Estimate(*map(float, one)) for one in zip(values, low, high, strict=True)]


def cycles(rate: np.ndarray) -> list[tuple[int, int, int]]:
    """The triples in which each beats the next with more than 1/2, of one preference matrix `[K,
    K]`.

    Every cycle is given once, in beating order (i beats j, j beats k, k beats i), smallest index
    first.
    """
    found = []
    for i, j, k in itertools.combinations(range(len(rate)), 3):
        if rate[i, j] > 0.5 and rate[j, k] > 0.5 and rate[k, i] > 0.5:
            found.append((i, j, k))
        elif rate[i, k] > 0.5 and rate[k, j] > 0.5 and rate[j, i] > 0.5:
            found.append((i, k, j))
    return found


def count_cyclic_triples(scores: np.ndarray, distinct: np.ndarray) -> tuple[int, int]:
    """Counts cycles among the responses to each prompt.

    Args:
      scores: `[N, K, K]` probabilities, antisymmetric.
      distinct: `[N, K, K]` bool, whether the two responses are different texts; a triple counts
        only if its three texts differ, since a text is neither better nor worse than itself.

    Returns:
      (triples of distinct responses, those of them that are cycles).
    """
    triples = cyclic = 0
    for i, j, k in itertools.combinations(range(scores.shape[1]), 3):
        counted = distinct[:, i, j] & distinct[:, j, k] & distinct[:, k, i]
        round_trip = np.stack([scores[:, i, j], scores[:, j, k], scores[:, k, i]])
        cycle = (round_trip > 0.5).all(axis=0) | (round_trip < 0.5).all(axis=0)
        triples += int(counted.sum())
        cyclic += int((counted & cycle).sum())
    return triples, cyclic
