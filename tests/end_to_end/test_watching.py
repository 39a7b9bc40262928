"""Each checkpoint of a training plays once, also where the training or the watcher is stopped."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.jobs import watching as watching_job
from nlhf_jax.main import main
from tests.end_to_end.conftest import LENGTHS


class Training(threading.Thread):
    """One that goes on: the steps of a training that was, as they were saved, one at a time.

    Each comes when the one before it has played, as the metrics say.
    """

    def __init__(self, of: Path, place: Path, steps, metrics: Path, last):
        super().__init__(daemon=True)
        self._of, self._place, self._steps = of, place, steps
        self._metrics, self._last = metrics, last

    def run(self) -> None:
        (self._place / "checkpoints").mkdir(parents=True, exist_ok=True)
        for step in self._steps:
            # A copy has its final name once it is whole, as a saved step has.
            copied = self._place / "checkpoints" / f"{step}.copied"
            shutil.copytree(self._of / "checkpoints" / str(step), copied)
            copied.rename(copied.with_suffix(""))
            while step not in played(self._metrics):
                time.sleep(0.02)
        self._last()

    def end(self) -> None:
        shutil.copy(self._of / "timing.json", self._place)


def played(metrics: Path) -> list[int]:
    if not metrics.exists():
        return []
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]


@pytest.fixture
def watching(workplace, tmp_path):
    """The command, and its work directory."""
    settings = {
        "SFT_FILES": {"train": workplace.path("sft.jsonl")},
        "PREFERENCE_FILES": {"train": workplace.path("votes.jsonl")},
        "VOCABULARY": str(TLDR_MINI_MODEL),
        "SHORT_TEMPLATE": True,
        "PLAYERS": {"panel": workplace.path("sft")},
        "REFERENCE_CHECKPOINT": workplace.path("sft"),
        "RATER_CHECKPOINT": workplace.path("preference"),
        "TASK_FEATURE_LENGTHS": json.loads(LENGTHS),
        "SPLIT": "train",
        "NUM_PROMPTS": 8,
        "BATCH_SIZE": 8,
        "evaluate.watch_seconds": 0.1,
    }
    return tmp_path / "beside", [
        "evaluate",
        "--gin_file=runs/tournament.gin",
        "--gin_file=tasks/json_lines.gin",
        *(f"--gin.{name}={value!r}" for name, value in settings.items()),
        f"--workdir={tmp_path / 'beside'}",
        f"--watch={tmp_path / 'training'}",
    ]


def test_each_checkpoint_plays_once_also_after_the_watcher_was_stopped(
    watching, workplace, tmp_path, capfd
):
    workdir, command = watching
    of, place = Path(workplace.path("sft")), tmp_path / "training"
    metrics = workdir / "metrics.jsonl"
    stopped = Training(of, place, [3], metrics, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped.start()
    assert main(command) == 128 + signal.SIGTERM
    assert played(metrics) == [3]
    sampled = [workdir / "responses" / f"{name}.jsonl" for name in ("panel", "training@3")]
    times = {one: one.stat().st_mtime_ns for one in sampled}

    going_on = Training(of, place, [6], metrics, lambda: going_on.end())
    going_on.start()
    assert main(command) == 0
    assert played(metrics) == [3, 6]
    assert {one: one.stat().st_mtime_ns for one in times} == times
    events = EventAccumulator(str(workdir)).Reload()
    assert [one.step for one in events.Scalars("validation/win_rate_over_panel")] == [3, 6]
    result = json.loads((workdir / "tournament.json").read_text())
    assert result["win_rates"]["names"] == ["panel", "training@6", "reference"]
    assert (workdir / "report.html").exists()
    said = capfd.readouterr().err
    assert "training@3: " in said and "over the references" in said
    assert main(command) == 0  # all is done
    assert played(metrics) == [3, 6]


def test_a_checkpoint_that_is_deleted_before_its_turn_is_left_out_and_that_is_said(
    watching, workplace, tmp_path, capfd, monkeypatch
):
    workdir, command = watching
    shutil.copytree(workplace.path("sft"), tmp_path / "training")
    shutil.rmtree(tmp_path / "training" / "checkpoints" / "3")
    monkeypatch.setattr(watching_job, "whole_steps", lambda directory: [3, 6])  # when it was listed
    assert main(command) == 0
    assert played(workdir / "metrics.jsonl") == [6]
    assert "training@3 was deleted before its turn" in capfd.readouterr().err


@pytest.mark.long
def test_a_training_in_a_bucket_is_watched_into_a_bucket(watching, workplace, bucket):
    _, command = watching
    of = Path(workplace.path("sft"))
    for path in of.rglob("*"):
        if path.is_file():
            bucket.write(f"training/{path.relative_to(of)}", path.read_bytes())
    kept = [one for one in command if not one.startswith(("--workdir=", "--watch="))]
    assert main([*kept, f"--watch={bucket}/training", f"--workdir={bucket}/beside"]) == 0
    lines = bucket.read("beside/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
    result = json.loads(bucket.read("beside/tournament.json"))
    assert result["win_rates"]["names"] == ["panel", "training@6", "reference"]
    assert "beside/responses/training@3.jsonl" in bucket.names("beside/responses/")
    assert len(bucket.read("beside/report.html")) > 10_000
