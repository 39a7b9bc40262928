"""Win rates between settings, of each of which several runs play."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from nlhf_jax.evaluation.intervals import TAIL, Estimate
from nlhf_jax.evaluation.statistics import WinRates

STUDENT = "Student over seeds"
_NAMED = re.compile(r"(.+)#(\d+)")


def settings_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Players by setting: `A#0` and `A#1` are runs of `A`; any other is a setting by itself."""
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        found = _NAMED.fullmatch(name)
        setting = found[1] if found else name
        groups[setting] = (*groups.get(setting, ()), name)
    return groups


def over_seeds(rates: WinRates, groups: Mapping[str, Sequence[str]]) -> WinRates:
    """How often a run of one setting beats a run of another.

    The design: every run has answered the same prompts, so these are fixed, and runs are what is
    drawn. A rate is the mean over all pairs of a run of each setting. Its error comes from the
    means of each run over the other setting's runs: `var_a / n_a + var_b / n_b`, with the degrees
    of freedom of Welch; where runs of both depart from what each is on average, that counts twice,
    so intervals are rather too wide. A setting with a single run counts as fixed: what is said of
    it is said of this run. Between two such the cell is that of `rates`, over prompts.

    Args:
      rates: all runs against each other.
      groups: setting -> its runs, names of `rates`.

    Returns:
      The table of the settings; `n` is the least number of runs of those that have several.
      Intervals and p-values are Student's, over runs.

    Raises:
      ValueError: a run is not among the players, or is in two settings.
    """
    runs = [run for group in groups.values() for run in group]
    if len(set(runs)) < len(runs) or not set(runs) <= set(rates.names) or not all(groups.values()):
        raise ValueError(f"the runs {runs} must be different players of {rates.names}")
    rows = [[rates.names.index(run) for run in group] for group in groups.values()]
    rate, low, high = (np.full((len(rows),) * 2, 0.5) for _ in range(3))
    p = np.ones_like(rate)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows[:i]):
            cells = np.ix_(one, other)
            if len(one) == len(other) == 1:
                found = tuple(
                    float(m[cells].item()) for m in (rates.rate, rates.low, rates.high, rates.p)
                )
            else:
                found = _student(rates.rate[cells])
            rate[i, j], low[i, j], high[i, j], p[i, j] = found
            rate[j, i], low[j, i], high[j, i], p[j, i] = (
                1 - found[0],
                1 - found[2],
                1 - found[1],
                found[3],
            )
    return WinRates(
        names=tuple(groups),
        rate=rate,
        low=low,
        high=high,
        n=min((len(one) for one in rows if len(one) > 1), default=1),
        interval=STUDENT,
        p=p,
        judge_error=rates.judge_error,
    )


def over_others(rates: WinRates, groups: Mapping[str, Sequence[str]], one: str) -> Estimate:
    """How often a run of a setting beats a run of the others, all of whose runs are drawn evenly.

    Raises:
      KeyError: `one` is none of `groups`.
      ValueError: it is the only one.
    """
    rest = [run for name, runs in groups.items() if name != one for run in runs]
    found = over_seeds(rates, {one: groups[one], f"not {one}": rest})
    return found.between(one, f"not {one}")


def mean_over_runs(values: Sequence[float]) -> Estimate:
    """The mean of a figure of two runs or more, with Student's interval over runs."""
    mean = float(np.mean(values))
    reach = float(stats.t.isf(TAIL, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - reach, mean + reach)


def _student(rate: np.ndarray) -> tuple[float, float, float, float]:
    """Mean of `[A, B]` rates of runs, the ends of its interval, and the p-value of 1/2."""
    mean = float(rate.mean())
    parts = [
        (means.var(ddof=1) / len(means), len(means) - 1)
        for means in (rate.mean(axis=1), rate.mean(axis=0))
        if len(means) > 1
    ]
    variance = sum(part for part, _ in parts)
    if variance < 1e-18:  # copies show nothing of how runs differ
        return mean, 0.0, 1.0, 1.0
    freedom = variance**2 / sum(part**2 / of for part, of in parts)
    error = float(np.sqrt(variance))
    reach = float(stats.t.isf(TAIL, freedom)) * error
    low, high = np.clip([mean - reach, mean + reach], 0, 1)
    p = 2 * stats.t.sf(abs(mean - 0.5) / error, freedom)
    return mean, float(low), float(high), float(p)
