import sqlite3
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.llm_prompt import Reply
from nlhf_jax.evaluation.paid_once import PaidOnce, key

REPLIES = st.builds(
    Reply,
    text=st.text(),
    refused=st.booleans(),
    label_log_probs=st.none() | st.dictionaries(st.text(), st.floats(-1e9, 0)),
    model=st.text(),
    tokens_in=st.none() | st.integers(0, 2**40),
    tokens_out=st.none() | st.integers(0, 2**40),
)


@given(replies=st.lists(REPLIES, min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_what_is_kept_is_found_by_another_run(tmp_path, replies):
    path = tmp_path / str(len(list(tmp_path.iterdir())))  # an example may come again
    cache = PaidOnce(path)
    for number, reply in enumerate(replies):
        assert cache.find(str(number)) is None
        cache.keep(str(number), "somebody", reply)
        cache.keep(str(number), "somebody", Reply("the first that was paid stays"))
    other = PaidOnce(path)
    assert [other.find(str(number)) for number in range(len(replies))] == replies
    tokens = [sum(getattr(r, f"tokens_{side}") or 0 for r in replies) for side in ("in", "out")]
    assert other.paid("somebody") == (len(replies), *tokens)
    assert other.paid("somebody else") == (0, 0, 0)
    cache.close()
    other.close()


def test_a_key_is_of_what_is_asked_and_not_of_its_order():
    assert key({"a": 1, "b": [1]}) == key({"b": [1], "a": 1})
    assert len({key({"a": 1}), key({"a": "1"}), key({"a": 2}), key({"b": 1})}) == 4


def test_a_file_that_is_none_is_one_sentence(tmp_path):
    path = tmp_path / "cache"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="LLM_CACHE .*cache cannot be read or written: file is not"):
        PaidOnce(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE replies (words TEXT)")
    with pytest.raises(UserError, match="no such column"):
        PaidOnce(path).find("q")


CLAIMS = """
import sys
from nlhf_jax.evaluation.paid_once import PaidOnce
print(PaidOnce(sys.argv[1]).claim(sys.argv[2]), flush=True)
sys.stdin.read()
"""


def test_a_question_that_another_process_asks_is_free_once_that_is_dead(tmp_path):
    question, other = key({"a": 1}), key({"a": 2})
    cache = PaidOnce(tmp_path / "cache")
    command = [sys.executable, "-c", CLAIMS, str(cache.path), question]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "True\n"
        assert not cache.claim(question)
        assert cache.claim(other)
        process.kill()
        process.wait()
        assert cache.claim(question)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "False\n"
        process.kill()
    cache.release(question)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "True\n"
        process.kill()
