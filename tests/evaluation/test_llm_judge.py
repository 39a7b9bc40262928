"""An LLM as the judge of a server that misbehaves: its log and its preference are the oracle."""

import asyncio
import email.utils
import itertools
import json
import sys
import threading
import time

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import llm_client
from nlhf_jax.evaluation.llm_judge import LLMJudge
from tests import llm_server
from tests.evaluation.llm_program import SETTINGS, comparisons
from tests.evaluation.llm_referee import expected, judge_of, preference, questions
from tests.llm_server import TOKENS_OUT, serving

TROUBLE = dict.fromkeys(("429", "500", "cut", "gone", "broken", "empty"), 0.05) | {"hang": 0.01}
FATES = dict.fromkeys((*llm_server.REFUSALS, *llm_server.WORDS), 0.02)


@pytest.mark.parametrize("log_probs", [True, False])
def test_whatever_the_server_does_every_answer_is_its_preference_and_paid_once(tmp_path, log_probs):
    asked = comparisons(120)
    with serving(preference, TROUBLE | FATES, seed=log_probs, log_probs=log_probs) as server:
        judge = judge_of(server, tmp_path / "cache", price_in=3.0, price_out=15.0)
        found = judge.both_orders(*asked)
        np.testing.assert_allclose(found, expected(server, *asked), atol=1e-9)

        outcomes = [request.outcome for request in server.log]
        assert {*TROUBLE, *FATES} <= set(outcomes)  # the plan has all of it
        answered = [request.messages for request in server.paid]
        assert len(answered) == len(set(answered))
        count = judge.counts()
        fates = [server.fate(q) for pair in questions(*asked) for q in pair]
        tokens_in = sum(request.tokens_in for request in server.paid)
        tokens_out = TOKENS_OUT * len(answered)
        blocked = outcomes.count("blocked")  # an answer without a charge
        of_it = {
            "comparisons": 120,
            "equal": 0,
            "questions": 240,
            "requests": len(server.log),
            "replies": len(answered) + blocked,
            "from_cache": 0,
            "asked_again": sum(fate in llm_server.WORDS for fate in fates),
            "refused": sum(fate in llm_server.REFUSALS for fate in fates),
            "unparsable": sum(fate in ("swap", "both", "none") for fate in fates),
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "money": pytest.approx((3 * tokens_in + 15 * tokens_out) / 1e6),
            "without_usage": 0,
        }
        assert {name: count[name] for name in of_it} == of_it
        causes = {
            "HTTP 429": outcomes.count("429"),
            "HTTP 500": outcomes.count("500"),
            "time-out": outcomes.count("hang"),
            "cut connection": outcomes.count("cut") + outcomes.count("gone"),
            "broken answer": outcomes.count("broken") + outcomes.count("empty"),
        }
        assert count["failures"] == causes
        assert sum(causes.values()) + count["replies"] == len(server.log)
        assert (count["with_probabilities"] > 150) == log_probs
        assert count["models"][llm_server.MODEL] == len(answered)
        assert count["ever"]["money"] == count["money"]
        assert json.loads(json.dumps(count)) == count
        assert f"{count['refused']:,} refused" in judge.sentence()

        # Another run, with another judge: nothing is asked.
        again = judge_of(server, tmp_path / "cache")
        np.testing.assert_array_equal(again.both_orders(*asked), found)
        assert len(server.log) == len(outcomes)
        assert again.counts()["from_cache"] == count["replies"]
        assert again.counts()["replies"] == again.counts()["tokens_in"] == 0


def test_exchanging_the_responses_gives_one_minus_the_answer_exactly_and_costs_nothing(tmp_path):
    prompts, first, second = comparisons(100)
    with serving(preference, FATES) as server:
        judge = judge_of(server, tmp_path / "cache")
        there = judge.compare(prompts, first, second)
        requests = len(server.log)
        back = judge.compare(prompts, second, first)
        np.testing.assert_array_equal(back, 1 - there)
        np.testing.assert_array_equal(there, judge.both_orders(prompts, first, second).mean(axis=1))
        assert len(server.log) == requests
    assert len(np.unique(there)) > 50  # probabilities


def test_order_bias_is_that_of_the_server(tmp_path):
    prompts, first, second = comparisons(100)
    with serving(preference) as server:
        judge = judge_of(server, tmp_path / "cache")
        judge.compare(prompts, first, second)
        count = judge.counts()
    shown = np.array(
        [
            (preference(x, a, b), preference(x, b, a))
            for x, a, b in zip(prompts, first, second, strict=True)
        ]
    )
    contradict = ((shown[:, 0] - 0.5) * (shown[:, 1] - 0.5) > 0).mean()
    assert count["first_shown"] == pytest.approx(shown.mean())
    assert count["contradictions"] == contradict
    assert shown.mean() > 0.52 and contradict > 0.02  # it has some


def test_equal_texts_are_not_asked_and_equal_questions_once(tmp_path):
    with serving(preference) as server:
        judge = judge_of(server, tmp_path / "cache")
        prompts = ["x", "x", " x\n", "x"]
        first, second = ["same", "a", "a ", "b"], [" same", "b", "b", "a"]
        found = judge.both_orders(prompts, first, second)
        assert len(server.log) == 2
        assert judge.counts()["equal"] == 1
        assert judge.both_orders([], [], []).shape == (0, 2)
        with pytest.raises(ValueError):
            judge.compare(["x"], ["a"], [])
    np.testing.assert_array_equal(found[0], [0.5, 0.5])
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[3], 1 - found[1][::-1])


def test_another_model_prompt_or_field_of_the_request_is_another_question(tmp_path):
    with serving(preference) as server:
        asked = comparisons(1)
        others = [{}, {"model": "b"}, {"request": {"seed": 1}}, {"max_tokens": 6}]
        for number, settings in enumerate(others, start=1):
            judge = judge_of(server, tmp_path / "cache", **settings)
            judge.compare(*asked)
            assert len(server.log) == 2 * number
        judge_of(server, tmp_path / "cache", model="b", concurrency=1, timeout=9).compare(*asked)
        assert len(server.log) == 2 * len(others)


def test_many_questions_without_an_answer_end_it(tmp_path):
    with serving(preference, {"none": 0.3, "filter": 0.2}) as server:
        judge = judge_of(server, tmp_path / "cache", max_unanswered=0.2)
        with pytest.raises(UserError, match=r"gave no answer to 2\d questions .* LLM_MAX_UNANS"):
            judge.compare(*comparisons(1000))
        assert len(server.log) < 150  # not a thousand
        # And what is wrong is said again without asking again.
        asked = len(server.log)
        with pytest.raises(UserError, match="gave no answer"):
            judge_of(server, tmp_path / "cache", max_unanswered=0.2).compare(*comparisons(1000))
        assert len(server.log) - asked <= 2 * SETTINGS["concurrency"]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ((401, '{"error": {"message": "who are you"}}'), "401 .*who are you; LLM_KEY_VARIABLE"),
        ((404, "no model 'referee'"), "404 .*no model 'referee'; see LLM_URL and LLM_MODEL"),
        ((400, '{"error": "logprobs is not known"}'), "400 .*not known; LLM_LOG_PROBS = None"),
        ((429, '{"error": {"code": "insufficient_quota", "message": "pay"}}'), "429 .*: pay"),
        ((307, ""), "307"),
    ],
)
def test_what_is_refused_for_good_is_one_error_and_not_asked_again(tmp_path, status, sentence):
    with serving(preference, status=status) as server:
        judge = judge_of(server, tmp_path / "cache", concurrency=2)
        with pytest.raises(UserError, match=f"refuses: HTTP {sentence}"):
            judge.compare(*comparisons(10))
        assert len(server.log) <= 2


def test_a_server_that_never_answers_is_one_error(tmp_path):
    with serving(preference, status=(503, "busy")) as server:
        judge = judge_of(server, tmp_path / "cache", attempts=3)
        with pytest.raises(UserError, match=r"failed 3 times in a row .*503.*: busy"):
            judge.compare(*comparisons(1))
    judge = judge_of(server, tmp_path / "cache", attempts=2)  # it is gone
    with pytest.raises(UserError, match=r"failed 2 times in a row .*no connection"):
        judge.compare(*comparisons(1))


def test_the_key_is_sent_and_stands_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", "sk-1234567890\n")
    with serving(preference, key="sk-1234567890") as server:
        judge = judge_of(server, tmp_path / "cache", key_variable="THE_KEY")
        judge.compare(*comparisons(2))
        assert len(server.paid) == 4
        server.key = "another"
        with pytest.raises(UserError) as error:
            judge.compare(*comparisons(3))
    assert "Bearer ***" in str(error.value) and "sk-1" not in str(error.value)
    assert all(b"sk-1" not in path.read_bytes() for path in tmp_path.iterdir())
    monkeypatch.setenv("THE_KEY", "")
    with pytest.raises(UserError, match="LLM_KEY_VARIABLE is 'THE_KEY'"):
        judge_of(server, tmp_path / "cache", key_variable="THE_KEY")


def test_a_server_that_asks_to_wait_is_left_alone_so_long(tmp_path):
    """By all questions: the server must not see one while it has asked for peace."""
    with serving(preference, {"429": 0.4}, seed=5, retry_after="0.3") as server:
        judge = judge_of(server, tmp_path / "cache", concurrency=1)
        judge.compare(*comparisons(4))
        after = [
            later.at - sooner.at
            for sooner, later in zip(server.log, server.log[1:], strict=False)
            if sooner.outcome == "429"
        ]
        assert after and min(after) > 0.29
        server.retry_after = "4000"
        with pytest.raises(UserError, match="asks to come back in 4000 s"):
            judge.compare(*comparisons(40))


def test_a_server_may_say_by_a_date_when_to_come_back(tmp_path):
    until = time.time() + 2
    date = email.utils.formatdate(until, usegmt=True)  # whole seconds
    with serving(preference, {"429": 1.0}, retry_after=date) as server:
        clock = time.time() - time.monotonic()
        judge_of(server, tmp_path / "cache", concurrency=1).compare(*comparisons(1))
        first, *others = server.log
        assert first.outcome == "429" and len(others) == 5
        assert min(request.at for request in others) + clock > int(until) - 0.05
        server.retry_after = "soon"  # nobody knows what that means
        judge_of(server, tmp_path / "cache").compare(*comparisons(2))


def test_it_may_be_asked_where_an_event_loop_runs(tmp_path):
    """As in a notebook."""

    async def cell(judge: LLMJudge) -> np.ndarray:
        return judge.compare(*comparisons(2))

    with serving(preference) as server:
        found = asyncio.run(cell(judge_of(server, tmp_path / "cache")))
        np.testing.assert_allclose(found, expected(server, *comparisons(2)).mean(axis=1))


def test_requests_keep_to_their_rate(tmp_path, monkeypatch):
    """Each waits for its turn, and the next turn is an interval later; machines may be slow."""
    turns, wait = [], llm_client.Client._my_turn

    async def recorded(client):
        await wait(client)
        turns.append((time.monotonic(), client._next))

    monkeypatch.setattr(llm_client.Client, "_my_turn", recorded)
    with serving(preference) as server:
        judge = judge_of(server, tmp_path / "cache", requests_a_minute=60 / 0.05)
        judge.compare(*comparisons(5))
    assert len(turns) == len(server.log) == 10
    for (_, turn), (now, following) in itertools.pairwise(turns):
        assert now >= turn and following - turn > 0.05 - 1e-6


def test_no_more_requests_are_under_way_than_allowed(tmp_path):
    most, now, lock = 0, 0, threading.Lock()

    def watched(*texts: str) -> float:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return preference(*texts)

    with serving(watched) as server:
        judge_of(server, tmp_path / "cache", concurrency=3).compare(*comparisons(20))
    assert 1 < most <= 3


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"url": "localhost:8000"}, "LLM_URL is 'localhost:8000' but must be like"),
        ({"url": "https://me:secret@host/v1"}, "LLM_URL has a password"),
        ({"concurrency": 0}, "LLM_CONCURRENCY is 0 but must be at least 1"),
        ({"timeout": 0.0}, "LLM_TIMEOUT is 0.0"),
        ({"max_unanswered": 1.5}, "LLM_MAX_UNANSWERED is 1.5"),
        ({"requests_a_minute": 0}, "LLM_REQUESTS_A_MINUTE is 0"),
        ({"price_in": 1.0}, "LLM_PRICE_IN and LLM_PRICE_OUT"),
        ({"cache": "gs://bucket/cache"}, "LLM_CACHE is gs://bucket/cache but"),
        ({"cache": "/dev/null/cache"}, "LLM_CACHE /dev/null/cache cannot be"),
        ({"template": "{first} or {second}?"}, "LLM_PROMPT lacks {prompt}"),
        ({"template": "no_such_file.txt"}, "LLM_PROMPT is 'no_such_file.txt': neither"),
        ({"labels": ("1", "1")}, "LLM_LABELS is"),
        ({"labels": ("first one", "2")}, "LLM_LABELS is"),
        ({"answer": "(1|2"}, "LLM_ANSWER is '(1|2', no regular expression"),
        ({"answer": "1|2"}, "LLM_ANSWER is '1|2' but needs one group"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(tmp_path, settings, sentence):
    given = {"url": "http://localhost:1/v1", "cache": str(tmp_path / "cache")} | SETTINGS | settings
    with pytest.raises(UserError) as error:
        LLMJudge(**given)
    assert str(error.value).startswith(sentence) or sentence in str(error.value)


def test_without_its_extra_it_says_which_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    monkeypatch.delitem(sys.modules, "nlhf_jax.evaluation.llm_client", raising=False)
    given = {"url": "http://localhost:1/v1", "cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"needs tenacity, .* pip install '\.\[llm\]'"):
        LLMJudge(**given, **SETTINGS)
