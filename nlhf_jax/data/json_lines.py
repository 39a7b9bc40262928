"""Users' files: one JSON object a line, read and checked. No TensorFlow.

| kind | keys of a line |
|---|---|
| sft | `prompt`, `completion` |
| preferences | `prompt`, `chosen`, `rejected`; optional `weight` in (0.5, 1], see `Comparison` |
| prompts | `prompt` |

Other keys are ignored. Files are UTF-8; a path may be one of Google Cloud Storage (gs://...).
"""

import codecs
import dataclasses
import functools
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.json_records import lines, record, shown, text


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


def _parse(line: bytes, kind: str) -> Demonstration | Comparison | Prompt:
    """The row of one line. Raises ValueError with what is wrong with it."""
    wanted = " and ".join(f"'{key}'" for key in _TEXTS[kind])
    found = record(line, f" with {wanted}")
    for key in _TEXTS[kind]:
        if key not in found:
            raise ValueError(f"the key '{key}' is missing; a line of kind '{kind}' needs {wanted}")
    fields: dict[str, Any] = {key: text(found, key) for key in _TEXTS[kind]}
    if kind == "preferences":
        if fields["chosen"] == fields["rejected"]:
            raise ValueError("'chosen' and 'rejected' are the same text")
        weight = found.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"'weight' must be a number in (0.5, 1], met {shown(weight)}")
        if not 0.5 < weight <= 1:
            raise ValueError(f"'weight' must be in (0.5, 1], met {shown(weight)}")
        fields["weight"] = float(weight)
    return KINDS[kind](**fields)


def _parse_prompt(line: bytes, form: PromptForm) -> str | dict[str, str]:
    """A prompt for `nlhf sample`: its text, or the fields of the form. Raises ValueError."""
    wanted = form.fields if form.fields != ("prompt",) else ()
    found = record(line, " with 'prompt'" if not wanted else "")
    if wanted and all(name in found for name in wanted):
        return {name: text(found, name) for name in wanted}
    if "prompt" not in found:
        raise ValueError(
            "the key 'prompt' is missing"
            + (f"; a line needs it, or {' and '.join(map(repr, wanted))}" if wanted else "")
        )
    prompt = text(found, "prompt")
    form.prompt_of({"prompt": prompt})
    return prompt


def check_exists(path: str | os.PathLike) -> None:
    """Raises UserError if there is no such file."""
    try:
        with unreadable_is_one_error(str(path), "the file"):
            there = epath.Path(path).exists()
    except (ValueError, KeyError):  # a name that has a NUL byte; no such protocol
        there = False
    if not there:
        raise UserError(f"{path}: cannot read the file: there is none")


def scan(
    path: str | os.PathLike, kind: str
) -> Iterator[Demonstration | Comparison | Prompt | UserError]:
    """Each line's row, or, in its place, the error that says what is wrong with it.

    Blank lines are passed over. Raises UserError if the file cannot be read or has no lines.
    """
    with unreadable_is_one_error(str(path), "the file"), epath.Path(path).open("rb") as file:
        yield from _scan(lines(file, str(path)), str(path), functools.partial(_parse, kind=kind))


def scan_prompts(
    content: bytes, name: str, form: PromptForm = PLAIN
) -> Iterator[str | dict[str, str] | UserError]:
    """`scan` for prompts that are read already, of a form; `name` is what errors call their source.

    A prompt is its text, or the fields of the form.
    """
    parse = functools.partial(_parse_prompt, form=form)
    return _scan(lines(io.BytesIO(content), name), name, parse)


def _scan(found_lines: Iterable[bytes], name: str, parse: Callable[[bytes], Any]) -> Iterator[Any]:
    found = False
    for number, line in enumerate(found_lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark of some editors
        if not line.strip():
            continue
        found = True
        try:
            yield parse(line)
        except ValueError as error:
            yield UserError(f"{name}, line {number}: {error}")
    if not found:
        raise UserError(f"{name}: the file has no lines; wanted one JSON object a line")


def read(path: str | os.PathLike, kind: str) -> list:
    """All rows of a file of `kind` (a key of `KINDS`). Raises UserError at the first bad line."""
    return all_rows(scan(path, kind))


def is_skipped(bad_lines: str | None) -> bool:
    """Whether bad lines are left out. Raises UserError unless it is "skip", "stop" or None."""
    if bad_lines not in (None, "stop", "skip"):
        raise UserError(f"BAD_LINES is {bad_lines!r} but must be 'stop' or 'skip'")
    return bad_lines == "skip"


class File:
    """A file whose rows are read when it is called.

    Attributes:
      path: where it is.
      kind: a key of `KINDS`.
      skip: leave bad lines out, instead of stopping at the first one.
      skipped: of the last reading, what was wrong with the lines left out, a sentence each.
      half: 1 or 2: only rows whose prompt is of that half, so that no prompt is in both; None: all.
    """

    half: int | None = None

    def __init__(self, path: str | os.PathLike, kind: str, skip: bool = False):
        if kind not in KINDS:
            raise UserError(f"there is no kind of data '{kind}'; wanted one of {list(KINDS)}")
        self.path, self.kind, self.skip = path, kind, skip
        self.skipped: list[str] = []

    def __call__(self) -> list:
        """All good rows. Raises UserError at a bad line that is not skipped, or if none is good."""
        rows = self._good()
        if self.half is None:
            return rows
        kept = [row for row in rows if half_of(row.prompt) == self.half]
        if not kept:
            raise UserError(
                f"{self.path}: half {self.half} of its prompts is empty; set HALVE_FROM = None"
            )
        return kept

    def _good(self) -> list:
        if not self.skip:
            return read(self.path, self.kind)
        scanned = list(scan(self.path, self.kind))
        self.skipped = [str(row) for row in scanned if isinstance(row, UserError)]
        if len(self.skipped) == len(scanned):
            raise UserError(
                f"{self.path}: all {len(scanned)} lines are bad, the first one: {self.skipped[0]}"
            )
        return [row for row in scanned if not isinstance(row, UserError)]


def half_of(prompt: str) -> int:
    """1 or 2, by a hash of the text."""
    return 1 + hashlib.blake2b(prompt.encode("utf-8"), digest_size=1).digest()[0] % 2


def shortened(sentences: Sequence[str], most: int = 20) -> list[str]:
    """The first `most` of some sentences, and how many more there are."""
    more = len(sentences) - most
    return [*sentences[:most], *([f"... and {more} more"] if more > 0 else [])]


def all_rows(scanned: Iterable) -> list:
    """What `scan` and `scan_prompts` give, as a list. Raises UserError at the first bad line."""
    rows = []
    for row in scanned:
        if isinstance(row, UserError):
            raise row
        rows.append(row)
    return rows


def read_prompts(path: str | None, form: PromptForm) -> Sequence[str | dict[str, str]]:
    """Prompts from a file (None: standard input) of one text a line, or of JSON lines.

    Lines have the key `prompt`, or the fields of the form that the checkpoint's prompts have.
    Raises UserError for what cannot be read, and for what is no prompt of that form.
    """
    name = path or "standard input"
    with unreadable_is_one_error(name, "the prompts"):
        content = sys.stdin.buffer.read() if path is None else epath.Path(path).read_bytes()
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"{"):
        return all_rows(scan_prompts(content, name, form))
    lines = content.splitlines()
    try:
        prompts = [line.decode("utf-8").strip() for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text") from error
    if not prompts:
        raise UserError(f"{name} holds no prompt: give one a line")
    for number, prompt in enumerate(prompts, start=1):
        try:
            form.prompt_of({"prompt": prompt})
        except ValueError as error:
            raise UserError(f"{name}, prompt {number}: {error}") from None
    return prompts
