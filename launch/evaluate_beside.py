"""Runs an `nlhf` command, mostly `evaluate`, on every new checkpoint of a training that goes on.

    python launch/evaluate_beside.py --watch=gs://bucket/run/nash_md --out=gs://bucket/run/beside \\
        -- evaluate --gin_file=runs/tournament.gin --gin_file=mine.gin \\
        "--gin.PLAYERS={'nash_md': '{checkpoint}', 'sft': 'gs://bucket/run/sft'}"

In the command, {checkpoint} becomes the checkpoint's directory and {step} its step; `--workdir`
becomes OUT/STEP. A step whose OUT/STEP/tournament.json is there is done and not run again. Of
several new ones the latest comes first: a training deletes its old checkpoints, and a step that is
gone when its turn comes is left out. It ends when the training's timing.json is there and no step
is left to do, with the exit code of the last evaluation that failed, or 0; on SIGTERM and Ctrl-C,
which the evaluation that runs is told of, with 143 and 130.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launch.common import (
    Parser,
    Refused,
    at_least,
    exit_with,
    job_of,
    name,
    required,
    say,
    shown,
)
from launch.local import Command, Together
from nlhf_jax.checkpoints import DIRECTORY
from nlhf_jax.checkpoints.ours import whole_steps
from nlhf_jax.train import TIMING_FILE

RESULT = "tournament.json"


class Watcher:
    """One training, and what is to run for each of its checkpoints.

    Args:
      watch: the training's work directory.
      out: gets a directory for each step.
      job: the command, with {checkpoint}.
      module: the program.
      grace: seconds that an evaluation has to end after SIGTERM.
    """

    def __init__(self, watch: str, out: str, job: Sequence[str], module: str, grace: float):
        self._watch, self._out = epath.Path(watch), epath.Path(out)
        self._job, self._module, self._grace = list(job), module, grace
        self._failed: dict[int, int] = {}  # step -> exit code
        self._stopped = threading.Event()
        self._signal = 0

    def to_do(self) -> list[int]:
        """The steps that are there and not done, the latest first."""
        steps = [step for step in whole_steps(self._watch / DIRECTORY) if step not in self._failed]
        return [s for s in reversed(steps) if not (self._out / str(s) / RESULT).exists()]

    def command(self, step: int) -> list[str]:
        """What runs for a step."""
        checkpoint = str(self._watch / DIRECTORY / str(step))
        filled = [
            argument.replace("{checkpoint}", checkpoint).replace("{step}", str(step))
            for argument in self._job
        ]
        workdir = f"--workdir={self._out / str(step)}"
        return [sys.executable, "-m", self._module, *filled, workdir]

    def run(self, poll: float) -> int:
        """Watches until the training has ended; looks every `poll` seconds. The exit code."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._came) for number in numbers}
        try:
            return self._run(poll)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, poll: float) -> int:
        while not self._signal:
            ended = (self._watch / TIMING_FILE).exists()  # before the steps: the last is there then
            steps = self.to_do()
            if steps:
                self._evaluate(steps[0])
            elif ended:
                return list(self._failed.values())[-1] if self._failed else 0
            else:
                self._stopped.wait(poll)
        return 128 + self._signal

    def _came(self, number: int, frame: Any) -> None:
        self._signal = number
        self._stopped.set()

    def _evaluate(self, step: int) -> None:
        say(f"evaluates step {step}")
        together = Together([Command(f"[{step}] ", self.command(step), {})], self._grace)
        code = together.run()
        if together.signal is not None:
            self._came(together.signal, None)
        elif code and not (self._watch / DIRECTORY / str(step)).exists():
            say(f"step {step} was deleted by the training meanwhile, and is left out")
        elif code:
            say(f"the evaluation of step {step} failed with {code}, and is not tried again")
            self._failed[step] = code
        elif not (self._out / str(step) / RESULT).exists():
            say(f"the evaluation of step {step} left no {RESULT}")
            self._failed[step] = 1


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    own, job = job_of(arguments)
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--watch", type=name("directory"), required=True, metavar="DIR", help="of the training")
    add("--out", type=name("directory"), required=True, metavar="DIR", help="gets OUT/STEP/")
    add("--poll", type=at_least(0), default=30, metavar="SECONDS", help="between two looks (30)")
    parser.add_children(grace="from SIGTERM to SIGKILL, for an evaluation that does not end")
    parser.add_dry_run()
    options = parser.parse_args(own)
    _check(required(job))
    watcher = Watcher(options.watch, options.out, job, options.module, options.grace)
    if not options.dry_run:
        return watcher.run(options.poll)
    for step in watcher.to_do():
        print(shown(watcher.command(step)))
    print(f"# the same for each new step of {options.watch}, until its {TIMING_FILE} is there")
    return 0


def _check(job: Sequence[str]) -> None:
    if not any("{checkpoint}" in argument for argument in job):
        raise Refused("the command never says {checkpoint}, so all steps would be the same")
    if any(argument.partition("=")[0] == "--workdir" for argument in job):
        raise Refused("the command has a --workdir, but that is OUT/STEP: leave it out")


if __name__ == "__main__":
    exit_with(main)
