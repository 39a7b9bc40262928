"""The published set-up, gin_configs/tldr, on small files in the published format."""

import json
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax import checkpoints
from nlhf_jax.data import templates, vocabularies
from nlhf_jax.main import main
from tests.data import tldr_rows

LENGTHS = '{"inputs": 48, "targets": 8}'
RATER_LENGTHS = '{"text": 48, "summary": 8}'
STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with the posts and the votes of two batches, as they are published."""
    directory = tmp_path_factory.mktemp("tldr")
    tldr_rows.write_votes(tldr_rows.write_posts(directory / "files"))
    return directory


def command(place: Path, job: str, run: str, lengths: str, *macros: str) -> list[str]:
    """`nlhf JOB` with a file of gin_configs/tldr on the small files; the rest stays as it is."""
    macros = (
        f"DATA_DIR='{place / 'data'}'",
        f"FILES_DIR='{place / 'files'}'",
        "BATCHES=['batch3', 'batch22']",
        f"VOCABULARY='{vocabularies.TLDR_MINI_MODEL}'",
        f"TASK_FEATURE_LENGTHS={lengths}",
        "BATCH_SIZE=8",
        "FSDP_AXIS=2",
        "TENSOR_AXIS=2",
        *macros,
    )
    model = ("models/mini.gin",) if run in ("sft", "preference", "reward") else ()
    return [
        job,
        *(f"--gin_file={name}" for name in (f"tldr/{run}.gin", *model)),
        *(f"--gin.{macro}" for macro in macros),
        *(["--gin.VOCAB_SIZE=256"] if model else []),
        f"--workdir={place / run}",
    ]


def train(place: Path, run: str, *macros: str) -> dict:
    """Trains for a few steps; what the checkpoint says of itself."""
    lengths = RATER_LENGTHS if run in ("preference", "reward") else LENGTHS
    macros = (f"TRAIN_STEPS={STEPS}", "CHECKPOINT_PERIOD=2", "EVAL_PERIOD=2", *macros)
    assert main(command(place, "train", run, lengths, *macros)) == 0
    return checkpoints.read_description(str(place / run))


@pytest.mark.slow
def test_from_the_published_files_to_a_tournament(place):
    """Each gin file with its sizes scaled down, and nothing else."""
    sft = train(place, "sft", "INITIAL_CHECKPOINT=None")
    assert sft["model"]["emb_dim"] == 64  # models/mini.gin after the file's own
    assert sft["model"]["dtype"] == "bfloat16" and sft["model"]["scan_layers"]

    rater = train(place, "preference", "INITIAL_CHECKPOINT=None", "MICROBATCHES=2")
    instruction = vocabularies.tldr_mini_vocabulary().encode(templates.RATER_INSTRUCTION)
    assert rater["rater_template"][0][: len(instruction)] == instruction  # the paper's

    frozen = [f"INITIAL_CHECKPOINT='{place / 'sft'}'", f"RATER_CHECKPOINT='{place / 'preference'}'"]
    assert train(place, "nash_md", *frozen)["kind"] == "policy"
    used = (place / "nash_md" / "config.gin").read_text()
    for published in ("TAU = 0.008", "BETA = 0.125", "LEARNING_RATE = 3e-05", "decay_rate = 0.8"):
        assert published in used
    assert "win_rate_over_reference" in (place / "nash_md" / "metrics.jsonl").read_text()

    players = {"SFT": str(place / "sft"), "MD1": str(place / "nash_md")}
    macros = [
        f"PLAYERS={players}",
        f"REFERENCE_CHECKPOINT='{place / 'sft'}'",
        f"RATER_CHECKPOINT='{place / 'preference'}'",
        f"RATERS={{'preference model': '{place / 'preference'}'}}",
    ]
    assert main(command(place, "evaluate", "tournament", LENGTHS, *macros)) == 0
    result = json.loads((place / "tournament" / "tournament.json").read_text())
    assert result["judge"] == "preference model"
    assert result["win_rates"]["names"] == [*players, "reference"]
    rates = np.asarray(result["win_rates"]["rate"])
    np.testing.assert_allclose(rates + rates.T, 1.0, atol=1e-6)
    (measured,) = result["raters"]
    sure = [level for level in tldr_rows.LEVELS["valid2"] if level in (1, 2, 8, 9)]
    assert measured["comparisons"] == len(sure)
