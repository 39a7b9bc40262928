"""Charts that the page draws itself: SVG in the page's own colours, light and dark.

The pictures in `plots.py` show the same for Markdown and slides.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import numpy as np
from matplotlib.ticker import MaxNLocator

from nlhf_jax.report.plots import moving_average, unit

_WIDTH, _HEIGHT = 320, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 36  # around the axes
_POINTS = 240  # a line is drawn with no more
_SMOOTH_FROM = 120  # as in `plots.py`
_REACH = 0.01  # axes around a level are no narrower, or rounding errors would fill them
SERIES = 8  # colours in report.css; later series have dashes too
# Paths around the origin: told apart without colours.
_MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6h7.2v7.2h-7.2Z",
    "M0,-4.6L4.4,3.4H-4.4Z",
    "M0,-5L5,0L0,5L-5,0Z",
    "M0,4.6L4.4,-3.4H-4.4Z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
    "M-4.4,-3L-3,-4.4L0,-1.4L3,-4.4L4.4,-3L1.4,0L4.4,3L3,4.4L0,1.4L-3,4.4L-4.4,3L-1.4,0Z",
    "M-4.5,-2h9v4h-9Z",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve: `x` and `y` are `[M]`; values that are not finite leave gaps. `series` is its
    place in the legend."""

    label: str
    x: np.ndarray
    y: np.ndarray
    series: int = 0


@dataclasses.dataclass(frozen=True)
class Dot:
    """A point `(low, value, high)` in x and in y: the bars are 95 % intervals."""

    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    series: int = 0


@dataclasses.dataclass(frozen=True)
class Chart:
    """One set of axes.

    Attributes:
      title: what it shows.
      xlabel, ylabel: with units.
      lines: a long one is smoothed, above a faint line of what was measured.
      dots: with their intervals.
      level: a dashed horizontal line, if any.
      diagonal: whether x = y is dashed.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()
    level: float | None = None
    diagonal: bool = False

    @property
    def legend(self) -> dict[str, int]:
        """Label -> series, in order."""
        drawn: tuple[Line | Dot, ...] = (*self.lines, *self.dots)
        return {one.label: one.series for one in drawn}


def curve_chart(metric: str, lines: Sequence[Line], title: str | None = None) -> Chart:
    """A metric over training steps."""
    level = 0.5 if "win_rate" in metric or metric == "preference" else None
    return Chart(title or metric.replace("_", " "), "training step", unit(metric), lines, (), level)


def marker(series: int) -> str:
    """SVG of a series' mark, for legends."""
    small = ElementTree.Element("svg", viewBox="-6 -6 12 12", attrib={"aria-hidden": "true"})
    ElementTree.SubElement(
        small, "path", {"d": _marker(series), "class": f"dot s{series % SERIES}"}
    )
    return ElementTree.tostring(small, encoding="unicode")


def svg(chart: Chart) -> str:
    """The chart as an SVG element, its texts escaped."""
    return _Drawing(chart).text


class _Drawing:
    """Draws one chart; x and y go from data to pixels."""

    def __init__(self, chart: Chart):
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
                "role": "img",
                "class": "chart",
                "aria-label": f"{chart.title}: {chart.ylabel} by {chart.xlabel}",
            },
        )
        xs = [value for one in chart.lines for value in one.x[np.isfinite(one.y)]]
        ys = [value for one in chart.lines for value in one.y[np.isfinite(one.y)]]
        xs += [value for dot in chart.dots for value in dot.x]
        ys += [value for dot in chart.dots for value in dot.y]
        if chart.level is not None and ys:
            ys += [chart.level - _REACH, chart.level + _REACH]
        if chart.diagonal:
            xs, ys = [*xs, *ys], [*xs, *ys]
        self._x, xticks = _scale(xs, _LEFT, _WIDTH - _RIGHT, bool(chart.lines))
        self._y, yticks = _scale(ys, _HEIGHT - _BOTTOM, _TOP, False)
        # For tips: pixels = offset + slope * value.
        self._root.set("data-x", f"{self._x(0):.9g} {self._x(1) - self._x(0):.9g} {chart.xlabel}")
        self._root.set("data-y", f"{self._y(0):.9g} {self._y(1) - self._y(0):.9g}")
        self._axes(chart, xticks, yticks)
        if chart.level is not None:
            self._path([(xticks[0], chart.level), (xticks[-1], chart.level)], "level", across=True)
        if chart.diagonal:
            ends = (max(xticks[0], yticks[0]), min(xticks[-1], yticks[-1]))
            self._path([(end, end) for end in ends], "level")
        for line in chart.lines:
            self._line(line)
        for dot in chart.dots:
            self._dot(dot)
        self.text = ElementTree.tostring(self._root, encoding="unicode")

    def _axes(self, chart: Chart, xticks: Sequence[float], yticks: Sequence[float]) -> None:
        bottom = _HEIGHT - _BOTTOM
        for tick, text in zip(yticks, _labels(yticks), strict=True):
            y = self._y(tick)
            self._shape("path", {"class": "grid", "d": f"M{_LEFT},{y:.1f}H{_WIDTH - _RIGHT}"})
            self._text(text, _LEFT - 6, y + 3.5, "tick end")
        for tick, text in zip(xticks, _labels(xticks), strict=True):
            self._text(text, self._x(tick), bottom + 14, "tick middle")
        self._shape("path", {"class": "axis", "d": f"M{_LEFT},{bottom}H{_WIDTH - _RIGHT}"})
        self._text(chart.title, 2, 13, "title")
        self._text(chart.xlabel, _WIDTH - _RIGHT, _HEIGHT - 5, "name end")
        self._text(chart.ylabel, _WIDTH - _RIGHT, 13, "name end")

    def _line(self, line: Line) -> None:
        y, of_series = line.y, f"s{line.series % SERIES}"
        dashed = " dashed" if line.series >= SERIES else ""
        if len(y) >= _SMOOTH_FROM:
            self._path(_thinned(line.x, y), f"raw {of_series}")
            y = moving_average(y, len(y) // 40 * 2 + 1)
        points = _thinned(line.x, y)
        self._path(points, f"line {of_series}{dashed}").set("data-label", line.label)
        known = [(x, value) for x, value in points if math.isfinite(value)]
        for x, value in known if len(known) <= 12 else known[-1:]:
            tip = f"{line.label}, step {x:,.0f}: {value:.4g}"
            self._mark(x, value, line.series, "spot", tip)

    def _dot(self, dot: Dot) -> None:
        (left, x, right), (low, y, high) = dot.x, dot.y
        of_series = f"bar s{dot.series % SERIES}"
        self._path([(left, y), (right, y)], of_series)
        self._path([(x, low), (x, high)], of_series)
        tip = f"{dot.label}: {y:.3f} ({low:.3f} to {high:.3f}) at {x:.2f}"
        self._mark(x, y, dot.series, "dot", tip)

    def _path(
        self, points: Sequence[tuple[float, float]], kind: str, across: bool = False
    ) -> ElementTree.Element:
        """A line through points, with gaps where one is not finite."""
        parts, pen = [], "M"
        for x, y in points:
            if math.isfinite(y):
                parts.append(f"{pen}{self._x(x):.1f},{self._y(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        path = "".join(parts)
        if across:
            path = f"M{_LEFT},{self._y(points[0][1]):.1f}H{_WIDTH - _RIGHT}"
        return self._shape("path", {"class": kind, "d": path})

    def _mark(self, x: float, y: float, series: int, kind: str, tip: str) -> None:
        place = f"translate({self._x(x):.1f},{self._y(y):.1f})"
        attributes = {"class": f"{kind} s{series % SERIES}", "transform": place, "data-tip": tip}
        self._shape("path", {"d": _marker(series), **attributes})

    def _text(self, text: str, x: float, y: float, kind: str) -> None:
        self._shape("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": kind}).text = text

    def _shape(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        return ElementTree.SubElement(self._root, tag, attributes)


def _marker(series: int) -> str:
    return _MARKERS[series % len(_MARKERS)]


def _scale(
    values: Sequence[float], start: float, end: float, tight: bool
) -> tuple[Callable[[float], float], list[float]]:
    """A map from data to pixels and the ticks; `tight` axes end where the data does."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # level, but for rounding
        reach = abs(high) / 2 or 1.0
        low, high = low - reach, high + reach
    margin = 0 if tight else 0.05 * (high - low)
    low, high = low - margin, high + margin
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    shown = [float(tick) for tick in ticks if low - slack <= tick <= high + slack]
    return (lambda value: start + (value - low) / (high - low) * (end - start)), shown


def _labels(ticks: Sequence[float]) -> list[str]:
    """Short, and as exact as their distance needs."""
    if len(ticks) < 2:
        return [f"{tick:.3g}" for tick in ticks]
    largest, step = max(map(abs, ticks)), ticks[1] - ticks[0]
    if largest >= 1e5 or largest < 1e-3:
        return [f"{tick:.2g}".replace("e-0", "e-").replace("e+0", "e") for tick in ticks]
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, places) != round(step, places + 2):  # 0.25 needs one more
        places += 1
    return [f"{tick + 0.0:,.{places}f}".replace("-", "−") for tick in ticks]


def _thinned(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """At most about `_POINTS` points: of each stretch its lowest and its highest, in order."""
    if len(x) <= _POINTS:
        return list(zip(x.tolist(), y.tolist(), strict=True))
    kept = []
    edges = np.linspace(0, len(x), _POINTS // 2 + 1).astype(int)
    for start, stop in itertools.pairwise(edges):
        stretch = y[start:stop]
        if np.isfinite(stretch).all():
            kept += sorted({start + int(stretch.argmin()), start + int(stretch.argmax())})
        else:
            kept += range(start, stop)
    return [(float(x[n]), float(y[n])) for n in kept]
