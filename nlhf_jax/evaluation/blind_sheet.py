"""A blinded comparison sheet: people say which of two responses is better, not knowing whose.

Three files. `sheet.html` is a page that works from disk, `sheet.csv` the same for a spreadsheet;
both hold texts and ids alone. `sheet.key.json` says whose each response is, and stays with whoever
made the sheet. `evaluation.people` reads what comes back.

What could tell players apart is drawn anew: which of the two is shown first, by a coin a
comparison, and in which order the comparisons come. Ids number that order, behind a hash of what is
shown. White space around responses is not shown, as some players always begin with a space. The
seed is in the key only.
"""

import base64
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources

import jinja2
import markupsafe
import numpy as np
from etils import epath

from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.files import write_whole
from nlhf_jax.json_records import lines, record, shown, text

PAGE, TABLE, KEY = "sheet.html", "sheet.csv", "sheet.key.json"
QUESTION = "Which response is better?"
COLUMNS = ("id", "prompt", "response 1", "response 2", "answer")
_LETTERS = "bcdfghjklmnpqrstvwxz"  # no word, number or month comes of them, in any spreadsheet


@dataclasses.dataclass(frozen=True)
class Row:
    """A prompt with what each player answered; `responses` in the order of `Sheet.players`."""

    prompt: str
    responses: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Item:
    """One comparison.

    Attributes:
      id: what the page and the table call it.
      row: its place in `Sheet.rows`.
      players: places in `Sheet.players` of those whose responses are shown first and second.
    """

    id: str
    row: int
    players: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What was drawn, and whose it is.

    Attributes:
      id: six letters, a hash of what is shown.
      question: asked of each comparison.
      seed: of all draws.
      players: their names.
      rows: prompts that were drawn. Every two responses to one are an item, but equal ones.
      items: in the order shown.
    """

    id: str
    question: str
    seed: int
    players: tuple[str, ...]
    rows: tuple[Row, ...]
    items: tuple[Item, ...]

    def texts(self, item: Item) -> tuple[str, str, str]:
        """Prompt, and responses as shown."""
        row = self.rows[item.row]
        first, second = (row.responses[player].strip() for player in item.players)
        return row.prompt, first, second


# --- drawing -------------------------------------------------------------------------------------


def read_responses(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Prompts and completions of a file of JSON lines with these two keys; others are ignored.

    A completion may be empty. Raises UserError, with file and line, at what cannot be used.
    """
    found = []
    with unreadable_is_one_error(str(path), "the responses"), epath.Path(path).open("rb") as file:
        for number, line in enumerate(lines(file, str(path)), start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                found.append(_response(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    if not found:
        raise UserError(f"{path}: the file has no lines; wanted 'prompt' and 'completion' in each")
    return found


def _response(line: bytes) -> tuple[str, str]:
    found = record(line, " with 'prompt' and 'completion'")
    for key in ("prompt", "completion"):
        if key not in found:
            raise ValueError(f"the key '{key}' is missing; wanted 'prompt' and 'completion'")
    if isinstance(found["completion"], str) and not found["completion"].strip():
        return text(found, "prompt"), ""
    return text(found, "prompt"), text(found, "completion")


def draw(
    responses: Mapping[str, Sequence[tuple[str, str]]],
    pairs: int,
    seed: int,
    question: str = QUESTION,
) -> Sheet:
    """Draws prompts, with all pairs of players on each, until there are `pairs` comparisons.

    So whatever prompts come back answered are a tournament. Drawn are prompts that all players
    have; one that is there several times is paired with the others' by its number. Where two
    responses are the same text there is nothing to ask, and the tournament counts them as equal.

    Args:
      responses: player's name -> its (prompt, completion), of two players or more.
      pairs: how many comparisons at most, and all but the last prompt's if there are as many.
      seed: of which prompts, in which order, which response first.
      question: what people are asked.

    Raises:
      UserError: fewer than two players or a nameless one, no question, `pairs` too few for one
        prompt, no prompt that all players have, or no two responses that differ.
    """
    names = tuple(responses)
    if not question.strip():
        raise UserError("--question is empty")
    if len(names) < 2 or not all(name.strip() for name in names):
        raise UserError(f"a sheet needs two players or more, each with a name, got {list(names)}")
    least = len(names) * (len(names) - 1) // 2
    if pairs < least:
        raise UserError(
            f"--pairs is {pairs} but must be at least {least}: all pairs of {len(names)} players"
            " on one prompt"
        )
    candidates = _common_rows(names, responses)
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    items: list[tuple[int, tuple[int, int]]] = []
    for number in rng.permutation(len(candidates)):
        row = candidates[number]
        different = [
            pair
            for pair in itertools.combinations(range(len(names)), 2)
            if row.responses[pair[0]].strip() != row.responses[pair[1]].strip()
        ]
        if len(items) + len(different) > pairs:
            break
        for pair in different:
            items.append((len(rows), pair if rng.random() < 0.5 else pair[::-1]))
        rows.append(row)
    if not items:
        raise UserError("there is nothing to compare: the players' responses are the same texts")
    order = [items[number] for number in rng.permutation(len(items))]
    sheet = Sheet("", question, seed, names, tuple(rows), tuple(Item("", *one) for one in order))
    name = _name([question, *(sheet.texts(item) for item in sheet.items)])
    numbered = (
        dataclasses.replace(item, id=f"{name}-{number}")
        for number, item in enumerate(sheet.items, start=1)
    )
    return dataclasses.replace(sheet, id=name, items=tuple(numbered))


def _common_rows(
    names: Sequence[str], responses: Mapping[str, Sequence[tuple[str, str]]]
) -> list[Row]:
    by_player = [_numbered(responses[name]) for name in names]
    first, *others = by_player
    found = [
        Row(prompt, tuple(of[prompt, number] for of in by_player))
        for prompt, number in first
        if all((prompt, number) in other for other in others)
    ]
    if not found:
        raise UserError(f"there is no prompt that all of {', '.join(names)} have answered")
    return found


def _numbered(responses: Sequence[tuple[str, str]]) -> dict[tuple[str, int], str]:
    """(prompt, how many times it was there before) -> completion."""
    times: Counter[str] = Counter()
    found = {}
    for prompt, completion in responses:
        found[prompt, times[prompt]] = completion
        times[prompt] += 1
    return found


def _name(shown_texts: Sequence[object]) -> str:
    digest = hashlib.blake2b(json.dumps(shown_texts).encode()).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:6])


def told(sheet: Sheet) -> list[str]:
    """Players whose name stands as a word in a text that is shown, which no sheet can blind.

    Names of one or two letters are words by chance, and are passed over.
    """
    shown_texts = "\n".join(
        text for row in sheet.rows for text in (row.prompt, *row.responses)
    ).casefold()
    return [
        name
        for name in sheet.players
        if len(name) > 2 and re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", shown_texts)
    ]


# --- writing -------------------------------------------------------------------------------------


def write(sheet: Sheet, directory: str | os.PathLike) -> None:
    """Writes the three files. Raises UserError where there is the key of another sheet."""
    place = epath.Path(directory)
    if (place / KEY).exists() and (place / KEY).read_text() != key(sheet):
        # Answers to that one may be on their way, and nobody could tell whose they are.
        raise UserError(f"{place / KEY} is the key of another sheet; choose another --output")
    write_whole(place / KEY, key(sheet))
    write_whole(place / PAGE, page(sheet))
    write_whole(place / TABLE, table(sheet))


def page(sheet: Sheet) -> str:
    """The page: one file that asks nothing of the network, all text in it as data.

    Its policy lets the browser run this script and style only, whatever a response holds.
    """
    parts = resources.files("nlhf_jax.evaluation")
    style, script = (
        parts.joinpath(f"blind_sheet.{end}").read_text("utf-8") for end in ("css", "js")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {}  # keys in our order
    template = environment.from_string(parts.joinpath("blind_sheet.html").read_text("utf-8"))
    shown_items = [
        {"id": item.id, **dict(zip(("prompt", "first", "second"), sheet.texts(item), strict=True))}
        for item in sheet.items
    ]
    return template.render(
        question=sheet.question,
        count=len(sheet.items),
        sheet={"id": sheet.id, "items": shown_items},
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def table(sheet: Sheet) -> bytes:
    """The same as CSV, with the mark by which spreadsheets know UTF-8."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for item in sheet.items:
        writer.writerow([item.id, *map(harmless, sheet.texts(item)), ""])
    return stream.getvalue().encode("utf-8-sig")


def harmless(cell: str) -> str:
    """A text that no spreadsheet takes for a formula: an apostrophe stands before what begins one.

    Also within the text, behind what ends a cell for a spreadsheet that divides by semicolons or
    tabs, and at the beginning of a line. Source: OWASP, "CSV Injection".
    """
    return re.sub(r"(^|[;\t\r\n])(?=[\t\r ]*[=+\-@＝＋－＠])", r"\1'", cell)


def key(sheet: Sheet) -> str:
    """Whose the responses are, as JSON."""
    return json.dumps({"key_of": sheet.id, **dataclasses.asdict(sheet)}, indent=1) + "\n"


def read_key(path: str | os.PathLike) -> Sheet:
    """The sheet of a file written by `key`. Raises UserError if it is none."""
    with unreadable_is_one_error(str(path), "the key"):
        content = epath.Path(path).read_bytes()
    try:
        found = record(content, f": the {KEY} of a sheet")
        if "key_of" not in found:
            raise ValueError(f"wanted the {KEY} of a sheet, met {shown(found)}")
        rows = tuple(Row(text(row, "prompt"), tuple(row["responses"])) for row in found["rows"])
        items = tuple(
            Item(text(item, "id"), _whole(item["row"]), (_whole(first), _whole(second)))
            for item in found["items"]
            for first, second in [item["players"]]
        )
        sheet = Sheet(
            text(found, "id"),
            text(found, "question"),
            _whole(found["seed"]),
            tuple(found["players"]),
            rows,
            items,
        )
        _check(sheet)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        what = f"{error}" if isinstance(error, ValueError) else "it is damaged"
        raise UserError(f"{path}: {what}") from None
    return sheet


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("it is damaged")
    return value


def _check(sheet: Sheet) -> None:
    """Raises ValueError unless all that a key points to is there."""
    players = len(sheet.players)
    strings = [*sheet.players, *(text for row in sheet.rows for text in row.responses)]
    good = (
        all(isinstance(one, str) for one in strings)
        and all(len(row.responses) == players for row in sheet.rows)
        and all(0 <= item.row < len(sheet.rows) for item in sheet.items)
        and all(0 <= player < players for item in sheet.items for player in item.players)
        and len({item.id for item in sheet.items}) == len(sheet.items) > 0
    )
    if not good:
        raise ValueError("it is damaged")


def summary(sheet: Sheet, directory: str | os.PathLike, pairs: int) -> list[str]:
    """Lines for the terminal: the files, what each is for, and what is not on the sheet."""
    place = epath.Path(directory)
    players = len(sheet.players)
    same = len(sheet.rows) * players * (players - 1) // 2 - len(sheet.items)
    shown_rows = len({item.row for item in sheet.items})
    lines = [
        f"{place / PAGE}, {place / TABLE}: {len(sheet.items):,} comparisons on {shown_rows:,}"
        " prompts, for raters; either will do",
        f"{place / KEY}: whose the responses are, to be kept",
    ]
    if same:
        lines.append(f"  {same:,} comparisons of one and the same text are not on the sheet")
    if len(sheet.items) <= pairs - players * (players - 1) // 2:
        lines.append(f"  there were no prompts for more, so these are not {pairs:,}")
    return lines
