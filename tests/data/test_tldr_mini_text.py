"""The generator of `tldr_mini`: the same everywhere, readable, and worth learning from."""

import hashlib
import itertools
import json
import re

import numpy as np
import pytest

from nlhf_jax.data.tldr_mini import lexicon, population, text


def checksum(records) -> str:
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]


def first_records(split: str) -> tuple[str, str]:
    """Checksums of the first 100 posts with references, and of the first 100 votes."""
    references = [
        (post.id, post.text, summaries)
        for post, summaries in itertools.islice(text.references(split), 100)
    ]
    votes = [
        (vote.post.id, vote.chosen, vote.rejected, vote.weight)
        for vote in itertools.islice(text.votes(split), 100)
    ]
    return checksum(references), checksum(votes)


@pytest.mark.parametrize(
    ("split", "references", "votes"),
    [
        ("train", "191e9fab2821f8eb", "b2a867939082255e"),
        ("validation", "4dbff8a1c4850bd0", "eb5a63a80951542d"),
        ("test", "13b9aec80b41c49e", "862ca5bca72a5797"),
    ],
)
def test_first_records_are_the_same_on_every_machine(split, references, votes):
    assert first_records(split) == (references, votes)


def test_splits_share_no_facts():
    facts = {split: {post.facts for post in text.posts(split)} for split in text.SPLIT_POSTS}
    for split, size in text.SPLIT_POSTS.items():
        assert len(facts[split]) == size  # nor does one come twice
    for first, second in itertools.combinations(facts.values(), 2):
        assert not first & second


def test_keywords_are_unmistakable():
    lists = [set(lexicon.WHO), set(lexicon.WHAT), set(lexicon.SINCE), set(lexicon.WANT)]
    sentences = (
        lexicon.FIRST_SENTENCES
        + lexicon.SINCE_SENTENCES
        + lexicon.MOOD_SENTENCES
        + lexicon.WANT_SENTENCES
    )
    deeds = [phrase.split()[0] for forms in lexicon.WHAT.values() for phrase in forms]
    others = set(re.findall("[a-z]+", " ".join(sentences).lower())) | set(deeds)
    for first, second in itertools.combinations([*lists, others - {"who", "since", "want"}], 2):
        assert not first & second


def test_raters_find_in_a_post_the_facts_that_it_was_written_from():
    for post in text.posts("validation"):
        found = population.facts_of(post.text)
        assert found == {name: frozenset([value]) for name, value in vars(post.facts).items()}


def test_posts_and_summaries_are_short():
    for post, summaries in text.references("train"):
        assert 3 <= len(re.findall(r"[.?]", post.text)) <= 4
        assert len(post.text.split()) <= 36
        assert len(set(summaries)) == 3
        assert max(len(summary.split()) for summary in summaries) <= 12
    assert all(
        len(summary.split()) <= 15
        for vote in text.votes("validation")
        for summary in (vote.chosen, vote.rejected)
    )


def test_a_slip_is_what_its_name_says():
    rng = np.random.default_rng(0)
    for post, manner in itertools.product(text.posts("validation")[:50], text.MANNERS):
        plain = population.read(post.text, text.write_summary(post.facts, manner, (), rng))
        assert plain.stray == plain.wrong == plain.fillers == plain.repeated == plain.vague == 0
        for slip, count in (
            ("filler", "fillers"),
            ("slang", "fillers"),
            ("wrong", "wrong"),
            ("vague", "vague"),
        ):
            summary = text.write_summary(post.facts, manner, (slip,), rng)
            reading = population.read(post.text, summary)
            assert getattr(reading, count) == 1
            assert reading.stray == 0
            assert reading.words == plain.words


def test_the_majority_is_right_about_most_votes():
    """Learnable, and no more certain than people are."""
    votes = list(text.votes("test"))
    p = _probabilities(votes)
    share = np.array([vote.weight for vote in votes])
    right = np.where(p == 0.5, 0.5, np.where(p > 0.5, share, 1 - share))
    assert 0.78 < np.mean(right) < 0.9
    assert np.mean(p == 0.5) < 0.05


def test_juries_vote_as_the_population_does():
    """The number of votes for a candidate is binomial: chi-square of its variance."""
    votes = list(text.votes("test"))
    p = _probabilities(votes)
    share = np.array([vote.weight for vote in votes])
    # Which candidate is `chosen` is the jury's own doing: look at the one that sorts first.
    first = np.array([vote.chosen < vote.rejected for vote in votes])
    p, share = np.where(first, p, 1 - p), np.where(first, share, 1 - share)
    uncertain = (p > 0) & (p < 1)
    assert np.array_equal(share[~uncertain], p[~uncertain])
    z = (share - p)[uncertain] / np.sqrt(p * (1 - p) / text.JURY)[uncertain]
    count = len(z)
    assert abs(z.sum()) < 4 * np.sqrt(count)
    assert abs((z**2).sum() - count) < 4 * np.sqrt(2 * count)


def test_a_vote_has_a_majority():
    for vote in text.votes("validation"):
        assert 0.5 < vote.weight <= 1
        assert round(vote.weight * text.JURY) == pytest.approx(vote.weight * text.JURY)
        assert vote.chosen != vote.rejected


def _probabilities(votes) -> np.ndarray:
    return population.preferences(
        [vote.post.text for vote in votes],
        [vote.chosen for vote in votes],
        [vote.rejected for vote in votes],
    )
