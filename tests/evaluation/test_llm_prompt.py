import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlhf_jax.data import templates
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.llm_prompt import PAPER, BrokenReply, Prompt, Reply

NUMBERS = ("1", "2")


def test_the_paper_s_question_is_that_of_its_rater():
    rater = (
        f"{templates.RATER_INSTRUCTION} {{prompt}}{templates.RATER_SUMMARY_1} {{first}}"
        f"{templates.RATER_SUMMARY_2} {{second}}"
    )
    assert PAPER.startswith(rater)


def test_what_stands_in_the_texts_is_no_place():
    prompt = Prompt("{prompt}|{second}|{first}|{first}|{x}", NUMBERS)
    found = prompt.question(" {first} ", "{second}\n", "\\1 {prompt}")
    assert found == "{first}|\\1 {prompt}|{second}|{second}|{x}"


def test_a_template_may_stand_in_a_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Text: {prompt}\nA: {first}\nB: {second}\n", encoding="utf-8")
    assert Prompt(str(path), ("A", "B")).question("x", "y", "z") == "Text: x\nA: y\nB: z\n"
    path.write_bytes(b"\xff{prompt}{first}{second}")
    with pytest.raises(UserError, match="LLM_PROMPT is .*prompt.txt"):
        Prompt(str(path), NUMBERS)


@pytest.mark.parametrize("text", ["1", " 1\n", "1.", '"1"', "**1**", "(1)", "[1]."])
def test_a_label_in_quotes_or_brackets_is_an_answer(text):
    assert Prompt(None, NUMBERS).preference(Reply(text)) == 1.0
    assert Prompt(None, NUMBERS).preference(Reply(text.replace("1", "2"))) == 0.0


@pytest.mark.parametrize(
    "text", ["", "3", "12", "1 or 2", "1 2", "1/2", "-1", "Summary 1", "one", "1 is better", "A"]
)
def test_anything_else_is_no_answer(text):
    assert Prompt(None, NUMBERS).preference(Reply(text)) is None


def test_a_refusal_is_no_answer_even_if_it_has_a_label():
    assert Prompt(None, NUMBERS).preference(Reply("1", refused=True)) is None


def test_the_last_match_of_the_user_s_expression_counts():
    prompt = Prompt(PAPER, ("A", "B"), r"Answer: (\w+)")
    assert prompt.preference(Reply("Answer: A? No.\nAnswer: B")) == 0.0
    assert prompt.preference(Reply("Answer: C")) is None
    assert prompt.preference(Reply("B")) is None


def sent(text, tokens=(), **fields):
    """What a server sends; tokens are pairs of a text and the likeliest tokens there."""
    content = [
        {"token": token, "top_logprobs": [{"token": t, "logprob": p} for t, p in tops.items()]}
        for token, tops in tokens
    ]
    choice = {"message": {"content": text}, "logprobs": {"content": content}} | fields
    return {"choices": [choice], "model": "m"}


TOPS = {"1": math.log(0.5), " 1": math.log(0.1), "2": math.log(0.2), "x": math.log(0.1)}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1", [("1", TOPS)]),
        ("1", [(" 1", TOPS), ("<|end|>", {})]),  # servers strip, and end with special tokens
        (" 1\n", [(" ", {}), ("1", TOPS), ("\n", {})]),
        ('"1"', [('"', {}), ("1", TOPS), ('"', {})]),
        ("2", [("2", TOPS)]),  # the probabilities count, not what was drawn
    ],
)
def test_log_probabilities_stand_at_the_label_s_token(text, tokens):
    prompt = Prompt(None, NUMBERS)
    reply = prompt.read(sent(text, tokens))
    assert prompt.preference(reply) == pytest.approx(0.6 / 0.8, abs=1e-12)
    assert prompt.has_probabilities(reply)


def test_after_reasoning_they_stand_there_too():
    prompt = Prompt(None, NUMBERS, r"Answer: (1|2)")
    other = {"1": -9.0, "2": -0.1}
    tokens = [("2", other), (" is", {}), (" it.", {}), (" Answer:", {}), (" 1", TOPS)]
    reply = prompt.read(sent("2 is it. Answer: 1", tokens))
    assert prompt.preference(reply) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [("1.", TOPS)],  # is more than the label
        [("5", TOPS)],  # is not the text
        [("1", {})],
        [("1", {"1": -0.1, "x": -3.0})],  # the other label's is not known
        [("1", {"1": -0.1, "2": float("nan")})],
        [("1", {"1": -0.1, "2": -9999.0})],
        [("1", {"1": -0.1, "2": -(10**400)})],
    ],
)
def test_without_both_labels_log_probabilities_the_answer_is_zero_or_one(tokens):
    prompt = Prompt(None, NUMBERS)
    reply = prompt.read(sent("1", tokens))
    assert prompt.preference(reply) == 1.0
    assert not prompt.has_probabilities(reply)


@pytest.mark.parametrize(
    "fields",
    [
        {"message": {"content": None, "refusal": "no"}},
        {"message": {"content": "1"}, "finish_reason": "content_filter"},
    ],
)
def test_refusals_are_seen(fields):
    assert Prompt(None, NUMBERS).read(sent("", **fields)).refused


def test_halves_of_characters_are_sent_and_read_as_question_marks():
    prompt = Prompt(None, NUMBERS)
    assert prompt.question("a\ud83d", "b", "c") == prompt.question("a?", "b", "c")
    assert prompt.read(sent("\ud83d 1")).text == "? 1"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "logprobs", "token", "top_logprobs", "logprob"]
                + ["usage", "prompt_tokens", "error", "refusal", "model", "finish_reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON, JSON, JSON, JSON)
def test_whatever_a_server_sends_is_a_reply_or_a_broken_one(anything, choice, tokens, tops):
    prompt = Prompt(None, NUMBERS)
    whole = {"message": {"content": "1"}, "logprobs": {"content": tokens}}
    deep = sent("1", [("1", {})])
    deep["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = tops
    choices = [{"choices": found} for found in (choice, [choice], [whole])]
    for content in (anything, *choices, deep):
        try:
            reply = prompt.read(content)
        except BrokenReply:
            continue
        assert prompt.preference(reply) is None or 0 <= prompt.preference(reply) <= 1
