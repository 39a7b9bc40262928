"""A work directory belongs to one living run."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nlhf_jax import configuration, locks
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import chain
from nlhf_jax.main import main

REPOSITORY = Path(__file__).resolve().parents[1]

# Holds a directory and says so, until its standard input ends. A bucket's way works on
# TensorStore's file driver as well; its beats are short here.
_HOLDER = """
import os, select, subprocess, sys, time
from nlhf_jax import locks

locks.BEAT = 0.2
way, workdir = sys.argv[1:]
held = locks._held_object if way == "object" else locks.held
with held(workdir):
    if way == "fork":
        started, start = os.pipe()
        if os.fork() == 0:
            os.write(start, b"1")
            time.sleep(600)
        os.read(started, 1)  # On a busy machine the fork may not have run before we are killed.
    print("held", os.getpid(), flush=True)
    # Not one call that blocks: a signal just before that would be looked at after it.
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        pass
"""


class Holder:
    """Another process, which holds a directory."""

    def __init__(self, way, workdir, ctrl_c=signal.SIG_DFL):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, way, str(workdir)],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c),
        )
        said = self.process.stdout.readline().split()
        assert said == ["held", str(self.process.pid)]

    def kill(self):
        self.process.kill()
        assert self.process.wait(timeout=60) == -signal.SIGKILL

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its forks too
        self.process.wait()


def refusal(workdir, process):
    return (
        rf"{re.escape(str(workdir))} is in use by another run, process {process.pid} on \S+ since "
        r"[\d-]+ [\d:]+\+00:00: wait for its end, stop it, or use another --workdir"
    )


@pytest.mark.parametrize("end", ["kill", "end"])
def test_a_directory_is_free_when_its_process_is_gone_however_it_went(tmp_path, end):
    with Holder("file", tmp_path) as holder:
        for _ in range(2):
            with (
                pytest.raises(UserError, match=refusal(tmp_path, holder.process)),
                locks.held(tmp_path),
            ):
                pytest.fail("two at once")
        getattr(holder, end)()
        with locks.held(tmp_path):
            pass


def test_a_fork_of_a_run_does_not_keep_its_directory(tmp_path):
    with Holder("fork", tmp_path) as holder:
        holder.kill()  # Its fork sleeps on.
        with locks.held(tmp_path):
            pass


def test_a_run_holds_its_directory_against_this_process_too(tmp_path):
    with locks.held(tmp_path):
        with pytest.raises(UserError, match="is in use by another run"), locks.held(tmp_path):
            pytest.fail("two at once")
        with locks.held(tmp_path / "stage"):  # a chain's stage
            pass
    with locks.held(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/run/.lock: cannot be written: Not a directory"),
        locks.held(tmp_path / "file" / "run"),
    ):
        pytest.fail("there is none")


def job(workdir):
    """A job that is tried again from inside."""
    with pytest.raises(UserError, match="is in use by another run"):
        configuration.run(job, workdir)


def test_a_configured_job_has_its_directory_to_itself(tmp_path):
    configuration.parse([], workdir=str(tmp_path))
    configuration.run(job, str(tmp_path))


def test_a_chain_is_refused_before_it_writes_anything(tmp_path, capsys):
    stages = [{"name": "report", "job": "report"}]
    with Holder("file", tmp_path) as holder:
        with pytest.raises(UserError, match=refusal(tmp_path, holder.process)):
            chain.run(tmp_path, stages)
        arguments = ["run", "--gin_file=quickstart.gin", f"--workdir={tmp_path}"]
        assert main(arguments) == 2
        assert re.search(
            "nlhf: error: " + refusal(tmp_path, holder.process), capsys.readouterr().err
        )
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# --- the way of a bucket -------------------------------------------------------------------------


@pytest.fixture
def short_beats(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.2)


def test_an_object_that_changes_is_a_living_runs(tmp_path, short_beats):
    workdir = f"file://{tmp_path}"
    with Holder("object", workdir) as holder:
        with (
            pytest.raises(UserError, match=refusal(workdir, holder.process)),
            locks._held_object(workdir),
        ):
            pytest.fail("two at once")
        holder.end()
        assert not (tmp_path / ".lock").exists()  # released at the end
        with locks._held_object(workdir):
            assert (tmp_path / ".lock").exists()


def test_an_object_that_stands_still_is_taken_over(tmp_path, short_beats):
    workdir = f"file://{tmp_path}"
    with Holder("object", workdir) as holder:
        holder.kill()
        with (
            locks._held_object(workdir),
            pytest.raises(UserError, match="is in use by another run"),
            locks._held_object(workdir),
        ):
            pytest.fail("two at once")


@pytest.mark.parametrize("ctrl_c", [signal.SIG_DFL, signal.SIG_IGN], ids=["heard", "nohup"])
def test_a_run_that_stood_still_and_was_taken_over_stops(tmp_path, short_beats, ctrl_c):
    """Also one that was started in the background, where Ctrl-C is ignored."""
    workdir = f"file://{tmp_path}"
    with Holder("object", workdir, ctrl_c) as holder:
        os.kill(holder.process.pid, signal.SIGSTOP)
        with locks._held_object(workdir):
            ours = (tmp_path / ".lock").read_bytes()
            os.kill(holder.process.pid, signal.SIGCONT)
            assert holder.process.wait(timeout=60) != 0
            assert b"token" in ours and (tmp_path / ".lock").read_bytes() == ours
