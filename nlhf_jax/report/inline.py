"""What notebooks show beside `Scored`: a report in a frame, and small pictures."""

import html
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from nlhf_jax.errors import UserError
from nlhf_jax.report import game_plots, plots


class Page:
    """HTML that Jupyter and Colab show where a cell ends with it."""

    def __init__(self, text: str):
        self.text = text

    def _repr_html_(self) -> str:
        return self.text


class Picture:
    """A PNG that Jupyter and Colab show where a cell ends with it."""

    def __init__(self, png: bytes):
        self.png = png

    def _repr_png_(self) -> bytes:
        return self.png


def frame(path: str | os.PathLike, height: int = 800) -> Page:
    """A page on disk, such as `report.html`, in a frame of `height` pixels.

    The notebook holds a copy of it. Raises UserError if there is no such file.
    """
    if not epath.Path(path).exists():
        raise UserError(f"there is no page {os.fspath(path)}: the chain has not come to its report")
    text = html.escape(epath.Path(path).read_text(encoding="utf-8"))
    name = html.escape(epath.Path(path).name)
    style = f"width:100%;height:{height}px;border:1px solid #aeb8c3"
    return Page(f'<div><iframe title="{name}" style="{style}" srcdoc="{text}"></iframe></div>')


def preference_matrix(rate: np.ndarray, names: Sequence[str], title: str) -> Picture:
    """A heat map of P(row > column) `[K, K]`; `names` of the K, short ones."""
    count = len(names)
    if rate.shape != (count, count):
        raise ValueError(f"{count} names do not fit rates of shape {rate.shape}")
    with plots.new_figure(0.62 * count + 2.2, 0.5 * count + 1.3) as figure:
        axes = figure.subplots()
        image = axes.imshow(rate, cmap=plots.DIVERGING, vmin=0, vmax=1, aspect="auto")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(count), names)
        axes.set_yticks(range(count), names)
        axes.tick_params(length=0, labelcolor=plots.INK)
        for i, j in np.ndindex(count, count):
            ink = plots.FAINT if i == j else plots.cell_colors(float(rate[i, j]))[1]
            text = "–" if i == j else f"{rate[i, j]:.2f}"
            axes.text(j, i, text, ha="center", va="center", color=ink)
        axes.set_ylabel("this one (row) …")
        axes.set_xlabel("… is preferred to this one (column)")
        axes.set_title(title)
        bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03)
        bar.outline.set_visible(False)
        bar.set_label("probability")
        return Picture(plots.png(figure))


def by_position(log_ratios: Mapping[str, Sequence[np.ndarray]], run: str) -> Picture:
    """The mean log ratio of a response's 1st, 2nd, ... token.

    Args:
      log_ratios: policy -> float `[T]` of each of its responses, T its own.
      run: where they come from.
    """
    lines = []
    for name, several in log_ratios.items():
        longest = max(map(len, several))
        table = np.full((len(several), longest), np.nan)
        for row, ratios in zip(table, several, strict=True):
            row[: len(ratios)] = ratios
        lines.append(game_plots.Line(name, np.arange(1, longest + 1), np.nanmean(table, axis=0)))
    panel = game_plots.Panel("", lines, "token of the response", "nats, mean over responses")
    title = "Log ratio to the reference by position"
    return Picture(plots.png(game_plots.panels(title, [[panel]], run)))
