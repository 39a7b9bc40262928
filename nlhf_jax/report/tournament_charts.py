"""What a tournament measured, as charts that the page draws."""

import numpy as np

from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.report.charts import Chart, Dot, Line

KL = "KL from SFT (nats a response)"
LENGTH = "words a response"
WIN_RATE = "mean win rate"


def trade_offs(result: TournamentResult) -> list[Chart]:
    """Mean win rate over the other policies, against KL and against length, where measured."""
    measured = [player for player in result.players if player.mean_win_rate is not None]
    by_kl, by_length = [], []
    for series, player in enumerate(measured):
        rate = _bar(player.mean_win_rate)
        if player.kl is not None:
            reach = 1.96 * (player.kl_standard_error or 0.0)
            bar = (player.kl - reach, player.kl, player.kl + reach)
            by_kl.append(Dot(player.name, bar, rate, series))
        by_length.append(Dot(player.name, (player.mean_words,) * 3, rate, series))
    found = [("Win rate against KL", KL, by_kl), ("Win rate against length", LENGTH, by_length)]
    return [
        Chart(title, xlabel, WIN_RATE, dots=dots, level=0.5)
        for title, xlabel, dots in found
        if dots
    ]


def _bar(rate: Estimate | None) -> tuple[float, float, float]:
    assert rate is not None
    return rate.low, rate.value, rate.high


def reliability(result: TournamentResult) -> list[Chart]:
    """How often votes agree with what raters prefer, against how sure they are of it."""
    lines, dots = [], []
    for series, rater in enumerate(one for one in result.raters if one.reliability):
        sure, right, counts = np.array(
            [(one.certainty, one.accuracy, one.comparisons) for one in rater.reliability]
        ).T
        reach = 1.96 * np.sqrt(right * (1 - right) / counts)
        lines.append(Line(rater.name, sure, right, series))
        dots += [
            Dot(rater.name, (x, x, x), (y - error, y, y + error), series)
            for x, y, error in zip(sure.tolist(), right.tolist(), reach.tolist(), strict=True)
        ]
    title, xlabel = "Sure and right", "mean probability of what the rater prefers"
    chart = Chart(title, xlabel, "share of votes that agree", lines, dots, diagonal=True)
    return [chart] if lines else []
