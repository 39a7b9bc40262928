"""The command line on a few JSON lines: data, and runs that several tests share."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.main import main
from nlhf_jax.raters import KINDS

TINY = Path(__file__).parent / "tiny.gin"
SPLITS = ("train", "validation")
LENGTHS = '{"inputs": 24, "targets": 8}'
RATER_LENGTHS = '{"text": 24, "summary": 8}'


@dataclasses.dataclass(frozen=True)
class Workplace:
    """A directory with JSON lines, and command lines that train on them."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def arguments(self, run: str, workdir: str, *overrides: str, steps: int = 6) -> list[str]:
        """`nlhf train` with one of gin_configs/runs, for `steps` steps; overrides as NAME=value."""
        rater = run in KINDS
        macros = [
            f"SFT_FILES={{'train': '{self.path('sft.jsonl')}'}}",
            f"PREFERENCE_FILES={ ({split: self.path('votes.jsonl') for split in SPLITS}) }",
            f"VOCABULARY='{TLDR_MINI_MODEL}'",
            f"TASK_FEATURE_LENGTHS={RATER_LENGTHS if rater else LENGTHS}",
            f"TRAIN_STEPS={steps}",
            "CHECKPOINT_PERIOD=3",
            "LOG_PERIOD=1",
            "EVAL_EXAMPLES=0",
            *overrides,
        ]
        files = [f"runs/{run}.gin", "tasks/json_lines.gin", str(TINY)]
        return [
            "train",
            *(f"--gin_file={name}" for name in files),
            *(f"--gin.{macro}" for macro in macros),
            f"--workdir={self.path(workdir)}",
        ]


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Workplace:
    """JSON lines, and in `sft` and `preference` trained checkpoints."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    references = list(tldr_mini_text.references("validation"))[:24]
    votes = [vote for vote, _ in zip(tldr_mini_text.votes("validation"), range(24), strict=False)]
    write_lines(
        place.directory / "sft.jsonl",
        [
            {"prompt": post.text, "completion": text}
            for post, texts in references
            for text in texts[:1]
        ],
    )
    write_lines(
        place.directory / "votes.jsonl",
        [
            {"prompt": vote.post.text, "chosen": vote.chosen, "rejected": vote.rejected}
            for vote in votes
        ],
    )
    for run in ("sft", "preference"):
        assert main(place.arguments(run, run)) == 0
    return place


@pytest.fixture
def nlhf(capsys):
    """Runs the command line in this process: `(exit code, what it printed on stderr)`."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        return code, capsys.readouterr().err

    return run


def start(arguments: list[str], cache: Path) -> subprocess.Popen:
    """The command line in a process of its own, with compiled programs shared through `cache`."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nlhf_jax.main", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
