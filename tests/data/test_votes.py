"""What `nlhf data check` says of votes, against counting by hand and known populations."""

import itertools
import json
import sys

import pytest

from nlhf_jax.data.check import check
from nlhf_jax.data.json_lines import Comparison
from nlhf_jax.data.votes import check_votes

BEATS = (("rock", "scissors"), ("scissors", "paper"), ("paper", "rock"))


def vote(chosen, rejected, weight=1.0, prompt="x"):
    return Comparison(prompt, chosen, rejected, weight)


def test_repeated_pairs_agree_contradict_and_tie():
    rows = [
        *(vote("a", "b"), vote("a", "b"), vote("b", "a")),  # 2 of 3; 1 of 3 pairs of lines agrees
        *(vote("c", "d"), vote("d", "c")),  # a tie: 0 of 1
        *(vote("a", "b", prompt="y"), vote("a", "b", prompt="y")),  # agrees: 1 of 1
        vote("e", "f"),
    ]
    found = check_votes(rows)
    assert (found.votes, found.prompts, found.pairs) == (8, 2, 4)
    assert (found.voted_again, found.contradicted, found.ties) == (3, 2, 1)
    assert found.agreement == pytest.approx(2 / 5)
    assert found.best == pytest.approx((2 + 1 + 2) / 7)
    assert found.shared == 0
    said = "\n".join(found.report())
    assert "3 pairs have several lines, 2 of them for both sides, 1 as many for each" in said
    assert "two such lines agree in 40.0%" in said and "best possible" in said


def test_weights_say_how_many_followed_the_majority():
    found = check_votes([vote("a", "b", 0.75), vote("a", "c", 0.6), vote("d", "e")])
    assert found.shared == 2 and found.best == pytest.approx((0.75 + 0.6) / 2)
    assert found.voted_again == 0 and found.agreement is None


def test_triples_that_go_in_circles():
    circle = [vote(one, other) for one, other in BEATS]
    ranking = [vote(*pair, prompt="y") for pair in itertools.combinations("abcd", 2)]
    unfinished = [vote("a", "b", prompt="z"), vote("b", "c", prompt="z")]
    tied = [vote(one, other, prompt="w") for one, other in BEATS]
    tied.append(vote(*reversed(BEATS[0]), prompt="w"))
    found = check_votes([*circle, *ranking, *unfinished, *tied])
    assert (found.triples, found.cycles) == (1 + 4, 1)
    assert "1 of 5 triples of texts are cycles" in "\n".join(found.report())


def test_what_length_explains_and_what_more_counts_do():
    """Of those who vote for the longer one 4 in 5; words of the text decide, where both do."""
    pytest.importorskip("sklearn", exc_type=ImportError)
    rows = []
    for number in range(400):
        words = [f"w{number}x{n}" for n in range(6)]
        own, others = " ".join(words[:3]), " ".join(f"v{number}y{n}" for n in range(3))
        longer = others + " more"
        prompt = " ".join(words)
        if number % 2:
            rows.append(vote(own, others, prompt=prompt))
        else:
            pair = (longer, others) if number % 10 else (others, longer)
            rows.append(vote(*pair, prompt=prompt))
    found = check_votes(rows)
    assert found.longer == pytest.approx(0.8)
    # Texts of one length are a tie: half of them are right.
    assert found.by_length == pytest.approx(0.5 * 0.5 + 0.5 * found.longer, abs=0.02)
    assert found.by_counts == pytest.approx(0.5 + 0.5 * found.longer, abs=0.02)


def test_without_scikit_learn_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    found = check_votes([vote("a b", "c", prompt=str(n)) for n in range(9)])
    assert found.by_length is None and found.longer == 1.0
    assert "pip install '.[counts]'" in found.report()[-1]


def test_a_file_s_report_ends_with_its_votes(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(vars(vote("a b", "c", prompt=str(n)))) + "\n" for n in "ab"))
    lines = check(path, "preferences").report().splitlines()
    assert lines[0].endswith("2 good lines, 0 bad ones")
    assert lines[1] == "  2 votes on 2 pairs of 2 prompts"
    assert "the one with more words was chosen in 100.0%" in lines[2]
