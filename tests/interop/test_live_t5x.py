"""T5X itself on our tasks, with our gin files: where it is installed or on PYTHONPATH."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nlhf_jax.data import tldr_mini_text

# Each run of T5X takes half a minute; nothing else uses gin_configs/t5x as T5X does.
pytestmark = pytest.mark.slow

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
LENGTHS = {"inputs": 32, "targets": 14}
RATER_LENGTHS = {"inputs": 72, "targets": 8}


@pytest.fixture(scope="module", autouse=True)
def t5x() -> None:
    """Skips where T5X cannot be imported."""
    command = [sys.executable, "-c", "import t5x.train, t5x.infer"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # In no package registry: `t5x` in setup.py, or its sources on PYTHONPATH.
        pytest.skip(f"T5X cannot be imported: {done.stderr.strip().splitlines()[-1]}")


def run_t5x(program: str, gin_file: str, data_dir: Path, **macros) -> None:
    """`python -m t5x.train` or `t5x.infer` with one of gin_configs/t5x, on the mini model."""
    arguments = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    gin_files = [f"--gin_file=t5x/{name}" for name in (gin_file, "mini_model.gin")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"t5x.{program}",
            f"--gin_search_paths={GIN_CONFIGS}",
            *gin_files,
            *arguments,
        ],
        env=os.environ | {"TFDS_DATA_DIR": str(data_dir)},  # PYTHONPATH too, as it is
        cwd=data_dir,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def train(gin_file: str, data_dir: Path, model_dir: Path, **macros) -> Path:
    """Two steps of T5X; returns the last checkpoint."""
    run_t5x(
        "train",
        gin_file,
        data_dir,
        MODEL_DIR=str(model_dir),
        **{"INITIAL_CHECKPOINT_PATH": None, **macros},
        BATCH_SIZE=8,
        TRAIN_STEPS_RELATIVE=2,
        CHECKPOINT_PERIOD=2,
        EVAL_PERIOD=2,
        EVAL_STEPS=1,
    )
    return max(model_dir.glob("checkpoint_*"), key=lambda path: int(path.name.split("_")[1]))


def responses(directory: Path, task: str) -> list[dict]:
    """What infer.py wrote: a row for each example."""
    (file,) = directory.glob(f"{task}-predict.jsonl-00000-of-00001")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def sft_checkpoint(data_dir, tmp_path_factory) -> Path:
    """A policy that T5X trained on tldr_mini_sft."""
    return train(
        "sft.gin",
        data_dir,
        tmp_path_factory.mktemp("sft"),
        MIXTURE_OR_TASK_NAME="tldr_mini_sft",
        TASK_FEATURE_LENGTHS=LENGTHS,
    )


def test_t5x_trains_on_our_sft_task_and_decodes_its_prompts(sft_checkpoint, data_dir, tmp_path):
    assert sft_checkpoint.name == "checkpoint_2"
    run_t5x(
        "infer",
        "infer.gin",
        data_dir,
        CHECKPOINT_PATH=str(sft_checkpoint),
        INFER_OUTPUT_DIR=str(tmp_path),
        MIXTURE_OR_TASK_NAME="tldr_mini_sft",
        TASK_FEATURE_LENGTHS=LENGTHS,
        SPLIT="validation",
        BATCH_SIZE=100,
    )
    rows = responses(tmp_path, "tldr_mini_sft")
    pairs = [
        (post.text, summary)
        for post, summaries in tldr_mini_text.references("validation")
        for summary in summaries
    ]
    assert [tuple(row["inputs"].values()) for row in rows] == pairs
    assert all(isinstance(row["prediction"], str) for row in rows)


def test_t5x_trains_a_preference_model_from_a_checkpoint(sft_checkpoint, data_dir, tmp_path):
    last = train(
        "preferences.gin",
        data_dir,
        tmp_path,
        MIXTURE_OR_TASK_NAME="tldr_mini_preferences",
        TASK_FEATURE_LENGTHS=RATER_LENGTHS,
        INITIAL_CHECKPOINT_PATH=str(sft_checkpoint),
    )
    assert last.name == "checkpoint_4"  # two more steps than the policy's
