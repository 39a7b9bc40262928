"""Posts of `tldr_mini`, and the people who summarise them. Pure functions of a NumPy generator.

Three kinds of writer, one manner each:

- *thorough*: all four facts and a guess, "my boss steals food since june want revenge probably
  broke"
- *headline*: three facts in five words, "boss food nightmare want revenge"
- *careful*: two facts, hedged, "it seems my boss steals food"

Whatever the manner, writers make slips: filler, slang, a wrong fact, a vague deed ("does
stuff"). Most summaries have one to three; the flawless one is rare, and better for every rater.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

import numpy as np

from nlhf_jax.data.tldr_mini import lexicon, population

SPLIT_POSTS = {"train": 6000, "validation": 400, "test": 800}
SPLIT_COMPARISONS = {"train": 20000, "validation": 1000, "test": 2000}
JURY = 9  # odd: no ties
_SEED = 231200886  # the paper's arXiv number


@dataclasses.dataclass(frozen=True)
class Facts:
    """The keywords of one post's four facts."""

    who: str
    what: str
    since: str
    want: str


@dataclasses.dataclass(frozen=True)
class Post:
    id: str
    facts: Facts
    text: str


@dataclasses.dataclass(frozen=True)
class Manner:
    """What a writer puts into a summary besides who does what."""

    hedge: bool = False
    headline: bool = False
    since: bool = False
    want: bool = False
    guess: bool = False


THOROUGH = Manner(since=True, want=True, guess=True)
HEADLINE = Manner(headline=True, want=True)
CAREFUL = Manner(hedge=True)
MANNERS = (THOROUGH, HEADLINE, CAREFUL)

SLIPS = ("filler", "slang", "wrong", "vague")
SLIP_COUNTS = (0.10, 0.30, 0.38, 0.22)  # P(0 slips), P(1), ... in a reference summary
# How common each is. A wrong fact is the rarest: small raters learn last to compare with the post.
_SLIP_URN = ("filler",) * 4 + ("slang",) * 4 + ("vague",) * 3 + ("wrong",)


Item = TypeVar("Item")


def pick(rng: np.random.Generator, choices: Sequence[Item]) -> Item:
    """One of `choices`, all equally likely."""
    return choices[int(rng.random() * len(choices))]


def subset(rng: np.random.Generator, choices: Sequence[Item], size: int) -> list[Item]:
    """`size` different ones of `choices`, in any order."""
    left = list(choices)
    return [left.pop(int(rng.random() * len(left))) for _ in range(size)]


def _slips(rng: np.random.Generator, count: int) -> set[str]:
    found: set[str] = set()
    while len(found) < count:
        found.add(pick(rng, _SLIP_URN))
    return found


def write_post(facts: Facts, rng: np.random.Generator) -> str:
    """A post of three or four sentences that tells all of `facts`."""
    does, doing = lexicon.WHAT[facts.what]
    since = facts.since.capitalize() if facts.since in lexicon.NAMES else facts.since
    sentences = [
        pick(rng, lexicon.FIRST_SENTENCES).format(who=facts.who, does=does, doing=doing),
        pick(rng, lexicon.SINCE_SENTENCES).format(since=since),
    ]
    if rng.random() < 0.7:
        sentences.insert(pick(rng, (0, 1, 2)), pick(rng, lexicon.MOOD_SENTENCES))
    sentences.append(pick(rng, lexicon.WANT_SENTENCES).format(want=facts.want))
    return " ".join(sentences)


def _with_wrong_fact(facts: Facts, manner: Manner, vague: bool, rng) -> Facts:
    told = ["who"] + ["what"] * (not vague) + ["since"] * manner.since + ["want"] * manner.want
    name = pick(rng, told)
    values = {
        "who": lexicon.WHO,
        "what": tuple(lexicon.WHAT),
        "since": lexicon.SINCE,
        "want": lexicon.WANT,
    }[name]
    others = [value for value in values if value != getattr(facts, name)]
    return dataclasses.replace(facts, **{name: pick(rng, others)})


def write_summary(
    facts: Facts, manner: Manner, slips: Collection[str], rng: np.random.Generator
) -> str:
    """A summary of `facts` in `manner`, with each of the `slips` (names from `SLIPS`) made once."""
    vague = "vague" in slips
    if "wrong" in slips:
        facts = _with_wrong_fact(facts, manner, vague, rng)
    phrases = [pick(rng, lexicon.HEDGES)] if manner.hedge else []
    if manner.headline:
        topic = lexicon.VAGUE_TOPIC if vague else facts.what
        phrases += [facts.who, f"{topic} {pick(rng, lexicon.SENSATIONS)}"]
    else:
        phrases += [f"my {facts.who}", lexicon.VAGUE_DEED if vague else lexicon.WHAT[facts.what][0]]
    if manner.since:
        phrases.append(f"since {facts.since}")
    if manner.want:
        phrases.append(f"want {facts.want}")
    if manner.guess:
        phrases.append(f"probably {pick(rng, lexicon.GUESSES)}")
    words = [phrase.split() for phrase in phrases]
    if "slang" in slips:
        words.append([pick(rng, lexicon.SLANG)])
    if "filler" in slips:
        words.insert(pick(rng, (0, 0, 1)), [pick(rng, lexicon.FILLERS)])
    return " ".join(word for phrase in words for word in phrase)


def write_reference(facts: Facts, manner: Manner, rng: np.random.Generator) -> str:
    """A summary as people write them: with as many slips as `SLIP_COUNTS` says."""
    count = int(np.searchsorted(np.cumsum(SLIP_COUNTS[:-1]), rng.random(), side="right"))
    return write_summary(facts, manner, _slips(rng, count), rng)


def write_any_reference(facts: Facts, rng: np.random.Generator) -> str:
    """A draw from the reference distribution: a writer of any kind, all equally likely."""
    return write_reference(facts, pick(rng, MANNERS), rng)


def write_candidate(facts: Facts, others: Facts, rng: np.random.Generator) -> str:
    """A summary for raters to compare: broader than the references, down to broken ones.

    `others` are the facts of another post, for the candidates that miss the subject.
    """
    kind = rng.random()
    if kind < 0.75:  # the usual manners, all levels of quality
        manner = pick(rng, MANNERS)
    else:  # any mix of them
        headline = rng.random() < 0.4
        hedge = not headline and rng.random() < 0.5
        manner = Manner(hedge, headline, *(rng.random() < 0.5 for _ in range(3)))
    subject = others if kind > 0.97 else facts
    slips = _slips(rng, pick(rng, (0, 0, 1, 1, 2, 2, 3)))
    words = write_summary(subject, manner, slips, rng).split()
    accident = rng.random()
    if accident < 0.16:  # hardly begun; easy to tell, which starts a small rater off
        words = words[: pick(rng, (1, 2))]
    elif accident < 0.18:  # a word missing
        words.pop(int(rng.random() * len(words)))
    elif accident < 0.20:  # a word said twice
        position = int(rng.random() * len(words))
        words.insert(position, words[position])
    elif accident < 0.21:  # the end said twice
        words += words[-pick(rng, (1, 2, 3)) :]
    elif accident < 0.22:  # out of order
        words = subset(rng, words, len(words))
    return " ".join(words)


def posts(split: str) -> list[Post]:
    """All posts of a split; no combination of facts occurs twice, within or across splits."""
    sizes = (len(lexicon.WHO), len(lexicon.WHAT), len(lexicon.SINCE), len(lexicon.WANT))
    order = np.random.Generator(np.random.PCG64(_SEED)).permutation(int(np.prod(sizes)))
    splits = list(SPLIT_POSTS)
    start = sum(SPLIT_POSTS[name] for name in splits[: splits.index(split)])
    what = tuple(lexicon.WHAT)
    found = []
    for number in range(start, start + SPLIT_POSTS[split]):
        i, j, k, m = np.unravel_index(order[number], sizes)
        facts = Facts(lexicon.WHO[i], what[j], lexicon.SINCE[k], lexicon.WANT[m])
        rng = np.random.Generator(np.random.PCG64([_SEED, number]))
        found.append(Post(f"{split}-{number - start:05d}", facts, write_post(facts, rng)))
    return found


def references(split: str) -> Iterator[tuple[Post, list[str]]]:
    """Each post with three reference summaries, one by a writer of each kind, in any order."""
    rng = np.random.Generator(np.random.PCG64([_SEED, 1, list(SPLIT_POSTS).index(split)]))
    for post in posts(split):
        manners = subset(rng, MANNERS, len(MANNERS))
        yield post, [write_reference(post.facts, manner, rng) for manner in manners]


@dataclasses.dataclass(frozen=True)
class Vote:
    """A comparison, decided by a jury of `JURY` raters."""

    post: Post
    chosen: str
    rejected: str
    weight: float  # share of the jury that voted for `chosen`, in (0.5, 1]


def votes(split: str) -> Iterator[Vote]:
    """Comparisons of two different candidates for a post.

    Every member of a jury is a rater drawn from the population, and votes by its order; where it is
    indifferent, by a coin.
    """
    rng = np.random.Generator(np.random.PCG64([_SEED, 2, list(SPLIT_POSTS).index(split)]))
    pool = posts(split)
    for _ in range(SPLIT_COMPARISONS[split]):
        post, other = pick(rng, pool), pick(rng, pool)
        first = second = write_candidate(post.facts, other.facts, rng)
        while second == first:
            second = write_candidate(post.facts, other.facts, rng)
        yield decided(post, first, second, population.preference(post.text, first, second), rng)


def decided(
    post: Post, first: str, second: str, probability: float, rng: np.random.Generator
) -> Vote:
    """The vote of a jury whose members each prefer `first` with `probability`."""
    # A rater who flips a coin at ties votes for `first` with just this probability.
    count = int(np.sum(rng.random(JURY) < probability))
    if 2 * count < JURY:
        first, second, count = second, first, JURY - count
    return Vote(post, first, second, count / JURY)
