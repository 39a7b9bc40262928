"""A chain whose work directory, data and vocabulary are in a bucket; see tests/buckets.py."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import checkpoints
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.main import main
from tests.buckets import Bucket
from tests.end_to_end.conftest import LENGTHS, RATER_LENGTHS, TINY, Workplace, start

STEPS = 12


def _chain(sft: str, votes: str, vocabulary: str) -> str:
    """A gin file: SFT, a preference model, a policy, a tournament and the report."""

    def splits(path: str) -> dict[str, str]:
        return dict.fromkeys(("train", "validation", "test"), path)

    def train(run: str, **macros: object) -> dict:
        files = [f"runs/{run}.gin", "tasks/json_lines.gin", str(TINY)]
        return {"name": run, "job": "train", "gin_file": files, "macros": macros}

    stages = [
        train("sft", TRAIN_STEPS=STEPS),
        train("preference", TRAIN_STEPS=4, TASK_FEATURE_LENGTHS=eval(RATER_LENGTHS)),
        train(
            "nash_md",
            TRAIN_STEPS=STEPS,
            TAU=0.1,
            INITIAL_CHECKPOINT="stage:sft",
            RATER_CHECKPOINT="stage:preference",
        ),
        {
            "name": "tournament",
            "job": "evaluate",
            "gin_file": ["runs/tournament.gin", "tasks/json_lines.gin"],
            "macros": {
                "PLAYERS": {"SFT": "stage:sft", "MD": "stage:nash_md"},
                "REFERENCE_CHECKPOINT": "stage:sft",
                "RATER_CHECKPOINT": "stage:preference",
                "SHORT_TEMPLATE": True,
            },
        },
        {"name": "report", "job": "report"},
    ]
    macros = {
        "SFT_FILES": splits(sft),
        "PREFERENCE_FILES": splits(votes),
        "VOCABULARY": vocabulary,
        "TASK_FEATURE_LENGTHS": eval(LENGTHS),
        "CHECKPOINT_PERIOD": 3,
        "LOG_PERIOD": 1,
    }
    return (
        "from __gin__ import dynamic_registration\nfrom nlhf_jax.jobs import chain\n"
        f"chain.run.macros = {macros}\nchain.run.stages = {stages}\n"
    )


def _metrics(bucket: Bucket, stage: str) -> list[dict]:
    name = f"run/{stage}/metrics.jsonl"
    if name not in bucket.names(name):
        return []
    return [json.loads(line) for line in bucket.read(name).decode().splitlines()]


def _stop(process: subprocess.Popen, bucket: Bucket, stage: str, number: int) -> int:
    """Sends a signal once a stage has a few lines of metrics; returns the exit code."""
    while process.poll() is None:
        if len(_metrics(bucket, stage)) > 4:
            process.send_signal(number)
            break
        time.sleep(0.02)
    return process.wait()


KILLED = ("sft", signal.SIGKILL, -signal.SIGKILL)
PREEMPTED = ("nash_md", signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([PREEMPTED], id="once"),
        pytest.param([KILLED, PREEMPTED], id="twice", marks=pytest.mark.long),
    ],
)
def test_a_chain_in_a_bucket_that_is_stopped_ends_as_a_local_one(
    workplace: Workplace, bucket: Bucket, tmp_path: Path, monkeypatch, stops
):
    monkeypatch.chdir(tmp_path)
    files = [workplace.path("sft.jsonl"), workplace.path("votes.jsonl"), str(TLDR_MINI_MODEL)]
    Path("local.gin").write_text(_chain(*files))
    there = [bucket.write(f"data/{Path(path).name}", Path(path).read_bytes()) for path in files]
    gin_file = bucket.write("chain.gin", _chain(*there).encode())
    cache = tmp_path / "cache"

    undisturbed = start(["run", "--gin_file=local.gin", "--workdir=local"], cache)
    assert undisturbed.wait() == 0, undisturbed.communicate()

    command = ["run", f"--gin_file={gin_file}", f"--workdir={bucket}/run"]
    for stage, number, code in stops:
        assert _stop(start(command, cache), bucket, stage, number) == code
    last = start(command, cache)
    assert last.wait() == 0, last.communicate()

    for stage in ("sft", "preference", "nash_md"):
        ends = [checkpoints.load(f"{root}/{stage}") for root in ("local", f"{bucket}/run")]
        assert ends[0].step == ends[1].step
        jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)
        lines = Path("local", stage, "metrics.jsonl").read_text().splitlines()
        assert _metrics(bucket, stage) == [json.loads(line) for line in lines]
        steps = {name.split("/")[3] for name in bucket.names(f"run/{stage}/checkpoints/")}
        # Those before them are gone, from the bucket too.
        assert steps == {path.name for path in Path("local", stage, "checkpoints").iterdir()}
    for name in ("tournament/tournament.json", "report.csv"):
        written = bucket.read(f"run/{name}").decode()
        assert written.replace(f"{bucket}/run", "local") == Path("local", name).read_text()
    assert len(bucket.read("run/report.html")) > 10_000

    for format in ("huggingface", "t5x"):
        convert = ["convert", f"--to={format}"]
        assert main([*convert, "--checkpoint=local/sft", f"--output={format}"]) == 0
        there = f"{bucket}/{format}"
        assert main([*convert, f"--checkpoint={bucket}/run/sft", f"--output={there}"]) == 0
        written = {name: bucket.read(name) for name in bucket.names(f"{format}/")}
        files = [str(path) for path in Path(format).rglob("*") if path.is_file()]
        assert written == {path: Path(path).read_bytes() for path in files}

    sample = ["sample", f"--prompts={bucket}/data/sft.jsonl", "--temperature=0"]
    assert main([*sample, "--checkpoint=local/nash_md", "--output=local.jsonl"]) == 0
    output = f"--output={bucket}/samples.jsonl"
    assert main([*sample, f"--checkpoint={bucket}/run/nash_md", output]) == 0
    assert bucket.read("samples.jsonl") == Path("local.jsonl").read_bytes()
    assert not [name for name in os.listdir() if name.startswith("gs")]
