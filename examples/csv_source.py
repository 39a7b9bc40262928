"""A data source: spreadsheets saved as CSV, split by a column.

`texts.csv` has the columns split, prompt and completion; `votes.csv` has split, prompt, chosen and
rejected.
"""

import csv
import functools
from pathlib import Path

from nlhf_jax.data import datasets
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.json_lines import Comparison, Demonstration
from nlhf_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def _rows(path: Path, split: str, make, columns: tuple[str, ...]):
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            missing = [name for name in ("split", *columns) if not row.get(name)]
            if missing:
                raise UserError(f"{path}: a row has no {missing[0]!r}: {row}")
            if row["split"] == split:
                yield make(*(row[name] for name in columns))


def tables(texts: str, votes: str, vocabulary: str) -> Dataset:
    """What gin names as DATA."""

    def splits(path, make, columns):
        return {
            split: functools.partial(_rows, Path(path), split, make, columns) for split in SPLITS
        }

    return datasets.from_rows(
        "tables",
        vocabulary,
        sft=splits(texts, Demonstration, ("prompt", "completion")),
        preferences=splits(votes, Comparison, ("prompt", "chosen", "rejected")),
        short_template=True,
    )
