"""Runs an `nlhf` command on Cloud TPU VMs: a queued resource, asked for again after preemption.

    python launch/tpu_vm.py run my-run --zone=us-central2-b --project=my-project \\
        --accelerator=v5p-128 --runtime=v2-alpha-tpuv5 --spot \\
        --repository=https://github.com/me/nlhf_jax --revision=3f2c1ab -- \\
        train --gin_file=tldr/nash_md.gin --workdir=gs://bucket/run/nash_md

`run` asks for the resource NAME, or takes it as it is; waits until it is ACTIVE; installs the
package at the revision on all workers; starts the same command on all, where it goes on without
this program; and shows the first worker's log until all have ended. When the TPUs are taken away
it deletes what is left, asks again and starts the same command, which continues. It also starts it
again, --max_restarts times, when it fails otherwise than with nlhf's 2 (bad input) or 3 (the
training diverged). The exit code is the command's. Interrupted, it leaves the run going on:
the same `run` follows it again.

    python launch/tpu_vm.py logs NAME ...      shows the first worker's log
    python launch/tpu_vm.py stop NAME ...      sends SIGTERM to the command: it saves and ends
    python launch/tpu_vm.py delete NAME ...    gives the TPUs back

TPUs cost until they are deleted: --delete_after does it when the command has ended.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launch import remote
from launch.common import (
    Failed,
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
from launch.queued import TRIES, Resource

_FINAL = (0, 2, 3)  # nlhf's verdicts: done, bad input, diverged
_SAVED = 143  # nlhf's exit code after SIGTERM


class Run:
    """A command on the TPUs, from its start to its end.

    Args:
      resource: what to run it on.
      install: command of `remote`.
      arguments: what runs on each worker, from `remote.command`.
      max_restarts: how often it is started again without being taken away.
      grace: seconds from SIGTERM to SIGKILL for the others when one worker has failed.
    """

    def __init__(
        self,
        resource: Resource,
        install: str,
        arguments: Sequence[str],
        max_restarts: int,
        grace: int,
    ):
        self._resource, self._install, self._arguments = resource, install, arguments
        self._max_restarts, self._grace = max_restarts, grace
        self._shown = 0  # lines of the log

    def to_the_end(self) -> int:
        """Runs it, again and again if need be; the command's exit code."""
        restarts, attached = 0, False
        while True:
            fresh = self._resource.hold()
            if (fresh or not attached) and not self._begin():
                continue  # taken away meanwhile
            code = self._attend()
            if code in _FINAL:
                return code
            state = self._resource.state()
            attached = code is None
            if not state:
                raise Failed(f"{self._resource.name} was deleted by somebody")
            if state != "ACTIVE":
                say("the TPUs were taken away; asks for others, where the run continues")
            elif code == remote.STOPPED:
                return _SAVED
            elif code == _SAVED:
                say("a machine was shut down, or will be; starts the command again")
                time.sleep(self._resource.poll)
            elif code is not None:
                if restarts == self._max_restarts:
                    say(f"ended with {code}, after {restarts} restarts")
                    return code
                restarts += 1
                say(f"ended with {code}; starts it again, {restarts} of {self._max_restarts}")
                time.sleep(self._resource.poll)

    def _begin(self) -> bool:
        self._shown = 0
        resource, start = self._resource, remote.start(self._arguments)
        return resource.everywhere(self._install) and resource.everywhere(start)

    def _attend(self) -> int | None:
        """Shows the log until all have ended; how, or None if the TPUs were taken away.

        The first worker may wait for ever for one that has failed: all are looked at meanwhile.

        Raises:
          Failed: the workers do not answer.
        """
        silent, seconds = 0, max(1, 10 * int(self._resource.poll))
        while silent < TRIES:
            self._show(seconds)
            codes = self._resource.codes()
            if codes is None:
                silent += 1
                if self._resource.state() != "ACTIVE":
                    return None
            else:
                silent = 0
                ended = [code for code in codes if code is not None]
                if len(ended) == len(codes):
                    self._show(seconds)  # what came after `seconds`
                    return verdict(ended)
                if any(ended):
                    self._resource.everywhere(remote.stop(self._grace, by_user=False))
            time.sleep(self._resource.poll)
        raise Failed(
            f"the workers of {self._resource.name} do not answer; the run may go on there, and the "
            "same command follows it again"
        )

    def _show(self, seconds: int) -> None:
        for line in self._resource.log(self._shown + 1, seconds):
            self._shown += 1
            print(line, flush=True)


def verdict(codes: Sequence[int]) -> int:
    """What the workers' exit codes say of the run: nlhf's own verdict, or the first failure.

    A worker that failed takes the others with it, which end with other codes.
    """
    failures = [code for code in codes if code]
    ranks = ((2, 3), (remote.STOPPED,), tuple(c for c in failures if c != _SAVED), (_SAVED,))
    return next((code for rank in ranks for code in failures if code in rank), 0)


# --- the command line ----------------------------------------------------------------------------


def _resource(options: argparse.Namespace) -> Resource:
    settings = []
    if options.action == "run":
        settings = [
            f"--accelerator-type={options.accelerator}",
            f"--runtime-version={options.runtime}",
        ]
        settings += ["--spot"] if options.spot else []
        settings += ["--reserved"] if options.reserved else []
        for option in ("service_account", "network", "subnetwork", "valid_until_duration"):
            if (value := getattr(options, option)) is not None:
                settings.append(f"--{option.replace('_', '-')}={value}")
    return Resource(
        options.name, options.zone, options.project, options.slices, settings, options.poll
    )


def _parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("action", choices=("run", "logs", "stop", "delete"))
    add("name", type=name("resource"), metavar="NAME", help="of the queued resource and TPU VM")
    add("--zone", type=name("zone"), required=True)
    add("--project", type=name("project"), required=True)
    add("--slices", type=at_least(1), default=1, metavar="N", help="TPU VMs, NAME-0, ... (1)")
    add("--poll", type=at_least(0), default=30, metavar="SECONDS", help="between two looks (30)")
    add("--grace", type=at_least(1), default=120, metavar="SECONDS", help="to save in (120)")
    add = parser.add_argument_group("what run needs").add_argument
    add("--accelerator", type=name("accelerator"), help="of each slice, such as v5p-128")
    add("--runtime", type=name("runtime"), help="TPU software version, such as v2-alpha-tpuv5")
    add("--repository", type=name("repository"), help="of the package, https://... or ssh://...")
    add("--revision", type=name("revision"), help="commit or tag: the same one at every restart")
    add = parser.add_argument_group("what run can have").add_argument
    add("--spot", action="store_true", help="cheaper, and may be taken away")
    add("--reserved", action="store_true", help="from a reservation")
    add("--service_account", type=name("account"), help="that may use the bucket")
    add("--network", type=name("network"))
    add("--subnetwork", type=name("network"))
    add("--valid_until_duration", type=name("duration"), help="how long to wait for TPUs")
    add("--python", type=name("python"), default="python3.11", help="on the workers (python3.11)")
    add("--env", type=name("environment"), action="append", default=[], metavar="NAME=VALUE")
    add("--max_restarts", type=at_least(0), default=3, metavar="N", help="after failures (3)")
    add("--delete_after", action="store_true", help="delete the resource at the end")
    parser.add_dry_run()
    return parser


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    own, job = job_of(arguments)
    options = _parser().parse_args(own)
    for option in ("accelerator", "runtime", "repository", "revision"):
        if options.action == "run" and getattr(options, option) is None:
            raise Refused(f"run needs --{option}; see --help")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    resource = _resource(options)
    if options.action == "run":
        return _run(resource, options, required(job))
    if job:
        raise Refused(f"{options.action} takes no command after --")
    stop = remote.stop(options.grace, by_user=True)
    does = {
        "logs": resource.ssh_command(remote.follow(1), worker="0"),
        "stop": resource.ssh_command(stop),
        "delete": resource.delete_command(),
    }
    if options.dry_run:
        print(shown(does[options.action]))
    elif options.action == "logs":
        for line in resource.log(1):
            print(line, flush=True)
    elif options.action == "stop":
        resource.everywhere(stop)
    else:
        resource.delete()
    return 0


def _run(resource: Resource, options: argparse.Namespace, job: Sequence[str]) -> int:
    install = remote.install(options.repository, options.revision, options.python)
    command = remote.command(options.revision, options.env, job)
    if options.dry_run:
        _show_plan(resource, install, command, options.delete_after)
        return 0
    try:
        code = Run(resource, install, command, options.max_restarts, options.grace).to_the_end()
    except (KeyboardInterrupt, SystemExit):
        say("interrupted; the run goes on, and the same command follows it again")
        raise
    if options.delete_after:
        resource.delete()
    return code


def _show_plan(
    resource: Resource, install: str, command: Sequence[str], delete_after: bool
) -> None:
    plan = [
        ("until it says ACTIVE:", resource.describe_command()),
        ("if it is not there, or SUSPENDED or FAILED and deleted as below:", None),
        ("", resource.create_command()),
        ("then, once:", resource.ssh_command(install)),
        ("", resource.ssh_command(remote.start(command))),
        ("until all workers have ended:", resource.ssh_command(remote.follow(1), worker="0")),
        ("", resource.ssh_command(remote.report())),
        ("if the TPUs are taken away, before it all begins again:", resource.delete_command()),
    ]
    if delete_after:
        plan.append(("at the end:", resource.delete_command()))
    for when, shows in plan:
        if when:
            print(f"# {when}")
        if shows is not None:
            print(shown(shows))


if __name__ == "__main__":
    exit_with(main)
