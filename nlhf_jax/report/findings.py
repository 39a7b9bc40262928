"""Findings: things that were computed, with a figure each, as stages leave them for the report."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.files import write_json, write_whole

FILE_NAME = "findings.json"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was computed. A notebook shows its picture.

    Attributes:
      name: of its files.
      title: what it is about.
      text: what the numbers say, in sentences.
      png: a picture of it.
      numbers: JSON-able.
      table: rows of cells, the first one the header; may be empty.
      headline: what a report says of it in its first lines; may be empty.
    """

    name: str
    title: str
    text: str
    png: bytes
    numbers: Mapping[str, Any]
    table: Sequence[Sequence[str]] = ()
    headline: str = ""

    def _repr_png_(self) -> bytes:
        return self.png


def save(directory: epath.Path, findings: Sequence[Finding]) -> None:
    """Writes `directory/findings.json` and `directory/figures/NAME.png`, the JSON last."""
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    entries = []
    for finding in findings:
        write_whole(_figure(directory, finding.name), finding.png)
        fields = ("name", "title", "text", "numbers", "table", "headline")
        entries.append({field: getattr(finding, field) for field in fields})
    write_json(directory / FILE_NAME, {"findings": entries})


def load(directory: epath.Path) -> tuple[Finding, ...]:
    """What `save` wrote; nothing if there is no `findings.json`.

    Raises:
      UserError: it is something else, or a figure is missing.
    """
    path = directory / FILE_NAME
    if not path.exists():
        return ()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["findings"]
        return tuple(_finding(directory, entry) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a list of findings with a figure each ({first_line(error)}); delete "
            f"{directory} to run its stage again"
        ) from error


def _finding(directory: epath.Path, entry: Mapping[str, Any]) -> Finding:
    """Raises ValueError or TypeError if an entry is not one that `save` wrote."""
    table = entry.get("table", ())
    said = [entry["name"], entry["title"], entry["text"], entry.get("headline", "")]
    texts = [*said, *(cell for row in table for cell in row)]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{str(text)[:40]!r} is no text")
        text.encode("utf-8")
    if not re.fullmatch(r"\w[\w.-]{0,150}", entry["name"]):  # a file's, not a path to elsewhere
        raise ValueError(f"{entry['name'][:40]!r} cannot be the name of a figure's file")
    if table and len({len(row) for row in table}) > 1:
        raise ValueError("the rows of a table are not of one length")
    json.dumps(entry["numbers"], allow_nan=False).encode("utf-8")
    return Finding(png=_figure(directory, entry["name"]).read_bytes(), **entry)


def _figure(directory: epath.Path, name: str) -> epath.Path:
    return directory / "figures" / f"{name}.png"
