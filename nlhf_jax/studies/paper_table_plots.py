"""Pictures of a comparison of learners: see `nlhf_jax.studies.paper_table`."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.report import plots
from nlhf_jax.studies.paper_table import Compared


def published_and_found(
    compared: Sequence[tuple[str, str, float, Estimate, str]], run: str
) -> Figure:
    """Published win rates and ours of the same pairs, from `paper_table.orderings`."""
    with plots.new_figure(5.6, 5.0) as figure:
        axes = figure.subplots()
        for one, other, published, rate, _ in compared:
            ends = [[rate.value - rate.low], [rate.high - rate.value]]
            axes.errorbar(
                published, rate.value, ends, fmt="o", color=plots.COLORS[0], elinewidth=0.8
            )
            named, offset = f"{one} over {other}", (4, 3)
            axes.annotate(
                named, (published, rate.value), offset, textcoords="offset points", size=6
            )
        axes.axhline(0.5, color="0.6", linewidth=0.8)
        axes.axvline(0.5, color="0.6", linewidth=0.8)
        axes.set_xlabel("published win rate")
        axes.set_ylabel("win rate here")
        plots.sign(figure, run)
        return figure


def exploitability_and_wins(found: Compared, run: str) -> Figure:
    """Each setting by its win rate over the others and by how far it is exploited."""
    with plots.new_figure(7.0, 4.6) as figure:
        axes = figure.subplots()
        for number, name in enumerate(found.exploited):
            wins, lost = found.over_all(name), found.exploitability(name)
            color = plots.COLORS[number % len(plots.COLORS)]
            axes.errorbar(
                lost.value,
                wins.value,
                xerr=[[lost.value - lost.low], [lost.high - lost.value]],
                yerr=[[wins.value - wins.low], [wins.high - wins.value]],
                fmt=plots.MARKERS[number % len(plots.MARKERS)],
                color=color,
                elinewidth=0.8,
            )
            axes.annotate(name, (lost.value, wins.value), (4, 4), textcoords="offset points")
        axes.axhline(0.5, color="0.6", linewidth=0.8)
        axes.set_xlabel("exploitability: what a trained best response wins, less one half")
        axes.set_ylabel("win rate over the other learners")
        plots.sign(figure, run)
        return figure
