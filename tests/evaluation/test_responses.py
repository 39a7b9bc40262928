"""What was written and judged is kept, and not asked for twice."""

import json

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judgements, responses
from nlhf_jax.evaluation.judgements import Judgements
from nlhf_jax.evaluation.judges import AskedOnce, PopulationJudge, both_orders
from nlhf_jax.evaluation.responses import Response, Writing

PROMPTS = [f"prompt {number}" for number in range(7)]
HOW = {"seed": 0}


def written(number: int) -> Response:
    return Response(
        f"text\u2028 {number}", ("text", " é", "</s>"), (-0.1, -1.5, -0.25), (-1.0,) * 3
    )


def write(place, count: int, how=HOW, at_once: int = 2) -> Writing:
    """A player whose process ends after `count` responses."""
    writing = Writing(place, "A/B", how, PROMPTS, at_once)
    while len(writing.responses) < count:
        first = len(writing.responses)
        writing.add([written(number) for number in range(first, min(first + at_once, count))])
    return writing


@pytest.fixture
def place(tmp_path):
    return epath.Path(tmp_path)


def lines(place) -> list[bytes]:
    return (place / "responses" / "A%2FB.jsonl").read_bytes().splitlines(keepends=True)


def test_what_was_written_is_read_back_bit_for_bit(place):
    one = write(place, 7)
    again = Writing(place, "A/B", HOW, PROMPTS, 2)
    assert again.complete
    assert again.responses == one.responses == [written(number) for number in range(7)]
    assert again.responses[0].ratios == [0.9, -0.5, 0.75]


@pytest.mark.parametrize("cut", [1, 40])
def test_after_a_kill_at_any_byte_whole_batches_are_kept(place, cut):
    write(place, 6)
    path = place / "responses" / "A%2FB.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Writing(place, "A/B", HOW, PROMPTS, 2)
    assert len(again.responses) == 4  # the third batch of two has lost its second line
    again.add([written(4), written(5)])
    again.add([written(6)])
    assert again.complete
    assert [json.loads(line)["prompt"] for line in lines(place)] == PROMPTS


def test_another_way_of_sampling_or_other_prompts_begin_anew(place):
    write(place, 6)
    assert not Writing(place, "A/B", {"seed": 1}, PROMPTS, 2).responses
    assert not (place / "responses" / "A%2FB.jsonl").exists()
    write(place, 6)
    assert not Writing(place, "A/B", HOW, PROMPTS[1:], 2).responses


def test_a_file_from_elsewhere_answers_by_prompt(tmp_path):
    path = tmp_path / "other.jsonl"
    rows = [{"prompt": p, "completion": c} for p, c in (("b", "1"), ("a", "2"), ("b", "3"))]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = responses.read_file(str(path), ["a", "b"])
    assert [one.text for one in found] == ["2", "1"]
    with pytest.raises(UserError, match="no response to 1 of the 2 prompts.*'c'"):
        responses.read_file(str(path), ["a", "c"])
    path.write_text('{"prompt": "a", "completion": 3}')
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        responses.read_file(str(path), ["a"])


@given(st.text(min_size=1, max_size=30))
def test_pieces_are_the_text_s_tokens(text):
    vocabulary = tldr_mini_vocabulary()
    tokens = [*vocabulary.encode(text), vocabulary.eos_id]
    pieces = vocabulary.pieces([*tokens, vocabulary.pad_id])
    assert len(pieces) == len(tokens) and pieces[-1] == "</s>"
    if vocabulary.unk_id not in tokens:
        assert "".join(pieces[:-1]).strip() == vocabulary.decode(tokens)


class Counting:
    """A judge that is nearer to 1 the longer the first is, and leans to what it is shown first."""

    name, votes = "counting", False

    def __init__(self):
        self.asked = 0

    def compare(self, prompts, first, second):
        return self.both_orders(prompts, first, second).mean(axis=1)

    def both_orders(self, prompts, first, second):
        self.asked += len(prompts)
        longer = np.array([len(a) - len(b) for a, b in zip(first, second, strict=True)])
        return 0.5 + np.clip(0.1 * longer, -0.3, 0.3)[:, None] + np.array([0.1, -0.1])


TEXTS = (["a", "bb", "ccc"], ["aaa", "b", "c"])
SCORES = [0.3, 0.6, 0.7]


@pytest.mark.parametrize("wrap", [lambda judge: judge, AskedOnce])
def test_a_pair_is_judged_once_as_long_as_texts_and_judge_are_the_same(place, wrap):
    judge = Counting()

    def of(identity, *texts):
        return Judgements(place, "counting", wrap(judge), identity).of(("X", "Y"), "abc", *texts)

    np.testing.assert_allclose(of(1, *TEXTS), SCORES, atol=1e-12)
    assert of(1, *TEXTS).tolist() == of(1, *TEXTS).tolist()
    assert judge.asked == 3
    of(2, *TEXTS)
    assert judge.asked == 6
    of(2, TEXTS[0], TEXTS[0])
    assert judge.asked == 9
    of(None, *TEXTS)
    of(None, *TEXTS)
    assert judge.asked == 15


def test_both_orders_are_read_as_who_was_shown_first(place):
    Judgements(place, "counting", Counting(), None).of(("X", "Y"), "abc", *TEXTS)
    found = judgements.read_orders(place, "counting", ["Y", "X", "Z"], 3)
    np.testing.assert_allclose(found[:, 1, 0], [0.4, 0.7, 0.8])  # X shown first
    np.testing.assert_allclose(found[:, 0, 1], [0.8, 0.5, 0.4])  # 1 - P(X > Y), Y shown first
    assert np.isnan(found[:, 2]).all()
    assert np.isnan(found[:, 0, 0]).all()


def test_a_damaged_judgement_is_asked_for_again(place):
    judge = Counting()
    kept = Judgements(place, "counting", judge, 1)
    kept.of(("X", "Y"), "abc", *TEXTS)
    (place / "judgements" / "counting" / "X,Y.json").write_text('{"scores": [')
    np.testing.assert_allclose(kept.of(("X", "Y"), "abc", *TEXTS), SCORES, atol=1e-12)
    assert judge.asked == 6


def test_a_judge_to_whom_order_is_nothing_has_none():
    judge = PopulationJudge(lambda prompts, first, second: np.full(len(prompts), 0.25))
    scores, orders = both_orders(judge, ["x"], ["a"], ["b"])
    assert scores.tolist() == [0.25]
    assert orders is None
