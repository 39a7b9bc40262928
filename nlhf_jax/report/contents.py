"""What the report of a work directory says, before it is HTML, Markdown or JSON.

Reads (a report needs a tournament, findings or one stage's metrics; the rest may be missing):
  WORKDIR/STAGE/tournament.json       what `TournamentResult.save` wrote
  WORKDIR/STAGE/findings.json         what `findings.save` wrote, with its figures
  WORKDIR/STAGE/metrics.jsonl         {"step": 10, "split": "train"|"validation", "loss": 1.5, ...}
  WORKDIR/metrics.jsonl               the same, of a work directory that holds one training alone;
                                      so may tournament.json and findings.json stand there
  WORKDIR/STAGE/run.json              its "changes": what a training was continued with, and before
  WORKDIR/STAGE/timing.json           {"started": Unix time, "seconds": wall time, "steps": 300,
                                      "steps_per_second": 4.5}
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from nlhf_jax import guards
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.evaluation import results
from nlhf_jax.evaluation.by_setting import by_setting
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.evaluation.seeds import settings_of
from nlhf_jax.files import absolute
from nlhf_jax.report import findings, plots
from nlhf_jax.report.browser import Browsed
from nlhf_jax.report.findings import Finding
from nlhf_jax.report.kept import browsed
from nlhf_jax.report.verdict import verdict

# What a reader looks for first; the other metrics follow by name.
_FIRST = ("loss", "accuracy", "win_rate", "preference", "reward", "kl", "entropy", "length")
_SPLITS = ("train", "validation")
_NOT_A_CURVE = ("step", "split", "examples")
_MANY = 16  # players; of more a table of runs says too much, if they are runs of fewer settings


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training or evaluation of the chain.

    Attributes:
      name: its directory's.
      steps: training steps done; None if it is not a training.
      seconds: wall time; None if not recorded.
      steps_per_second: without compilation; None if not recorded.
      data: what it was trained on: number of examples, of texts cut, ...
      curves: metric -> split -> (steps `[M]`, values `[M]`), the main metrics first.
      alarms: what guards said of it.
      changes: what it was continued with in place of what it was begun with, in sentences.
      began_at: the checkpoint from whose parameters it began; None of random ones, or not recorded.
    """

    name: str
    steps: int | None
    seconds: float | None
    steps_per_second: float | None
    data: Mapping[str, float]
    curves: Mapping[str, Mapping[str, plots.Curve]]
    alarms: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    began_at: str | None = None

    def last(self, split: str) -> dict[str, float]:
        """The last finite value of every metric of a split."""
        found = {}
        for metric, by_split in self.curves.items():
            values = by_split.get(split, (None, np.zeros(0)))[1]
            finite = values[np.isfinite(values)]
            if finite.size:
                found[metric] = float(finite[-1])
        return found


@dataclasses.dataclass(frozen=True)
class Tournament:
    """One that was played.

    Attributes:
      name: its directory's.
      result: what came of it; where many runs of few settings played, of the settings.
      alone: whether there is no other, so that it need not be named.
      browsed: every response, for the page's sample browser; None shows the result's samples.
      runs: what came of it run by run, where `result` is of settings.
    """

    name: str
    result: TournamentResult
    alone: bool
    browsed: Browsed | None = None
    runs: TournamentResult | None = None

    @property
    def whole(self) -> TournamentResult:
        """What came of it, every player by itself."""
        return self.runs or self.result

    def named(self, text: str) -> str:
        """A sentence or a title about it, beside those about others."""
        return text if self.alone else f"{self.name}: {text}"

    def figure(self, name: str) -> str:
        """The file of a picture of it under figures/."""
        return f"{name}.png" if self.alone else f"{name}_{self.name}.png"


@dataclasses.dataclass(frozen=True)
class Report:
    """What the renderers turn into text. `figures` maps a file's name to its PNG bytes."""

    run: str
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...]
    tournaments: tuple[Tournament, ...]
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]
    figures: Mapping[str, bytes]


def read_report(workdir: epath.Path) -> Report:
    """Reads a work directory and draws its figures."""
    if not workdir.is_dir():
        raise UserError(f"there is no work directory {workdir}")
    stages = _read_stages(workdir)
    played = _read_tournaments(workdir)
    found = tuple(itertools.chain(*(findings.load(workdir / stage.name) for stage in stages)))
    if not played and not found and not any(stage.curves for stage in stages):
        raise UserError(
            f"{workdir} holds nothing to report: neither a STAGE/tournament.json nor a"
            " STAGE/metrics.jsonl with metrics in it nor a STAGE/findings.json"
        )
    run = text_of(absolute(workdir).name)
    return Report(
        run=run,
        stages=stages,
        findings=found,
        tournaments=played,
        verdict=(
            *(finding.headline for finding in found if finding.headline),
            *(one.named(says) for one in played for says in verdict(one.result)),
        ),
        warnings=(
            *(one.named(says) for one in played for says in results.warnings(one.result)),
            *(change for stage in stages for change in stage.changes),
            *(f"{stage.name}: {alarm}" for stage in stages for alarm in stage.alarms),
        ),
        figures=_figures(run, stages, played)
        | {finding_file(finding): finding.png for finding in found},
    )


def _directories(workdir: epath.Path) -> list[epath.Path]:
    return [workdir, *sorted(path for path in workdir.iterdir() if path.is_dir())]


def _read_tournaments(workdir: epath.Path) -> tuple[Tournament, ...]:
    """That of a stage which is called so, and then the others, by name."""
    paths = [path / "tournament.json" for path in _directories(workdir)]
    found = {absolute(path.parent).name: path for path in paths if path.exists()}
    played = []
    for name in sorted(found, key=lambda name: (name != "tournament", name)):
        result, alone = TournamentResult.load(found[name]), len(found) == 1
        players = result.win_rates.names
        if _MANY < len(players) > len(settings_of(players)) > 1:
            played.append(Tournament(name, by_setting(result), alone, runs=result))
        else:
            every = browsed(found[name].parent, result)
            played.append(Tournament(name, result, alone, browsed=every))
    return tuple(played)


def _read_stages(workdir: epath.Path) -> tuple[Stage, ...]:
    found = []
    for directory in _directories(workdir):
        metrics, timing = directory / "metrics.jsonl", directory / "timing.json"
        if not metrics.exists() and not timing.exists():
            continue
        curves, data, alarms = _read_metrics(metrics) if metrics.exists() else ({}, {}, ())
        times = _read_timing(timing) if timing.exists() else {}
        done = times.get("steps")
        if done is None and curves:
            done = max(int(steps[-1]) for splits in curves.values() for steps, _ in splits.values())
        name = text_of(absolute(directory).name)
        order = (
            times.get("started", math.inf),
            [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)],
        )
        stage = Stage(
            name,
            done,
            times.get("seconds"),
            times.get("steps_per_second"),
            data,
            curves,
            alarms,
            _read_changes(directory / "run.json", name),
            _read_began_at(directory / "run.json", workdir),
        )
        found.append((order, stage))
    return tuple(stage for _, stage in sorted(found, key=lambda pair: pair[0]))


def _read_changes(path: epath.Path, name: str) -> tuple[str, ...]:
    try:
        changes = json.loads(path.read_text())["changes"] if path.exists() else []
        return tuple(
            text_of(
                f"{name} was trained with {one['setting']} {one['then']} up to step {one['step']},"
                f" and with {one['now']} from there on."
            )
            for one in changes
        )
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # of a tournament, or damaged: a training says so
        return ()


def _read_began_at(path: epath.Path, workdir: epath.Path) -> str | None:
    """A checkpoint of the chain's own is called by its place there: `sft#best (step 500)`."""
    try:
        opened = json.loads(path.read_text())["checkpoints"] if path.exists() else {}
        for setting in ("base_checkpoint", "start_checkpoint", "initial_checkpoint"):
            if setting in opened:
                source, meant = opened[setting]["source"], opened[setting]["path"]
                for place in (absolute(workdir), workdir):  # as the chain was called
                    source = source.removeprefix(f"{place}/")
                step = re.search(r"/checkpoints/(\d+)$", meant)
                return text_of(source + (f" (step {step[1]})" if step else ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # as above
        pass
    return None


def _read_metrics(
    path: epath.Path,
) -> tuple[dict[str, dict[str, plots.Curve]], dict[str, float], tuple[str, ...]]:
    """Curves (metric -> split -> curve), the numbers about the data, and what guards said.

    Of a step that was logged again after a restart, the later values count.
    """
    values: dict[str, dict[str, dict[int, float]]] = {}
    data: dict[str, float] = {}
    watched: list[dict[str, float]] = []
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step, split = record["step"], record["split"]
            if not (_is_whole(step) and isinstance(split, str)):
                raise TypeError("'step' is no number, or 'split' no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):
                break  # a line without its newline: the run was killed, or is writing it just now
            raise UserError(
                f'{path}, line {number}: expected a JSON object with "step" and "split",'
                f" got {line[:60]!r}"
            ) from error
        numbers = {text_of(name): float(x) for name, x in record.items() if _is_number(x)}
        if split == "data":
            data |= {name: x for name, x in numbers.items() if name != "step" and math.isfinite(x)}
        if split == guards.SPLIT:
            watched.append(numbers)
        if split in _SPLITS:
            for metric in numbers.keys() - _NOT_A_CURVE:
                values.setdefault(metric, {}).setdefault(split, {})[step] = numbers[metric]
    curves = {
        metric: {
            split: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
            for split, points in sorted(values[metric].items())
        }
        for metric in sorted(values, key=_rank)
    }
    try:
        alarms = tuple(guards.summary(watched))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the lines of the guards are not as they were written ({first_line(error)})"
        ) from error
    return curves, data, alarms


def _is_number(value: object) -> bool:
    """Whether plots and JSON can hold it: `float` of a long whole number would raise."""
    return isinstance(value, float) or _is_whole(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53


def text_of(name: str) -> str:
    """A name as text that UTF-8 can hold: names of directories may be any bytes."""
    return name.encode("utf-8", "replace").decode()


def _rank(metric: str) -> tuple[int, str]:
    places = [place for place, word in enumerate(_FIRST) if word in metric.lower()]
    return (places[0] if places else len(_FIRST), metric)


_LONGEST = 1e12  # seconds, or steps
_TIMES = (("started", float), ("seconds", float), ("steps", int), ("steps_per_second", float))


def _read_timing(path: epath.Path) -> dict:
    try:
        times = json.loads(path.read_text(encoding="utf-8"))
        found = {name: kind(times[name]) for name, kind in _TIMES if times.get(name) is not None}
        if not all(0 <= value < _LONGEST for value in found.values()):
            raise ValueError("a number that is no time")
        return found
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f'{path}: expected a JSON object like {{"seconds": 12.5}}') from error


def _figures(
    run: str, stages: tuple[Stage, ...], played: tuple[Tournament, ...]
) -> dict[str, bytes]:
    figures = {}
    for one in played:
        result = one.result
        figures[one.figure("win_rates")] = plots.png(plots.heat_map(result.win_rates, run))
        measured_raters = [rater for rater in result.raters if rater.reliability]
        if measured_raters:
            figure = plots.reliability(measured_raters, run)
            figures[one.figure("reliability")] = plots.png(figure)
        rated = [player for player in result.players if player.mean_win_rate is not None]
        measured = [player for player in rated if player.kl is not None]
        if measured:
            figures[one.figure("win_rate_against_kl")] = plots.png(
                plots.win_rate_against_kl(
                    [player.name for player in measured],
                    [player.mean_win_rate for player in measured if player.mean_win_rate],
                    [player.kl for player in measured if player.kl is not None],
                    [player.kl_standard_error or 0.0 for player in measured],
                    run,
                )
            )
        if rated:
            figures[one.figure("win_rate_against_length")] = plots.png(
                plots.win_rate_against_length(
                    [player.name for player in rated],
                    [player.mean_win_rate for player in rated if player.mean_win_rate],
                    [player.mean_words for player in rated],
                    run,
                )
            )
    for stage in stages:
        if stage.curves:
            figure = plots.learning_curves(stage.name, stage.curves, run)
            figures[curves_file(stage)] = plots.png(figure)
    return figures


def curves_file(stage: Stage) -> str:
    """The name of a stage's learning curves under figures/."""
    name = stage.name
    if len(name.encode()) > 200:  # no file's name may be longer than 255 bytes
        name = f"{name[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"curves_{name}.png"


def finding_file(finding: Finding) -> str:
    """The name of a finding's picture under figures/."""
    return f"finding_{finding.name}.png"
