"""Runs the cases, the ones that are done already excepted, and keeps what came out."""

import concurrent.futures
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tests.drill import damages, disks, kills
from tests.drill.children import Server
from tests.drill.jobs import JOBS, Job, Place
from tests.drill.kills import Undisturbed

RESULTS = "results.jsonl"
_KILLS_OF_A_RUN = (1, 2, 3)


class Drill:
    """One drill in its directory; what it did before is kept."""

    def __init__(
        self, directory: Path, seed: int, jobs: Sequence[str] = tuple(JOBS), workers: int = 1
    ):
        self.place = Place(directory.resolve())
        self.place.write_inputs()
        self._seed = seed
        self._results = self.place.directory / RESULTS
        self._lock = threading.Lock()
        self._server = Server(self.place.directory / "compiled")
        self._workers = workers
        names = _with_needs(jobs)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            found: dict[str, concurrent.futures.Future[Undisturbed]] = {}
            for name in names:  # Those before it have been begun.
                found[name] = pool.submit(self._undisturbed, JOBS[name], found)
            self.whole = {name: found[name].result() for name in names}

    def _undisturbed(
        self, job: Job, found: Mapping[str, concurrent.futures.Future[Undisturbed]]
    ) -> Undisturbed:
        concurrent.futures.wait([found[need] for need in job.needs])
        begin = time.monotonic()
        whole = kills.undisturbed(self._server, self.place, job)
        print(f"undisturbed: {job.name} ({time.monotonic() - begin:.1f} s)", flush=True)
        return whole

    def rows(self) -> list[dict]:
        """All results so far."""
        if not self._results.exists():
            return []
        lines = self._results.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def kill(self, count: int, jobs: Sequence[str]) -> None:
        """Kills at least `count` times in all."""

        def case(name: str, number: int) -> dict:
            rng = random.Random(f"{self._seed}/{name}/{number}")
            job, whole = JOBS[name], self.whole[name]
            drawn = [kills.draw(job, whole, rng) for _ in range(rng.choice(_KILLS_OF_A_RUN))]
            return kills.kill(
                self._server, self.place, job, whole, self._directory(name, number), drawn
            )

        def killed() -> int:
            return sum(len(row.get("kills", ())) for row in self.rows())

        todo = (
            (f"kill/{name}/{number}", lambda name=name, number=number: case(name, number))
            for name, number in kills.plan(10 * count, self._seed)
            if name in jobs
        )
        self._run("kill", todo, lambda: killed() >= count)

    def damage(self, count: int) -> None:
        """`count` damages."""

        def case(number: int, what: tuple[str, ...]) -> dict | None:
            rng = random.Random(f"{self._seed}/damage/{number}")
            directory = self._directory("damage", number)
            return damages.damage(self._server, self.place, self.whole, directory, what, rng)

        def damaged() -> int:
            return sum(row["family"] == "damage" for row in self.rows())

        todo = (
            (f"damage/{number}", lambda number=number, what=what: case(number, what))
            for number, what in enumerate(damages.plan(3 * count, self._seed))
            if what[1] in self.whole
        )
        self._run("damage", todo, lambda: damaged() >= count)

    def disks(self, count: int | None = None) -> None:
        """All faults of disks, or the first `count`, that this machine lets us make."""
        cannot = {
            "fill": disks.can_mount(self.place.directory),
            "immutable": disks.can_be_immutable(self.place.directory),
        }
        cannot["read-only"] = cannot["fill"]
        for action, reason in cannot.items():
            if reason:
                print(f"skipped: {action}, {reason}", flush=True)
        cases = [case for case in disks.plan(self.whole, self._seed) if not cannot.get(case[0])]

        def run(number: int, case: tuple[str, str, str]) -> dict:
            directory = self._directory("disk", number)
            return disks.disturb(self._server, self.place, self.whole, directory, case)

        todo = (
            (f"disk/{'/'.join(case[:2])}/{number}", lambda n=number, case=case: run(n, case))
            for number, case in enumerate(cases[:count])
        )
        self._run("disk", todo, lambda: False)

    def _directory(self, kind: str, number: int) -> Path:
        return self.place.directory / "cases" / kind / str(number)

    def _run(
        self,
        family: str,
        todo: Iterable[tuple[str, Callable[[], dict | None]]],
        enough: Callable[[], bool],
    ) -> None:
        done = {row["case"] for row in self.rows()}
        todo = iter([(name, case) for name, case in todo if name not in done])

        def work() -> None:
            while True:
                with self._lock:
                    name, case = next(todo, (None, None))
                    if case is None or enough():
                        return
                begin = time.monotonic()
                try:
                    row = case()
                except Exception as error:  # Whoever reads the end must be able to.
                    row = {"job": name, "damage": "", "end": "failed", "kills": []}
                    row["why"] = f"the end cannot be read: {error}"
                if row is None:
                    continue
                row = {"case": name, "family": family, **row}
                row["seconds"] = round(time.monotonic() - begin, 1)
                with self._lock, self._results.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(f"{name} ({row['seconds']} s): {row['why'] or 'good'}", flush=True)

        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            for future in [pool.submit(work) for _ in range(self._workers)]:
                future.result()


def _with_needs(jobs: Sequence[str]) -> list[str]:
    """The jobs and those whose undisturbed runs they read, in an order that works."""
    wanted = set(jobs)
    for name in reversed(JOBS):
        if name in wanted:
            wanted |= set(JOBS[name].needs)
    return [name for name in JOBS if name in wanted]
