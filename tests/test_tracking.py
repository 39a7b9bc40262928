"""Tracked runs, read back from what Weights & Biases and MLflow store without a server."""

import json
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from nlhf_jax import processes, tracking
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import chain
from nlhf_jax.jobs.stages import Stage
from nlhf_jax.jobs.tracked import send_report, track_tournament
from nlhf_jax.tracking import FILE_NAME, Tracking, open_writer, requested
from tests import offline_runs, tiny_learner
from tests.evaluation.test_tournament import PURE, constant, play

KINDS = ("wandb", "mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """One for all tests: wandb reads its environment once in a process."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def offline(store, monkeypatch):
    for kind in KINDS:
        pytest.importorskip(kind, reason=f"pip install '.[{kind}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(store))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # quicker than SQLite's
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (store / "mlruns").as_uri())


def stored(kind: str, store: Path, workdir: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in all of a run's attempts."""
    run_id = json.loads((workdir / FILE_NAME).read_text())["id"]
    if kind == "mlflow":
        return offline_runs.mlflow_metrics(run_id)[name]
    rows, _ = offline_runs.wandb_rows(store, run_id)
    return [(row["step"], row[name]) for row in rows if name in row]


def written(workdir: Path, split: str, name: str) -> list[tuple[int, float]]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row[name]) for row in rows if row["split"] == split]


class Interrupted(Exception):
    pass


class Interrupting(tiny_learner.LinearBatches):
    def batch(self, step_index):
        if step_index == 18:  # lines of steps 5, 10 and 15 are written, the checkpoint is of 10
            raise Interrupted
        return super().batch(step_index)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_interrupted_is_one_tracked_run_with_every_step_once(kind, store, tmp_path):
    workdir = tmp_path / "run"
    asked = requested(kind, "a project", {"TAU": 0.1, "SEED": 0})
    with pytest.raises(Interrupted):
        tiny_learner.run(workdir, 30, Interrupting(), tracking=asked)
    before = json.loads((workdir / FILE_NAME).read_text())
    assert before["sent"]["train"] == 15
    tiny_learner.run(workdir, 25)  # an attempt that asks for nothing
    tiny_learner.run(workdir, 30, tracking=asked)
    assert json.loads((workdir / FILE_NAME).read_text())["id"] == before["id"]
    losses = stored(kind, store, workdir, "train/loss")
    assert losses == written(workdir, "train", "loss")
    assert [step for step, _ in losses] == [5, 10, 15, 20, 25, 30]
    if kind == "wandb":
        rows, config = offline_runs.wandb_rows(store, before["id"])
        assert [row["_step"] for row in rows] == list(range(1, len(rows) + 1))
        assert config["TAU"] == 0.1
    else:
        import mlflow

        run = mlflow.MlflowClient().get_run(before["id"])
        assert run.data.params == {"TAU": "0.1", "SEED": "0"}
        assert (run.info.run_name, run.info.status) == ("run", "FINISHED")


_KILLED = """
import os, sys, time
from nlhf_jax.tracking import Tracking, open_writer
writer = open_writer(sys.argv[1], 0, None, Tracking("mlflow", "p"))
for step in range(1, 4):
    writer.write(step, "train", {"loss": step / 2})
time.sleep(float(sys.argv[2]))
os._exit(9)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.8])
def test_a_kill_loses_at_most_the_line_on_its_way_and_doubles_none(seconds, store, tmp_path):
    workdir = tmp_path / "run"
    code = [sys.executable, "-c", _KILLED, str(workdir), str(seconds)]
    assert subprocess.run(code, check=False).returncode == 9
    writer = open_writer(workdir, 0, None, Tracking("mlflow", "p"))
    for step in range(1, 6):
        writer.write(step, "train", {"loss": step / 2})
    writer.close()
    found = [step for step, _ in stored("mlflow", store, workdir, "train/loss")]
    assert len(set(found)) == len(found) >= 4
    assert set(found) <= set(range(1, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tournament_s_figures_and_samples_and_the_report_are_stored(kind, store, tmp_path):
    place = tmp_path / "run" / "tournament"
    result = play()
    result.save(place / "tournament.json")
    asked = requested(kind, "p", {})
    for _ in range(2):  # the second time as after a stop
        track_tournament(asked, place, result)
    page = tmp_path / "run" / "report.html"
    page.write_text("<p>a page")
    send_report(tmp_path / "run", page)
    rates = stored(kind, store, place, "tournament/win_rate/rock")
    assert rates == [(0, pytest.approx(0.5))]
    run_id = json.loads((place / FILE_NAME).read_text())["id"]
    track_tournament(asked, place, play(PURE | {"water": constant("water")}))
    assert len(stored(kind, store, place, "tournament/win_rate/rock")) == 2
    assert len(stored(kind, store, place, "tournament/win_rate/water")) == 1
    files = [path for path in store.rglob("*") if path.is_file() and run_id in str(path)]
    tables = [
        json.loads(p.read_text()) for p in files if "samples" in p.name and p.suffix == ".json"
    ]
    assert tables
    if kind == "wandb":
        table = next(table for table in tables if len(table["columns"]) == 5)
        assert table["columns"] == ["prompt", "references", "rock", "paper", "scissors"]
        assert table["data"][0] == ["round 0", "", "rock", "paper", "scissors"]
    else:
        assert tables[0]["prompt"][0] == "round 0" and tables[0]["paper"][0] == "paper"
        assert [p.read_text() for p in files if p.name == "report.html"] == ["<p>a page"]


def test_a_store_that_fails_is_said_once_and_ends_no_training(store, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "file").as_uri())  # no directory
    state = tiny_learner.run(tmp_path / "run", 20, tracking=Tracking("mlflow", "p"))
    assert state is not None and len(written(tmp_path / "run", "train", "loss")) == 4
    said = capsys.readouterr().err
    assert said.count("nothing more is tracked by mlflow") == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (store / "mlruns").as_uri())
    tiny_learner.run(tmp_path / "run", 25, tracking=Tracking("mlflow", "p"))
    losses = stored("mlflow", store, tmp_path / "run", "train/loss")
    assert losses == written(tmp_path / "run", "train", "loss")  # what was missed, too


def test_nothing_is_stored_unless_asked_for(store, tmp_path, monkeypatch):
    before = sorted(store.rglob("*"))
    assert requested(None, None, {}) is None
    tiny_learner.run(tmp_path / "run", 10)
    (tmp_path / "run" / "report.html").write_text("")
    send_report(tmp_path / "run", tmp_path / "run" / "report.html")
    assert not (tmp_path / "run" / FILE_NAME).exists()
    # Nor by another process than the first.
    monkeypatch.setattr(processes, "is_first", lambda: False)
    tracker = tracking.Tracker(Tracking("mlflow", "p"), tmp_path / "run")
    tracker.write(1, "train", {"loss": 1.0})
    tracker.table("samples", ["a"], [["b"]])
    tracker.close()
    assert sorted(store.rglob("*")) == before


def test_a_damaged_record_is_said_and_begins_a_new_run(store, tmp_path, capsys):
    (tmp_path / FILE_NAME).write_text('{"kind": "mlflow"}')
    writer = open_writer(tmp_path, 0, None, Tracking("mlflow", "p"))
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert "is damaged" in capsys.readouterr().err
    assert stored("mlflow", store, tmp_path, "train/loss") == [(1, 1.0)]


@pytest.mark.parametrize(
    ("kind", "project", "message"),
    [
        ("tensorboard", "p", "TRACKING is 'tensorboard' but must be None or one of 'wandb'"),
        ("wandb", "", "TRACKING_PROJECT is '' but must name a project"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(kind, project, message):
    with pytest.raises(UserError, match=message):
        requested(kind, project, {})


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'nlhf_jax\[wandb\]'"):
        requested("wandb", "p", {})


def test_where_numbers_are_sent_is_no_other_configuration_of_a_stage():
    """So that a stage which is complete stays so when a chain is tracked from now on."""
    plans = [
        chain._plan(Stage("a", "train", ("mini/sft.gin",), {"DATA_DIR": "d"} | given), {}, [], [])
        for given in (
            {},
            {"TRACKING": "wandb", "TRACKING_PROJECT": "another"},
            {"LEARNING_RATE": 0.123},
        )
    ]
    assert plans[0].config == plans[1].config != plans[2].config
    gin.clear_config()
