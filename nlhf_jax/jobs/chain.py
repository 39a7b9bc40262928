"""The `run` job: the stages of a chain, each an ordinary job with a gin file of its own.

A chain's gin file lists them; `stage:NAME` is the directory of an earlier stage::

    chain.run.macros = {"SEED": %SEED}
    chain.run.stages = [
        {"name": "sft", "job": "train", "gin_file": "runs/sft.gin",
         "macros": {"TRAIN_STEPS": %SFT_STEPS}},
        {"name": "nash_md", "job": "train", "gin_file": "runs/nash_md.gin",
         "macros": {"INITIAL_CHECKPOINT": "stage:sft"}},
        {"name": "report", "job": "report"},
    ]

`macros` are for all stages whose gin files speak of them; a stage's own win.

Each stage has its directory `WORKDIR/NAME/`, where `stage.json` says what it was configured with
and whether it is complete. A complete stage is not run again, an interrupted one resumes.
"""

import dataclasses
import difflib
import gc
import hashlib
import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from nlhf_jax import configuration, locks, processes
from nlhf_jax.errors import UserError
from nlhf_jax.files import write_json, write_whole
from nlhf_jax.jobs import run_record
from nlhf_jax.jobs.stages import (
    JOBS,
    REFERENCE,
    Stage,
    naming,
    parse_stages,
    stage_of,
    with_shared_macros,
)
from nlhf_jax.metrics import duration

REPORT = "report.html"  # in the chain's directory
_TIMES = "stages.json"  # beside it: seconds per stage; a timing.json would be a training's
_MARKER = "stage.json"
# Where numbers are sent decides nothing of what a stage computes.
_SENT_TO = re.compile(r"^(\S+\.tracking(_project)?|TRACKING(_PROJECT)?) = .*\n", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A stage with all that decides what it computes.

    Attributes:
      config: its configuration, with `stage:NAME` for directories: a moved chain is the same.
      fingerprint: hash of it and of the fingerprints of the stages it builds on.
      builds_on: names of those stages.
    """

    stage: Stage
    config: str
    fingerprint: str
    builds_on: tuple[str, ...]


def first_given(choices: Sequence[str | None]) -> str | None:
    """The first of the choices that is not None; None if that is "random"."""
    found = next((choice for choice in choices if choice is not None), None)
    return None if found == "random" else found


def none_given(choices: Sequence[str | None]) -> bool:
    """Whether all of the choices are None: a stage that makes the default is needed."""
    return all(choice is None for choice in choices)


def run(
    workdir: str | os.PathLike,
    stages: Sequence[Mapping[str, Any]],
    overrides: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    macros: Mapping[str, Any] | None = None,
    accept_changes: bool = False,
    config: str | None = None,
) -> None:
    """Runs those stages that are not complete, in order, and says how long each took.

    Args:
      workdir: the chain's directory.
      stages: dicts with `name`, `job`, `gin_file` (one or a list) and `macros`. One whose `when` is
        false is left out, and what refers to it refers to the stage `instead`.
      overrides: "STAGE/NAME=value", which win over the stage's macros.
      search_paths: where gin files are found, as for `configuration.parse`.
      macros: values for all stages whose gin files speak of them; a stage's own win.
      accept_changes: go on with stages that were begun with another configuration, and are not
        complete; of a training the record keeps both.
      config: the chain's own configuration, which is kept in its directory.

    Raises:
      UserError: a stage is malformed, or was started with another configuration. All stages are
        looked at before the first one runs, and before anything is written. Another run, which
        lives, works in `workdir`.
    """
    with locks.held(workdir):
        _run(epath.Path(workdir), stages, overrides, search_paths, macros, accept_changes, config)


def _run(
    root: epath.Path,
    stages: Sequence[Mapping[str, Any]],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    macros: Mapping[str, Any] | None,
    accept_changes: bool,
    config: str | None,
) -> None:
    started = time.time()
    parsed = with_shared_macros(parse_stages(stages), macros or {}, search_paths)
    by_stage = _split_overrides(overrides, [stage.name for stage in parsed])
    plans: dict[str, _Plan] = {}
    for stage in parsed:
        plans[stage.name] = _plan(stage, plans, by_stage[stage.name], search_paths)
    markers = processes.from_first(
        lambda: {name: _read_marker(root / name / _MARKER) for name in plans}
    )
    for name, plan in plans.items():
        _check_unchanged(root / name, plan, markers, plans, accept_changes)
    if config is not None:
        write_whole(root / configuration.FILE_NAME, config)

    times: list[dict[str, Any]] = []
    for number, (name, plan) in enumerate(plans.items(), start=1):
        title = f"[{number}/{len(plans)}] {name} ({plan.stage.job})"
        seconds = markers[name].get("seconds")
        if seconds is not None:
            _say(f"{title}: complete already")
        else:
            _say(f"{title}: starts")
            seconds = _run_stage(root, plan, by_stage[name], search_paths, accept_changes)
            processes.wait(f"end of stage {name}")  # Others may read what the first has written.
            _say(f"{title}: done in {duration(seconds)}")
        times.append({"name": name, "job": plan.stage.job, "seconds": seconds})
        total = {"started": started, "seconds": round(time.time() - started, 3), "stages": times}
        write_json(root / _TIMES, total)
    _say(_table(times))
    if (root / REPORT).exists():
        _say(f"report: {root / REPORT}")


def _say(text: str) -> None:
    if processes.is_first():
        print(text, flush=True)


# --- what a stage computes ----------------------------------------------------------------------


def _split_overrides(overrides: Sequence[str], names: list[str]) -> dict[str, list[str]]:
    by_stage: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        name, _, rest = override.partition("/")
        if name not in by_stage:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise UserError(f"--gin.{override}: there is no stage {name!r}; {hint}")
        by_stage[name].append(rest)
    return by_stage


def _parse_configuration(
    stage: Stage, overrides: Sequence[str], search_paths: Sequence[str]
) -> None:
    with naming(stage):
        configuration.parse(
            stage.gin_files,
            overrides,
            macros=stage.macros,
            workdir=REFERENCE + stage.name,
            search_paths=search_paths,
        )


def _plan(
    stage: Stage,
    before: Mapping[str, _Plan],
    overrides: Sequence[str],
    search_paths: Sequence[str],
) -> _Plan:
    _parse_configuration(stage, overrides, search_paths)
    if stage.job == "report":
        builds_on = list(before)
    else:
        builds_on = sorted(_referenced_stages() - {stage.name})
    for name in builds_on:
        if name not in before:
            raise UserError(
                f"stage {stage.name!r} uses {REFERENCE}{name}, but no stage before it is called so"
            )
    config = _SENT_TO.sub("", configuration.text())
    content = [stage.job, config, *(before[name].fingerprint for name in builds_on)]
    fingerprint = hashlib.sha256("\0".join(content).encode()).hexdigest()
    return _Plan(stage, config, fingerprint, tuple(builds_on))


def _referenced_stages() -> set[str]:
    names = set()

    def look(text: str) -> str:
        if text.startswith(REFERENCE):
            names.add(stage_of(text))
        return text

    configuration.replace_strings(look)
    return names


# --- running one ---------------------------------------------------------------------------------


def _run_stage(
    workdir: epath.Path,
    plan: _Plan,
    overrides: Sequence[str],
    search_paths: Sequence[str],
    accept_changes: bool,
) -> float:
    """Runs a stage to its end, marks it complete, and returns the seconds that took."""
    stage, directory = plan.stage, workdir / plan.stage.name
    begin = time.time()
    marker = {"job": stage.job, "fingerprint": plan.fingerprint, "config": plan.config}
    if not (directory / _MARKER).exists():  # or it was begun, perhaps as something else
        write_json(directory / _MARKER, marker)
    function = _job_function(stage.job)
    if stage.job == "report":
        if processes.is_first():
            function(workdir)
            _send_report(workdir)
    else:
        _parse_configuration(stage, overrides, search_paths)
        configuration.replace_strings(
            lambda text: (
                str(workdir / text.removeprefix(REFERENCE)) if text.startswith(REFERENCE) else text
            )
        )
        accepted = accept_changes and stage.job == "train"
        configuration.run(function, directory, **({"accept_changes": True} if accepted else {}))
    _forget_programs()
    seconds = round(time.time() - begin, 3)
    if not (directory / "timing.json").exists():  # A training writes a more detailed one.
        write_json(directory / "timing.json", {"started": begin, "seconds": seconds})
    write_json(directory / _MARKER, marker | {"seconds": seconds})
    return seconds


def _job_function(job: str) -> Callable[..., Any]:
    module, function = JOBS[job].split(":")
    return getattr(importlib.import_module(module), function)


def _send_report(workdir: epath.Path) -> None:
    from nlhf_jax.jobs.tracked import send_report

    if (workdir / REPORT).exists():
        send_report(workdir, workdir / REPORT)


def _forget_programs() -> None:
    """Frees a stage's arrays and compiled programs, which no other stage can use."""
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


# --- what a directory says of its stage ----------------------------------------------------------


def _read_marker(path: epath.Path) -> dict[str, Any]:
    """What `_run_stage` wrote: "seconds" is there if the stage is complete; {} if not begun."""
    if not path.exists():
        return {}
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        texts = [marker[name] for name in ("job", "fingerprint", "config")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("its job or configuration is no text")
        if "seconds" in marker and not 0 <= float(marker["seconds"]) < math.inf:
            raise ValueError("its time is none")
        return marker
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{path} does not say what a stage was configured with: delete {path.parent} to run "
            "its stage again"
        ) from error


def _check_unchanged(
    directory: epath.Path,
    plan: _Plan,
    markers: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, _Plan],
    accept_changes: bool,
) -> None:
    marker = markers[plan.stage.name]
    if not marker or marker["fingerprint"] == plan.fingerprint:
        return
    complete = "seconds" in marker
    if not complete and (accept_changes or (directory / run_record.FILE_NAME).exists()):
        return  # A training knows by its own record what it was begun with, and what is free.
    name = plan.stage.name
    changed = run_record.differing_lines(marker["config"], plan.config)
    if not changed and all(
        not run_record.differing_lines(markers[other].get("config", ""), plans[other].config)
        for other in plan.builds_on
    ):
        return  # Another release wrote it: modules had other names, no setting another value.
    affected = {name}
    for other, candidate in plans.items():  # In order, so dependants of dependants are found.
        if affected & set(candidate.builds_on):
            affected.add(other)
    then = " ".join(str(directory.parent / other) for other in plans if other in affected)
    state = "is complete" if complete else "was begun"
    accept = "" if complete else "accept it with --accept_changes, "
    why = f"\n{run_record.table(changed)}" if changed else ": a stage that it builds on has changed"
    raise UserError(
        f"stage {name!r} in {directory} {state} with another configuration, so use another "
        f"--workdir, set it back, {accept}or delete {then} to run what is affected again{why}"
    )


def _table(times: Sequence[Mapping[str, Any]]) -> str:
    width, of_job = (max(len(row[key]) for row in times) + 2 for key in ("name", "job"))
    lines = [f"{'stage':{width}}{'job':{of_job}}time"]
    for row in times:
        lines.append(f"{row['name']:{width}}{row['job']:{of_job}}{duration(row['seconds'])}")
    total = sum(row["seconds"] for row in times)
    return "\n".join([*lines, f"{'all':{width}}{'':{of_job}}{duration(total)}"])
