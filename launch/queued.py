"""A queued resource of Cloud TPU, by gcloud: asked for, waited for, worked on, given back."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launch import remote
from launch.common import Failed, run, say, shown

GONE = ("SUSPENDED", "FAILED", "PREEMPTED")  # It is there, but its TPUs are not, and never will be.
TRIES = 5  # of what may fail because a machine has just booted, or the network is away


@dataclass(frozen=True)
class Resource:
    """The queued resource `name`, with one TPU VM of that name, or several slices `name-0`, ...

    Args:
      name: of the resource.
      zone: where.
      project: whose.
      slices: how many TPU VMs work together.
      settings: flags of `queued-resources create`.
      poll: seconds between two looks.
    """

    name: str
    zone: str
    project: str
    slices: int
    settings: Sequence[str]
    poll: float

    # --- gcloud's commands -----------------------------------------------------------------------

    def _gcloud(self, group: str, verb: str, name: str, *flags: str) -> list[str]:
        where = [f"--zone={self.zone}", f"--project={self.project}", "--quiet"]
        return ["gcloud", "compute", "tpus", group, verb, name, *where, *flags]

    def describe_command(self) -> list[str]:
        """Says the resource's state."""
        return self._gcloud(
            "queued-resources", "describe", self.name, "--format=value(state.state)"
        )

    def create_command(self) -> list[str]:
        """Asks for the TPUs."""
        nodes = [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        nodes = [f"--node-id={self.name}"] if self.slices == 1 else nodes
        return self._gcloud(
            "queued-resources", "create", self.name, *nodes, *self.settings, "--async"
        )

    def delete_command(self) -> list[str]:
        """Gives the TPUs back."""
        return self._gcloud("queued-resources", "delete", self.name, "--force")

    def ssh_command(self, script: str, worker: str = "all") -> list[str]:
        """Runs a command of `remote` on all workers of all slices, or on the first, "0"."""
        flags = [f"--worker={worker}", f"--command={script}"]
        if self.slices == 1:
            return self._gcloud("tpu-vm", "ssh", self.name, *flags)
        return self._gcloud("queued-resources", "ssh", self.name, f"--node={worker}", *flags)

    # --- its state -------------------------------------------------------------------------------

    def state(self) -> str:
        """What it is now, such as "ACTIVE"; "PREEMPTED" if a TPU VM of it is; "" if it is not.

        Raises:
          Failed: gcloud cannot say, again and again.
        """
        state = self._ask(self.describe_command())
        if state != "ACTIVE":
            return state
        several = [f"{self.name}-{number}" for number in range(self.slices)]
        for node in several if self.slices > 1 else [self.name]:
            describe = self._gcloud("tpu-vm", "describe", node, "--format=value(state)")
            if self._ask(describe) in ("PREEMPTED", "TERMINATED"):
                return "PREEMPTED"
        return state

    def _ask(self, command: Sequence[str]) -> str:
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.poll)
            told = run(command, capture=True)
            if told.returncode == 0:
                return told.stdout.strip()
            if "NOT_FOUND" in told.stderr:
                return ""
        last = (told.stderr.strip().splitlines() or [f"exit code {told.returncode}"])[-1]
        raise Failed(f"gcloud cannot describe {self.name}: {last}")

    def hold(self) -> bool:
        """Waits until the TPUs are there; whether they had to be asked for.

        Raises:
          Failed: a new request failed: its settings are wrong, or it waited for too long.
        """
        asked, before = False, None
        while (state := self.state()) != "ACTIVE":
            if state != before:
                say(f"{self.name} is {state or 'not there'}")
                before = state
            if asked and state == "FAILED":
                why = shown(self.describe_command()[:-1])
                raise Failed(f"the request for {self.name} failed; `{why}` says why")
            if state in GONE:
                self.delete()
            elif not state:
                if run(self.create_command()).returncode:
                    raise Failed(f"{self.name} cannot be asked for; gcloud says above why")
                asked = True
            else:
                time.sleep(self.poll)
        return asked

    def delete(self) -> None:
        """Gives everything back, and waits until it is gone."""
        if run(self.delete_command()).returncode and self.state() not in ("", "DELETING"):
            raise Failed(f"{self.name} cannot be deleted; gcloud says above why")
        while self.state():
            time.sleep(self.poll)

    # --- commands on its workers -----------------------------------------------------------------

    def everywhere(self, script: str) -> bool:
        """Runs a command of `remote` on all workers, again if need be; False: TPUs taken away.

        Raises:
          Failed: it cannot be done there, or the workers do not answer.
        """
        for _ in range(TRIES):
            code = run(self.ssh_command(script)).returncode
            if code == 0:
                return True
            if self.state() != "ACTIVE":
                return False
            if code == remote.REFUSED:
                raise Failed(f"a worker of {self.name} cannot do it; it says above why")
            time.sleep(self.poll)
        raise Failed(f"the workers of {self.name} do not answer; the same command tries again")

    def codes(self) -> list[int | None] | None:
        """How the command ended on each worker, None where it runs; None if one cannot say."""
        told = run(self.ssh_command(remote.report()), capture=True)
        words = {"runs": None, "stopped": remote.STOPPED}
        found = re.findall(remote.REPORT, told.stdout)
        if told.returncode or not found:
            return None
        return [words[word] if word in words else int(word) for word in found]

    def log(self, line: int, seconds: int = 0) -> Iterator[str]:
        """The first worker's log from a line on; whole lines only.

        Until the command ends, or the connection; or for so many seconds, if that is not 0.
        """
        command = self.ssh_command(remote.follow(line, seconds), worker="0")
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # gcloud starts ssh, which has to end with it
        ) as shows:
            assert shows.stdout is not None
            try:
                for text in shows.stdout:
                    if text.endswith(b"\n"):
                        yield text.decode("utf-8", "replace").rstrip("\n")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shows.pid, signal.SIGTERM)
