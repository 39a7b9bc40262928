"""The picture of styles that beat each other: where each policy stands."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nlhf_jax.report.plots import COLORS, FAINT, GRID, INK, MARKERS, new_figure, sign

_CORNERS = np.array([[0.5, np.sqrt(3) / 2], [1.0, 0.0], [0.0, 0.0]])
_BESIDE = [(0, 0.05), (0.02, -0.09), (-0.02, -0.09)]  # of each corner, its name
_SHADES = (*COLORS[:3], "#aeb8c3", "#e3e8ee")


def triangle(
    shares: Mapping[str, Sequence[float]],
    styles: Sequence[str],
    beats: np.ndarray,
    nash: np.ndarray,
    run: str,
) -> Figure:
    """A triangle of the three styles that beat each other in turn, and all shares as bars.

    Args:
      shares: of each policy, of its responses in each of the styles; they sum to at most 1.
      styles: the three first, each of which beats the next one, and then the others.
      beats: P(style > style'), `[styles, styles]`.
      nash: `[styles]`, the Nash mixture, marked with a cross.
      run: where it comes from.
    """
    with new_figure(9.2, 3.6) as figure:
        axes, bars = figure.subplots(1, 2, width_ratios=[1.15, 1.25])
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.fill(*_CORNERS.T, facecolor="none", edgecolor=GRID, linewidth=1.5)
        for one in range(3):
            _edge(axes, one, (one + 1) % 3, beats)
            corner = _CORNERS[one] + _BESIDE[one]
            axes.text(*corner, styles[one], ha="center", color=INK, fontsize=9, fontweight="bold")
        for series, (name, of_policy) in enumerate(shares.items()):
            bold = np.asarray(of_policy)[:3]
            axes.scatter(
                *(bold / max(bold.sum(), 1e-9) @ _CORNERS),
                s=14 + 130 * bold.sum(),
                marker=MARKERS[series % len(MARKERS)],
                color=COLORS[series % len(COLORS)],
                alpha=0.85,
                label=name,
                zorder=3,
            )
        axes.plot(
            *(nash[:3] @ _CORNERS), marker="x", markersize=9, markeredgewidth=2, color=INK,
            linestyle="", label="exact Nash", zorder=4,
        )  # fmt: skip
        axes.legend(loc="upper left", bbox_to_anchor=(-0.5, 1.05), markerscale=0.7)
        axes.set_title("Among the three bold styles", pad=22)
        _bars(bars, shares, styles)
        sign(figure, run, "the larger a mark, the more of a policy's responses are bold")
        return figure


def _edge(axes, one: int, other: int, beats: np.ndarray) -> None:
    """An arrow from a style to the one that it beats, with how often."""
    start, end = _CORNERS[one], _CORNERS[other]
    middle, outwards = (start + end) / 2, (start + end) / 2 - _CORNERS.mean(axis=0)
    place = middle + 0.36 * outwards
    axes.annotate(
        "",
        xy=middle + 0.12 * (end - start),
        xytext=middle - 0.12 * (end - start),
        arrowprops={"arrowstyle": "->", "color": FAINT},
    )
    label = f"beats {beats[one, other]:.2f}"
    axes.text(*place, label, ha="center", va="center", color=FAINT, fontsize=7.5)


def _bars(axes, shares: Mapping[str, Sequence[float]], styles: Sequence[str]) -> None:
    names = list(shares)
    table = np.array([shares[name] for name in names])
    left = np.zeros(len(names))
    for index, style in enumerate(styles):
        axes.barh(names, table[:, index], left=left, color=_SHADES[index], label=style, height=0.7)
        for row, value in enumerate(table[:, index]):
            if value >= 0.08:
                dark = index < 3
                axes.text(
                    left[row] + value / 2, row, f"{value:.0%}", ha="center", va="center",
                    fontsize=7, color="white" if dark else INK,
                )  # fmt: skip
        left += table[:, index]
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(False)
    axes.set_xlabel("share of the responses")
    axes.set_title("In which style each policy writes", pad=22)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(styles), columnspacing=1.0)
