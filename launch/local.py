"""Starts an `nlhf` command in several processes of this machine, as one run.

    python launch/local.py --processes=2 --devices_per_process=4 -- \\
        train --gin_file=runs/sft.gin --workdir=out/sft

Every process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, from which it
finds the others. Its lines get its number in front: `[0] ...`. SIGTERM and Ctrl-C go to all; when
one fails the others are ended too, and its exit code, or 128 and the number of the signal that
killed it, is this program's.

On CPU (JAX_PLATFORMS=cpu, or no accelerator) a process has --devices_per_process devices.
"""

import contextlib
import dataclasses
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launch.common import Parser, at_least, exit_with, job_of, required, say, shown

_TIMED_OUT = 124  # as timeout(1) has it


@dataclasses.dataclass(frozen=True)
class Command:
    """A program to start: what stands before its lines, and what its environment has more."""

    label: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


class Together:
    """Processes that live and die together.

    Args:
      commands: what to start.
      grace: seconds from when they are asked to end until they are killed.

    Attributes:
      signal: the number of the signal that came and was passed on, or None.
    """

    def __init__(self, commands: Sequence[Command], grace: float):
        self._commands = commands
        self._grace = grace
        self._children: list[subprocess.Popen[bytes]] = []
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._output = threading.Lock()
        self._running: set[int] = set()
        self.signal: int | None = None

    def run(self, timeout: float | None = None) -> int:
        """Starts all and waits for them; the code of the first that failed, or 0.

        Args:
          timeout: seconds after which they are ended, with code 124.
        """
        readers: list[threading.Thread] = []
        with self._signals_passed_on():
            try:
                for number, command in enumerate(self._commands):
                    readers += self._start(number, command)
                code = self._wait(timeout)
            finally:
                self._kill()
        for reader in readers:
            reader.join(timeout=5)  # A grandchild may hold the pipe open.
        return code

    def _start(self, number: int, command: Command) -> list[threading.Thread]:
        child = subprocess.Popen(
            command.arguments,
            env=os.environ | dict(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # A terminal's Ctrl-C comes once, from us.
        )
        self._children.append(child)
        self._running.add(number)
        threading.Thread(target=self._watch, args=(number, child), daemon=True).start()
        assert child.stdout is not None and child.stderr is not None
        readers = [
            threading.Thread(target=self._copy, args=(command.label, *ends), daemon=True)
            for ends in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        return readers

    def _watch(self, number: int, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self._ended.put(number)

    def _copy(self, label: str, source: BinaryIO, target: TextIO) -> None:
        """Whole lines, with the label before each."""
        for line in source:
            text = line.decode("utf-8", "replace").rstrip("\n")
            # What is printed after `| head` has gone is read on, so that no child stops at it.
            with self._output, contextlib.suppress(OSError):
                print(f"{label}{text}", file=target, flush=True)

    def _wait(self, timeout: float | None) -> int:
        failed, deadline = 0, None if timeout is None else time.monotonic() + timeout
        asked = False
        while self._running:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                number = self._ended.get(timeout=left)
            except queue.Empty:
                if asked:
                    self._say_and_kill()
                    deadline = None
                    continue
                say(f"--timeout: not ended after {timeout:g} s, ends all processes")
                failed = failed or _TIMED_OUT
            else:
                self._running.discard(number)
                code = self._children[number].returncode
                if code == 0 or failed:
                    continue
                failed = code if code > 0 else 128 - code
                self._say_how(number, code)
            if self._running and not asked:
                asked = True
                deadline = time.monotonic() + self._grace
                if self.signal is None:  # else they know already, and a second one may mean "now"
                    self._send(signal.SIGTERM)
        return failed

    def _say_how(self, number: int, code: int) -> None:
        how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        others = f"; ends the other {len(self._running)}" if self._running else ""
        say(f"process {number} ended by {how}{others}")

    def _say_and_kill(self) -> None:
        who = ", ".join(map(str, sorted(self._running)))
        say(f"process {who} did not end within {self._grace:g} s and is killed")
        self._kill()

    def _send(self, number: int) -> None:
        for index in list(self._running):
            self._children[index].send_signal(number)

    def _kill(self) -> None:
        """Kills those that run, with what they started."""
        for index in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._children[index].pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        def came(number: int, frame: Any) -> None:
            self.signal = number
            self._send(number)

        before = {n: signal.signal(n, came) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def commands(
    job: Sequence[str], processes: int, devices_per_process: int, module: str, port: int
) -> list[Command]:
    """The same command for every process, and who it is in its environment."""
    return [
        Command(
            label=f"[{index}] ",
            arguments=[sys.executable, "-m", module, *job],
            environment={
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
                "JAX_NUM_CPU_DEVICES": str(devices_per_process),
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            },
        )
        for index in range(processes)
    ]


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    own, job = job_of(arguments)
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--processes", type=at_least(1), required=True, metavar="N", help="how many to start")
    add(
        "--devices_per_process",
        type=at_least(1),
        default=1,
        metavar="N",
        help="CPU devices that each has (1)",
    )
    add("--timeout", type=at_least(1), metavar="SECONDS", help="end all after this long (never)")
    parser.add_children(grace="from SIGTERM to SIGKILL, when one has failed")
    parser.add_dry_run()
    options = parser.parse_args(own)
    several = commands(
        required(job),
        options.processes,
        options.devices_per_process,
        options.module,
        free_port(),
    )
    if options.dry_run:
        for command in several:
            print(shown(command.arguments, command.environment))
        return 0
    return Together(several, options.grace).run(options.timeout)


if __name__ == "__main__":
    exit_with(main)
