"""Easy pairs: what each kind is, when they come, and that a batch depends on its number alone."""

import numpy as np
import pytest

from nlhf_jax.data.batches import Examples
from nlhf_jax.data.easy_pairs import KINDS, EasyPairs, WithEasyPairs
from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.errors import UserError

WORDS = tldr_mini_vocabulary()
TEXT, SUMMARY, ROWS = 24, 12, 16
PROMPTS = [f"my {who} steals {what} and tells lies at work" for who in ("boss", "cousin", "sister",
           "landlord") for what in ("food", "money", "time", "books")]  # fmt: skip
OWN = [" ".join(prompt.split()[1:5]) for prompt in PROMPTS]


def tokens(texts, length):
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = WORDS.encode(text)[: length - 1] + [1]
        row[: len(ids)] = ids
    return rows


SFT = Examples({"inputs": tokens(PROMPTS, TEXT), "targets": tokens(OWN, SUMMARY)}, {}, {})
VOTES = Examples(
    {
        "text": np.full((ROWS, TEXT), 9, np.int32),
        "chosen": np.full((ROWS, SUMMARY), 7, np.int32),
        "rejected": np.full((ROWS, SUMMARY), 8, np.int32),
        "vote_share": np.full(ROWS, 0.6, np.float32),
    },
    {},
    {},
)


def mixed(seed=0, **settings):
    settings = {"steps": 0, "share": 0.0} | settings
    return WithEasyPairs(VOTES, SFT, EasyPairs(**settings), WORDS, seed)


def words(row):
    return WORDS.decode(row.tolist()).split()


@pytest.mark.parametrize("kind", KINDS)
def test_the_own_summary_is_chosen_and_the_other_is_worse_in_its_way(kind):
    seen = 0
    for step in range(8):
        batch = mixed(steps=100, kinds=[kind]).batch(step, 8, seed=0)
        assert np.all(batch["vote_share"] == 1)
        for text, chosen, rejected in zip(
            batch["text"], batch["chosen"], batch["rejected"], strict=True
        ):
            number = PROMPTS.index(WORDS.decode(text.tolist()))
            own, worse = words(chosen), words(rejected)
            assert own == OWN[number].split() and worse != own
            assert np.sum(rejected == 1) == 1  # EOS, and padding after it
            if kind == "other":
                assert " ".join(worse) in OWN
            elif kind == "shuffled":
                assert sorted(worse) == sorted(own)
            elif kind == "repeated":
                half = rejected[: np.argmax(rejected == 1)]
                np.testing.assert_array_equal(half[: len(half) // 2], half[len(half) // 2 :])
            else:
                length = np.argmax(chosen == 1)
                np.testing.assert_array_equal(rejected[:length], text[:length])
            seen += 1
    assert seen == 64


def test_they_come_before_the_votes_and_among_them():
    batches = mixed(steps=2, share=0.25)
    shares = [batches.batch(step, 8, seed=0)["vote_share"] for step in range(4)]
    assert [int(np.sum(share == 1)) for share in shares] == [8, 8, 2, 2]
    plain = VOTES.batch(3, 8, seed=0)
    for name, array in batches.batch(3, 8, seed=0).items():
        np.testing.assert_array_equal(array[2:], plain[name][2:])
        assert array.dtype == plain[name].dtype
    assert np.all(VOTES.arrays["vote_share"] == np.float32(0.6))  # what is read stays as it is


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    one, again, other = (mixed(seed=seed, steps=9) for seed in (0, 0, 1))
    _ = again.batch(7, 8, seed=0)
    for name, array in one.batch(3, 8, seed=0).items():
        np.testing.assert_array_equal(array, again.batch(3, 8, seed=0)[name])
    assert np.any(one.batch(3, 8, 0)["rejected"] != other.batch(3, 8, 0)["rejected"])
    assert np.any(one.batch(3, 8, 0)["text"] != one.batch(4, 8, 0)["text"])


def test_texts_that_have_no_other_still_get_a_worse_one():
    arrays = {"inputs": tokens(["a car"] * 3, TEXT), "targets": tokens(["car"] * 3, SUMMARY)}
    same = Examples(arrays, {}, {})
    batches = WithEasyPairs(VOTES, same, EasyPairs(1, 0.0), WORDS, 0)
    batch = batches.batch(0, 16, seed=0)
    assert all(np.any(a != b) for a, b in zip(batch["chosen"], batch["rejected"], strict=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": -1}, "EasyPairs.steps is -1 but must be a number of steps"),
        ({"share": 1.0}, r"EasyPairs.share is 1.0 but must be in \[0, 1\)"),
        ({"kinds": ["worse"]}, "EasyPairs.kinds is \\['worse'\\] but must be of"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        mixed(**settings)


def test_one_demonstration_is_too_few():
    one = Examples(
        {"inputs": SFT.arrays["inputs"][:1], "targets": SFT.arrays["targets"][:1]}, {}, {}
    )
    with pytest.raises(UserError, match="at least 2 lines"):
        WithEasyPairs(VOTES, one, EasyPairs(1, 0.0), WORDS, 0)
