"""What people answered on a blinded sheet: read, checked, and made a judge and training data.

`evaluation.blind_sheet` makes the sheet. Answers come back as the JSON or CSV that the page saves,
or as the sheet's CSV with its last column filled in.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from etils import epath

from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.evaluation import agreement, intervals
from nlhf_jax.evaluation.blind_sheet import KEY, Item, Sheet
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.json_records import MOST_LINE_BYTES, record, shown

FIRST, TIE, SECOND = 1.0, 0.5, 0.0  # share of a vote that goes to the response shown first
_FEW = 4  # raters of whom every two get a line
_ANSWERS = {"1": FIRST, "tie": TIE, "2": SECOND}


@dataclasses.dataclass(frozen=True)
class Rater:
    """One person's answers: item id -> FIRST, TIE or SECOND."""

    name: str
    answers: Mapping[str, float]


# --- reading -------------------------------------------------------------------------------------


def read_answers(paths: Sequence[str | os.PathLike], sheet: Sheet) -> list[Rater]:
    """The raters of files that came back, each name once, in the order met.

    A rater without a name in the file is called as the file is, without its ending. Raises
    UserError, with file and line, at an answer that is none of 1, 2 and tie, an id that is not the
    sheet's, a second answer to one comparison, or a file without answers.
    """
    ids = {item.id for item in sheet.items}
    found: dict[str, dict[str, float]] = {}
    place: dict[tuple[str, str], str] = {}
    for path in paths:
        with unreadable_is_one_error(str(path), "the answers"):
            content = epath.Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
        read = _read_json if content.lstrip().startswith(b"{") else _read_csv
        nothing = True
        for line, name, item, answer in read(content, str(path), sheet):
            where = f"{path}, line {line}"
            if not isinstance(item, str) or item not in ids:
                raise UserError(f"{where}: the sheet {sheet.id} has no comparison {shown(item)}")
            if not isinstance(answer, str) or answer not in _ANSWERS:
                raise UserError(
                    f"{where}: the answer to {item} is {shown(answer)} but must be 1, 2 or tie"
                )
            name = name or PurePath(path).stem
            if (name, item) in place:
                raise UserError(
                    f"{where}: {shown(name)} has answered {item} already, in {place[name, item]}"
                )
            place[name, item] = where
            found.setdefault(name, {})[item] = _ANSWERS[answer]
            nothing = False
        if nothing:
            raise UserError(f"{path}: there are no answers in it")
    return [Rater(name, answers) for name, answers in found.items()]


_Line = tuple[int, str, Any, Any]  # number, rater, id, answer


def _read_json(content: bytes, path: str, sheet: Sheet) -> Iterable[_Line]:
    """What the page saves: one object, with an answer a line."""
    try:
        found = record(content)
        if "key_of" in found:
            raise ValueError(f"this is a {KEY}; wanted answers that came back")
        answers, name = found.get("answers"), found.get("rater", "")
        if not isinstance(answers, list) or not isinstance(name, str):
            raise ValueError(
                f"wanted 'sheet', 'rater' and 'answers' of the page, met {shown(found)}"
            )
        if found.get("sheet") != sheet.id:
            raise ValueError(
                f"these are answers to the sheet {shown(found.get('sheet'))}, and the key is of "
                f"{shown(sheet.id)}"
            )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    starts = [match.start() for match in re.finditer(rb'"id"\s*:', content)]
    for number, one in enumerate(answers):
        at = starts[number] if number < len(starts) else len(content)
        line = content.count(b"\n", 0, at) + 1
        if not isinstance(one, dict) or set(one) != {"id", "answer"}:
            raise UserError(f"{path}, line {line}: wanted 'id' and 'answer', met {shown(one)}")
        if (twice := getattr(one, "twice", None)) is not None:
            raise UserError(f"{path}, line {line}: the key {shown(twice)} is there twice")
        yield line, name.strip(), one["id"], one["answer"]


def _read_csv(content: bytes, path: str, sheet: Sheet) -> Iterable[_Line]:
    """What the page saves, or the sheet's table filled in by whatever spreadsheet."""
    try:
        lines = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as 'CSV UTF-8'") from None
    csv.field_size_limit(max(csv.field_size_limit(), MOST_LINE_BYTES))
    divider = max(",;\t", key=lines.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(lines, newline=""), delimiter=divider, strict=True)
    columns: dict[str, int] = {}
    line = 1
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not columns:
                heads = [cell.lower() for cell in cells]
                columns = {head: number for number, head in enumerate(heads)}
                if [heads.count(name) for name in ("id", "answer")] != [1, 1]:
                    raise UserError(
                        f"{path}, line 1: wanted one column 'id' and one 'answer', met "
                        f"{shown(cells)}"
                    )
            elif any(cells):
                cells += [""] * (max(columns.values()) + 1 - len(cells))
                name = cells[columns["rater"]] if "rater" in columns else ""
                name = re.sub(r"^'(?=\s*[=+\-@＝＋－＠'])", "", name)
                answer = cells[columns["answer"]].lower()
                if answer:  # else it is not answered
                    yield line, name, cells[columns["id"]], answer
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not a table: {error}") from None
    if not columns:
        raise UserError(f"{path}: the file is empty; wanted columns 'id' and 'answer'")


# --- a judge -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Vote:
    """One comparison that was answered: two responses in the order of the sheet's players.

    Attributes:
      item: which it is.
      players: their names, as `responses`.
      share: of the raters' votes that went to the first of the two, a tie being half a vote.
      raters: how many answered.
    """

    item: Item
    prompt: str
    players: tuple[str, str]
    responses: tuple[str, str]
    share: float
    raters: int


def votes(sheet: Sheet, raters: Sequence[Rater]) -> list[Vote]:
    """Every comparison that anybody answered, in the order of the sheet's rows and players."""
    found = []
    for item in sorted(sheet.items, key=lambda item: (item.row, sorted(item.players))):
        given = [rater.answers[item.id] for rater in raters if item.id in rater.answers]
        if given:
            first, second = sorted(item.players)
            share = float(np.mean(given))
            row = sheet.rows[item.row]
            found.append(
                Vote(
                    item,
                    row.prompt,
                    (sheet.players[first], sheet.players[second]),
                    (row.responses[first], row.responses[second]),
                    share if (first, second) == item.players else 1 - share,
                    len(given),
                )
            )
    return found


class PeopleJudge:
    """People's votes on the comparisons that they were shown, and on no others.

    One vote a comparison where there was one, and the share of them where several people voted or
    were undecided; `votes` is False as soon as there is such a share. Two responses that are the
    same text were not shown: they get 1/2, or among votes a coin that the texts decide.
    """

    def __init__(self, found: Sequence[Vote], name: str = "people"):
        self.name = name
        shares = defaultdict(list)
        for vote in found:
            one, other = (text.strip() for text in vote.responses)
            shares[vote.prompt, one, other].append(vote.share)
            shares[vote.prompt, other, one].append(1 - vote.share)
        self._shares = {asked: float(np.mean(given)) for asked, given in shares.items()}
        self.votes = all(share in (0, 1) for share in self._shares.values())

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """Share of votes for the first `[N]`. Raises UserError at what nobody was asked."""
        asked = zip(prompts, first, second, strict=True)
        return np.array([self._share(x, y.strip(), other.strip()) for x, y, other in asked])

    def _share(self, prompt: str, first: str, second: str) -> float:
        if (prompt, first, second) in self._shares:
            return self._shares[prompt, first, second]
        if first == second:
            return _coin(prompt, first) if self.votes else 0.5
        raise UserError(
            f"nobody has compared {shown(first)} with {shown(second)}, on the prompt "
            f"{shown(prompt)}; play on the prompts of `people.answered` alone"
        )


def _coin(*texts: str) -> float:
    return float(hashlib.blake2b(repr(texts).encode()).digest()[0] % 2)


def answered(
    sheet: Sheet, raters: Sequence[Rater]
) -> tuple[list[str], dict[str, Player], PeopleJudge]:
    """What `tournament.play` takes first: the prompts of which every comparison has an answer.

    Prompts with some comparisons open are left out. Raises UserError if none is left.
    """
    found = votes(sheet, raters)
    done = {vote.item.id for vote in found}
    open_rows = {item.row for item in sheet.items if item.id not in done}
    rows = [row for number, row in enumerate(sheet.rows) if number not in open_rows]
    if not rows:
        raise UserError("there is no prompt of which every comparison has an answer")
    players = {
        name: Player([row.responses[number] for row in rows])
        for number, name in enumerate(sheet.players)
    }
    return [row.prompt for row in rows], players, PeopleJudge(found)


# --- training data -------------------------------------------------------------------------------


def preferences(found: Iterable[Vote]) -> list[dict[str, Any]]:
    """Lines of kind `preferences` (`data.json_lines`): prompt, chosen, rejected, weight.

    The weight, in (0.5, 1], is the share of the votes for the chosen one. There is no line for a
    tie, nor where one of the two responses is empty, which no line of that kind can say.
    """
    lines = []
    for vote in found:
        one, other = vote.responses
        if vote.share == 0.5 or not (one.strip() and other.strip()):
            continue
        chosen, rejected = (one, other) if vote.share > 0.5 else (other, one)
        weight = max(vote.share, 1 - vote.share)
        lines.append(
            {"prompt": vote.prompt, "chosen": chosen, "rejected": rejected, "weight": weight}
        )
    return lines


# --- for the terminal ----------------------------------------------------------------------------


def summary(sheet: Sheet, raters: Sequence[Rater]) -> list[str]:
    """Lines: how many answers, who beats whom, whether people agree, whether order sways them."""
    found = votes(sheet, raters)
    prompts = len({vote.item.row for vote in found})
    lines = [
        f"{sum(len(rater.answers) for rater in raters):,} answers of {_many(len(raters), 'rater')}"
        f" to {len(found):,} of {_many(len(sheet.items), 'comparison')}, on {prompts:,} of"
        f" {_many(len({item.row for item in sheet.items}), 'prompt')}"
    ]
    for rater in raters:
        given = list(rater.answers.values())
        lines.append(
            f"  {rater.name}: {_many(len(given), 'answer')}, {_many(given.count(TIE), 'tie')}; what"
            f" is shown first preferred in {_of(given.count(FIRST), given.count(SECOND))}"
        )
    for pair in itertools.combinations(sheet.players, 2):
        shares = [vote.share for vote in found if vote.players == pair]
        wins, losses = sum(x > 0.5 for x in shares), sum(x < 0.5 for x in shares)
        lines.append(
            f"{pair[0]} preferred to {pair[1]} in {_of(wins, losses)}"
            + (f", and {_many(len(shares) - wins - losses, 'tie')}" if shares else "")
        )
    lines += _agreements(sheet, raters)
    lines.append(
        "(intervals of 95 %: Clopper-Pearson's of shares, which ties are left out of, and of kappas"
        " the bootstrap over prompts; where several answered, a comparison goes to the majority)"
    )
    return lines


def _agreements(sheet: Sheet, raters: Sequence[Rater]) -> list[str]:
    answers = np.array(
        [[rater.answers.get(item.id, np.nan) for item in sheet.items] for rater in raters]
    )
    rows = np.array([item.row for item in sheet.items])
    groups = [tuple(range(len(raters)))] if len(raters) > 2 else []
    if len(raters) <= _FEW:
        groups += itertools.combinations(range(len(raters)), 2)
    return [
        f"agreement of {', '.join(raters[number].name for number in group)}: "
        + _agreement(answers[list(group)], rows, sheet.seed)
        for group in groups
    ]


def _agreement(answers: np.ndarray, rows: np.ndarray, seed: int) -> str:
    if not np.isfinite(answers).all(axis=0).any():
        return "they have answered no comparison in common"
    one = agreement.between(answers, rows, seed)
    kappa = one.kappa
    says = (
        "is not defined, as all answers are alike"
        if np.isnan(kappa.value)
        else f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})"
    )
    return (
        f"{one.name} {says}; {one.agreeing:.1%} the same, on {_many(one.comparisons, 'comparison')}"
    )


def _of(wins: int, losses: int) -> str:
    if not wins + losses:
        return "none of 0"
    low, high = intervals.clopper_pearson(np.array(wins), wins + losses)
    share = wins / (wins + losses)
    return f"{wins:,} of {wins + losses:,}, {share:.1%} ({low:.1%} to {high:.1%})"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
