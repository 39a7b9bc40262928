"""The files of TL;DR and of the votes on its summaries, read and checked. No TensorFlow.

Posts with reference summaries (Voelske et al. 2017, filtered by Stiennon et al. 2020), and votes of
hired raters on two summaries of a post (Stiennon et al. 2020). Both are JSON lines; keys that we do
not need may be there or not.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from nlhf_jax.data.prompts import PromptForm
from nlhf_jax.errors import UserError
from nlhf_jax.json_records import lines, record, shown

BASE_URL = "https://openaipublic.blob.core.windows.net/summarize-from-feedback"

# Split -> path of its file below the base URL.
POST_FILES = {
    "train": "datasets/tldr_3_filtered/train.jsonl",
    "validation": "datasets/tldr_3_filtered/valid.jsonl",
    "test": "datasets/tldr_3_filtered/test.jsonl",
}
# Those on TL;DR; the others that are published are about news.
BATCHES = (*(f"batch{number}" for number in range(3, 21)), "batch22")
# Our names for the votes' splits: valid1 is for choosing models, valid2 for final numbers.
VOTE_SPLITS = {"train": "train", "valid1": "validation", "valid2": "test"}
HIGHEST_CONFIDENCE = 9

# What a policy, and a rater, reads of a post. The usual form for this data, that of OpenAI's
# summarize-from-feedback.
PROMPT_FORM = PromptForm("SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:")

_AGAIN = "delete the file, and copy it again or set DOWNLOAD = True"


@dataclasses.dataclass(frozen=True)
class Post:
    """A post with its author's own summary."""

    id: str
    subreddit: str
    title: str
    post: str
    summary: str


@dataclasses.dataclass(frozen=True)
class Vote:
    """One rater's choice between two summaries of a post.

    Attributes:
      confidence: 1 to 9, the far ends being the sure votes; 0 where the rater was not asked.
      worker: who voted; empty if the file does not say, like `batch` and `policies`.
      policies: what wrote the chosen summary and the rejected one.
      split: ours, a value of `VOTE_SPLITS`.
    """

    id: str
    subreddit: str
    title: str
    post: str
    chosen: str
    rejected: str
    confidence: int
    worker: str
    batch: str
    policies: tuple[str, str]
    split: str


def vote_file(batch: str) -> str:
    """Path of a batch of votes below the base URL."""
    return f"dataset/comparisons/{batch}.json"


def prompt(subreddit: str, title: str, post: str) -> str:
    """What a policy, and a rater, reads of a post."""
    return PROMPT_FORM.fill({"subreddit": subreddit, "title": title, "post": post})


def _records(path) -> Iterator[tuple[str, dict]]:
    """Each line's object, with the place that errors name. Raises UserError."""
    found = False
    try:
        with epath.Path(path).open("rb") as file:
            for number, line in enumerate(lines(file, str(path)), start=1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                if not found and line.lstrip().startswith(b"<"):
                    raise UserError(
                        f"{place}: met a page of HTML, wanted one JSON object a line (a server's "
                        f"error saved under the file's name?); {_AGAIN}"
                    )
                found = True
                try:
                    content = record(line)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        raise UserError(f"{place}: {error}; {_AGAIN}") from None
                    raise UserError(
                        f"{place}: the file ends in the middle of this line, so it is not whole; "
                        f"{_AGAIN}"
                    ) from None
                yield place, content
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read the file: {reason}") from None
    if not found:
        raise UserError(f"{path}: the file has no lines, wanted JSON objects; {_AGAIN}")


def _field(record: dict, key: str, kind: type, name: str = ""):
    """Raises ValueError; `name` is what it calls the key, by default the key."""
    name = name or key
    if key not in record:
        raise ValueError(f"the key '{name}' is missing; the line has {sorted(record)}")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {str: "text", dict: "an object", list: "a list", int: "a whole number"}[kind]
        raise ValueError(f"'{name}' must be {wanted}, met {shown(value)}")
    return value


def _text(record: dict, key: str, name: str = "", may_be_blank: bool = True) -> str:
    text = _field(record, key, str, name)
    if not may_be_blank and not text.strip():
        raise ValueError(f"'{name or key}' is blank")
    return _whole(text)


def _whole(text: str) -> str:
    # Sampled summaries may end inside an emoji: half a surrogate pair, which UTF-8 cannot hold.
    return text.encode("utf-8", "replace").decode("utf-8")


def _summary(record: dict, key: str, name: str = "", may_be_blank: bool = True) -> str:
    # In the files summaries start with a space, for GPT-2's tokens. SentencePiece marks the
    # beginning of a word itself.
    return _text(record, key, name, may_be_blank).strip()


def _post(record: dict) -> Post:
    return Post(
        id=_text(record, "id"),
        subreddit=_text(record, "subreddit"),
        title=_text(record, "title"),
        post=_text(record, "post", may_be_blank=False),
        summary=_summary(record, "summary", may_be_blank=False),
    )


def _said(record: dict, key: str) -> str:
    """Text that nothing depends on, empty where it is not there."""
    value = record.get(key)
    return "" if value is None else _whole(str(value))


def _confidence(record: dict) -> int:
    extra = record.get("extra")
    value = extra.get("confidence") if isinstance(extra, dict) else None
    if value is None:
        return 0
    confidence = _field({"confidence": value}, "confidence", int, "extra.confidence")
    if not 1 <= confidence <= HIGHEST_CONFIDENCE:
        raise ValueError(f"'extra.confidence' must be 1 to {HIGHEST_CONFIDENCE}, met {confidence}")
    return confidence


def _vote(record: dict) -> Vote:
    info = _field(record, "info", dict)
    if "post" not in info and "article" in info:
        raise ValueError(
            f"'info' has an article and no post: a batch about news; wanted {BATCHES[0]} to "
            f"{BATCHES[-2]} and {BATCHES[-1]}"
        )
    summaries = _field(record, "summaries", list)
    if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise ValueError(f"'summaries' must be two objects, met {shown(summaries)}")
    # Blank summaries stay: samplers write them, and raters judged them.
    texts = [_summary(summary, "text", "summaries.text") for summary in summaries]
    choice = _field(record, "choice", int)
    if choice not in (0, 1):
        raise ValueError(f"'choice' must be 0 or 1, met {choice}")
    split = _field(record, "split", str)
    if split not in VOTE_SPLITS:
        raise ValueError(f"'split' must be one of {list(VOTE_SPLITS)}, met {shown(split)}")
    policies = [_said(summary, "policy") for summary in summaries]
    return Vote(
        id=_text(info, "id", "info.id"),
        subreddit=_text(info, "subreddit", "info.subreddit"),
        title=_text(info, "title", "info.title"),
        post=_text(info, "post", "info.post", may_be_blank=False),
        chosen=texts[choice],
        rejected=texts[1 - choice],
        confidence=_confidence(record),
        worker=_said(record, "worker"),
        batch=_said(record, "batch"),
        policies=(policies[choice], policies[1 - choice]),
        split=VOTE_SPLITS[split],
    )


def _read(path, parse) -> Iterator:
    for place, content in _records(path):
        try:
            row = parse(content)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        yield row


def read_posts(path: str | os.PathLike) -> Iterator[Post]:
    """The posts of one file, in order, one line in memory at a time. Raises UserError."""
    return _read(path, _post)


def read_votes(paths: Iterable) -> Iterator[Vote]:
    """The votes of all splits in some files, in order, one line in memory at a time.

    Raises UserError.
    """
    for path in paths:
        yield from _read(path, _vote)


def count_votes(paths: Sequence) -> dict[str, list[int]]:
    """Our split -> how many votes have confidence 0 (not asked), 1, ... 9. Checks every line."""
    counts = {split: [0] * (HIGHEST_CONFIDENCE + 1) for split in VOTE_SPLITS.values()}
    for vote in read_votes(paths):
        counts[vote.split][vote.confidence] += 1
    return counts
