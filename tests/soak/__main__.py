"""`python -m tests.soak`: see the package."""

import argparse
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nlhf_jax.metrics import FILE_NAME as METRICS
from nlhf_jax.report import plots
from tests.drill.children import ENVIRONMENT, run_fresh
from tests.drill.jobs import JOBS, Place
from tests.soak import sampling
from tests.soak.flatness import Flatness, flatness

# Growth an hour that counts as none: a run of a week takes less than 2 GB more. Of time, what half
# an hour on a machine with other work can tell.
BOUNDS = {
    "memory, MB": 10.0,
    "open files": 1.0,
    "threads": 1.0,
    "disk but metrics, MB": 1.0,
    "CPU of a step, ms": 0.05,  # of its level
    "time of a step, ms": 0.05,
}
_WARM_UP = 0.35  # of the time: allocators come to their size in about ten minutes
# About two checkpoints a minute, many for a run of days: each leaves 190 kB in the process, lists
# of which TensorStore 0.1.86 and before never give back (`KvStore.Spec.to_json`, which Orbax calls
# for each of the 90 arrays, and `experimental_collect_matching_metrics`).
_SETTINGS = {
    "TRAIN_STEPS": 10**9,
    "LEARNING_RATE": 1e-6,
    "CHECKPOINT_PERIOD": 5000,
    "EVAL_PERIOD": 1000,
    "EVAL_EXAMPLES": 16,
    "LOG_PERIOD": 20,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="(30)")
    add("--workdir", type=Path, required=True)
    add("--figure", type=Path, help="PNG; beside it a JSON file with the numbers")
    options = parser.parse_args()
    place = Place(options.workdir.resolve())
    samples = soak(place, 60 * options.minutes)
    (place.directory / "samples.json").write_text(json.dumps(samples))
    found = judge(samples)
    for one in found:
        print(one.sentence())
    if options.figure is not None:
        options.figure.write_bytes(picture(samples, found))
        numbers = {
            "minutes": options.minutes,
            "steps": samples[-1]["step"],
            "metrics_bytes_per_step": 1e6 * samples[-1]["metrics"] / samples[-1]["step"],
            "quantities": [dataclasses.asdict(one) | {"verdict": one.verdict} for one in found],
        }
        options.figure.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    return int(any(one.verdict != "flat" for one in found))


def soak(place: Place, seconds: float) -> list[sampling.Sample]:
    """Samples of a Nash-MD training with evaluations and checkpoints, in a process of its own.

    Raises RuntimeError if it ends before its time, or not as SIGTERM ends it.
    """
    place.write_inputs()
    for name in ("sft", "preference"):
        if run_fresh(JOBS[name].arguments(place, place.undisturbed(name)), place.directory / "log"):
            raise RuntimeError((place.directory / "log").read_text())
    workdir = place.directory / "nash_md"
    command = [
        *(sys.executable, "-m", "nlhf_jax.main"),
        *JOBS["nash_md"].arguments(place, workdir),
        *(f"--gin.{name}={value!r}" for name, value in _SETTINGS.items()),
    ]
    log = place.directory / "soak_log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT
        )
        while process.poll() is None and math.isnan(sampling.last_step(workdir / METRICS)):
            time.sleep(0.1)
        period = min(5.0, max(0.2, seconds / 400))
        alive = lambda: process.poll() is None  # noqa: E731
        samples = sampling.watch(process.pid, workdir, seconds, period, alive)
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code != 128 + signal.SIGTERM:
        raise RuntimeError(f"the training ended with {code}: {log.read_text()[-2000:]}")
    return samples


def judge(samples: list[sampling.Sample]) -> list[Flatness]:
    """Each quantity after the warm-up."""
    start, end = samples[0]["seconds"], samples[-1]["seconds"]
    kept = [one for one in samples if one["seconds"] > start + _WARM_UP * (end - start)]
    times = [one["seconds"] for one in kept]
    columns = {
        "memory, MB": (times, [one["memory"] for one in kept]),
        "open files": (times, [one["files"] for one in kept]),
        "threads": (times, [one["threads"] for one in kept]),
        "disk but metrics, MB": (times, [one["disk"] for one in kept]),
    }
    passed, wall, cpu = zip(*sampling.steps(kept), strict=True)
    columns["time of a step, ms"] = (passed, wall)
    columns["CPU of a step, ms"] = (passed, cpu)
    found = []
    for name, (seconds, values) in columns.items():
        bound = BOUNDS[name]
        if name.endswith("ms"):
            bound *= sorted(values)[len(values) // 2]
        found.append(flatness(name, seconds, values, bound))
    return found


def picture(samples: list[sampling.Sample], found: list[Flatness]) -> bytes:
    """A panel for each quantity, with its line of growth."""
    start = samples[0]["seconds"]
    minutes = [(one["seconds"] - start) / 60 for one in samples]
    passed, wall, cpu = zip(*sampling.steps(samples), strict=True)
    later = [(one - start) / 60 for one in passed]
    curves = {
        "memory, MB": (minutes, [one["memory"] for one in samples]),
        "open files": (minutes, [one["files"] for one in samples]),
        "threads": (minutes, [one["threads"] for one in samples]),
        "disk but metrics, MB": (minutes, [one["disk"] for one in samples]),
        "time of a step, ms": (later, wall),
        "CPU of a step, ms": (later, cpu),
    }
    with plots.new_figure(6.8, 3.8) as figure:
        panels = figure.subplots(2, 3, sharex=True)
        for panel, one in zip(panels.flat, found, strict=True):
            x, y = curves[one.name]
            panel.plot(x, y, color=plots.COLORS[0], linewidth=0.7)
            panel.set_title(f"{one.name}: {one.verdict}", fontsize=9)
            panel.set_ylim(0, 1.25 * max(y[int(_WARM_UP * len(y)) :]))
        for panel in panels[-1]:
            panel.set_xlabel("minutes")
        steps = int(samples[-1]["step"])
        plots.sign(figure, "Nash-MD, tiny", f"{steps:,} steps with evaluations and checkpoints")
        return plots.png(figure)


if __name__ == "__main__":
    sys.exit(main())
