"""Small files in the format of the published TL;DR data."""

import json
from pathlib import Path

from nlhf_jax.data.tldr import files as tldr_files


def post(number: int, split: str = "train") -> dict:
    return {
        "id": f"t3_{split}{number}",
        "subreddit": "relationships",
        "title": f"My boss and I, part {number}",
        "post": f"My boss steals food in {split} number {number}.\nWhat now?",
        "summary": f" boss steals {split} {number}",
    }


def vote(number: int, split: str = "train", confidence: int | None = None, **changes) -> dict:
    """Odd numbers choose the second summary."""
    extra = {} if confidence is None else {"confidence": confidence}
    info = {key: value for key, value in post(number, split).items() if key != "summary"}
    return {
        "info": {**info, "site": None},
        "split": split,
        "summaries": [
            {"text": f" first {split} {number}", "policy": "sup1", "note": "Fine. "},
            {"text": f" second {split} {number}", "policy": "ref", "note": None},
        ],
        "choice": number % 2,
        "worker": f"worker{number % 3}",
        "batch": "batch3",
        "extra": extra,
    } | changes


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Of both batches together: how many votes of each level (0: no level) a split has.
LEVELS = {"train": [None, 5, 9, 1, None, 4], "valid1": [1, 9, None], "valid2": [1, 2, 5, 8, 9, 9]}


def votes(batch: str) -> list[dict]:
    """Those of batch3 have even numbers, those of batch22 odd ones."""
    first = {"batch3": 0, "batch22": 1}[batch]
    return [
        vote(number, split, levels[number], batch=batch)
        for split, levels in LEVELS.items()
        for number in range(first, len(levels), 2)
    ]


def write_posts(directory: Path, nested: bool = False) -> Path:
    for split, file in tldr_files.POST_FILES.items():
        count = {"train": 6, "validation": 3, "test": 2}[split]
        path = file if nested else Path(file).name
        write(directory / path, [post(number, split) for number in range(count)])
    return directory


def write_votes(directory: Path, nested: bool = False) -> Path:
    """batch3 and batch22 with votes, the others with one vote for training each."""
    for number, batch in enumerate(tldr_files.BATCHES):
        rows = votes(batch) if batch in ("batch3", "batch22") else [vote(100 + number, batch=batch)]
        path = tldr_files.vote_file(batch)
        write(directory / (path if nested else Path(path).name), rows)
    return directory
