"""Every picture of the project, with one look: functions return figures, `png` makes them bytes."""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.seeds import STUDENT
from nlhf_jax.evaluation.statistics import WinRates
from nlhf_jax.evaluation.votes import RaterAccuracy

# Okabe and Ito's palette without its yellow, which is too light for a line on white; told apart
# with any common colour vision. Markers differ too, so that nothing hangs on colour alone.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#1d2733"
FAINT = "#5c6875"
GRID = "#e3e8ee"

# Orange loses, blue wins: a pair that all common colour vision keeps apart, and that prints as two
# greys.
DIVERGING = LinearSegmentedColormap.from_list(
    "loses_wins", ["#a8480a", "#e89a5b", "#f9e3d0", "#fafafa", "#d5e5f3", "#6ba3d2", "#125a9c"]
)
_DIVERGING_DARK = LinearSegmentedColormap.from_list(
    "loses_wins_dark",
    ["#b9540d", "#93470f", "#573319", "#262c34", "#1d4265", "#1d5d97", "#1d70b8"],
)
_LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # names of players and stages may have a dollar in them
    "text.color": INK,
    "axes.edgecolor": "#aeb8c3",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 144,
}
_SMOOTH_FROM = 120  # points; shorter curves are drawn as they are
_PANELS_A_ROW = 4


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the project's look; sizes in inches."""
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def sign(figure: Figure, run: str, note: str | None = None) -> None:
    """Names the run in the figure's corner."""
    text = f"run: {run}" if note is None else f"{note}  ·  run: {run}"
    figure.supxlabel(text, x=0.995, ha="right", fontsize=7.5, color=FAINT)


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_LOOK):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def cell_colors(rate: float, dark: bool = False) -> tuple[str, str]:
    """Background and text colour (`#rrggbb`) of a win rate; their contrast is 4.5 to 1 or more.

    `dark` is for a dark page: a rate of one half is dark there.
    """
    background = to_hex((_DIVERGING_DARK if dark else DIVERGING)(float(rate)))
    foreground = max(("#ffffff", "#000000"), key=lambda color: contrast(background, color))
    return background, foreground


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two `#rrggbb` colours, 1 to 21 (WCAG 2.1)."""

    def luminance(color: str) -> float:
        channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def heat_map(rates: WinRates, run: str) -> Figure:
    """The win-rate matrix, each cell with its interval; bold where it is decided."""
    players = len(rates.names)
    longest = max(map(len, rates.names))
    side = max(0.86 * players, 2.0)
    with new_figure(side + 1.6 + 0.075 * longest, side * 0.72 + 1.7) as figure:
        axes = figure.subplots()
        image = axes.imshow(rates.rate, cmap=DIVERGING, vmin=0, vmax=1, aspect="auto")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(
            range(players),
            rates.names,
            rotation=30 if longest > 9 else 0,
            ha="left" if longest > 9 else "center",
        )
        axes.set_yticks(range(players), rates.names)
        axes.tick_params(
            length=0, labelcolor=INK, top=False, bottom=False, labeltop=True, labelbottom=False
        )
        axes.hlines(np.arange(1, players) - 0.5, -0.5, players - 0.5, color="white", linewidth=2)
        axes.vlines(np.arange(1, players) - 0.5, -0.5, players - 0.5, color="white", linewidth=2)
        for i, row in enumerate(rates.names):
            for j, column in enumerate(rates.names):
                _cell(axes, rates, i, j, bold=rates.is_decided(row, column))
        axes.set_ylabel("this player (row) …")
        axes.set_xlabel("… beats this one (column)")
        axes.xaxis.set_label_position("top")
        counted = "runs of each" if rates.interval == STUDENT else "prompts"
        axes.set_title(
            f"How often the row beats the column ({rates.n} {counted})", pad=10, fontsize=10.5
        )
        bar = figure.colorbar(image, ax=axes, shrink=0.85, aspect=24, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(f"win rate of the row, with 95 % interval ({rates.interval})")
        sign(figure, run)
    return figure


def _cell(axes, rates: WinRates, i: int, j: int, bold: bool) -> None:
    color = cell_colors(rates.rate[i, j])[1]
    if i == j:
        axes.text(j, i, "–", ha="center", va="center", color=FAINT)
        return
    axes.text(
        j, i - 0.09, f"{rates.rate[i, j]:.3f}", ha="center", va="center", color=color, fontsize=10,
        fontweight="bold" if bold else "normal",
    )  # fmt: skip
    interval = f"{rates.low[i, j]:.3f}–{rates.high[i, j]:.3f}"
    axes.text(j, i + 0.22, interval, ha="center", va="center", color=color, fontsize=6.6)


Curve = tuple[np.ndarray, np.ndarray]  # steps, values


def learning_curves(
    stage: str, curves: Mapping[str, Mapping[str, Curve]], run: str, panels: int = 12
) -> Figure:
    """One panel a metric.

    Args:
      stage: its name, for the title.
      curves: metric -> split -> (steps `[M]`, values `[M]`). Values that are not finite leave gaps.
      run: where it comes from.
      panels: metrics after that many are left out.
    """
    names = list(curves)[:panels]
    columns = min(_PANELS_A_ROW, len(names))
    rows = math.ceil(len(names) / columns)
    with new_figure(2.9 * columns + 0.3, 2.1 * rows + 0.7) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        smoothed = 0
        for axes, name in zip(grid, names, strict=False):
            for split, (steps, values) in curves[name].items():
                smoothed = max(smoothed, _curve(axes, split, np.asarray(steps), np.asarray(values)))
            axes.set_title(name)
            axes.set_xlabel("training step")
            axes.set_ylabel(unit(name))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useOffset=False)
            _widen_if_constant(axes)
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        handles: dict[str, Any] = {}
        for axes in grid[: len(names)]:
            lines, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, lines, strict=True))
        figure.suptitle(stage, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles)
        )
        sign(figure, run, f"bold: mean of the {smoothed} points around" if smoothed else None)
    return figure


def _widen_if_constant(axes) -> None:
    """A constant metric is drawn as a level line, not as its rounding errors."""
    low, high = axes.dataLim.intervaly
    if high - low <= 1e-6 * max(abs(low), abs(high)) or high == low:
        reach = abs(high) / 2 or 1.0
        axes.set_ylim(low - reach, high + reach)


def _curve(axes, split: str, steps: np.ndarray, values: np.ndarray) -> int:
    """Draws one curve; returns the width of its moving average, 0 if it is drawn as it is."""
    color = COLORS[0] if split == "train" else COLORS[1]
    few = len(steps) <= 40
    marked = (split != "train" and few) or len(steps) == 1
    style = {"marker": "o", "markersize": 3} if marked else {}
    width = len(steps) // 40 * 2 + 1 if len(steps) >= _SMOOTH_FROM else 0
    if not width:
        axes.plot(steps, values, color=color, linewidth=1.5, label=split, **style)
        return 0
    axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
    axes.plot(
        steps, moving_average(values, width), color=color, linewidth=1.7, label=split, **style
    )
    return width


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of `values [M]` over `width` points (odd) around each, fewer where the curve ends.

    Values that are not finite are left out of the means and stay gaps.
    """
    if width % 2 == 0:
        raise ValueError(f"a centred window has an odd width, got {width}")
    reach = width // 2
    known = np.where(np.isfinite(values), values, np.nan)
    mean = np.full(len(known), np.nan)
    for at in np.flatnonzero(~np.isnan(known)):
        mean[at] = np.nanmean(known[max(0, at - reach) : at + reach + 1])
    return mean


def unit(metric: str) -> str:
    """The axis name of a metric: what its values are, with their unit."""
    word = metric.lower()
    for part, name in _UNITS:
        if part in word:
            return name
    return metric.replace("_", " ")


_UNITS = (
    ("accuracy", "share"),
    ("order_bias", "probability"),
    ("inconsistency", "probability"),
    ("preference", "probability"),
    ("win_rate", "probability"),
    ("kl", "nats"),
    ("entropy", "nats"),
    ("log_ratio", "nats"),
    ("log_prob", "nats"),
    ("learning_rate", "learning rate"),
    ("norm", "norm"),
    ("tokens_per_second", "tokens / s"),
    ("steps_per_second", "steps / s"),
    ("examples_per_second", "examples / s"),
    ("seconds", "seconds"),
    ("length", "tokens"),
    ("share", "share"),
    ("loss", "loss"),
)


def reliability(raters: Sequence[RaterAccuracy], run: str) -> Figure:
    """How often votes agree with what raters prefer, against how sure they are of it."""
    with new_figure(6.2, 4.0) as figure:
        axes = figure.subplots()
        axes.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for index, rater in enumerate(raters):
            sure, right, counts = np.array(
                [(one.certainty, one.accuracy, one.comparisons) for one in rater.reliability]
            ).T
            axes.errorbar(
                sure, right, yerr=1.96 * np.sqrt(right * (1 - right) / counts),
                color=COLORS[index % len(COLORS)], marker=MARKERS[index % len(MARKERS)],
                markersize=5, elinewidth=0.8, linewidth=1.2, label=rater.name,
            )  # fmt: skip
        axes.set_xlabel("mean probability of what the rater prefers")
        axes.set_ylabel("share of votes that agree")
        axes.set_title("How far raters may be believed", fontsize=10.5)
        figure.legend(loc="outside right center")
        sign(figure, run, "dashed: as sure as right")
    return figure


def win_rate_against_kl(
    names: Sequence[str],
    win_rates: Sequence[Estimate],
    kls: Sequence[float],
    kl_standard_errors: Sequence[float],
    run: str,
) -> Figure:
    """What each policy gained against how far it went from SFT; bars are 95 % intervals."""
    title, xlabel = "Win rate against distance from SFT", "KL from SFT (nats a response)"
    return _trade_off(title, xlabel, names, win_rates, kls, kl_standard_errors, run)


def win_rate_against_length(
    names: Sequence[str], win_rates: Sequence[Estimate], words: Sequence[float], run: str
) -> Figure:
    """What each policy gained against how long its responses are."""
    title, xlabel = "Win rate against length", "words a response"
    return _trade_off(title, xlabel, names, win_rates, words, [0.0] * len(words), run)


def _trade_off(
    title: str,
    xlabel: str,
    names: Sequence[str],
    win_rates: Sequence[Estimate],
    xs: Sequence[float],
    standard_errors: Sequence[float],
    run: str,
) -> Figure:
    with new_figure(6.2, 4.0) as figure:
        axes = figure.subplots()
        axes.axhline(0.5, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        points = zip(names, win_rates, xs, standard_errors, strict=True)
        for index, (name, rate, x, error) in enumerate(points):
            axes.errorbar(
                x, rate.value, xerr=1.96 * error,
                yerr=[[rate.value - rate.low], [rate.high - rate.value]],
                color=COLORS[index % len(COLORS)], marker=MARKERS[index % len(MARKERS)],
                markersize=7, elinewidth=1.2, linestyle="none", label=name,
            )  # fmt: skip
        axes.set_xlabel(xlabel)
        axes.set_ylabel("mean win rate over the other policies")
        axes.set_title(title, fontsize=10.5)
        axes.margins(0.08)
        figure.legend(loc="outside right center")
        sign(figure, run)
    return figure
