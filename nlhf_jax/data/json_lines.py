"""Users' files: one JSON object a line, read and checked. No TensorFlow.

| kind | keys of a line |
|---|---|
| sft | `prompt`, `completion` |
| preferences | `prompt`, `chosen`, `rejected`; optional `weight` in (0.5, 1], see `Comparison` |
| prompts | `prompt` |

Other keys are ignored. Files are UTF-8; a path may be one of Google Cloud Storage (gs://...).
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator

from etils import epath

from nlhf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A line of an `sft` file."""

    prompt: str
    completion: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A line of a `preferences` file; `weight` in (0.5, 1] is the share of raters that chose so."""

    prompt: str
    chosen: str
    rejected: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A line of a `prompts` file."""

    prompt: str


KINDS = {"sft": Demonstration, "preferences": Comparison, "prompts": Prompt}
_TEXTS = {
    "sft": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
}


def texts(row: Demonstration | Comparison | Prompt) -> dict[str, str]:
    """Key -> text, of everything in a row that is text."""
    return {key: value for key, value in vars(row).items() if isinstance(value, str)}


def _shown(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _parse(line: bytes, kind: str):
    """The row of one line. Raises ValueError with what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} of the line is not valid UTF-8") from None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    wanted = " and ".join(f"'{key}'" for key in _TEXTS[kind])
    if not isinstance(record, dict):
        raise ValueError(f"wanted a JSON object with {wanted}, met {_shown(record)}")
    for key in _TEXTS[kind]:
        if key not in record:
            raise ValueError(f"the key '{key}' is missing; a line of kind '{kind}' needs {wanted}")
        value = record[key]
        if not isinstance(value, str):
            raise ValueError(f"'{key}' must be text, met {_shown(value)}")
        if not value.strip():
            raise ValueError(f"'{key}' is empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"'{key}' holds half of a surrogate pair, which is no text") from None
    fields = {key: record[key] for key in _TEXTS[kind]}
    if kind == "preferences":
        if fields["chosen"] == fields["rejected"]:
            raise ValueError("'chosen' and 'rejected' are the same text")
        weight = record.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"'weight' must be a number in (0.5, 1], met {_shown(weight)}")
        if not 0.5 < weight <= 1:
            raise ValueError(f"'weight' must be in (0.5, 1], met {_shown(weight)}")
        fields["weight"] = float(weight)
    return KINDS[kind](**fields)


def check_exists(path: str | os.PathLike) -> None:
    """Raises UserError if there is no such file."""
    if not epath.Path(path).exists():
        raise UserError(f"{path}: cannot read the file: there is none")


def scan(
    path: str | os.PathLike, kind: str
) -> Iterator[Demonstration | Comparison | Prompt | UserError]:
    """Each line's row, or, in its place, the error that says what is wrong with it.

    Blank lines are passed over. Raises UserError if the file cannot be read or has no lines.
    """
    try:
        with epath.Path(path).open("rb") as file:
            yield from scan_lines(file, str(path), kind)
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror or error}") from None


def scan_lines(
    lines: Iterable[bytes], name: str, kind: str
) -> Iterator[Demonstration | Comparison | Prompt | UserError]:
    """`scan` for lines that are read already; `name` is what errors call their source."""
    found = False
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark of some editors
        if not line.strip():
            continue
        found = True
        try:
            yield _parse(line, kind)
        except ValueError as error:
            yield UserError(f"{name}, line {number}: {error}")
    if not found:
        raise UserError(f"{name}: the file has no lines; wanted one JSON object a line")


def read(path: str | os.PathLike, kind: str) -> list:
    """All rows of a file of `kind` (a key of `KINDS`). Raises UserError at the first bad line."""
    return all_rows(scan(path, kind))


def all_rows(scanned: Iterable) -> list:
    """What `scan` and `scan_lines` give, as a list. Raises UserError at the first bad line."""
    rows = []
    for row in scanned:
        if isinstance(row, UserError):
            raise row
        rows.append(row)
    return rows
