"""What a comparison of learners says, in words: the questions of Munos et al. 2024, sec. 8.

Learners are *settings*, of each of which several *runs* (seeds) played one tournament; against some
runs a best response was trained (`nlhf exploit`), whose win rate less one half is their approximate
exploitability. Everything said has an interval over runs, and is said of what the interval leaves
no doubt about; where it does not, that is said.

Settings are named as in the paper's Table 1: SFT, RLHF, SP, MD1 to MD6 (beta 0.125 to 0.75), BR,
EMA1, EMA2, and EMA1*, EMA2* for the averaged parameters.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from nlhf_jax.evaluation.intervals import LEVEL, Estimate
from nlhf_jax.evaluation.results import REFERENCE
from nlhf_jax.evaluation.seeds import mean_over_runs, over_others, over_seeds, settings_of
from nlhf_jax.evaluation.statistics import WinRates

BETAS = {"SP": 0.0, **{f"MD{n}": n / 8 for n in range(1, 7)}, "BR": 1.0}
AVERAGES = ("EMA1", "EMA2", "EMA1*", "EMA2*")

# Table 1 of the paper, and the mean of nine of Calandriello et al. 2024: the first over the second.
_OVER_RLHF = (0.489, 0.598, 0.519, 0.561, 0.501, 0.436, 0.284, 0.148, 0.468, 0.320, 0.477, 0.510)
_OVER_SFT = (0.983, 0.982, 0.989, 0.987, 0.985, 0.982, 0.965, 0.943, 0.970, 0.961, 0.977, 0.980)
PUBLISHED = {
    ("RLHF", "SFT"): 0.990,
    **dict(zip([(name, "SFT") for name in (*BETAS, *AVERAGES)], _OVER_SFT, strict=True)),
    **dict(zip([(name, "RLHF") for name in (*BETAS, *AVERAGES)], _OVER_RLHF, strict=True)),
    ("MD1", "SP"): 0.592,
    ("MD1", "MD2"): 0.575,
    ("MD1", "MD3"): 0.530,
    ("MD1", "MD4"): 0.631,
    ("MD1", "BR"): 0.837,
    ("MD1", "EMA2*"): 0.553,
    ("IPO", "MD1"): 0.621,
    ("IPO-MD", "MD1"): 0.608,
}
_CLOSE = 0.023  # half-width of the paper's intervals: a published rate nearer to 1/2 has no order


@dataclasses.dataclass(frozen=True)
class Compared:
    """What the answers rest on.

    Attributes:
      runs: every run against every other.
      exploited: setting -> exploitability of each run that was measured; none of some.
      by_prompts: setting with a single such run -> its interval over prompts.
    """

    runs: WinRates
    exploited: Mapping[str, Sequence[float]]
    by_prompts: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, tuple[str, ...]]:
        """Setting -> its runs; people's references are none."""
        named = [name for name in self.runs.names if name != REFERENCE]
        return settings_of(named)

    def between(self, one: str, other: str) -> Estimate:
        """How often a run of one setting beats a run of another."""
        groups = {name: self.settings[name] for name in (one, other)}
        return over_seeds(self.runs, groups).between(one, other)

    def over_all(self, one: str, others: Sequence[str] | None = None) -> Estimate:
        """How often a run of a setting beats a run of the others, all runs drawn evenly."""
        names = list(self.settings) if others is None else [one, *others]
        return over_others(self.runs, {name: self.settings[name] for name in names}, one)

    def hardest_opponent(self, setting: str) -> str:
        """The other setting that beats it most."""
        others = [name for name in self.settings if name != setting]
        return min(others, key=lambda name: self.between(setting, name).value)

    def exploitability(self, setting: str) -> Estimate:
        """Its mean over runs with Student's interval; over prompts, of a single run."""
        values = self.exploited[setting]
        if len(values) == 1:
            alone = float(values[0])
            return self.by_prompts.get(setting, Estimate(alone, alone, alone))
        return mean_over_runs(values)

    def gap(self, one: str, other: str) -> Estimate:
        """By how much one setting is more exploitable than another: Welch's interval."""
        sides = [np.asarray(self.exploited[name], np.float64) for name in (one, other)]
        value = float(sides[0].mean() - sides[1].mean())
        if min(map(len, sides)) == 1:  # over prompts, as if the two were independent
            ends = [self.exploitability(name) for name in (one, other)]
            low = np.hypot(ends[0].value - ends[0].low, ends[1].high - ends[1].value)
            high = np.hypot(ends[0].high - ends[0].value, ends[1].value - ends[1].low)
            return Estimate(value, value - float(low), value + float(high))
        found = stats.ttest_ind(*sides, equal_var=False).confidence_interval(LEVEL)
        return Estimate(value, float(found.low), float(found.high))


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question, and what is known of it.

    Attributes:
      question: ends with its mark.
      short: "Yes", "No", a name, or "This cannot be told".
      because: sentences with the numbers.
    """

    question: str
    short: str
    because: str

    def __str__(self) -> str:
        return f"{self.question} {self.short}. {self.because}"


UNKNOWN = "This cannot be told"


def answers(found: Compared) -> Iterator[Answer]:
    """Those questions whose settings have played."""
    there = set(found.settings)
    if {"SP", "RLHF"} <= there:
        yield _reward(found)
    if len(_family(found)) > 2:
        yield _beta(found)
    if {"BR", "SP"} <= set(found.exploited):
        yield _best_response(found)
    if {"SP"} | {name for name in AVERAGES if name in there} > {"SP"}:
        yield _lag(found)
    if len(found.exploited) > 1:
        yield _least(found)
    if any({one, other} <= there for one, other in PUBLISHED):
        yield _orderings(found)


def _family(found: Compared) -> list[str]:
    return [name for name in BETAS if name in found.settings]


def _reward(found: Compared) -> Answer:
    family = _family(found)
    rates = {name: found.between(name, "RLHF") for name in family}
    said = ", ".join(f"{name} {rate}" for name, rate in rates.items())
    because = f"Self-play, named before the numbers were seen, decides. Over RLHF: {said}."
    if {"SP", "RLHF"} <= set(found.exploited):
        gap = found.gap("RLHF", "SP")
        because += f" RLHF is exploited by {gap} more than self-play."
    question = "Does a preference model beat a reward as the thing to optimise?"
    return Answer(question, _yes(rates["SP"], 0.5), because)


def _beta(found: Compared) -> Answer:
    family = _family(found)
    rates = {name: found.over_all(name, family) for name in family}
    best = max(family, key=lambda name: rates[name].value)
    equals = [name for name in family if name != best and not found.between(best, name).low > 0.5]
    said = ", ".join(f"{BETAS[name]:g} {rate}" for name, rate in rates.items())
    short = f"{BETAS[best]:g} ({best})"
    if equals:
        named = ", ".join(f"{BETAS[name]:g}" for name in equals)
        short += f", but it does not beat {named} beyond doubt"
    return Answer("Which β is best?", short, f"Win rates over the other β: {said}.")


def _best_response(found: Compared) -> Answer:
    gap = found.gap("BR", "SP")
    because = (
        f"What was trained against it wins with {found.exploitability('BR')} above one half,"
        f" against self-play with {found.exploitability('SP')}: {gap} more."
    )
    return Answer("Is the best response to SFT exploited?", _yes(gap, 0.0), because)


def _lag(found: Compared) -> Answer:
    there = [name for name in AVERAGES if name in found.settings]
    rates = {name: found.between(name, "SP") for name in there}
    behind = [name for name in there if rates[name].high < 0.5]
    ahead = [name for name in there if rates[name].low > 0.5]
    short = "Yes" if len(behind) == len(there) else "No" if len(ahead) == len(there) else UNKNOWN
    if short == UNKNOWN and behind:
        short = f"Some do: {', '.join(behind)}"
    elif short == UNKNOWN and ahead:
        short = f"None is seen to; ahead: {', '.join(ahead)}"
    said = ", ".join(f"{name} {rate}" for name, rate in rates.items())
    return Answer("Do averages of parameters lag behind?", short, f"Over self-play: {said}.")


def _least(found: Compared) -> Answer:
    question = "Which learner is the hardest to exploit for the same samples?"
    order = sorted(found.exploited, key=lambda name: found.exploitability(name).value)
    # A response could stay what it exploits: one that loses was trained badly and bounds nothing.
    lost = [name for name in order if found.exploitability(name).high < 0.0]
    order = [name for name in order if name not in lost]
    if not order:
        return Answer(question, UNKNOWN, "Every response lost to what it was trained against.")
    best = order[0]
    equals = [name for name in order[1:] if not found.gap(name, best).low > 0.0]
    short = best
    if equals:
        short += f", but {', '.join(equals)} cannot be told from it"
    said = ", ".join(f"{name} {found.exploitability(name)}" for name in order)
    because = f"Exploitability: {said}."
    if lost:
        because += f" Of {', '.join(lost)} nothing is known: the response lost to them."
    return Answer(question, short, because)


def _orderings(found: Compared) -> Answer:
    compared = list(orderings(found))
    verdicts = [verdict for *_, verdict in compared]
    turned = [f"{one} over {other}" for one, other, *_, v in compared if v == "is reversed"]
    because = (
        f"Of {len(compared)} published orderings {verdicts.count('holds')} hold, {len(turned)} are"
        f" reversed{' (' + ', '.join(turned) + ')' if turned else ''} and"
        f" {verdicts.count('cannot be told')} cannot be told."
    )
    short = "Yes" if set(verdicts) == {"holds"} else "Not all of them"
    return Answer("Do the published orderings hold?", short, because)


def orderings(found: Compared) -> Iterator[tuple[str, str, float, Estimate, str]]:
    """Of each published pair that played: its names, the published rate, ours, and a verdict."""
    for (one, other), published in PUBLISHED.items():
        if {one, other} <= set(found.settings) and abs(published - 0.5) > _CLOSE:
            rate = found.between(one, other)
            above = rate.low > 0.5 if published > 0.5 else rate.high < 0.5
            below = rate.high < 0.5 if published > 0.5 else rate.low > 0.5
            verdict = "holds" if above else "is reversed" if below else "cannot be told"
            yield one, other, published, rate, verdict


def _yes(estimate: Estimate, null: float) -> str:
    return "Yes" if estimate.low > null else "No" if estimate.high < null else UNKNOWN
