"""Kills: which moments there are, and what a killed run that is started again must come to."""

import dataclasses
import json
import random
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.drill import endings
from tests.drill.children import Moment, Server, run_fresh
from tests.drill.jobs import JOBS, WORK, Job, Place

SHARE_OF_SIGTERM = 0.25
_KILLED = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
_LONGEST_DELAY = 0.06  # between an event and the kill
_LONGEST_COMPILATION = 2.0

# Where a run is at an event: the first pattern that is found in its key.
_PLACES = (
    (r"^(rename to|mkdir|open) .*checkpoints/.*(tmp|partial)", "writing a checkpoint"),
    (r"^rename to .*checkpoints/", "finalising a checkpoint"),
    (r"^(remove|rmdir|rmtree) .*checkpoints/", "deleting old steps"),
    (r"checkpoints", "writing a checkpoint"),
    (r"metrics|events", "writing metrics"),
    (r"report|figures", "writing a report"),
    (r"(stage|stages|timing|run)\.json|config\.gin|lock", "writing markers"),
    (r"tournament\.json", "writing a tournament"),
    (r"vocabulary\.model", "writing a vocabulary"),
    (r"data/", "building data"),
    (r"converted", "converting"),
    (r"samples", "writing samples"),
    (r"", "writing other files"),
)
_TRAINING_CALLS = {
    "learner.py:train_step": "in a step",
    "train.py:save": "saving",
    "metrics.py:write": "writing metrics",
    "metrics.py:scalars": "writing metrics",
    "saving.py:restore_latest": "restoring",
    "train.py:evaluate": "evaluating",
    "train.py:_write_timing": "ending",
}
_CALLS = {
    "evaluate": {
        "tournament.py:_write": "in a tournament",
        "tournament.py:play": "in a tournament",
        "votes.py:rater_accuracy": "in a tournament",
    },
    "chain": _TRAINING_CALLS
    | {
        "tournament.py:play": "in a tournament",
        "vocabularies.py:train_vocabulary": "training a vocabulary",
        "chain.py:_run_stage": "between stages",
    },
    "report": {"contents.py:read_report": "reading for a report"},
    "sample": {"sampling.py:sample": "sampling"},
    "vocabulary": {"vocabularies.py:train_vocabulary": "training a vocabulary"},
    "tldr": {"builder.py:_generate_examples": "building data"},
}
_COMPILES = ("compiler.py:backend_compile_and_load", "compiler.py:compile_or_get_cached")


def place_of(key: str) -> str:
    return next(place for pattern, place in _PLACES if re.search(pattern, key))


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """The end of a job that nothing disturbed, and what happened on the way."""

    ending: dict[str, str]
    seconds: float
    events: list[str]
    calls: dict[str, int]


def undisturbed(server: Server, place: Place, job: Job) -> Undisturbed:
    """Runs the job as a user does and, for its events, as the drill does, unless it was done.

    Raises RuntimeError if it fails, or if the two ends differ.
    """
    workdir = place.undisturbed(job.name)
    kept = workdir.parent / "undisturbed.json"
    if not kept.exists():
        traced, trace = workdir.parent / "traced" / WORK, workdir.parent / "trace.json"
        for directory in (workdir, traced):
            shutil.rmtree(directory, ignore_errors=True)
            begin(job, place, directory)
        log = workdir.parent / "log"
        if run_fresh(job.arguments(place, workdir), log):
            raise RuntimeError(f"{job.name} fails undisturbed: {log.read_text()}")
        log = workdir.parent / "traced_log"
        calls = tuple(calls_of(job))
        arguments = job.arguments(place, traced)
        code = server.run(arguments, traced, log, trace=trace, calls=calls, patience=900.0)
        if code != 0:
            raise RuntimeError(f"{job.name} fails in a child of the server: {log.read_text()}")
        end = endings.ending(workdir)
        differ = endings.differences(end, endings.ending(traced))
        if differ:
            raise RuntimeError(f"{job.name} is not the same in a child: {some(differ)}")
        kept.write_text(json.dumps({"ending": end} | json.loads(trace.read_text())))
        shutil.rmtree(traced)
    return Undisturbed(**json.loads(kept.read_text()))


def calls_of(job: Job) -> dict[str, str]:
    """Functions that the job calls, and where it is then."""
    calls = _CALLS.get(job.name, {}) | (_TRAINING_CALLS if job.trains else {})
    return calls | dict.fromkeys(_COMPILES, "compiling")


def begin(job: Job, place: Place, workdir: Path) -> None:
    """The job's directory before its command."""
    if job.begin is None:
        workdir.parent.mkdir(parents=True, exist_ok=True)
    else:
        job.begin(place, workdir)


def draw(job: Job, whole: Undisturbed, rng: random.Random) -> tuple[Moment, str]:
    """A moment of the job, and where the run is then."""
    action = "SIGTERM" if rng.random() < SHARE_OF_SIGTERM else "SIGKILL"
    kind = rng.choices(("event", "call", "time"), (5, 4, 2))[0]
    delay = rng.choice((0.0, 0.0, rng.uniform(0, 0.004), rng.uniform(0, _LONGEST_DELAY)))
    places = calls_of(job)
    calls = [name for name in places if whole.calls.get(name)]
    if kind == "event" and whole.events:
        where = rng.choice(sorted({place_of(key) for key in whole.events}))
        keys = [key for key in whole.events if place_of(key) == where]
        what = rng.choice(sorted(set(keys)))
        return Moment("event", what, rng.randint(1, keys.count(what)), delay, action), where
    if kind == "call" and calls:
        where = rng.choice(sorted({places[name] for name in calls}))
        what = rng.choice([name for name in calls if places[name] == where])
        compiles = what in _COMPILES
        if compiles:
            delay = rng.uniform(0, _LONGEST_COMPILATION)
        count = rng.randint(1, whole.calls[what])
        return Moment("call", what, count, delay, action, compiles), where
    # Rather early: what was traced took longer, and compiled its programs.
    delay = 0.05 + whole.seconds * rng.random() ** 2
    return Moment("time", delay=delay, action=action), "anywhere"


def kill(
    server: Server,
    place: Place,
    job: Job,
    whole: Undisturbed,
    directory: Path,
    moments: Sequence[tuple[Moment, str]],
) -> dict:
    """Kills a run at each of the moments that it reaches, lets it end, and compares the end."""
    workdir = directory / WORK
    shutil.rmtree(directory, ignore_errors=True)
    begin(job, place, workdir)
    arguments = job.arguments(place, workdir)
    kills, why = [], None
    ended = False
    # What it may say when the killed run had ended.
    refusal = "is there already" if job.name.startswith("convert") else None
    for number, (moment, where) in enumerate(moments):
        log = directory / f"log{number}"
        code = server.run(arguments, workdir, log, moment)
        if code in _KILLED:
            kills.append(dataclasses.asdict(moment) | {"where": where, "code": code})
        ended = code == 0
        why = why or fault(code, log, killed=True, refusal=refusal)
        if why or ended:
            break
    if not why and not ended:
        log = directory / "log"
        code = server.run(arguments, workdir, log)
        why = fault(code, log, refusal=refusal)
    if not why:
        differ = endings.differences(whole.ending, endings.ending(workdir))
        if any(one["action"] == "SIGTERM" for one in kills):
            differ = [name for name in differ if endings.STEPS not in name]
        why = f"another end: {some(differ)}" if differ else None
    if not why:
        shutil.rmtree(directory)
    return {"job": job.name, "kills": kills, "why": why}


def fault(
    code: int | None, log: Path, killed: bool = False, refusal: str | None = ""
) -> str | None:
    """What is wrong with how a run ended; None if nothing is.

    Args:
      code: its exit code, None if it hung.
      log: what it printed.
      killed: whether it may have been killed.
      refusal: what it says where it may refuse, exit code 2; None where it may not.
    """
    text = log.read_text(errors="replace")
    last = text.strip().splitlines()[-1] if text.strip() else "nothing"
    if code is None:
        return f"hangs; it said last: {last}"
    if "Traceback" in text:
        return f"exit code {code}, a traceback: {last}"
    if killed and code in _KILLED:
        return None
    sentence = last.startswith("nlhf: ") and refusal is not None and refusal in last
    return None if code == 0 or (code == 2 and sentence) else f"exit code {code}: {last}"


def some(names: Sequence[str]) -> str:
    """The first three of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def plan(count: int, seed: int) -> list[tuple[str, int]]:
    """(job, number) of cases, the jobs in turn by their shares; without end in effect."""
    rng = random.Random(f"{seed}/order")
    names = [job.name for job in JOBS.values() for _ in range(job.share)]
    cases: list[tuple[str, int]] = []
    numbers = dict.fromkeys(JOBS, 0)
    while len(cases) < count:
        for name in rng.sample(names, len(names)):
            cases.append((name, numbers[name]))
            numbers[name] += 1
    return cases[:count]
