"""Disks that are full or read-only, and two runs in one directory."""

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.drill import endings
from tests.drill.children import BALLAST, Moment, Server, make_immutable
from tests.drill.jobs import JOBS, WORK, Place
from tests.drill.kills import Undisturbed, begin, fault, place_of, some

_SIZE = "64m"
_JOBS = ("sft", "nash_md", "chain", "tldr", "evaluate", "sample", "vocabulary", "convert_t5x")
_NAMES = {
    "fill": "disk full",
    "immutable": "directories read-only",
    "read-only": "file system read-only",
    "hold": "a second run in the directory of a living one",
}


def can_mount(directory: Path) -> str | None:
    """None if a small file system can be mounted here, else why not."""
    try:
        with _mounted(directory / "probe"):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"cannot mount a tmpfs: {error}"


def can_be_immutable(directory: Path) -> str | None:
    """None if directories can be made so, else why not."""
    probe = directory / "probe"
    probe.mkdir(parents=True, exist_ok=True)
    try:
        make_immutable(str(probe))
        make_immutable(str(probe), on=False)
        return None
    except OSError as error:
        return f"cannot make a directory immutable: {error}"
    finally:
        probe.rmdir()


@contextmanager
def _mounted(directory: Path) -> Iterator[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(directory)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True, capture_output=True)
        directory.rmdir()


def plan(whole: dict[str, Undisturbed], seed: int) -> list[tuple[str, str, str]]:
    """(action, job, event), shuffled: for each job and action one event of each place."""
    rng = random.Random(f"{seed}/disks")
    jobs = [name for name in _JOBS if name in whole]
    cases = [("read-only", name, "") for name in jobs]
    cases += [("hold", name, "") for name in ("sft", "chain") if name in jobs]
    for name in jobs:
        by_place: dict[str, list[str]] = {}
        for key in sorted(set(whole[name].events)):
            by_place.setdefault(place_of(key), []).append(key)
        for keys in by_place.values():
            for action in ("fill", "immutable"):
                cases.append((action, name, rng.choice(keys)))
    rng.shuffle(cases)
    return cases


def disturb(
    server: Server,
    place: Place,
    whole: dict[str, Undisturbed],
    directory: Path,
    case: tuple[str, str, str],
) -> dict:
    """Runs a job into the fault, mends it, runs the job again, and compares the end."""
    action, name, event = case
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if action == "hold":
        code, log, why = _two_runs(server, place, whole, directory, name)
    elif action == "immutable":
        code, log, why = _two_attempts(server, place, whole, directory, directory, case)
    else:
        with _mounted(directory / "disk") as disk:
            code, log, why = _two_attempts(server, place, whole, directory, disk, case)
    said = [line for line in log.read_text().splitlines() if line.startswith("nlhf: ")]
    if not why:
        shutil.rmtree(directory)
    return {
        "job": name,
        "damage": _NAMES[action] + (f": at {event}" if event else ""),
        "end": "failed" if why else "refused" if code else "survived",
        "said": said[-1] if said else "",
        "why": why,
    }


def _two_attempts(server, place, whole, directory, disk, case):
    action, name, event = case
    workdir = disk / WORK
    job = JOBS[name]
    begin(job, place, workdir)
    arguments = job.arguments(place, workdir)
    moment = Moment("event", event, action=action) if event else None
    if action == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    log = directory / "log"
    code = server.run(arguments, workdir, log, moment)
    why = fault(code, log, refusal="")
    if action == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        why = why or (None if code else "the run ended although nothing could be written")
    elif action == "immutable":
        make_immutable(str(workdir), on=False)
    else:
        (disk / BALLAST).unlink(missing_ok=True)
    second = directory / "log_again"
    again = server.run(arguments, workdir, second)
    # A conversion that got to its end says that it did.
    refusal = "is there already" if name.startswith("convert") and code == 0 else None
    problem = fault(again, second, refusal=refusal)
    why = why or (problem and f"mended, it does not go on: {problem}")
    return code, log, why or _another_end(whole[name], workdir)


def _two_runs(server, place, whole, directory, name):
    """The first waits in the middle, while the second is started."""
    workdir = directory / WORK
    job = JOBS[name]
    begin(job, place, workdir)
    arguments = job.arguments(place, workdir)
    key = "open metrics.jsonl" if job.trains else "open sft/metrics.jsonl"
    holds = Moment("event", key, action="hold")
    first = server.start(arguments, workdir, directory / "log_first", holds)
    metrics = workdir / key.removeprefix("open ")
    deadline = time.monotonic() + 60
    while not metrics.parent.joinpath("checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    log = directory / "log"
    code = server.run(arguments, workdir, log)
    first.join()
    why = fault(code, log, refusal="") or (None if code else "the second run was let in")
    problem = fault(first.exitcode, directory / "log_first", refusal=None)
    why = why or (problem and f"the first run: {problem}")
    return code, log, why or _another_end(whole[name], workdir)


def _another_end(whole: Undisturbed, workdir: Path) -> str | None:
    differ = endings.differences(whole.ending, endings.ending(workdir))
    return f"another end: {some(differ)}" if differ else None
