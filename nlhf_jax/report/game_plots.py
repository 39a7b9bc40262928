"""Pictures of tabular games, in the look of `nlhf_jax.report.plots`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nlhf_jax.report.plots import COLORS, FAINT, GRID, INK, new_figure, sign

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: `x` and `y` are `[M]`; values that are not finite leave gaps."""

    label: str
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Panel:
    """One set of axes. `log` names the axes with a logarithmic scale: "", "x", "y" or "xy"."""

    title: str
    lines: Sequence[Line]
    xlabel: str
    ylabel: str
    log: str = ""
    ylim: tuple[float, float] | None = None


def panels(title: str, grid: Sequence[Sequence[Panel]], run: str) -> Figure:
    """A grid of panels. A label has the same style in a whole row, which shares one legend."""
    rows, columns = len(grid), len(grid[0])
    with new_figure(3.5 * columns + 1.9, 2.6 * rows + 0.6) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for row, of_row in enumerate(grid):
            labels = list(dict.fromkeys(line.label for panel in of_row for line in panel.lines))
            for column, panel in enumerate(of_row):
                _panel(axes[row, column], panel, labels)
            handles: dict[str, Any] = {}
            for ax in axes[row]:
                lines, names = ax.get_legend_handles_labels()
                handles |= dict(zip(names, lines, strict=True))
            if len(labels) > 1:
                axes[row, -1].legend(
                    [handles[name] for name in labels],
                    labels,
                    loc="center left",
                    bbox_to_anchor=(1.02, 0.5),
                )
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        sign(figure, run)
    return figure


def _panel(axes, panel: Panel, labels: Sequence[str]) -> None:
    for line in panel.lines:
        index = labels.index(line.label)
        axes.plot(
            line.x,
            line.y,
            color=COLORS[index % len(COLORS)],
            # Colours come again after seven; dashes tell those apart, and help without colours.
            linestyle=DASHES[(index + index // len(COLORS)) % len(DASHES)],
            linewidth=1.6,
            label=line.label,
        )
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    if "x" in panel.log:
        axes.set_xscale("symlog", linthresh=1)
    if "y" in panel.log:
        axes.set_yscale("log")
    if panel.ylim is not None:
        axes.set_ylim(panel.ylim)


def simplex_paths(
    title: str,
    paths: Mapping[str, np.ndarray],
    actions: tuple[str, str, str],
    equilibrium: np.ndarray,
    run: str,
) -> Figure:
    """Where policies over three actions go.

    Args:
      title: of the figure.
      paths: name -> probabilities `[M, 3]`, one triangle each.
      actions: names of the corners.
      equilibrium: `[3]`, marked with a cross.
      run: where it comes from.
    """
    corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    with new_figure(2.7 * len(paths) + 0.4, 3.2) as figure:
        for axes, (name, path) in zip(
            figure.subplots(1, len(paths), squeeze=False)[0], paths.items(), strict=True
        ):
            axes.set_axis_off()
            axes.set_aspect("equal")
            axes.fill(*corners.T, facecolor="none", edgecolor=GRID, linewidth=1.5)
            points = np.asarray(path) @ corners
            axes.plot(*points.T, color=COLORS[0], linewidth=0.9, alpha=0.55)
            axes.scatter(
                *points.T, c=np.arange(len(points)), cmap="viridis_r", s=7, zorder=3, linewidth=0
            )
            axes.plot(*points[0], marker="o", markersize=7, markerfacecolor="white",
                      markeredgecolor=INK, zorder=4)  # fmt: skip
            axes.plot(*(equilibrium @ corners), marker="x", markersize=8, markeredgewidth=2,
                      color=COLORS[1], zorder=5)  # fmt: skip
            for corner, action, (dx, dy) in zip(
                corners, actions, [(0, -0.09), (0, -0.09), (0, 0.04)], strict=True
            ):
                axes.text(*(corner + [dx, dy]), action, ha="center", color=FAINT, fontsize=8)
            axes.set_title(name, loc="center")
            axes.set_xlim(-0.12, 1.12)
            axes.set_ylim(-0.15, 1.0)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        sign(figure, run, "circle: start, cross: equilibrium, dark: late")
    return figure
