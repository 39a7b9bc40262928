"""An LLM as the judge that is stopped, or asked by two runs at once: nothing is paid twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from nlhf_jax.evaluation.paid_once import PaidOnce
from tests import llm_server
from tests.evaluation.llm_program import SETTINGS, comparisons
from tests.evaluation.llm_referee import expected, preference
from tests.llm_server import serving

ROOT = Path(__file__).parents[2]


def start(server: llm_server.Server, cache: Path, number: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.evaluation.llm_program", server.url, cache, number]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kept(server: llm_server.Server, cache: Path) -> int:
    replies = PaidOnce(cache)
    try:
        return replies.paid(f"referee at {server.url}")[0]
    finally:
        replies.close()


def wait_for(server: llm_server.Server, requests: int, program: subprocess.Popen) -> None:
    while len(server.log) < requests and program.poll() is None:
        time.sleep(0.005)
    assert program.poll() is None, program.communicate()


def test_killed_at_any_moment_it_goes_on_with_what_was_paid(tmp_path):
    cache, number = tmp_path / "cache", 60
    with serving(preference, {"500": 0.1, "cut": 0.1}, seconds=0.03) as server:
        for stop in (25, 70):
            program = start(server, cache, number)
            wait_for(server, stop, program)
            program.kill()
            program.communicate()
            time.sleep(0.2)  # what was under way ends
            # What the server answered and nobody could write down: what was under way at the kill.
            lost = len(server.paid) - kept(server, cache)
            assert lost <= SETTINGS["concurrency"] * (1 + (stop > 25))
        before, had = len(server.paid), kept(server, cache)
        program = start(server, cache, number)
        out, error = program.communicate()
        assert program.returncode == 0, error
        assert out.split() == ["asks", str(2 * number - had), str(had)]
        assert len(server.paid) - before == 2 * number - had
        found = np.load(f"{cache}.npy")
        np.testing.assert_allclose(found, expected(server, *comparisons(number)), atol=1e-9)


def test_ctrl_c_ends_it_soon_and_keeps_what_was_on_its_way(tmp_path):
    cache = tmp_path / "cache"
    with serving(preference, {"429": 0.2}, seconds=0.2, retry_after="20") as server:
        program = start(server, cache, 500)
        while not any(request.outcome == "429" for request in server.log):
            wait_for(server, len(server.log) + 1, program)
        program.send_signal(signal.SIGINT)
        _, error = program.communicate(timeout=15)  # some wait for 20 s
        assert program.returncode not in (0, -signal.SIGKILL) and "KeyboardInterrupt" in error
        assert kept(server, cache) == len(server.paid)
        assert len(server.log) < 100


def test_two_runs_at_once_pay_for_each_question_once(tmp_path):
    cache, number = tmp_path / "cache", 60
    gate = threading.Event()
    with serving(preference, {"500": 0.1}, seconds=0.02, gate=gate) as server:
        programs = [start(server, cache, number) for _ in range(2)]
        for program in programs:
            program.stdout.readline()
        gate.set()  # both have their first questions ready, which are the same
        said = [program.communicate() for program in programs]
        assert [program.returncode for program in programs] == [0, 0], said
        replies = [int(out.split()[0]) for out, _ in said]
        assert len(server.paid) == 2 * number == sum(replies)
