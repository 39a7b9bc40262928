"""An LLM as the judge behind a real server of the protocol: llama.cpp's, with a tiny random model.

Skipped where `llama-cpp-python[server]`, which is compiled for half an hour, or `gguf` is missing.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.llm_judge import LLMJudge
from nlhf_jax.evaluation.llm_prompt import Prompt
from tests import tiny_llm
from tests.evaluation.llm_program import SETTINGS, comparisons

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="gguf, which writes the model, is not installed")
pytest.importorskip("starlette_context", reason="llama-cpp-python's extra `server` is missing")

pytestmark = pytest.mark.long  # half a minute: the protocol is that of llm_server.py
FORM = "chatml"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_llm.write(path)
    return path


@contextlib.contextmanager
def serving(model: Path, key: str | None = None) -> Iterator[str]:
    """The address of a server of the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"port": port, "chat_format": FORM, "n_ctx": tiny_llm.CONTEXT, "logits_all": True}
    options |= {"n_threads": 1, "n_threads_batch": 1} | ({"api_key": key} if key else {})
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model)]
    command += [f"--{name}={value}" for name, value in options.items()]
    log = model.parent / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ.copy())
    try:
        while True:
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5)
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def shown_first(model: Path, questions: list[str]) -> np.ndarray:
    """P("1") against "2", of the logits that the library itself computes."""
    llm = llama_cpp.Llama(
        str(model), n_ctx=tiny_llm.CONTEXT, logits_all=True, n_threads=1, verbose=False
    )
    labels = [llm.tokenize(label.encode(), add_bos=False)[-1] for label in tiny_llm.ANSWERS]
    found = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        text = llama_cpp.llama_chat_format.format_chatml(messages).prompt
        llm.reset()
        llm.eval(llm.tokenize(text.encode(), special=True))
        found.append(softmax(np.float64(llm.scores[llm.n_tokens - 1, labels]))[0])
    return np.array(found)


def test_the_judge_s_answers_are_the_model_s_own_probabilities(model, tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", "sk-secret")
    settings = {"cache": str(tmp_path / "cache"), **SETTINGS, "max_tokens": 1, "timeout": 60.0}
    prompts, first, second = comparisons(10)
    with serving(model, key="sk-secret") as url:
        given = {"url": url, "key_variable": "THE_KEY", **settings}
        judge = LLMJudge(**given)
        found = judge.both_orders(prompts, first, second)
        count = judge.counts()
        # Of five tokens none is an answer, a reminder does not help, and so all are ties.
        mute = LLMJudge(**given | {"max_tokens": 5, "max_unanswered": 1.0})
        np.testing.assert_array_equal(mute.compare(prompts[:2], first[:2], second[:2]), 0.5)
        without = LLMJudge(**given | {"log_probs": None})
        votes = without.both_orders(prompts, first, second)
        wrong = LLMJudge(**given | {"key_variable": None, "cache": str(tmp_path / "other")})
        with pytest.raises(UserError, match="401"):
            wrong.compare(prompts, first, second)
    ask = Prompt(None, tiny_llm.ANSWERS).question
    asked = [[ask(x, a, b), ask(x, b, a)] for x, a, b in zip(prompts, first, second, strict=True)]
    exact = shown_first(model, [question for pair in asked for question in pair]).reshape(-1, 2)
    exact[:, 1] = 1 - exact[:, 1]
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.ptp(exact) > 0.05  # it does depend on what is read
    np.testing.assert_array_equal(votes, exact > 0.5)
    assert count["replies"] == count["with_probabilities"] == 20
    assert count["tokens_out"] == 20 and count["tokens_in"] > 20 * 100
    assert mute.counts()["unparsable"] == mute.counts()["asked_again"] == 4
