"""Runs of several processes that lose one of them, or all, and are started again.

`python -m tests.processes.ends --workdir=DIR` goes through all cases and prints how each ended; a
few are among the tests. Nothing starts the processes but the test itself, so that those which are
left have to notice by themselves that one is gone.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from launch import local
from launch.common import NLHF
from tests.drill import endings
from tests.drill.jobs import JOBS, Place

PATIENCE = 60.0  # seconds in which all have to end when one has
_TIME_TO_REACH = 300.0  # seconds until the moment must have come
_STEPS = 48
_SETTINGS = (
    f"TRAIN_STEPS={_STEPS}",
    "CHECKPOINT_PERIOD=4",
    "BATCH_SIZE=12",  # of which two processes and three have equal parts, in two microbatches
    # Adam, which divides each element by itself, would blow rounding up where all is 0.
    "OPTIMIZER=@optimizers.adafactor()",
)
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}  # of sums in another order; a step changes more


@dataclasses.dataclass(frozen=True)
class Case:
    """What happens to a run.

    Attributes:
      count: of processes.
      what: "SIGTERM" or "SIGKILL" to the last one, "coordinator" SIGKILL to the first, or "all".
      where: "step", "save" or "tournament".
      again: of processes that continue it.
    """

    count: int
    what: str
    where: str
    again: int

    def __str__(self) -> str:
        return f"{self.count} processes, {self.what} in a {self.where}, {self.again} continue"


CASES = [
    Case(count, what, where, again)
    for count, what, where in itertools.product(
        (2, 3), ("SIGTERM", "SIGKILL", "coordinator", "all"), ("step", "save", "tournament")
    )
    for again in (count, 1)
]


class Runs:
    """The runs of a directory: inputs, what nothing disturbed, and the cases.

    Args:
      directory: where all is written.
    """

    def __init__(self, directory: Path):
        self.place = Place(directory)
        self.place.write_inputs()
        self._cache = directory / "compiled"
        self._made: set[str] = set()

    def undisturbed(self, job: str) -> Path:
        """The directory of a job that one process did, in peace."""
        workdir = self.place.undisturbed(job)
        if job not in self._made:
            for needed in JOBS[job].needs:
                self.undisturbed(needed)
            if not workdir.exists():
                self.finish(job, workdir, 1)
            self._made.add(job)
        return workdir

    def arguments(self, job: str, workdir: Path) -> list[str]:
        own = [f"--gin.{setting}" for setting in _SETTINGS] if JOBS[job].trains else []
        return [*JOBS[job].arguments(self.place, workdir), *own]

    def start(self, job: str, workdir: Path, count: int) -> "Together":
        """The command in `count` processes of one device each."""
        log = workdir.parent / "logs"
        log.mkdir(parents=True, exist_ok=True)
        return Together(self.arguments(job, workdir), count, log, self._cache)

    def finish(self, job: str, workdir: Path, count: int) -> None:
        """Runs it to its end; raises RuntimeError if that is no good one."""
        with self.start(job, workdir, count) as run:
            codes = run.wait(_TIME_TO_REACH)
            if any(codes):
                raise RuntimeError(f"{job} in {count} processes ends with {codes}: {run.said()}")

    def fault(self, case: Case) -> str | None:
        """Goes through a case; what is wrong with it, None if nothing is."""
        # Not a policy's, which draws responses: rounding would change one of them, and then all.
        job = "evaluate" if case.where == "tournament" else "sft"
        self.undisturbed(job)
        name = f"{case.count}_{case.what}_{case.where}_{case.again}"
        workdir = self.place.directory / name / "work"
        shutil.rmtree(workdir.parent, ignore_errors=True)
        with self.start(job, workdir, case.count) as run:
            run.reach(lambda: _REACHED[case.where](workdir, run))
            run.disturb(case.what)
            codes = run.wait(PATIENCE)
            if None in codes:
                return f"hangs for {PATIENCE:g} s: {codes}, {run.said()}"
            agreed = case.what == "SIGTERM" and job == "sft"
            if agreed and codes != [128 + signal.SIGTERM] * case.count:
                return f"SIGTERM to one ends with {codes}: {run.said()}"
            if not any(codes):
                return f"it had ended before it was disturbed: {codes}"
        self.finish(job, workdir, case.again)
        return _compared(self.undisturbed(job), workdir)


class Together:
    """A command in several processes; the context kills those that are left."""

    def __init__(self, arguments: Sequence[str], count: int, log: Path, cache: Path):
        self._logs = [log / f"{index}_of_{count}" for index in range(count)]
        self._children = []
        shared = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        several = local.commands(arguments, count, 1, NLHF, local.free_port())
        for command, path in zip(several, self._logs, strict=True):
            with path.open("wb") as stream:
                child = subprocess.Popen(
                    command.arguments,
                    env=shared | dict(command.environment),
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                )
            self._children.append(child)

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._children:
            child.kill()
            child.wait()

    def said(self, index: int | None = None) -> str:
        """What one printed, or the ends of what all did."""
        texts = [path.read_text(errors="replace") for path in self._logs]
        return "\n".join(text[-2000:] for text in texts) if index is None else texts[index]

    def reach(self, is_there: Callable[[], bool]) -> None:
        """Waits for a moment; raises RuntimeError if all end or hang before it."""
        until = time.monotonic() + _TIME_TO_REACH
        while not is_there():
            if time.monotonic() > until or all(c.poll() is not None for c in self._children):
                raise RuntimeError(f"the moment does not come: {self.said()}")
            time.sleep(0.005)

    def disturb(self, what: str) -> None:
        chosen = {"coordinator": self._children[:1], "all": self._children}
        number = signal.SIGTERM if what == "SIGTERM" else signal.SIGKILL
        for child in chosen.get(what, self._children[-1:]):
            child.send_signal(number)

    def wait(self, patience: float) -> list[int | None]:
        """Their exit codes; None for those that have not ended after so many seconds."""
        until = time.monotonic() + patience
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))
        return [child.poll() for child in self._children]


def _lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


_REACHED: dict[str, Callable[[Path, Together], bool]] = {
    "step": lambda workdir, run: _lines(workdir) >= 7,  # after the first checkpoint
    # Of the second one, so that there is something to continue from.
    "save": lambda workdir, run: (
        _lines(workdir) >= 7 and any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp"))
    ),
    "tournament": lambda workdir, run: "has written" in run.said(0),
}


def _compared(whole: Path, found: Path) -> str | None:
    """What differs between two ends by more than rounding; None if nothing does."""
    if (whole / "tournament.json").exists():
        results = [json.loads((path / "tournament.json").read_text()) for path in (whole, found)]
        rates = [np.array(result["win_rates"]["rate"], float) for result in results]
        return None if np.allclose(*rates, rtol=1e-4) else f"win rates differ: {rates}"
    left = [path.name for path in (found / "checkpoints").iterdir() if not path.name.isdigit()]
    if left:
        return f"{left} is left"
    last = [max(int(p.name) for p in (path / "checkpoints").iterdir()) for path in (whole, found)]
    if last != [_STEPS, _STEPS]:
        return f"the last steps are {last}"
    arrays = [endings.arrays(p / "checkpoints" / str(_STEPS) / "state") for p in (whole, found)]
    for name, array in arrays[0].items():
        if not np.allclose(array, arrays[1][name], **_TOLERANCE):
            far = float(np.max(np.abs(array - arrays[1][name])))
            return f"{name} differs by up to {far:.2g}"
    rows = [list(_rows(path / "metrics.jsonl")) for path in (whole, found)]
    names = [[row[:2] for row in of] for of in rows]
    return None if names[0] == names[1] else f"lines of metrics: {names[1]}"


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield row["step"], row["split"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.processes.ends", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of N cases one (1)")
    options = parser.parse_args()
    runs, failed, cases = Runs(options.workdir.resolve()), 0, CASES[:: options.every]
    for case in cases:
        begun = time.monotonic()
        why = runs.fault(case)
        failed += why is not None
        print(f"{case} ({time.monotonic() - begun:.0f} s): {why or 'good'}", flush=True)
    print(f"{len(cases)} cases, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
