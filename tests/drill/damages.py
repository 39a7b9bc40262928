"""Damages: what may happen to files, and what a run that finds them so must come to.

It ends as the undisturbed run does, or it refuses in one sentence; it never ends otherwise.
"""

import itertools
import random
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from tests.drill import endings
from tests.drill.children import Moment, Server
from tests.drill.jobs import JOBS, WORK, Job, Place
from tests.drill.kills import Undisturbed, begin, fault, some

# --- to a file -----------------------------------------------------------------------------------


def _truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"")


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _zero(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip(bits: int) -> Callable[[Path, random.Random], None]:
    def flip(path: Path, rng: random.Random) -> None:
        content = bytearray(path.read_bytes())
        for _ in range(bits if content else 0):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)

    return flip


def _append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(100))


def _remove(path: Path, rng: random.Random) -> None:
    path.unlink()


_TO_A_FILE: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _truncate,
    "empty": _empty,
    "zeros": _zero,
    "a bit flipped": _flip(1),
    "bits flipped": _flip(40),
    "longer": _append,
    "removed": _remove,
}

# --- to a directory of checkpoints ---------------------------------------------------------------


def _steps(checkpoints: Path) -> list[Path]:
    found = [path for path in checkpoints.iterdir() if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def _newest(checkpoints: Path) -> Path:
    return _steps(checkpoints)[-1]


def _emptied(checkpoints: Path) -> None:
    for path in _newest(checkpoints).rglob("*"):
        if path.is_file():
            path.unlink()


def _a_file(checkpoints: Path) -> None:
    newest = _newest(checkpoints)
    shutil.rmtree(newest)
    newest.write_text("not a directory")


def _stray_directory(checkpoints: Path) -> None:
    newest = _newest(checkpoints)
    step = int(newest.name) + 1
    shutil.copytree(newest / "state", checkpoints / f"{step}.orbax-checkpoint-tmp" / "state")


def _stray_files(checkpoints: Path) -> None:
    (checkpoints / "notes.txt").write_text("mine")
    (checkpoints / "99.partial").write_text("")


def _state_of_the_step_before(checkpoints: Path) -> None:
    before, newest = _steps(checkpoints)[-2:]
    shutil.rmtree(newest / "state")
    shutil.copytree(before / "state", newest / "state")


def _all_steps(checkpoints: Path) -> None:
    for step in _steps(checkpoints):
        for path in (step / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


_TO_CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "the newest step removed": lambda path: shutil.rmtree(_newest(path)),
    "all files of the newest step removed": _emptied,
    "the newest step's state removed": lambda path: shutil.rmtree(_newest(path) / "state"),
    "the newest step's description removed": lambda path: shutil.rmtree(
        _newest(path) / "description"
    ),
    "a file in place of the newest step": _a_file,
    "an unfinished directory left": _stray_directory,
    "stray files left": _stray_files,
    "the newest step with the state of another": _state_of_the_step_before,
    "all steps cut": _all_steps,
    "all checkpoints removed": shutil.rmtree,
}

# --- which there are -----------------------------------------------------------------------------

_RESUMED = ("sft", "reward", "nash_md", "preference")  # that have two steps when they are stopped
_READERS = {  # job: whose checkpoint it reads
    "sample": "nash_md",
    "evaluate": "sft",
    "convert_nlhf": "sft",
    "nash_md": "preference",
}
_OTHER_FILES = {
    "sft": ("metrics.jsonl", "config.gin", "run.json", "events.out.tfevents.*"),
    "chain": (
        "sft/stage.json",
        "stages.json",
        "vocabulary/vocabulary.model",
        "nash_md/metrics.jsonl",
        "sft/config.gin",
        "tournament/tournament.json",
    ),
}
_STOPS = {  # where the run is when it is stopped: the n-th of these events
    "chain": (r"^rename to report/stage\.json", 1),
    "reward": (r"^mkdir checkpoints/#[^/]*tmp", 5),
    "": (r"^mkdir checkpoints/#[^/]*tmp", 4),
}


def plan(count: int, seed: int) -> list[tuple[str, ...]]:
    """(kind, job, what, which) of the damages, of every kind about as many as there can be."""
    rng = random.Random(f"{seed}/damages")
    newest = list(itertools.product(("newest",), _RESUMED, _TO_A_FILE, _FILES))
    read = list(itertools.product(("read",), _READERS, _TO_A_FILE, _FILES))
    whole = list(itertools.product(("checkpoints",), _RESUMED, _TO_CHECKPOINTS, ("",)))
    other = [
        ("other", job, how, name)
        for job, names in _OTHER_FILES.items()
        for name in names
        for how in _TO_A_FILE
    ]
    kinds = [newest, whole, newest, read, other]
    for kind in (newest, read, whole, other):
        rng.shuffle(kind)
    cases = []
    for kind in itertools.cycle(kinds):
        if len(cases) == count or not any(kinds):
            return cases
        if kind:
            cases.append(kind.pop())
    return cases


# Of one step, as patterns; those that a step does not have are passed over.
_FILES = (
    "state/manifest.ocdbt",
    "state/d/*",
    "state/ocdbt.process_0/d/*",
    "state/ocdbt.process_0/manifest.ocdbt",
    "state/_METADATA",
    "state/_sharding",
    "state/array_metadatas/*",
    "description/metadata",
    "_CHECKPOINT_METADATA",
    "*commit_success.txt",
    "*sum*",
)


def _stopped(server: Server, place: Place, job: Job, whole: Undisturbed) -> Path:
    """A directory in which the job was killed, with several checkpoints; made once."""
    workdir = place.directory / "stopped" / job.name / WORK
    with _MAKING:
        if not workdir.exists():
            pattern, count = _STOPS.get(job.name, _STOPS[""])
            key = next(key for key in whole.events if re.search(pattern, key))
            begun = workdir.with_name("begun") / WORK
            shutil.rmtree(begun, ignore_errors=True)
            begin(job, place, begun)
            log = workdir.with_name("log")
            server.run(job.arguments(place, begun), begun, log, Moment("event", key, count))
            begun.rename(workdir)
    return workdir


_MAKING = threading.Lock()  # for drills of several workers


def damage(
    server: Server,
    place: Place,
    whole: dict[str, Undisturbed],
    directory: Path,
    case: tuple[str, ...],
    rng: random.Random,
) -> dict | None:
    """Damages a copy of a directory, runs the job there; None if there is no such file."""
    kind, name, how, which = case
    job = JOBS[name]
    shutil.rmtree(directory, ignore_errors=True)
    workdir = directory / WORK
    arguments = job.arguments(place, workdir)
    if kind == "read":
        source = place.undisturbed(_READERS[name])
        copy = directory / "input" / WORK
        shutil.copytree(source, copy)
        arguments = [argument.replace(str(source), str(copy)) for argument in arguments]
        begin(job, place, workdir)
        damaged = _newest(copy / "checkpoints")
    else:
        shutil.copytree(_stopped(server, place, job, whole[name]), workdir)
        damaged = workdir if kind == "other" else workdir / "checkpoints"
        if kind == "newest":
            damaged = _newest(damaged)
    if kind == "checkpoints":
        _TO_CHECKPOINTS[how](damaged)
    else:
        files = sorted(damaged.glob(which))
        if not files:
            return None
        _TO_A_FILE[how](rng.choice(files), rng)
    log = directory / "log"
    code = server.run(arguments, workdir, log)
    why = fault(code, log, refusal="")
    if not why and code == 0:
        differ = endings.differences(whole[name].ending, endings.ending(workdir))
        differ = [one for one in differ if not _may_differ(one, kind, which)]
        why = f"silently another end: {some(differ)}" if differ else None
    said = [line for line in log.read_text().splitlines() if line.startswith("nlhf: ")]
    if not why:
        shutil.rmtree(directory)
    return {
        "job": name,
        "damage": {"newest": "newest checkpoint", "read": "checkpoint that is read"}.get(kind, kind)
        + f": {which or 'directory'} {how}",
        "end": "failed" if why else "refused" if code else "survived",
        "said": said[-1] if said else "",
        "why": why,
    }


def _may_differ(name: str, kind: str, which: str) -> bool:
    """What was set aside, the paths of what was read, and a damaged file that no one reads."""
    if "damaged/" in name or "notes.txt" in name or "#.partial" in name:
        return True
    if kind == "read" and name in ("config.gin", "run.json", "checkpoints: description"):
        return True
    if kind == "other" and name.partition(": ")[0] == which:
        return True
    return endings.STEPS in name
