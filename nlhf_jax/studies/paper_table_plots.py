"""Pictures of a comparison of learners: see `nlhf_jax.studies.paper_table`.

A row each, however many there are: names beside points would cover one another.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.report import plots
from nlhf_jax.studies.paper_table import Compared

_ROW = 0.21  # inches
_MARGINS = 1.0


def published_and_found(
    compared: Sequence[tuple[str, str, float, Estimate, str]], run: str
) -> Figure:
    """Published win rates and ours of the same pairs, from `paper_table.orderings`."""
    compared = sorted(compared, key=lambda each: -each[2])
    with plots.new_figure(6.4, _MARGINS + _ROW * len(compared)) as figure:
        axes = figure.subplots()
        published = [rate for _, _, rate, *_ in compared]
        axes.plot(published, range(len(compared)), "D", color="0.5", ms=4, label="published")
        _estimates(axes, [rate for *_, rate, _ in compared], label="here, over runs")
        _rows(axes, [f"{one} over {other}" for one, other, *_ in compared])
        axes.axvline(0.5, color="0.6", linewidth=0.8)
        axes.set_xlabel("win rate")
        axes.legend(loc="lower right")
        plots.sign(figure, run)
        return figure


def exploitability_and_wins(found: Compared, run: str) -> Figure:
    """Each setting by how far it is exploited, the least on top, and by what it wins."""
    lost = {name: found.exploitability(name) for name in found.exploited}
    names = sorted(lost, key=lambda name: lost[name].value)
    with plots.new_figure(7.6, _MARGINS + _ROW * len(names)) as figure:
        exploited, wins = figure.subplots(1, 2, sharey=True)
        _estimates(exploited, [lost[name] for name in names])
        _estimates(wins, [found.over_all(name) for name in names])
        _rows(exploited, names)
        exploited.axvline(0.0, color="0.6", linewidth=0.8)
        wins.axvline(0.5, color="0.6", linewidth=0.8)
        exploited.set_xlabel("exploitability: what a trained\nresponse wins, less one half")
        wins.set_xlabel("win rate over\nthe other learners")
        plots.sign(figure, run)
        return figure


def _estimates(axes: Axes, estimates: Sequence[Estimate], label: str | None = None) -> None:
    """One a row, with its interval."""
    values = [each.value for each in estimates]
    below = [each.value - each.low for each in estimates]
    above = [each.high - each.value for each in estimates]
    axes.errorbar(
        values,
        range(len(values)),
        xerr=[below, above],
        fmt="o",
        ms=4,
        color=plots.COLORS[0],
        elinewidth=1.0,
        label=label,
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
