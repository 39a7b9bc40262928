"""What a process uses, seen from outside: Linux's /proc, and its directory."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

Sample = dict[str, float]

_MEGABYTE = 1e6
_TICKS = os.sysconf("SC_CLK_TCK")
_TAIL = 4096  # bytes, more than a line of metrics


def sample(pid: int, workdir: Path) -> Sample:
    """One look: memory and disk in MB, the open files, CPU seconds, and the last logged step.

    The files of metrics grow by design and are a number of their own.
    """
    proc = Path(f"/proc/{pid}")
    pages = int((proc / "statm").read_text().split()[1])
    times = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
    metrics, rest = 0, 0
    for size, name in _sizes(workdir):
        if name == "metrics.jsonl" or "tfevents" in name:
            metrics += size
        else:
            rest += size
    return {
        "seconds": time.monotonic(),
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE,
        "files": float(len(os.listdir(proc / "fd"))),
        "threads": float(len(os.listdir(proc / "task"))),
        "disk": rest / _MEGABYTE,
        "metrics": metrics / _MEGABYTE,
        "cpu": sum(map(int, times)) / _TICKS,
        "step": last_step(workdir / "metrics.jsonl"),
    }


def _sizes(workdir: Path) -> Iterable[tuple[int, str]]:
    """Of all files; those that go away while we look are passed over."""
    for directory, _, names in os.walk(workdir):
        for name in names:
            try:
                yield os.stat(os.path.join(directory, name)).st_size, name
            except FileNotFoundError:
                continue


def last_step(metrics: Path) -> float:
    """The step of the last whole line; NaN where there is none."""
    if not metrics.exists():
        return math.nan
    with metrics.open("rb") as stream:
        stream.seek(max(0, metrics.stat().st_size - _TAIL))
        lines = stream.read().split(b"\n")[:-1]
    return float(json.loads(lines[-1])["step"]) if lines else math.nan


def watch(
    pid: int, workdir: Path, seconds: float, period: float, alive: Callable[[], bool]
) -> list[Sample]:
    """Samples every `period` seconds, for `seconds` or until the process ends."""
    found: list[Sample] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and alive():
        try:
            found.append(sample(pid, workdir))
        except FileNotFoundError:  # it has just ended
            break
        time.sleep(period)
    return found


def steps(samples: list[Sample]) -> list[tuple[float, float, float]]:
    """(seconds, wall and CPU milliseconds a step) between samples at which steps were logged."""
    found = []
    before = None
    for one in samples:
        if math.isnan(one["step"]) or (before and one["step"] <= before["step"]):
            continue
        if before:
            count = one["step"] - before["step"]
            wall, cpu = (1000 * (one[name] - before[name]) / count for name in ("seconds", "cpu"))
            found.append((one["seconds"], wall, cpu))
        before = one
    return found
