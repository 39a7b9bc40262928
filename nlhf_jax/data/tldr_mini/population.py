"""The raters of `tldr_mini`: three types of reader, each with its own order over summaries.

Everybody wants to read plain English about the post: who does what, true to the post, without
filler, repetition or stray words. Beyond that they differ:

- *informed* (mass 0.36): 10 points for each of the four questions answered (who, what, since when,
  what the author wants), 5 for a guess at the reason, 5 off for a hedge.
- *hurried* (0.34): 5 points off for each word more or less than five, 5 points for a headline word
  ("nightmare").
- *sceptic* (0.30): 10 points off when a summary states things flatly, without a hedge ("it seems"),
  and 10 more for each headline word, which claims what the post does not.

A preference is the share of the population that ranks one summary higher; indifferent raters count
half. At equal quality the three manners of `tldr_mini_text` form a cycle: thorough beats headline
(informed, sceptic), headline beats careful (informed, hurried), careful beats thorough (hurried,
sceptic). No reward per summary can express that.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from nlhf_jax.data.tldr_mini import lexicon

# What every rater takes off, in points. One slip spoils a summary, more of them hardly matter: so
# spoilt summaries still differ by their manner, whose gaps are 10 points and more, and form cycles,
# while a flawless one beats a spoilt one whatever the manner, for nearly everybody.
# By the number of fillers, slang, repeated words, wrong facts and vague deeds.
SLIPS = (0, 18, 21, 24, 26, 28)
STRAY = 12  # a word or an order of phrases that belongs to no sensible summary
NOT_SAID = 40  # the summary does not say who, or not what
ANOTHER_STORY = 30  # two facts or more, and none of them right

_SLOTS = ("hedge", "who", "what", "since", "want", "guess")  # in the order of a sensible summary
_FACTS = ("who", "what", "since", "want")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a rater notices in a summary of a post; all counts."""

    answered: int  # of the post's four questions, rightly or not
    facts: int  # of the post's four, told right
    wrong: int  # facts told that are not the post's
    vague: int  # "does stuff"
    guesses: int
    sensations: int
    hedged: int  # 0 or 1
    words: int  # without filler and repetitions
    fillers: int  # and slang
    repeated: int  # words
    stray: int  # words, and phrases out of order
    not_said: int  # of "who" and "what"


def _phrases() -> dict[tuple[str, ...], tuple[str, str, str]]:
    """Every phrase of a sensible summary -> (slot, the fact's keyword or "", manner of telling)."""
    table = {}
    for hedge in lexicon.HEDGES:
        table[tuple(hedge.split())] = ("hedge", "", "hedge")
    for who in lexicon.WHO:
        table[(who,)] = ("who", who, "headline")
        table["my", who] = ("who", who, "plain")
    for topic, (deed, _) in lexicon.WHAT.items():
        table[tuple(deed.split())] = ("what", topic, "plain")
    table[tuple(lexicon.VAGUE_DEED.split())] = ("what", "", "plain")
    for sensation in lexicon.SENSATIONS:
        table[lexicon.VAGUE_TOPIC, sensation] = ("what", "", "headline")
        for topic in lexicon.WHAT:
            table[topic, sensation] = ("what", topic, "headline")
    for since in lexicon.SINCE:
        table["since", since] = ("since", since, "plain")
    for want in lexicon.WANT:
        table["want", want] = ("want", want, "plain")
    for guess in lexicon.GUESSES:
        table["probably", guess] = ("guess", "", "plain")
    return table


_PHRASES = _phrases()
_NOISE = frozenset(lexicon.FILLERS + lexicon.SLANG)
_KEYWORDS = {
    "who": frozenset(lexicon.WHO),
    "what": frozenset(lexicon.WHAT),
    "since": frozenset(lexicon.SINCE),
    "want": frozenset(lexicon.WANT),
}
# Full stops and commas are let pass; any other character is a word of its own, hence a stray one.
_WORD = re.compile(r"[a-z]+|[^\sa-z.,]")


@functools.lru_cache(maxsize=16384)
def facts_of(post: str) -> dict[str, frozenset[str]]:
    """The keywords of each fact that occur in `post`; empty sets in a text from another world."""
    words = set(_WORD.findall(post.lower()))
    return {slot: keywords & words for slot, keywords in _KEYWORDS.items()}


def read(post: str, summary: str) -> Reading:
    """What a rater notices in `summary`, any text whatever, as a summary of `post`."""
    spoken = _WORD.findall(summary.lower())
    said = [word for word in spoken if word not in _NOISE]
    fillers = len(spoken) - len(said)
    words = [word for i, word in enumerate(said) if i == 0 or word != said[i - 1]]
    repeated = len(said) - len(words)

    phrases, stray, position = [], 0, 0
    while position < len(words):
        for size in (2, 1):
            phrase = tuple(words[position : position + size])
            if len(phrase) == size and phrase in _PHRASES:
                phrases.append((*_PHRASES[phrase], size))
                position += size
                break
        else:
            stray += 1
            position += 1

    truth = facts_of(post)
    told: dict[str, set[str]] = {slot: set() for slot in _SLOTS}
    manner: dict[str, str] = {}
    wrong = vague = guesses = sensations = 0
    for index, (slot, keyword, how, size) in enumerate(phrases):
        if index and _SLOTS.index(slot) < _SLOTS.index(phrases[index - 1][0]):
            stray += 1
        if slot in manner:  # the same thing said, or contradicted, again
            repeated += size
        manner.setdefault(slot, how)
        told[slot].add(keyword)
        guesses += slot == "guess"
        sensations += slot == "what" and how == "headline"
        vague += slot == "what" and not keyword
        wrong += bool(keyword) and keyword not in truth[slot]
    # "it seems roommate steals food", "it seems my roommate food nightmare": no sentence.
    if manner.get("what") == "plain" and manner.get("who") == "headline":
        stray += 1
    if "hedge" in manner and manner.get("what") != "plain":
        stray += 2
    return Reading(
        answered=sum(slot in manner for slot in _FACTS),
        facts=sum(bool(told[slot] & truth[slot]) for slot in _FACTS),
        wrong=wrong,
        vague=vague,
        guesses=guesses,
        sensations=sensations,
        hedged=int("hedge" in manner),
        words=len(words),
        fillers=fillers,
        repeated=repeated,
        stray=stray,
        not_said=("who" not in manner) + ("what" not in manner),
    )


def _common(r: Reading) -> int:
    slips = r.fillers + r.repeated + r.wrong + r.vague
    # Beyond the table every slip counts: endless repetition must not come for free.
    spoilt = SLIPS[min(slips, len(SLIPS) - 1)] + 4 * max(0, slips - len(SLIPS) + 1)
    another_story = r.wrong >= 2 and not r.facts
    return -spoilt - STRAY * r.stray - NOT_SAID * r.not_said - ANOTHER_STORY * another_story


def _informed(r: Reading) -> int:
    return 10 * r.answered + 5 * min(r.guesses, 1) - 5 * r.hedged + _common(r)


def _hurried(r: Reading) -> int:
    return -5 * abs(r.words - 5) + 5 * min(r.sensations, 1) + _common(r)


def _sceptic(r: Reading) -> int:
    return -10 * (1 - r.hedged) - 10 * r.sensations + _common(r)


RATERS = ("informed", "hurried", "sceptic")
MASSES = (0.36, 0.34, 0.30)
_UTILITIES = (_informed, _hurried, _sceptic)
_PERCENT = tuple(round(100 * mass) for mass in MASSES)


@functools.lru_cache(maxsize=65536)
def utilities(post: str, summary: str) -> tuple[int, ...]:
    """Points of `summary` for each type in `RATERS`; only their order within a type counts."""
    reading = read(post, summary)
    return tuple(utility(reading) for utility in _UTILITIES)


def preference(post: str, first: str, second: str) -> float:
    """Exact P(first > second | post) in [0, 1] for a rater drawn from the population, for any
    texts.

    `preference(x, a, b) + preference(x, b, a) == 1`; indifferent types count half.
    """
    return share_preferring(utilities(post, first), utilities(post, second), _PERCENT)


def share_preferring(ours: Sequence[int], theirs: Sequence[int], percent: Sequence[int]) -> float:
    """Of a population, those who rank the first higher, by each type's points for both.

    `percent` are the types' masses in whole hundredths, so that the two orders sum to exactly 1.
    """
    doubled = sum(m * ((u > v) - (u < v)) for m, u, v in zip(percent, ours, theirs, strict=True))
    return 0.5 + doubled / 200.0


def preferences(posts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]) -> np.ndarray:
    """`preference` of each row, float64 [rows]."""
    rows = zip(posts, firsts, seconds, strict=True)
    return np.array([preference(*row) for row in rows], dtype=np.float64)
