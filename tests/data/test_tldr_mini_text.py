"""The generator of `tldr_mini`: the same everywhere, readable, and worth learning from."""

import hashlib
import itertools
import json
import re

import numpy as np
import pytest

from nlhf_jax.data import population
from nlhf_jax.data import tldr_mini_lexicon as lexicon
from nlhf_jax.data import tldr_mini_text as text


def checksum(records) -> str:
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]


def first_records(split: str) -> tuple[str, str]:
    """Checksums of the first 100 posts with references, and of the first 100 votes."""
    references = [
        (post.id, post.text, summaries)
        for post, summaries in itertools.islice(text.references(split), 100)
    ]
    votes = [
        (vote.post.id, vote.chosen, vote.rejected, vote.rater)
        for vote in itertools.islice(text.votes(split), 100)
    ]
    return checksum(references), checksum(votes)


@pytest.mark.parametrize(
    ("split", "references", "votes"),
    [
        ("train", "b069de06f5986991", "aa17041a78059b62"),
        ("validation", "7e38abd98669c9a1", "c3f1287143ca986c"),
        ("test", "c68bc7441d452567", "b10fccaff28e090a"),
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
            ("stammer", "repeated"),
            ("wrong", "wrong"),
            ("vague", "vague"),
        ):
            summary = text.write_summary(post.facts, manner, (slip,), rng)
            reading = population.read(post.text, summary)
            assert getattr(reading, count) == 1
            assert reading.stray == 0
            assert reading.words == plain.words


def test_the_majority_is_right_about_most_votes():
    """0.82 measured: learnable, and no more certain than people are."""
    votes = list(text.votes("test"))
    p = population.preferences(
        [vote.post.text for vote in votes],
        [vote.chosen for vote in votes],
        [vote.rejected for vote in votes],
    )
    accuracy = np.mean((p > 0.5) + 0.5 * (p == 0.5))
    assert 0.80 < accuracy < 0.88
    assert np.mean(p == 0.5) < 0.03


def test_votes_are_those_of_the_rater_named():
    for vote in itertools.islice(text.votes("test"), 300):
        rater = population.RATERS.index(vote.rater)
        chosen = population.utilities(vote.post.text, vote.chosen)[rater]
        assert chosen >= population.utilities(vote.post.text, vote.rejected)[rater]
        assert vote.chosen != vote.rejected


def test_every_rater_votes_by_its_mass():
    raters = [vote.rater for vote in text.votes("test")]
    for name, mass in zip(population.RATERS, population.MASSES, strict=True):
        assert raters.count(name) / len(raters) == pytest.approx(mass, abs=0.04)
