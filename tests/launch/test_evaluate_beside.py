"""Evaluations beside a training: every checkpoint once, the latest first, until it has ended."""

import json
import shlex
import signal
import sys

import pytest

from launch import evaluate_beside
from launch.common import Refused
from nlhf_jax import checkpoints
from tests import tiny_learner
from tests.launch.programs import CHILD, start


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training that has ended, with the checkpoints of steps 10 and 20."""
    workdir = tmp_path_factory.mktemp("training") / "a run"
    tiny_learner.run(workdir, 20, keep_checkpoints=9)
    return workdir


def watch(workdir, out, *job: str) -> list[str]:
    job = job or ("evaluate", "--step={step}", "--checkpoint={checkpoint}")
    return [f"--watch={workdir}", f"--out={out}", "--poll=0", CHILD, "--", *job]


def results(out) -> dict[int, dict]:
    found = out.glob("*/tournament.json")
    return {int(path.parent.name): json.loads(path.read_text()) for path in found}


def test_each_checkpoint_is_evaluated_once_the_latest_first(training, tmp_path):
    out = tmp_path / "beside"
    out.mkdir()
    writing = training / "checkpoints" / "30.orbax-checkpoint-tmp"
    writing.mkdir()
    try:
        for _ in range(2):
            assert evaluate_beside.main(watch(training, out)) == 0
    finally:
        writing.rmdir()
    assert (out / "order").read_text().split() == ["20", "10"]
    found = results(out)
    assert sorted(found) == [10, 20]
    for step, options in found.items():
        assert options["workdir"] == str(out / str(step))
        assert checkpoints.read_description(options["checkpoint"])["step"] == step


def test_it_follows_a_training_that_goes_on(tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "beside"
    out.mkdir()
    watcher = start("evaluate_beside.py", *watch(workdir, out))
    tiny_learner.run(workdir, 30)
    output, _ = watcher.communicate(timeout=300)
    assert watcher.returncode == 0, output
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept <= set(results(out)) <= {10, 20, 30}


def test_an_evaluation_that_fails_is_said_and_the_others_are_done(training, tmp_path, capfd):
    job = ("evaluate", "--step={step}", "--checkpoint={checkpoint}", "--fail=20")
    assert evaluate_beside.main(watch(training, tmp_path, *job)) == 4
    assert (tmp_path / "order").read_text().split() == ["20", "10"]
    assert sorted(results(tmp_path)) == [10]
    assert (
        "the evaluation of step 20 failed with 4, and is not tried again" in capfd.readouterr().err
    )
    assert evaluate_beside.main(watch(training, tmp_path)) == 0  # another time, it is
    assert sorted(results(tmp_path)) == [10, 20]


def test_one_that_leaves_no_result_has_failed(training, tmp_path, capfd):
    assert evaluate_beside.main(watch(training, tmp_path, "show", "{checkpoint}")) == 1
    assert "the evaluation of step 10 left no tournament.json" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_evaluation_and_the_watcher(training, tmp_path, number):
    job = ("evaluate", "--step={step}", "--checkpoint={checkpoint}", "--wait=1")
    watcher = start("evaluate_beside.py", *watch(training, tmp_path, *job))
    for line in watcher.stdout:
        if line == "[20] waits\n":
            break
    watcher.send_signal(number)
    output, _ = watcher.communicate(timeout=300)
    assert watcher.returncode == 128 + number, output
    assert (tmp_path / "order").read_text().split() == ["20"]
    assert not results(tmp_path)


def test_a_dry_run_prints_the_commands_and_runs_none(training, tmp_path, capsys):
    assert evaluate_beside.main(["--dry_run", *watch(training, tmp_path)]) == 0
    (*lines, last) = capsys.readouterr().out.splitlines()
    assert last.startswith("# the same for each new step of")
    assert [shlex.split(line) for line in lines] == [
        [
            *(sys.executable, "-m", "tests.launch.child", "evaluate", f"--step={step}"),
            f"--checkpoint={training}/checkpoints/{step}",
            f"--workdir={tmp_path}/{step}",
        ]
        for step in (20, 10)
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (("evaluate", "--gin_file=a.gin"), "the command never says {checkpoint}"),
        (("evaluate", "{checkpoint}", "--workdir=out"), "has a --workdir, but that is OUT/STEP"),
    ],
)
def test_a_command_that_would_do_the_same_for_all_steps_is_refused(job, said):
    with pytest.raises(Refused, match=said):
        evaluate_beside.main(watch("a", "b", *job))
