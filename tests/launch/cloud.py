"""A small Cloud TPU on this machine: a `gcloud` that keeps queued resources in a directory.

Its TPU VMs are directories that are their workers' HOME; commands run there by `bash -c`, as sshd
hands them to a login shell. `python -m tests.launch.cloud ARGUMENT...` is gcloud.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launch.programs import ROOT, install

REVISION = "3f2c1ab"
WORKERS = 2
QUEUED = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


@dataclass(frozen=True)
class Cloud:
    """The directory: `state.json`, `calls`, `bucket/` that all see, and `home/WORKER`."""

    directory: Path

    @property
    def bucket(self) -> Path:
        return self.directory / "bucket"

    @contextlib.contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """What there is, to read and to change. `states` are what describe says, one after the
        other, and the last for ever; of `plans`, every new request takes one."""
        path = self.directory / "state.json"
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = json.loads(path.read_text()) if path.exists() else {"states": [], "plans": []}
            yield found
            path.write_text(json.dumps(found))

    def calls(self, *verbs: str) -> list[list[str]]:
        """gcloud's arguments, call by call; of these verbs if some are given."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [c for c in map(json.loads, lines) if not verbs or c[3] in verbs]

    def homes(self) -> list[Path]:
        return [self.directory / "home" / str(worker) for worker in range(WORKERS)]

    def boot(self) -> None:
        """Machines on which the package is installed, or what the tests have in its place."""
        for home in self.homes():
            place = home / "nlhf_launch" / REVISION
            (place / "venv" / "bin").mkdir(parents=True)
            (place / "installed").touch()
            (place / "venv" / "bin" / "python").symlink_to(self.directory / "worker")

    def power_off(self) -> None:
        """All that runs on the machines ends at once."""
        for home in self.homes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                pid = int((home / "nlhf_launch" / "pid").read_text())
                os.killpg(pid, signal.SIGKILL)

    def preempt(self) -> None:
        with self.state() as state:
            state["states"] = ["SUSPENDING", "SUSPENDED"]
        self.power_off()


def make(directory: Path, worker: str, states=(), plans=(QUEUED,)) -> tuple[Cloud, dict[str, str]]:
    """A cloud, and the variables with which a launcher finds it.

    Args:
      directory: for it.
      worker: a Python program in the place of nlhf.
      states: of the resource, if it is there already.
      plans: the states of each new request.
    """
    cloud = Cloud(directory)
    cloud.bucket.mkdir()
    install(directory, "worker", f"#!{sys.executable} -S\n{worker}")
    with cloud.state() as state:
        state |= {"states": list(states), "plans": [list(plan) for plan in plans]}
    if states:
        cloud.boot()
    gcloud = f'#!/bin/sh\nexec {sys.executable} -S -m tests.launch.cloud "$@"\n'
    path = install(directory / "bin", "gcloud", gcloud)
    return cloud, {"PATH": path, "PYTHONPATH": str(ROOT), "CLOUD": str(directory)}


def main(arguments: list[str]) -> int:
    cloud = Cloud(Path(os.environ["CLOUD"]))
    if arguments == ["preempt"]:
        cloud.preempt()
        return 0
    with (cloud.directory / "calls").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    compute, tpus, group, verb, name, *flags = arguments
    assert (compute, tpus, name) == ("compute", "tpus", "my-run"), arguments
    options = dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
    assert options["zone"] == "us-central2-b" and options["project"] == "my-project"
    if verb == "ssh":
        return ssh(cloud, options)
    if (group, verb) == ("tpu-vm", "describe"):
        print("READY")
        return 0
    assert group == "queued-resources"
    return {"describe": describe, "create": create, "delete": delete}[verb](cloud, options)


def missing() -> int:
    print("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found", file=sys.stderr)
    return 1


def describe(cloud: Cloud, options: dict[str, str]) -> int:
    assert options["format"] == "value(state.state)"
    with cloud.state() as state:
        if not state["states"]:
            return missing()
        print(state["states"][0])
        if len(state["states"]) > 1:
            state["states"].pop(0)
    return 0


def create(cloud: Cloud, options: dict[str, str]) -> int:
    assert options["node-id"] == "my-run" and "async" in options
    assert options["accelerator-type"] == "v5p-16"
    assert options["runtime-version"] == "v2-alpha-tpuv5"
    with cloud.state() as state:
        if state["states"]:
            print("ERROR: ALREADY_EXISTS", file=sys.stderr)
            return 1
        state["states"] = state["plans"].pop(0)
    cloud.boot()
    return 0


def delete(cloud: Cloud, options: dict[str, str]) -> int:
    assert {"force", "quiet"} <= options.keys()
    with cloud.state() as state:
        if not state["states"]:
            return missing()
        state["states"] = []
    cloud.power_off()
    shutil.rmtree(cloud.directory / "home")
    return 0


def ssh(cloud: Cloud, options: dict[str, str]) -> int:
    with cloud.state() as state:
        active = state["states"][:1] == ["ACTIVE"]
    if not active:
        print("ssh: connect to host port 22: Connection refused", file=sys.stderr)
        return 255
    # gcloud splits the command at single spaces, and ssh joins it.
    command = " ".join(options["command"].split(" "))
    homes = cloud.homes() if options["worker"] == "all" else [cloud.homes()[0]]
    running = [
        subprocess.Popen(["bash", "-c", command], cwd=home, env=os.environ | {"HOME": str(home)})
        for home in homes
    ]
    return next((code for code in [child.wait() for child in running] if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
