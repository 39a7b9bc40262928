"""The raters of `tldr_mini`, version 2: three types of reader, each with its own taste of style.

Everybody wants what a summary says to be in the post, and to be said once and in order: of two
summaries the one with fewer *faults* is preferred by all. Where those are equal, style decides:

| style | such as |
|---|---|
| thorough | My boss has been stealing my food since June and I want an apology. |
| brief | My boss steals my food. |
| warm | It breaks my heart that my boss steals my food! |
| plain | My boss steals my food and I want an apology. |
| sloppy | So basically my boss steals my food or whatever. |

| type of reader | mass | order |
|---|---|---|
| feeling | 0.35 | warm, thorough, plain, sloppy, brief |
| sober | 0.34 | thorough, brief, plain, sloppy, warm |
| hurried | 0.31 | brief, warm, plain, sloppy, thorough |

A preference is the share of the population that ranks one summary higher; indifferent raters count
half. Each of the first three, bold styles has a type that cannot stand it, and beats the next one:
thorough beats brief (0.69), brief beats warm (0.65), warm beats thorough (0.66). Plain is
everybody's third choice. It beats sloppy with 1, which the bold ones do with two thirds: so where
much is sloppy plain wins most often, and a reward per summary has its optimum there; yet each bold
style beats it with two thirds. `games.py` beside this file has the exact game.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from nlhf_jax.data.tldr_mini.population import share_preferring
from nlhf_jax.data.tldr_mini.v2 import lexicon

STYLES = ("thorough", "brief", "warm", "plain", "sloppy")
OTHER = "other"  # a summary that does not say who, or not what; everybody's last choice

RATERS = ("feeling", "sober", "hurried")
MASSES = (0.35, 0.34, 0.31)
ORDERS = (
    ("warm", "thorough", "plain", "sloppy", "brief"),
    ("thorough", "brief", "plain", "sloppy", "warm"),
    ("brief", "warm", "plain", "sloppy", "thorough"),
)  # of each type, the best first
NOT_SAID = 2  # faults of a summary that does not say who, or not what
_FAULT = len(STYLES) + 1  # points: more than any style is better than another
_PERCENT = tuple(round(100 * mass) for mass in MASSES)

_SLOTS = ("start", "feeling", "who", "what", "since", "want", "end")  # in the order of a sentence


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a rater notices in a summary of a post.

    Attributes:
      style: one of `STYLES`, or `OTHER`.
      facts: how many of the post's four are told right.
      wrong: facts told that are not the post's.
      stray: words that belong to no sensible summary, and phrases that do not fit those before.
      repeated: words said again.
      not_said: of "who" and "what".
    """

    style: str
    facts: int
    wrong: int
    stray: int
    repeated: int
    not_said: int

    @property
    def faults(self) -> int:
        """All that is wrong with it."""
        return self.wrong + self.stray + self.repeated + NOT_SAID * self.not_said


def _phrases() -> dict[tuple[str, ...], tuple[str, str, bool]]:
    """Every phrase of a sensible summary -> (slot, the fact's keyword or "", "has been doing")."""
    table = {}

    def add(text: str, slot: str, keyword: str = "", lasting: bool = False) -> None:
        table[tuple(text.lower().split())] = (slot, keyword.lower(), lasting)

    for start in lexicon.SLOPPY_STARTS:
        add(start, "start")
    for feeling in lexicon.FEELINGS:
        add(feeling, "feeling")
    for who in lexicon.WHO:
        add(f"my {who}", "who", who)
    for topic, (does, doing) in lexicon.WHAT.items():
        add(does, "what", topic)
        add(f"has been {doing}", "what", topic, lasting=True)
    for since in lexicon.SINCE:
        add(f"since {since}", "since", since)
    for keyword, want in lexicon.WANT.items():
        add(f"and i want {want}", "want", keyword)
    for end in lexicon.SLOPPY_ENDS:
        add(end, "end")
    return table


_PHRASES = _phrases()
_LONGEST = max(map(len, _PHRASES))
_KEYWORDS = {
    "who": frozenset(lexicon.WHO),
    "what": frozenset(lexicon.WHAT),
    "since": frozenset(since.lower() for since in lexicon.SINCE),
    "want": frozenset(lexicon.WANT),
}
# Punctuation of sentences is let pass; any other character is a word of its own, hence a stray one.
_WORD = re.compile(r"[a-z]+|[^\sa-z.,!?]")


@functools.lru_cache(maxsize=16384)
def facts_of(post: str) -> dict[str, frozenset[str]]:
    """The keywords of each fact that occur in `post`, in lower case; empty sets in a text from
    another world.
    """
    words = set(_WORD.findall(post.lower()))
    return {slot: keywords & words for slot, keywords in _KEYWORDS.items()}


def _style(said: dict[str, bool]) -> str:
    if "who" not in said or "what" not in said:
        return OTHER
    if "start" in said or "end" in said:
        return "sloppy"
    if "feeling" in said:
        return "warm"
    return ("brief", "plain", "thorough")[("since" in said) + ("want" in said)]


def read(post: str, summary: str) -> Reading:
    """What a rater notices in `summary`, any text whatever, as a summary of `post`."""
    words = _WORD.findall(summary.lower())
    phrases, stray, position = [], 0, 0
    while position < len(words):
        for size in range(min(_LONGEST, len(words) - position), 0, -1):
            phrase = _PHRASES.get(tuple(words[position : position + size]))
            if phrase is not None:
                phrases.append((*phrase, size))
                position += size
                break
        else:
            stray += 1
            position += 1

    truth = facts_of(post)
    said: dict[str, bool] = {}  # slot -> whether it "has been" so
    right = set()
    wrong = repeated = latest = 0
    for slot, keyword, lasting, size in phrases:
        place = _SLOTS.index(slot)
        stray += place < latest
        latest = place
        if slot in said:  # the same thing said, or contradicted, again
            repeated += size
        said.setdefault(slot, lasting)
        if keyword:
            wrong += keyword not in truth[slot]
            if keyword in truth[slot]:
                right.add(slot)
    style = _style(said)
    # "steals my food since June" is no English; feelings and slang go with who and what alone.
    stray += "since" in said and not said.get("what", True)
    if style in ("warm", "sloppy"):
        stray += ("since" in said) + ("want" in said) + ("feeling" in said and style == "sloppy")
    return Reading(
        style, len(right), wrong, stray, repeated, ("who" not in said) + ("what" not in said)
    )


def style_of(post: str, summary: str) -> str:
    """The style of any text as a summary of `post`: one of `STYLES`, or `OTHER`."""
    return read(post, summary).style


@functools.lru_cache(maxsize=65536)
def utilities(post: str, summary: str) -> tuple[int, ...]:
    """Points of `summary` for each type in `RATERS`; only their order within a type counts."""
    reading = read(post, summary)
    ranks = [
        len(order) - order.index(reading.style) if reading.style in order else 0 for order in ORDERS
    ]
    return tuple(rank - _FAULT * reading.faults for rank in ranks)


def preference(post: str, first: str, second: str) -> float:
    """Exact P(first > second | post) in [0, 1] for a rater drawn from the population, for any
    texts.

    `preference(x, a, b) + preference(x, b, a) == 1`; indifferent types count half.
    """
    return share_preferring(utilities(post, first), utilities(post, second), _PERCENT)


def preferences(posts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]) -> np.ndarray:
    """`preference` of each row, float64 [rows]."""
    rows = zip(posts, firsts, seconds, strict=True)
    return np.array([preference(*row) for row in rows], dtype=np.float64)
