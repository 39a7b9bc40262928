"""What sections are made of; `html.py` and `markdown.py` print each kind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.results import Sample
from nlhf_jax.evaluation.statistics import WinRates
from nlhf_jax.report.browser import Browsed
from nlhf_jax.report.charts import Chart

NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; a quiet one explains what stands above it."""

    text: str
    quiet: bool = False
    kind = "text"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table: `note` is its interval or error; `flagged` catches the eye."""

    text: str
    note: str = ""
    flagged: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the row.

    Attributes:
      header: names of the columns.
      rows: cells.
      words: columns, beside the first one, that hold words and not numbers.
      quiet: numbers of rows that are not the point.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Sequence[int] = ()
    quiet: Sequence[int] = ()
    kind = "table"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Who beats whom.

    Attributes:
      rates: of every pair.
      browser: the name of the sample browser that shows a pair's responses; None without one.
    """

    rates: WinRates
    browser: str | None = None
    kind = "matrix"


@dataclasses.dataclass(frozen=True)
class Picture:
    """`file` under figures/; `width` in rem, or None for as wide as it is."""

    file: str
    says: str
    width: int | None = None
    kind = "picture"


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts beside each other under one legend.

    Attributes:
      charts: what the page draws.
      pictures: what stands in their place where nothing can be drawn.
      fold: the page shows them once this is clicked.
    """

    charts: Sequence[Chart]
    pictures: Sequence[Picture] = ()
    fold: str | None = None
    kind = "charts"

    @property
    def legend(self) -> dict[str, int]:
        """Label -> series."""
        found = {label: series for chart in self.charts for label, series in chart.legend.items()}
        return dict(sorted(found.items(), key=lambda pair: pair[1]))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Prompts with everybody's responses.

    Attributes:
      samples: some.
      about: what they are.
      browsed: all, for the page's browser.
      name: of the tournament, where there are several.
      pair: the two players that the browser begins with.
    """

    samples: Sequence[Sample]
    about: str
    browsed: Browsed | None = None
    name: str = ""
    pair: tuple[str, str] = ("", "")
    kind = "samples"


Part = Text | Table | Matrix | Picture | Charts | Samples


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]


def number(value: Any, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def estimate_cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(NOTHING)
    return Cell(f"{estimate.value:.3f}", f"{estimate.low:.3f}–{estimate.high:.3f}")
