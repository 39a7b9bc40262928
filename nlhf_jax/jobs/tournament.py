"""The `evaluate` job: a tournament between checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from nlhf_jax.data import json_lines
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.judges import Judge
from nlhf_jax.evaluation.results import TournamentResult, warnings
from nlhf_jax.jobs import run_record
from nlhf_jax.jobs.judging import Bench, Seat, Source
from nlhf_jax.jobs.match import RESULT, Match
from nlhf_jax.jobs.responding import Respondents, entry_of
from nlhf_jax.jobs.tracked import track_tournament
from nlhf_jax.jobs.watching import follow
from nlhf_jax.metrics import Progress
from nlhf_jax.sharding import Partitioner
from nlhf_jax.tracking import requested


def evaluate(
    workdir: str,
    players: Mapping[str, str | Mapping[str, Any]],
    reference: str,
    data: Dataset,
    partitioner: Partitioner,
    feature_lengths: Mapping[str, int],
    num_prompts: int | None,
    batch_size: int,
    seed: int,
    split: str,
    temperature: float,
    rater_checkpoint: Source | None = None,
    raters: Mapping[str, Source] | None = None,
    compute_dtype: str | None = None,
    judge: Judge | None = None,
    counts: bool | None = None,
    calibrate: bool | None = None,
    judges: Mapping[str, Source | Judge] | None = None,
    watch: str | None = None,
    watch_seconds: float = 5.0,
    tracking: str | None = None,
    tracking_project: str | None = None,
) -> None:
    """A tournament of policies on the same prompts; writes `workdir/tournament.json`.

    Beside it, `run.json` says which step each checkpoint was; `responses/` and `judgements/` keep
    what was written and judged, so that a tournament that was stopped goes on from there, and one
    with more players or judges asks for what is new.

    Args:
      workdir: gets the result.
      players: policy name -> checkpoint, as in `checkpoints.open_checkpoint`, or a file of JSON
        lines with `prompt` and `completion`, its name ending in ".jsonl"; or a dict with a
        `checkpoint` and the `rater` by whom the best of `best_of` responses is chosen, `by` "nash",
        "borda" or "reward" (`evaluation.best_of`).
      reference: the checkpoint to which KL is measured, the SFT policy.
      data: tasks with `split`.
      partitioner: the mesh.
      feature_lengths: `inputs` and `targets`.
      num_prompts: how many of the split's, drawn with `seed`; None for all.
      batch_size: prompts that are sampled at once.
      seed: of the prompts that are drawn, the samples and the bootstrap.
      split: of the prompts, and of the votes that `raters` predict.
      rater_checkpoint: a rater of any kind as the judge, or several, whose mean judges; None asks
        the data's own population.
      raters: name -> checkpoint of a rater of any kind, or several as one, whose accuracy on votes
        to measure, beside that of the data's own population if it is known, and of the judge if it
        is a checkpoint; None measures nothing.
      temperature: of the samples. KL is that of the policy at this temperature from the reference
        at 1; at 0, where each prompt has one response, it is `-log mu` of that.
      compute_dtype: of activations; None for those of the checkpoints' runs.
      judge: in place of `rater_checkpoint`, any `nlhf_jax.evaluation.judges.Judge`.
      counts: measure beside `raters` what counting words comes to (`evaluation.counting`), fitted
        to the votes of the split "train"; left out, and said so, without scikit-learn.
      calibrate: divide the log-odds of raters, of the judge too if it is a checkpoint, by the
        temperature that fits the votes of the split "validation" best (`evaluation.calibration`).
      judges: name -> one more judge, whose opinion stands beside the judge's: a rater's checkpoint
        or several as one, or a `Judge`.
      watch: work directory of a training, each of whose checkpoints plays against `players`, one
        after the other as they come; see `jobs.watching`.
      watch_seconds: between two looks.
      tracking: "wandb" or "mlflow": where figures and samples go too; None for nowhere.
      tracking_project: the project there, of MLflow the experiment.

    Raises:
      UserError: a checkpoint or data that cannot be used, or no judge.
    """
    tracked = requested(tracking, tracking_project, {"seed": seed, "players": [*players]})
    opened = run_record.Opened()  # what they mean now: other steps may be saved while they play
    entries = {name: entry_of(name, one, opened.path) for name, one in players.items()}
    raters = {name: _opened(opened, source) for name, source in (raters or {}).items()}
    reference = opened.path(reference)
    rater_checkpoint = rater_checkpoint and _opened(opened, rater_checkpoint)
    bench = Bench(data, partitioner, feature_lengths, batch_size, seed, compute_dtype, calibrate)
    seats = _seats(bench, judge, rater_checkpoint, judges or {}, opened)
    progress = Progress(epath.Path(workdir).name, len(players))
    # Before the responses are sampled: a rater that is none is found out at once.
    measured = bench.measure(progress, raters, seats[0], split, counts)
    examples, in_split = drawn_prompts(bench, progress, split, num_prompts)
    respondents = Respondents(bench, examples, reference, temperature, workdir)
    match = Match(workdir, examples, respondents, seats, progress, seed)

    def result(step: int = 0) -> TournamentResult:
        found = match.decide().with_raters(*measured)
        found = dataclasses.replace(found, prompts_in_split=in_split, temperature=temperature)
        found.save(epath.Path(workdir) / RESULT)
        track_tournament(tracked, workdir, found, step)
        return found

    opened.write(workdir)
    progress.status("samples the players' responses")
    for name, entry in entries.items():
        match.enter(name, entry)
    if watch is not None:
        follow(watch, match, result, watch_seconds)
    else:
        for warning in warnings(result()):
            progress.message(f"warning: {warning}")
    progress.close()


def _seats(
    bench: Bench,
    judge: Judge | None,
    rater_checkpoint: Source | None,
    others: Mapping[str, Source | Judge],
    opened: run_record.Opened,
) -> list[Seat]:
    """Of the judge who decides, and of the others but those who are that one."""
    seats = [bench.seat(judge, rater_checkpoint)]
    for name, one in others.items():
        if isinstance(one, str | list | tuple):
            one = _opened(opened, one)
        if one == rater_checkpoint:
            continue
        if name == seats[0].name:
            raise UserError(
                f"JUDGES has '{name}', but that is what the judge is called: use another name"
            )
        seats.append(bench.other_seat(name, one))
    return seats


def _opened(opened: run_record.Opened, source: Source) -> Source:
    return opened.path(source) if isinstance(source, str) else tuple(map(opened.path, source))


def drawn_prompts(
    bench: Bench, progress: Progress, split: str, num_prompts: int | None
) -> tuple[Examples, int]:
    """Those that are played, and how many there are; says what is left out."""
    data, lengths = bench.data, bench.feature_lengths
    examples = data.examples("prompts", split, lengths)
    skipped = [*data.skipped("prompts", split), *data.skipped("comparisons", split)]
    for sentence in json_lines.shortened(skipped):
        progress.message(f"skipped: {sentence}")
    if cut := examples.truncated.get("inputs", 0):
        progress.message(
            f"{cut} of {len(examples)} prompts ({cut / len(examples):.1%}) are longer than "
            f"TASK_FEATURE_LENGTHS['inputs'], {lengths['inputs']}, and cut"
        )
    return examples.take(num_prompts or len(examples), bench.seed), len(examples)
