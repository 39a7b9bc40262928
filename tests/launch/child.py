"""Small programs that the tests start in place of nlhf: `python -m tests.launch.child NAME ...`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

ME = os.environ.get("JAX_PROCESS_ID", "0")


def wait() -> None:
    """Until a signal ends it, or whoever started it is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)


def all_are_ready(directory: str) -> None:
    """Until all processes have come here."""
    (Path(directory) / f"{ME}.ready").touch()
    while len(list(Path(directory).glob("*.ready"))) < int(os.environ["JAX_NUM_PROCESSES"]):
        time.sleep(0.02)


def show(*arguments: str) -> None:
    """Its arguments and what JAX is told."""
    told = {key: value for key, value in os.environ.items() if key.startswith("JAX_")}
    print(json.dumps({"arguments": arguments, "environment": told}))


def talk(lines: str) -> None:
    for number in range(int(lines)):
        for stream in (sys.stdout, sys.stderr):
            stream.write(f"line {number} ")
            stream.flush()
            stream.write(f"of process {ME}\n")
    sys.stdout.write("no newline at the end")


def end(who: str, code: str, directory: str) -> None:
    """Process `who` ends with `code`, or by the signal -code; the others wait for SIGTERM."""

    def told(number, frame):
        with (Path(directory) / ME).open("a") as file:
            file.write(f"{number}\n")
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, told)
    all_are_ready(directory)
    if who != ME:
        wait()
    if int(code) < 0:
        os.kill(os.getpid(), -int(code))
    sys.exit(int(code))


def stubborn(who: str, directory: str) -> None:
    """Process `who` fails; the others ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"pid {os.getpid()}", flush=True)
    all_are_ready(directory)
    if who == ME:
        sys.exit(9)
    wait()


def evaluate(*arguments: str) -> None:
    """Writes --workdir's tournament.json, with its arguments; --fail=STEP fails at that one."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    workdir = Path(options["workdir"])
    with (workdir.parent / "order").open("a") as file:
        file.write(f"{options['step']}\n")
    if options.get("fail") == options["step"]:
        sys.exit(4)
    if "wait" in options:
        print("waits", flush=True)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        wait()
    workdir.mkdir(parents=True)
    (workdir / "tournament.json").write_text(json.dumps(options))


if __name__ == "__main__":
    PROGRAMS = (show, talk, end, stubborn, evaluate)
    {f.__name__: f for f in PROGRAMS}[sys.argv[1]](*sys.argv[2:])
