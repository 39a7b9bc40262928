"""What is in a user's JSON lines, and what is wrong with them on which line. No TensorFlow."""

import dataclasses
import os

import numpy as np

from nlhf_jax.data import json_lines
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FileCheck:
    """What is in a user's file.

    Attributes:
        rows: number of good lines.
        problems: one sentence a bad line, with the path and the line's number.
        lengths: key -> tokens of each good line's text, EOS included; empty without a vocabulary.
    """

    path: str
    kind: str
    rows: int
    problems: list[str]
    lengths: dict[str, np.ndarray]

    def report(self, most_problems: int = 20) -> str:
        """Lines for the terminal: problems first, then what can be used."""
        lines = self.problems[:most_problems]
        if len(self.problems) > most_problems:
            lines.append(f"... and {len(self.problems) - most_problems} more")
        lines.append(f"{self.path}: {self.rows} good lines, {len(self.problems)} bad ones")
        for key, tokens in self.lengths.items():
            if len(tokens):
                half, most, longest = np.percentile(tokens, (50, 95, 100)).astype(int)
                lines.append(
                    f"  {key}: {half} tokens at the median, {most} at 95 %, {longest} at most"
                )
        return "\n".join(lines)


def check(path: str | os.PathLike, kind: str, vocabulary: Vocabulary | None = None) -> FileCheck:
    """Reads all of a JSON lines file of `kind` ("sft", "preferences", "prompts").

    With a vocabulary it also measures the texts, to choose feature lengths by. Raises UserError if
    the file cannot be read, has no lines, or if there is no such kind.
    """
    if kind not in json_lines.KINDS:
        raise UserError(
            f"there is no kind of data '{kind}'; wanted one of {list(json_lines.KINDS)}"
        )
    problems, rows = [], 0
    lengths: dict[str, list[int]] = {}
    for row in json_lines.scan(path, kind):
        if isinstance(row, UserError):
            problems.append(str(row))
            continue
        rows += 1
        if vocabulary is not None:
            for key, text in json_lines.texts(row).items():
                lengths.setdefault(key, []).append(len(vocabulary.encode(text)) + 1)
    return FileCheck(
        str(path), kind, rows, problems, {key: np.array(found) for key, found in lengths.items()}
    )
