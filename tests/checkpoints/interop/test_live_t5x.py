"""T5X itself on our tasks, with our gin files: where it is installed or on PYTHONPATH."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax.checkpoints.arrays import read_all
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.jobs.convert import convert
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.rollout import sample_responses
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.tiny import EOS

# Each run of T5X takes half a minute; nothing else uses gin_configs/t5x as T5X does.
pytestmark = pytest.mark.slow

GIN_CONFIGS = Path(__file__).resolve().parents[3] / "gin_configs"
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


def run_t5x(program: str, gin_file: str, data_dir: Path, *more_files: Path, **macros) -> None:
    """`python -m t5x.train` or `t5x.infer` with one of gin_configs/t5x, on the mini model."""
    arguments = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    gin_files = [
        f"--gin_file={name}" for name in (f"t5x/{gin_file}", "t5x/mini_model.gin", *more_files)
    ]
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


def train(gin_file: str, data_dir: Path, model_dir: Path, *more_files: Path, **macros) -> Path:
    """Two steps of T5X; returns the last checkpoint."""
    run_t5x(
        "train",
        gin_file,
        data_dir,
        *more_files,
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


# --- what `nlhf convert` exports -----------------------------------------------------------------

# Sides of at least 128, so that Adafactor's state is factored, and all of them different.
SIZES = {
    "vocab_size": 256,
    "emb_dim": 192,
    "num_heads": 4,
    "head_dim": 40,
    "mlp_dim": 320,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
}
FORMATS = ("t5x", "t5x_orbax")


def exported(directory: Path, to: str, **settings) -> tuple[Path, T5, dict]:
    """A random policy of ours as `nlhf convert` exports it: its path, model and parameters."""
    model = T5(T5Config(**SIZES, **settings))
    params = tiny.params(model, seed=1)
    source = tiny_checkpoints.write_ours(directory / "source", model, params)
    convert(str(source), str(directory / to), to)
    return directory / to / f"checkpoint_{tiny_checkpoints.STEP}", model, params


def batch() -> dict[str, np.ndarray]:
    """Inputs and targets of three lengths, as T5X's models take them."""
    rng = np.random.default_rng(0)

    def texts(length: int, ends: tuple[int, ...]) -> np.ndarray:
        tokens = rng.integers(3, 256, (len(ends), length))
        end = np.asarray(ends)[:, None]
        position = np.arange(length)
        rows = np.where(position < end, tokens, np.where(position == end, EOS, 0))
        return rows.astype(np.int32)

    targets = texts(10, (9, 5, 7))
    return {
        "encoder_input_tokens": texts(12, (11, 8, 4)),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    }


def assert_t5x_computes_what_we_do(checkpoint: Path, model: T5, params, scratch: Path) -> None:
    """T5X restores `checkpoint` as its infer.py does; its logits and greedy decodes are ours."""
    tokens = batch()
    ours_alone = ("scan_layers", "remat", "relative_attention_num_buckets")
    ours_alone += ("relative_attention_max_distance", "pad_id", "eos_id", "start_id")
    config = {k: v for k, v in vars(model.config).items() if k not in ours_alone}
    files = [scratch / name for name in ("config.json", "batch.npz", "output.npz")]
    files[0].write_text(json.dumps(config | {"dropout_rate": 0.0}))
    np.savez(files[1], **tokens)
    program = Path(__file__).with_name("t5x_program.py")
    done = subprocess.run(
        [sys.executable, program, checkpoint, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = np.load(files[2])
    assert checkpoint.name == f"checkpoint_{int(theirs['step'])}"
    inputs, targets = tokens["encoder_input_tokens"], tokens["decoder_target_tokens"]
    ours = jax.jit(lambda p: model.logits(p, model.encode(p, inputs), targets))(params)
    real = targets > 0
    # Sums are longer here than in the golden models, where float32's own error is below 2e-5.
    np.testing.assert_allclose(theirs["logits"][real], np.asarray(ours)[real], atol=5e-5)
    greedy = sample_responses(
        model, params, inputs, jax.random.key(0), targets.shape[1], temperature=0.0
    )
    np.testing.assert_array_equal(theirs["decodes"], greedy)


@pytest.mark.parametrize("to", FORMATS)
def test_t5x_computes_with_a_t5_1_0_that_we_export_what_we_do(to, tmp_path):
    path, model, params = exported(tmp_path, to, **tiny_checkpoints.T5_1_0)
    assert_t5x_computes_what_we_do(path, model, params, tmp_path)


@pytest.mark.parametrize("to", FORMATS)
def test_t5x_trains_a_policy_that_we_export_and_we_read_what_it_trained(to, data_dir, tmp_path):
    path, model, params = exported(tmp_path, to)
    assert_t5x_computes_what_we_do(path, model, params, tmp_path)
    sizes = tmp_path / "sizes.gin"
    sizes.write_text(
        "from __gin__ import dynamic_registration\n"
        "from t5x.examples.t5 import network\n"
        + "".join(f"network.T5Config.{name} = {value}\n" for name, value in SIZES.items())
    )
    last = train(
        "sft.gin",
        data_dir,
        tmp_path / "trained",
        sizes,
        MIXTURE_OR_TASK_NAME="tldr_mini_sft",
        TASK_FEATURE_LENGTHS=LENGTHS,
        INITIAL_CHECKPOINT_PATH=str(path),
    )
    found = open_checkpoint(str(tmp_path / "trained"))
    assert found.path == str(last) and found.step == tiny_checkpoints.STEP + 2
    trained = read_all(found.params)
    # Adafactor's steps are of the size of the parameters, times the learning rate.
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), trained, params)
    assert all(0 < size < 0.1 for size in jax.tree.leaves(moved))
    assert_t5x_computes_what_we_do(last, model, trained, tmp_path)
