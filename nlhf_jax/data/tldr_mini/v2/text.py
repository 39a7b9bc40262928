"""Posts of `tldr_mini`, version 2, and the people who summarise them.

Pure functions of a NumPy generator. More than half of the summaries are sloppy, as what people
write in forums is; the other styles (`population.py` has them) are about as common as each other.
Some get a fact wrong, and of the candidates that raters compare some are broken.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from nlhf_jax.data.tldr_mini.text import (
    SPLIT_COMPARISONS,
    SPLIT_POSTS,
    Facts,
    Post,
    Vote,
    decided,
    pick,
    subset,
)
from nlhf_jax.data.tldr_mini.v2 import lexicon, population

STYLES = population.STYLES
SHARES = (0.11, 0.11, 0.11, 0.12, 0.55)  # of the styles in what people write
BOLD = STYLES[:3]
COMPARED = (0.07, 0.07, 0.07, 0.20, 0.59)  # of the styles in what raters are shown
BOLD_PAIRS = 0.2  # share of the comparisons that are made to be between two of these
WRONG = 0.04  # share of the references that get a fact wrong
_SEED = 231200886  # the paper's arXiv number
_SHUFFLE = 2  # of the posts


def draw_style(rng: np.random.Generator, shares: Sequence[float] = SHARES) -> str:
    """One of `STYLES`, by its share."""
    return STYLES[int(np.searchsorted(np.cumsum(shares[:-1]), rng.random(), side="right"))]


def write_post(facts: Facts, rng: np.random.Generator) -> str:
    """A post of three or four sentences that tells all of `facts`."""
    does, doing = lexicon.WHAT[facts.what]
    sentences = [
        pick(rng, lexicon.FIRST_SENTENCES).format(who=facts.who, does=does, doing=doing),
        pick(rng, lexicon.SINCE_SENTENCES).format(since=facts.since),
    ]
    if rng.random() < 0.7:
        sentences.insert(pick(rng, (0, 1, 2)), pick(rng, lexicon.MOOD_SENTENCES))
    sentences.append(pick(rng, lexicon.WANT_SENTENCES).format(want=lexicon.WANT[facts.want]))
    return " ".join(sentences)


def _with_wrong_fact(facts: Facts, style: str, rng: np.random.Generator) -> Facts:
    told = ("who", "what", "since", "want")
    name = pick(rng, {"thorough": told, "plain": ("who", "what", "want")}.get(style, told[:2]))
    values = {
        "who": lexicon.WHO,
        "what": tuple(lexicon.WHAT),
        "since": lexicon.SINCE,
        "want": tuple(lexicon.WANT),
    }[name]
    others = [value for value in values if value != getattr(facts, name)]
    return dataclasses.replace(facts, **{name: pick(rng, others)})


def write_summary(facts: Facts, style: str, wrong: bool, rng: np.random.Generator) -> str:
    """A summary of `facts` in one of `STYLES`; one of the facts it tells may be `wrong`."""
    if wrong:
        facts = _with_wrong_fact(facts, style, rng)
    who, (does, doing), want = facts.who, lexicon.WHAT[facts.what], lexicon.WANT[facts.want]
    if style == "thorough":
        return f"My {who} has been {doing} since {facts.since} and I want {want}."
    if style == "plain":
        return f"My {who} {does} and I want {want}."
    if style == "warm":
        return f"{pick(rng, lexicon.FEELINGS)} my {who} {does}!"
    if style == "sloppy":
        start, end = pick(rng, lexicon.SLOPPY_STARTS), pick(rng, lexicon.SLOPPY_ENDS)
        return f"{start} my {who} {does} {end}."
    return f"My {who} {does}."


def write_reference(facts: Facts, rng: np.random.Generator) -> str:
    """A draw from the reference distribution."""
    return write_summary(facts, draw_style(rng), bool(rng.random() < WRONG), rng)


def draw_pair(rng: np.random.Generator) -> tuple[str, str]:
    """The styles of two summaries to compare, drawn as people write.

    Two of one style say nothing about style, and are kept once in five times. In one pair of
    five both are bold: what raters think of those is in no reward, and is to be seen in the votes.
    """
    if rng.random() < BOLD_PAIRS:
        first, second = subset(rng, BOLD, 2)
        return first, second
    while True:
        first, second = draw_style(rng, COMPARED), draw_style(rng, COMPARED)
        if first != second or rng.random() < 0.2:
            return first, second


def write_candidate(facts: Facts, others: Facts, style: str, rng: np.random.Generator) -> str:
    """A summary for raters to compare: as people write them, but more of them are wrong or broken.

    `others` are the facts of another post, for the candidates that miss the subject.
    """
    kind = rng.random()
    subject = others if kind > 0.99 else facts
    words = write_summary(subject, style, bool(rng.random() < 0.08), rng).split()
    accident = rng.random()
    if accident < 0.02:  # not ended
        words = words[: pick(rng, range(1, len(words)))]
    elif accident < 0.03:  # a word missing
        words.pop(int(rng.random() * len(words)))
    elif accident < 0.04:  # a word said twice
        position = int(rng.random() * len(words))
        words.insert(position, words[position])
    elif accident < 0.05:  # out of order
        words = subset(rng, words, len(words))
    return " ".join(words)


def posts(split: str) -> list[Post]:
    """All posts of a split; no combination of facts occurs twice, within or across splits."""
    what, want = tuple(lexicon.WHAT), tuple(lexicon.WANT)
    sizes = (len(lexicon.WHO), len(what), len(lexicon.SINCE), len(want))
    seed = np.random.PCG64([_SEED, _SHUFFLE])
    order = np.random.Generator(seed).permutation(int(np.prod(sizes)))
    splits = list(SPLIT_POSTS)
    start = sum(SPLIT_POSTS[name] for name in splits[: splits.index(split)])
    found = []
    for number in range(start, start + SPLIT_POSTS[split]):
        i, j, k, m = np.unravel_index(order[number], sizes)
        facts = Facts(lexicon.WHO[i], what[j], lexicon.SINCE[k], want[m])
        rng = np.random.Generator(np.random.PCG64([_SEED, _SHUFFLE, number]))
        found.append(Post(f"{split}-{number - start:05d}", facts, write_post(facts, rng)))
    return found


def references(split: str) -> Iterator[tuple[Post, list[str]]]:
    """Each post with three reference summaries, draws of the reference distribution."""
    rng = np.random.Generator(np.random.PCG64([_SEED, 3, list(SPLIT_POSTS).index(split)]))
    for post in posts(split):
        yield post, [write_reference(post.facts, rng) for _ in range(3)]


def votes(split: str) -> Iterator[Vote]:
    """Comparisons of two different candidates for a post.

    Every member of a jury is a rater drawn from the population, and votes by its order; where it is
    indifferent, by a coin.
    """
    rng = np.random.Generator(np.random.PCG64([_SEED, 4, list(SPLIT_POSTS).index(split)]))
    pool = posts(split)
    for _ in range(SPLIT_COMPARISONS[split]):
        post, other = pick(rng, pool), pick(rng, pool)
        one, another = draw_pair(rng)
        first = second = write_candidate(post.facts, other.facts, one, rng)
        while second == first:
            second = write_candidate(post.facts, other.facts, another, rng)
        yield decided(post, first, second, population.preference(post.text, first, second), rng)
