"""How time grows, as a picture."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from nlhf_jax.benchmarking.sweep import UNITS, Sweep
from nlhf_jax.report.plots import COLORS, FAINT, INK, MARKERS, new_figure, sign


def growth(sweeps: Sequence[Sweep], run: str, devices: str) -> Figure:
    """A panel for each sweep: milliseconds of the step and its phases over what was changed.

    Both axes are logarithmic. What grows in proportion is parallel to the dotted line.

    Args:
      sweeps: at least one.
      run: the gin file, for the corner.
      devices: such as "2 x cpu".
    """
    with new_figure(5.2 * len(sweeps), 3.7) as figure:
        panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
        for axes, sweep in zip(panels, sweeps, strict=True):
            values = [point.value for point in sweep.points]
            for i, (name, seconds) in enumerate(sweep.seconds.items()):
                power = sweep.growth[name]
                grows = "" if power is None else f"  ^{power:.2f}"
                axes.plot(
                    values,
                    [1e3 * each for each in seconds],
                    color=INK if name == "step" else COLORS[(i - 1) % len(COLORS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=4,
                    linewidth=2.2 if name == "step" else 1.3,
                    label=name + grows,
                )
            first = 1e3 * sweep.seconds["step"][0]
            proportion = [first * value / values[0] for value in values]
            axes.plot(values, proportion, ":", color=FAINT, linewidth=1, label="in proportion")
            axes.set(xscale="log", yscale="log", xlabel=UNITS[sweep.axis], title=sweep.axis)
            axes.set_xticks(values, [_short(value) for value in values])
            axes.xaxis.set_minor_formatter(NullFormatter())
            plain = FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:g}")
            axes.yaxis.set_major_formatter(plain)
            low, high = axes.get_ylim()
            # Within a decade there may be no power of ten to read.
            axes.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        panels[0].set_ylabel("time (ms)")
        sign(figure, run, devices)
    return figure


def _short(value: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,}"
