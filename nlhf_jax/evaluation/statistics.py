"""Win rates and how sure one may be of them, in NumPy on the host."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.intervals import TAIL, Estimate
from nlhf_jax.evaluation.ratings import bradley_terry_scores
from nlhf_jax.games import meta_game
from nlhf_jax.games.alpha_rank import alpha_rank

VOTES, PROBABILITIES = "Clopper-Pearson", "bootstrap"
INFLUENCES = "bootstrap of influences"


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
      p: `[K, K]` p-values, each cell by itself, of its rate being 1/2; 1 on the diagonal.
      judge_error: by how much the judge's preferences are off, in probability: rates that are no
        further from 1/2 are not decided, however many prompts there are. 0 of an exact judge; 1/2
        of one that cannot tell, under which nothing is.
    """

    names: tuple[str, ...]
    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    interval: str
    p: np.ndarray
    judge_error: float = 0.0

    def between(self, row: str, column: str) -> Estimate:
        """P(row beats column)."""
        cell = self.names.index(row), self.names.index(column)
        return Estimate(float(self.rate[cell]), float(self.low[cell]), float(self.high[cell]))

    def is_decided(self, row: str, column: str) -> bool:
        """Whether it is beyond doubt which of the two is preferred.

        It is where the interval of the cell leaves out 1/2 and where all such cells hold together:
        among equal players a table has any in at most 5 of 100 cases (Holm). Nor may the judge be
        off by as much as the rate is away from 1/2.
        """
        i, j = self.names.index(row), self.names.index(column)
        if i == j or self.low[i, j] <= 0.5 <= self.high[i, j]:
            return False
        if abs(self.rate[i, j] - 0.5) <= self.judge_error:
            return False
        above = np.triu_indices(len(self.names), k=1)
        held = np.zeros_like(self.p, bool)
        held[above] = intervals.hold_together(self.p[above])
        return bool(held[min(i, j), max(i, j)])

    def first(self, players: int) -> "WinRates":
        """The table of the first so many players alone."""
        cells = np.s_[:players, :players]
        return dataclasses.replace(
            self,
            names=self.names[:players],
            rate=self.rate[cells],
            low=self.low[cells],
            high=self.high[cells],
            p=self.p[cells],
        )


@dataclasses.dataclass(frozen=True)
class Standing:
    """One policy in the game between policies, where an action is to send one of them.

    Attributes:
      name: the policy's.
      nash: its probability in the Nash average (see `nlhf_jax.games.meta_game`). It jumps where a
        near tie turns, so its interval is what comes of all matrices that the prompts allow
        (`intervals.central`): between policies that they do not tell apart, all of `[0, 1]`.
      win_rate_over_nash: P(it beats the Nash average), at most 1/2; the same of both.
      exploitability: `max_j P(j beats it) - 1/2`, in [0, 1/2]. The maximum of resampled rates is
        biased upwards, so the ends are the largest of the rates' own ends: of the upper ones as in
        the matrix, and of lower ones that are all below the truth in 97.5 of 100 cases
        (Bonferroni's, of K - 1).
      best_response: that j; None if no policy beats it.
      alpha_rank: its mass in alpha-rank (`nlhf_jax.games.alpha_rank`), with an interval as that of
        `nash`.
      bradley_terry: its score, log-odds less the mean of all (`nlhf_jax.evaluation.ratings`). Both
        are None in files of earlier releases.
    """

    name: str
    nash: Estimate
    win_rate_over_nash: Estimate
    exploitability: Estimate
    best_response: str | None
    alpha_rank: Estimate | None = None
    bradley_terry: Estimate | None = None


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
    return of_pairs(names, scores[:, above[0], above[1]], VOTES if votes else PROBABILITIES, seed)


def of_pairs(names: Sequence[str], judged: np.ndarray, interval: str, seed: int) -> WinRates:
    """The table of values `[N, K (K - 1) / 2]`, of the cells above the diagonal, row by row.

    `interval` is `VOTES`, for 0 and 1; `PROBABILITIES`; or `INFLUENCES`, values of which only the
    means are rates.
    """
    players = len(names)
    above = np.triu_indices(players, k=1)
    low, high = (np.clip(end, 0, 1) for end in _ends(judged, interval, seed, TAIL))
    mean, p = np.clip(judged.mean(axis=0), 0, 1), np.ones((players, players))
    p[above] = p[above[::-1]] = intervals.p_values(judged, interval == VOTES)
    return WinRates(
        names=tuple(names),
        rate=_both_ways(mean, mean),
        low=_both_ways(low, high),
        high=_both_ways(high, low),
        n=len(judged),
        interval=interval,
        p=p,
    )


def _ends(
    judged: np.ndarray, interval: str, seed: int, tail: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of the means of columns `[N, M]`: low and high `[M]`."""
    if interval == VOTES:
        return intervals.clopper_pearson(judged.sum(axis=0), len(judged), tail)
    return intervals.bootstrap(judged, seed, tail)


def _both_ways(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """`[K, K]` from values above the diagonal, and from those whose complements stand below."""
    players = round((1 + (1 + 8 * len(upper)) ** 0.5) / 2)
    above = np.triu_indices(players, k=1)
    matrix = np.full((players, players), 0.5)
    matrix[above] = upper
    matrix[above[::-1]] = 1 - lower
    return matrix


def standings(rates: WinRates, scores: np.ndarray, seed: int) -> tuple[Standing, ...]:
    """What each player is worth in the game whose actions are the players.

    Args:
      rates: K players, as `win_rates` gives them for these scores.
      scores: `[N, K, K]` in [0, 1]; antisymmetric, 1/2 on the diagonal.
      seed: of the bootstrap.
    """

    def measure(rate):
        nash = meta_game.nash_average(rate)
        return nash, meta_game.win_rate_over(rate, nash), alpha_rank(rate)

    possible = intervals.central(intervals.resampled_means(scores, seed), len(scores))
    nash, over_nash, evolved = (
        _estimates(
            values, np.minimum(again.min(axis=0), values), np.maximum(again.max(axis=0), values)
        )
        for values, again in zip(measure(rates.rate), measure(possible), strict=True)
    )
    above = np.triu_indices(len(rates.names), k=1)
    ends = _ends(scores[:, above[0], above[1]], rates.interval, seed, TAIL / (len(rates.names) - 1))
    exploitability = _estimates(
        *(meta_game.exploitability(rate) for rate in (rates.rate, _both_ways(*ends), rates.high))
    )
    best_response = meta_game.best_response(rates.rate)
    ratings = bradley_terry_scores(scores, seed)
    return tuple(
        Standing(
            name=name,
            nash=nash[index],
            win_rate_over_nash=over_nash[index],
            exploitability=exploitability[index],
            best_response=rates.names[best] if best != index else None,
            alpha_rank=evolved[index],
            bradley_terry=ratings[index],
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
