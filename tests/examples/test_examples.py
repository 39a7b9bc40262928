"""Parts from outside the package run: each example as a user starts it, for a few steps."""

import csv
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import checkpoints
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.errors import UserError
from nlhf_jax.main import main
from nlhf_jax.models import registry

EXAMPLES = Path(__file__).parents[2] / "examples"
PARTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))

# Sizes of seconds; after the examples' own gin files, so that these win.
TINY = """
from __gin__ import dynamic_registration

from nlhf_jax.models import t5_layers

BATCH_SIZE = 8
TRAIN_STEPS = 6
WARMUP_STEPS = 1
LOG_PERIOD = 1
EVAL_EXAMPLES = 16
"""
TINY_MODEL = """
t5_layers.T5Config:
    emb_dim = 16
    num_heads = 2
    head_dim = 8
    mlp_dim = 32
    num_encoder_layers = 1
    num_decoder_layers = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two trained networks, sizes, and copies of the examples, as a user's own files would be."""
    place = tmp_path_factory.mktemp("place")
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".gin"):
            shutil.copy(path, place)
    (place / "tiny.gin").write_text(TINY)
    (place / "tiny_model.gin").write_text(TINY + TINY_MODEL)
    assert run(place, "mini/sft.gin", "sft", "tiny_model.gin", VOCAB_SIZE=256) == 0
    lengths = {"TASK_FEATURE_LENGTHS": {"text": 32, "summary": 16}}
    model = {"VOCAB_SIZE": 256}
    files = ("mini/preference.gin", "preference", "tiny_model.gin")
    assert run(place, *files, **lengths, **model) == 0
    return place


def run(place: Path, gin_file: str, workdir: str, *more: str, job: str = "train", **macros) -> int:
    files = [gin_file if gin_file.startswith("mini/") else str(place / gin_file)]
    files += [str(place / name) for name in more]
    if "tldr_mini" in (gin_file + workdir) or not {"TEXTS"} & set(macros):
        macros.setdefault("DATA_DIR", str(place / "data"))
    return main(
        [
            job,
            *(f"--gin_file={name}" for name in files),
            *(f"--gin.{name}={value!r}" for name, value in macros.items()),
            f"--workdir={place / workdir}",
        ]
    )


def policy_macros(place: Path, **macros) -> dict:
    checkpoints_of = {
        "INITIAL_CHECKPOINT": str(place / "sft"),
        "RATER_CHECKPOINT": str(place / "preference"),
    }
    return checkpoints_of | {"TAU": 0.1} | macros


def metrics(directory: Path, split: str) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_every_part_is_short_and_has_a_gin_file():
    assert len(PARTS) == 6
    for part in PARTS:
        assert len((EXAMPLES / f"{part}.py").read_text().splitlines()) <= 60
        assert (EXAMPLES / f"{part}.gin").exists()


def test_an_opponent_keeps_a_snapshot_of_the_policy(place):
    macros = policy_macros(place, SNAPSHOT_STEPS=3, TRAIN_STEPS=5, KEEP_CHECKPOINTS=5)
    macros |= {"CHECKPOINT_PERIOD": 1, "EVAL_EXAMPLES": 0}
    assert run(place, "snapshot_opponent.gin", "snapshot", "tiny.gin", **macros) == 0
    steps = place / "snapshot" / "checkpoints"
    for step, taken in ((1, None), (3, 3), (5, 3)):
        kept = checkpoints.load(f"{steps / str(step)}#snapshot").params
        wanted = place / "sft" if taken is None else steps / str(taken)
        jax.tree.map(np.testing.assert_array_equal, kept, checkpoints.load(str(wanted)).params)


def test_an_objective(place):
    assert run(place, "hinge_objective.gin", "hinge", "tiny.gin", **policy_macros(place)) == 0
    train, validation = (metrics(place / "hinge", split) for split in ("train", "validation"))
    assert train[0]["loss"] > 0 and validation
    # At the reference nothing is ahead: a pair costs margin * |d|, and all of them move.
    assert train[0]["gradient_norm"] > 0


def test_a_scorer_without_a_network(place):
    macros = policy_macros(place, WISH=1.0, LEARNING_RATE=0.02, TRAIN_STEPS=40, TAU=0.0)
    del macros["RATER_CHECKPOINT"]
    assert run(place, "length_scorer.gin", "length", "tiny.gin", **macros) == 0
    train = metrics(place / "length", "train")
    first, last = (np.mean([row["reward"] for row in rows]) for rows in (train[:5], train[-5:]))
    assert last > first + 1.0  # tokens nearer to the wish
    assert metrics(place / "length", "validation")[-1]["reward"] > first


def test_a_family_of_models(place, capsys):
    macros = {"WIDTH": 16, "VOCAB_SIZE": 256}
    assert run(place, "recurrent_model.gin", "gru", "tiny.gin", **macros) == 0
    policy = policy_macros(place, INITIAL_CHECKPOINT=str(place / "gru"), EVAL_EXAMPLES=0)
    files = ("mini/nash_md.gin", "gru_md", "tiny.gin")
    assert run(place, *files, **policy) == 0
    assert checkpoints.load(str(place / "gru_md")).model["family"] == "recurrent"
    (place / "prompts.txt").write_text("my boss eats my food\n")
    sample = ["sample", f"--checkpoint={place / 'gru'}", f"--prompts={place / 'prompts.txt'}"]
    assert main([*sample, "--module=recurrent_model"]) == 0
    assert '"completion"' in capsys.readouterr().out
    assert main([*sample, "--module=no_such_module"]) == 2
    assert "--module=no_such_module cannot be imported" in capsys.readouterr().err


def test_a_family_that_nobody_registered_is_named_with_its_module():
    with pytest.raises(UserError, match="'rwkv' is unknown; .* give --module=my_models"):
        registry.build({"family": "rwkv", "module": "my_models", "width": 3})


def test_a_data_source(place):
    posts = tldr_mini_text.references("validation")
    rows = [(post.text, texts[0]) for (post, texts), _ in zip(posts, range(12), strict=False)]
    votes = tldr_mini_text.votes("validation")
    votes = [vote for vote, _ in zip(votes, range(12), strict=False)]
    with (place / "texts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "prompt", "completion"])
        table.writerows(
            ["train" if index < 8 else "validation", *row] for index, row in enumerate(rows)
        )
    with (place / "votes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "prompt", "chosen", "rejected"])
        table.writerows(["train", vote.post.text, vote.chosen, vote.rejected] for vote in votes)
    macros = {
        "TEXTS": str(place / "texts.csv"),
        "VOTES": str(place / "votes.csv"),
        "VOCABULARY": str(TLDR_MINI_MODEL),
        "VOCAB_SIZE": 256,
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 14},
        "LEARNING_RATE": 0.01,
    }
    assert run(place, "csv_source.gin", "tables", "tiny_model.gin", **macros) == 0
    data = metrics(place / "tables", "data")
    assert data[0]["examples"] == 8 and metrics(place / "tables", "validation")


def test_a_judge(place):
    macros = {
        "PLAYERS": {"one": str(place / "sft"), "two": str(place / "sft")},
        "REFERENCE_CHECKPOINT": str(place / "sft"),
        "NUM_PROMPTS": 16,
        "BATCH_SIZE": 16,
    }
    assert run(place, "length_judge.gin", "judged", job="evaluate", **macros) == 0
    result = json.loads((place / "judged" / "tournament.json").read_text())
    assert result["judge"] == "nearest to 5 words"
