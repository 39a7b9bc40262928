"""The jobs that the drill disturbs, each as small as it can be and still do everything."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from tests.data import tldr_rows

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.gin"
WORK = "work"  # the name of every job's directory: what a run writes may hold it
STEPS = 12
ROWS = 24  # three batches of 8: a training is four epochs

LENGTHS = {"inputs": 24, "targets": 8}
RATER_LENGTHS = {"text": 24, "summary": 8}


@dataclasses.dataclass(frozen=True)
class Place:
    """The drill's directory: inputs, and for each job a directory with its undisturbed run."""

    directory: Path

    def input(self, name: str) -> Path:
        return self.directory / "inputs" / name

    def undisturbed(self, job: str) -> Path:
        return self.directory / "undisturbed" / job / WORK

    def write_inputs(self) -> None:
        """JSON lines, prompts, the published TL;DR format, and the chain's gin file."""
        self.input("").mkdir(parents=True, exist_ok=True)
        for split, skipped in (("train", 0), ("validation", ROWS), ("test", 2 * ROWS)):
            posts = list(tldr_mini_text.references("validation"))[skipped : skipped + ROWS]
            found = zip(tldr_mini_text.votes("validation"), range(skipped + ROWS), strict=False)
            votes = [vote for vote, _ in found][skipped:]
            self._write_lines(
                f"sft_{split}.jsonl",
                [{"prompt": post.text, "completion": texts[0]} for post, texts in posts],
            )
            self._write_lines(
                f"votes_{split}.jsonl",
                [
                    {"prompt": vote.post.text, "chosen": vote.chosen, "rejected": vote.rejected}
                    for vote in votes
                ],
            )
        prompts = [post.text for post, _ in tldr_mini_text.references("test")]
        self.input("prompts.txt").write_text("\n".join(prompts[:8]) + "\n")
        tldr_rows.write_votes(tldr_rows.write_posts(self.input("tldr")))
        self.input("chain.gin").write_text(_chain(self))
        self.input("games.gin").write_text(_GAMES)

    def _write_lines(self, name: str, rows: list[dict]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.input(name).write_text(text, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
      name: of the job, and of its undisturbed run.
      arguments: of the command line, given the place and the directory to work in.
      needs: jobs whose undisturbed runs it reads.
      share: how often it is disturbed, compared with the others.
      begin: makes the directory as it is before the command; None: it is not there.
      trains: whether its directory holds the checkpoints of a training.
    """

    name: str
    arguments: Callable[[Place, Path], list[str]]
    needs: tuple[str, ...] = ()
    share: int = 1
    begin: Callable[[Place, Path], None] | None = None
    trains: bool = False


def _files(place: Place, kind: str) -> dict[str, str]:
    return {
        split: str(place.input(f"{kind}_{split}.jsonl"))
        for split in ("train", "validation", "test")
    }


def _data(place: Place) -> dict[str, object]:
    return {
        "SFT_FILES": _files(place, "sft"),
        "PREFERENCE_FILES": _files(place, "votes"),
        "VOCABULARY": str(TLDR_MINI_MODEL),
    }


def _command(job: str, files: list[str], macros: dict[str, object], workdir: Path) -> list[str]:
    return [
        job,
        *(f"--gin_file={name}" for name in files),
        *(f"--gin.{name}={value!r}" for name, value in macros.items()),
        f"--workdir={workdir}",
    ]


def _training(
    name: str, *needs: str, share: int = 3, bindings: dict[str, object] | None = None, **macros
) -> Job:
    run = name.removesuffix("_best")

    def arguments(place: Place, workdir: Path) -> list[str]:
        rater = run in ("preference", "reward")
        settings = {
            **_data(place),
            "TASK_FEATURE_LENGTHS": RATER_LENGTHS if rater else LENGTHS,
            "TRAIN_STEPS": STEPS,
            "CHECKPOINT_PERIOD": 3,
            "LOG_PERIOD": 1,
            "EVAL_EXAMPLES": 0,
            **({"TAU": 0.1} if needs else {}),
            **macros,
        }
        for macro, need in zip(("INITIAL_CHECKPOINT", "RATER_CHECKPOINT"), needs, strict=False):
            settings[macro] = str(place.undisturbed(need))
        files = [f"runs/{run}.gin", "tasks/json_lines.gin", str(TINY)]
        return _command("train", files, settings | (bindings or {}), workdir)

    return Job(name, arguments, needs, share, trains=True)


def _tldr(place: Place, workdir: Path) -> list[str]:
    """SFT whose dataset is built inside its own directory."""
    macros = {
        "DATA_DIR": str(workdir / "data"),
        "FILES_DIR": str(place.input("tldr")),
        "VOCABULARY": str(TLDR_MINI_MODEL),
        "SHORT_TEMPLATE": True,
        "TASK_FEATURE_LENGTHS": LENGTHS | {"inputs": 48},  # the form of a post is 35 tokens
        "TRAIN_STEPS": 6,
        "BATCH_SIZE": 4,
        "CHECKPOINT_PERIOD": 3,
        "LOG_PERIOD": 2,
    }
    return _command("train", ["runs/sft.gin", str(TINY), "tasks/tldr.gin"], macros, workdir)


def _tournament(place: Place, workdir: Path) -> list[str]:
    players = {name: str(place.undisturbed(name)) for name in ("sft", "nash_md")}
    players["EMA"] = str(place.undisturbed("nash_ema")) + "#average"
    rater = str(place.undisturbed("preference"))
    macros = {
        **_data(place),
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "PLAYERS": players,
        "REFERENCE_CHECKPOINT": players["sft"],
        "RATER_CHECKPOINT": rater,
        "RATERS": {"preference": rater},
        "SHORT_TEMPLATE": True,
        "BATCH_SIZE": 8,
        "NUM_PROMPTS": 16,
    }
    return _command("evaluate", ["runs/tournament.gin", "tasks/json_lines.gin"], macros, workdir)


def _chain(place: Place) -> str:
    """Vocabulary, SFT, preference model, policy, tournament, report."""
    training = {"TRAIN_STEPS": 4, "CHECKPOINT_PERIOD": 2, "LOG_PERIOD": 1}
    rating = training | {"TASK_FEATURE_LENGTHS": RATER_LENGTHS}
    policy = training | {
        "TAU": 0.1,
        "INITIAL_CHECKPOINT": "stage:sft",
        "RATER_CHECKPOINT": "stage:preference",
    }
    tournament = {
        "PLAYERS": {"SFT": "stage:sft", "MD": "stage:nash_md"},
        "RATER_CHECKPOINT": "stage:preference",
        "BATCH_SIZE": 8,
        "NUM_PROMPTS": 8,
    }
    shared = {
        "SFT_FILES": _files(place, "sft"),
        "PREFERENCE_FILES": _files(place, "votes"),
        "VOCABULARY": "stage:vocabulary/vocabulary.model",
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "REFERENCE_CHECKPOINT": "stage:sft",
    }
    words = {"FILES": {_files(place, "sft")["train"]: "sft"}, "VOCAB_SIZE": 256}

    def stage(name: str, job: str, files: list[str], macros: dict) -> dict:
        return {"name": name, "job": job, "gin_file": files, "macros": macros}

    def train(name: str, macros: dict) -> dict:
        return stage(name, "train", [f"runs/{name}.gin", "tasks/json_lines.gin", str(TINY)], macros)

    stages = [
        stage("vocabulary", "data", ["runs/vocabulary.gin"], words),
        train("sft", training),
        train("preference", rating),
        train("nash_md", policy),
        stage(
            "tournament", "evaluate", ["runs/tournament.gin", "tasks/json_lines.gin"], tournament
        ),
        {"name": "report", "job": "report"},
    ]
    return (
        "from __gin__ import dynamic_registration\nfrom nlhf_jax.jobs import chain\n"
        f"chain.run.macros = {shared!r}\nchain.run.stages = {stages!r}\n"
    )


def _begin_report(place: Place, workdir: Path) -> None:
    """A chain's directory without its report."""
    shutil.copytree(place.undisturbed("chain"), workdir)
    for path in workdir.glob("report.*"):
        path.unlink()
    shutil.rmtree(workdir / "figures")


def _begin_empty(place: Place, workdir: Path) -> None:
    workdir.mkdir(parents=True)


def _conversion(to: str) -> Job:
    def arguments(place: Place, workdir: Path) -> list[str]:
        source = f"--checkpoint={place.undisturbed('sft')}"
        return ["convert", source, f"--to={to}", f"--output={workdir / 'converted'}"]

    return Job(f"convert_{to}", arguments, ("sft",), begin=_begin_empty)


_GAMES = """include "games.gin"
chain.run.stages = [
    {"name": "solvers", "job": "games", "gin_file": "runs/games.gin", "macros": %SOLVERS},
    {"name": "report", "job": "report"},
]
"""
_GAMES_SETTINGS = (
    "STEPS=20",
    "solvers/jobs.games.findings=[@solver_findings.convergence, @solver_findings.cycling]",
)

JOBS = {
    job.name: job
    for job in (
        _training("sft", LOG_PERIOD=2, EVAL_PERIOD=4, EVAL_EXAMPLES=10, KEEP_CHECKPOINTS=2),
        _training(
            "preference",
            EVAL_EXAMPLES=10,
            bindings={"jobs.train.best_metric": "accuracy"},
        ),
        _training("reward", LOG_PERIOD=5, CHECKPOINT_PERIOD=2, KEEP_CHECKPOINTS=3),
        _training("nash_md", "sft", "preference", MICROBATCHES=2, KEEP_CHECKPOINTS=2),
        _training("nash_ema", "sft", "preference", AVERAGE_DECAY=0.9, CHECKPOINT_PERIOD=4),
        _training("online_ipo", "sft", "preference", share=2, LOG_PERIOD=4),
        _training("rlhf", "sft", "reward", share=1),
        Job("tldr", _tldr, share=2, trains=True),
        Job("evaluate", _tournament, ("sft", "preference", "nash_md", "nash_ema"), share=2),
        Job(
            "chain",
            lambda place, workdir: [
                "run",
                f"--gin_file={place.input('chain.gin')}",
                f"--workdir={workdir}",
            ],
            share=2,
        ),
        Job(
            "report",
            lambda place, workdir: ["report", f"--workdir={workdir}"],
            ("chain",),
            share=1,
            begin=_begin_report,
        ),
        Job(
            "sample",
            lambda place, workdir: [
                "sample",
                f"--checkpoint={place.undisturbed('nash_md')}",
                f"--prompts={place.input('prompts.txt')}",
                f"--output={workdir / 'samples.jsonl'}",
            ],
            ("nash_md",),
            begin=_begin_empty,
        ),
        *(_conversion(to) for to in ("nlhf", "t5x", "t5x_orbax", "huggingface")),
        Job(
            "vocabulary",
            lambda place, workdir: [
                "data",
                "vocabulary",
                f"sft:{place.input('sft_train.jsonl')}",
                f"--output={workdir / 'vocabulary.model'}",
                "--size=256",
            ],
            begin=_begin_empty,
        ),
        Job(
            "games",
            lambda place, workdir: [
                "run",
                f"--gin_file={place.input('games.gin')}",
                *(f"--gin.{setting}" for setting in _GAMES_SETTINGS),
                f"--workdir={workdir}",
            ],
        ),
    )
}
