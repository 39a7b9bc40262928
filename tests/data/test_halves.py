"""Votes in two halves, for two raters that have no post in common."""

import pytest

from nlhf_jax.data import datasets
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.errors import UserError
from tests.end_to_end.conftest import write_lines

LENGTHS = {"text": 16, "summary": 8}


@pytest.fixture
def files(tmp_path):
    """300 votes on 100 posts, for training and for validation."""
    path = tmp_path / "votes.jsonl"
    rows = [
        {"prompt": f"post {n // 3}", "chosen": f"yes {n}", "rejected": f"no {n}"}
        for n in range(300)
    ]
    write_lines(path, rows)
    return {"train": str(path), "validation": str(path)}


def votes(files, half, halve_from, split="train"):
    data = datasets.json_lines(
        str(TLDR_MINI_MODEL), sft={}, preferences=files, short_template=True,
        votes_half=half, halve_from=halve_from,
    )  # fmt: skip
    examples = data.examples("comparisons", split, LENGTHS)
    return list(zip(examples.texts("text"), examples.texts("chosen"), strict=True))


def test_halves_have_all_votes_and_no_post_in_common(files):
    everything, one, other = (votes(files, half, 300) for half in (None, 1, 2))
    assert sorted(one + other) == sorted(everything)
    assert not {post for post, _ in one} & {post for post, _ in other}
    assert 90 < len(one) < 210  # 50 posts of 100, give or take four sigma of 5


def test_too_few_votes_are_not_halved_and_validation_never_is(files):
    assert len(votes(files, 1, 301)) == len(votes(files, 2, None)) == 300
    assert len(votes(files, 1, 0, "validation")) == 300


def test_a_chain_asks_by_the_same_rule(files):
    assert [datasets.has_halves(files, n) for n in (0, 300, 301, None)] == [
        True,
        True,
        False,
        False,
    ]
    assert not datasets.has_halves({}, 0)
    with pytest.raises(UserError, match="nowhere.jsonl"):
        datasets.has_halves({"train": "nowhere.jsonl"}, 0)


def test_another_half_than_two_is_an_error(files):
    with pytest.raises(UserError, match="VOTES_HALF is 3 but must be 1, 2 or None"):
        votes(files, 3, 0)
