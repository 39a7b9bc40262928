"""What is in a user's JSON lines, and what is wrong with them on which line. No TensorFlow."""

import dataclasses
import os
from collections.abc import Mapping

import numpy as np

from nlhf_jax.data import json_lines
from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.data.votes import VoteCheck, check_votes
from nlhf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FileCheck:
    """What is in a user's file.

    Attributes:
        rows: number of good lines.
        problems: one sentence a bad line, with the path and the line's number.
        lengths: key -> tokens of each good line's text, EOS included; empty without a vocabulary.
        cut: key -> (feature, its length), of the keys of which a length is known.
        votes: of preferences, what they say.
    """

    path: str
    kind: str
    rows: int
    problems: list[str]
    lengths: dict[str, np.ndarray]
    cut: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    votes: VoteCheck | None = None

    def report(self, most_problems: int = 20) -> str:
        """Lines for the terminal: problems first, then what can be used."""
        lines = json_lines.shortened(self.problems, most_problems)
        lines.append(f"{self.path}: {self.rows} good lines, {len(self.problems)} bad ones")
        for key, tokens in self.lengths.items():
            if len(tokens):
                half, most, longest = np.percentile(tokens, (50, 95, 100)).astype(int)
                lines.append(
                    f"  {key}: {half} tokens at the median, {most} at 95 %, {longest} at most"
                )
            if key in self.cut and len(tokens):
                feature, length = self.cut[key]
                count = int(np.sum(tokens > length))
                lines.append(
                    f"    {count} of {len(tokens)} ({count / len(tokens):.1%}) are longer than "
                    f"{feature}={length} and would be cut"
                )
        if self.votes is not None:
            lines += self.votes.report()
        return "\n".join(lines)


# Which feature a key of a line becomes.
_FEATURES = {
    "sft": {"prompt": "inputs", "completion": "targets"},
    "preferences": {"prompt": "text", "chosen": "summary", "rejected": "summary"},
    "prompts": {"prompt": "inputs"},
}


def check(
    path: str | os.PathLike,
    kind: str,
    vocabulary: Vocabulary | None = None,
    feature_lengths: Mapping[str, int] | None = None,
    form: PromptForm = PLAIN,
) -> FileCheck:
    """Reads all of a JSON lines file of `kind` ("sft", "preferences", "prompts").

    With a vocabulary it also measures the texts, to choose feature lengths by, and counts those
    that `feature_lengths` would cut; `form` is put around the prompts. Raises UserError if the file
    cannot be read, has no lines, or if there is no such kind.
    """
    if kind not in json_lines.KINDS:
        raise UserError(
            f"there is no kind of data '{kind}'; wanted one of {list(json_lines.KINDS)}"
        )
    problems, rows = [], 0
    votes: list[json_lines.Comparison] = []
    lengths: dict[str, list[int]] = {}
    for row in json_lines.scan(path, kind):
        if isinstance(row, UserError):
            problems.append(str(row))
            continue
        rows += 1
        if isinstance(row, json_lines.Comparison):
            votes.append(row)
        if vocabulary is not None:
            texts = json_lines.texts(row)
            texts["prompt"] = form.fill(texts)
            for key, text in texts.items():
                lengths.setdefault(key, []).append(len(vocabulary.encode(text)) + 1)
    given = feature_lengths or {}
    return FileCheck(
        str(path),
        kind,
        rows,
        problems,
        {key: np.array(found) for key, found in lengths.items()},
        {key: (name, given[name]) for key, name in _FEATURES[kind].items() if name in given},
        check_votes(votes) if votes else None,
    )
