"""What sections are made of; `html.py` and `markdown.py` print each kind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.results import Sample
from nlhf_jax.evaluation.statistics import WinRates

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
    """Who beats whom."""

    rates: WinRates
    kind = "matrix"


@dataclasses.dataclass(frozen=True)
class Picture:
    """`file` under figures/; `width` in rem, or None for as wide as it is."""

    file: str
    says: str
    width: int | None = None
    kind = "picture"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Prompts with everybody's responses."""

    samples: Sequence[Sample]
    kind = "samples"


Part = Text | Table | Matrix | Picture | Samples


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
