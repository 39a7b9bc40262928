"""How far judges agree beyond chance: Cohen's kappa of two, Fleiss' kappa of several.

Of answers to the same comparisons there are three kinds: the first is better, a tie, the second is
better. A tie is an answer of exactly 1/2 and a kind of its own: with one who ties, only who ties
too agrees.
"""

import dataclasses

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.intervals import Estimate

_KINDS = 3


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of some judges.

    Attributes:
      name: "Cohen's kappa" or "Fleiss' kappa".
      kappa: 1 where all agree, 0 as by chance, negative below; with its bootstrap interval over
        prompts. All NaN where everybody gives one and the same kind of answer: chance agrees then.
      agreeing: share of the pairs of answers to one comparison that are of the same kind.
      comparisons: how many had an answer of every judge; others are not counted.
      prompts: of how many prompts they are.
    """

    name: str
    kappa: Estimate
    agreeing: float
    comparisons: int
    prompts: int


def cohen_kappa(tables: np.ndarray) -> np.ndarray:
    """Agreement of two judges beyond what their own habits make likely.

    Args:
      tables: `[..., K, K]`, how often one gave kind i and the other kind j.

    Returns:
      `[...]`, at most 1; NaN where both give one and the same kind only.

    Source: Cohen, "A coefficient of agreement for nominal scales" (1960).
    """
    shares = np.asarray(tables, np.float64)
    shares = shares / shares.sum(axis=(-2, -1), keepdims=True)
    by_chance = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    return _beyond_chance(np.trace(shares, axis1=-2, axis2=-1), by_chance)


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement of several judges beyond what the kinds' shares among all answers make likely.

    Args:
      counts: `[N, K]`, how many of the same number of judges gave kind k to comparison n.

    Returns:
      At most 1; NaN where there is but one kind.

    Source: Fleiss, "Measuring nominal scale agreement among many raters" (1971).
    """
    counts = np.asarray(counts, np.float64)
    judges = counts.sum(axis=1)
    if counts.ndim != 2 or np.any(judges != judges[0]) or judges[0] < 2:
        raise ValueError(f"Fleiss' kappa needs equally many judges, two at least, got {judges}")
    return float(_fleiss(_agreeing(counts).mean(), counts.mean(axis=0)))


def _agreeing(counts: np.ndarray) -> np.ndarray:
    """Of counts `[N, K]`, the share of pairs of judges who agree on each comparison, `[N]`."""
    judges = counts.sum(axis=1)
    return (counts * (counts - 1)).sum(axis=1) / (judges * (judges - 1))


def _fleiss(agreeing: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """From the mean agreement `[...]` and how often each kind is given `[..., K]`."""
    shares = kinds / kinds.sum(axis=-1, keepdims=True)
    return _beyond_chance(agreeing, (shares**2).sum(axis=-1))


def _fleiss_of_sums(sums: np.ndarray) -> np.ndarray:
    """From `[..., K + 2]`: how often each kind is given, the agreement, and of how many."""
    return _fleiss(sums[..., -2] / sums[..., -1], sums[..., :-2])


def _beyond_chance(agreeing: np.ndarray, by_chance: np.ndarray) -> np.ndarray:
    left = 1 - by_chance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > 1e-12, (agreeing - by_chance) / left, np.nan)


def between(
    answers: np.ndarray, prompts: np.ndarray, seed: int = 0, both_orders: bool = False
) -> Agreement:
    """Cohen's kappa of two judges, Fleiss' of more, over the comparisons that all have answered.

    Args:
      answers: `[J, N]` P(first > second) of each judge, in [0, 1]; NaN where there is no answer.
        Only above, at or below 1/2 counts.
      prompts: `[N]` whole numbers or texts: comparisons on one prompt are resampled together.
      seed: of the bootstrap.
      both_orders: count every comparison with its responses exchanged as well. For answers that do
        not depend on the order, where which response is first says something, such as whose it is:
        kappa is then the same however they are named. Not for people, who saw one order drawn by a
        coin: that they both like what stands first is no agreement, and kappa sees it.

    Raises:
      UserError: fewer than two judges, or no comparison that all have answered.
    """
    answers = np.asarray(answers, np.float64)
    if len(answers) < 2:
        raise UserError(f"agreement needs two judges or more, got {len(answers)}")
    complete = np.isfinite(answers).all(axis=0)
    if not complete.any():
        raise UserError(f"there is no comparison that all {len(answers)} judges have answered")
    kinds = 1 - np.sign(answers[:, complete] - 0.5).astype(int)  # 0: first, 1: tie, 2: second
    _, group = np.unique(np.asarray(prompts)[complete], return_inverse=True)
    comparisons = kinds.shape[1]
    if both_orders:
        kinds = np.concatenate([kinds, _KINDS - 1 - kinds], axis=1)
        group = np.concatenate([group, group])
    counts = (kinds[:, :, None] == np.arange(_KINDS)).sum(axis=0)
    agreeing = _agreeing(counts)
    # What kappa is made of, summed over each prompt.
    two = len(answers) == 2
    if two:
        parts = np.zeros((kinds.shape[1], _KINDS, _KINDS))
        parts[np.arange(kinds.shape[1]), kinds[0], kinds[1]] = 1
    else:
        parts = np.concatenate([counts, agreeing[:, None], np.ones((len(agreeing), 1))], axis=1)
    kappa = cohen_kappa if two else _fleiss_of_sums
    sums = np.zeros((group.max() + 1, *parts.shape[1:]))
    np.add.at(sums, group, parts)
    return Agreement(
        "Cohen's kappa" if two else "Fleiss' kappa",
        _estimate(
            float(kappa(sums.sum(axis=0))), kappa(intervals.resampled_means(sums, seed)), sums
        ),
        float(agreeing.mean()),
        comparisons,
        len(sums),
    )


def _estimate(value: float, resampled: np.ndarray, sums: np.ndarray) -> Estimate:
    """Resamples that show one kind only say nothing of agreement, and are left out."""
    said = resampled[np.isfinite(resampled)]
    if np.isnan(value) or not said.size:
        return Estimate(value, np.nan, np.nan)
    low, high = intervals.percentiles(said, len(sums))
    return Estimate(value, float(low), min(float(high), 1.0))
