"""What the launchers share: which names they take, how they print and run commands.

Names of users go into commands, manifests and scripts; they are matched as a whole against the
expressions here before anything runs, so that none can be read as an option or as shell. Arguments
of the `nlhf` command may hold anything that is printable: they stay lists, or are quoted.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

NLHF = "nlhf_jax.main"

# What a kind of name looks like, and how an error says so.
_LABEL = "[a-z]([a-z0-9-]{0,%d}[a-z0-9])?"
NAMES = {
    "resource": (_LABEL % 58, "lower-case letters, digits and -, at most 60, such as my-run"),
    "jobset": (_LABEL % 37, "lower-case letters, digits and -, at most 39, such as my-run"),
    "zone": ("[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone, such as us-central2-b"),
    "project": ("([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project's id"),
    "accelerator": ("v[0-9]+[a-z]*-[0-9]+", "a type of TPU with its size, such as v5p-128"),
    "runtime": ("[a-z0-9][a-z0-9._-]*", "a TPU runtime version, such as v2-alpha-tpuv6e"),
    "account": ("[a-z0-9][a-z0-9.@-]*", "a service account"),
    "network": ("[a-z0-9][a-z0-9/._-]*", "a network's name"),
    "duration": ("[0-9]+[smhd]", "a duration, such as 6h"),
    "repository": (
        "(https|ssh)://[A-Za-z0-9][A-Za-z0-9@:._~/+-]*",
        "a repository's address, https:// or ssh://",
    ),
    "revision": (r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/+-]*", "a git commit or tag"),
    "python": (r"python3\.[0-9]+", "an interpreter of Ubuntu, such as python3.11"),
    "image": (
        "[a-z0-9][A-Za-z0-9._/:-]*(@sha256:[0-9a-f]{64})?",
        "a container image, such as us-docker.pkg.dev/my-project/nlhf/train:1",
    ),
    "namespace": ("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a Kubernetes name"),
    "tpu": ("tpu[a-z0-9-]*", "a GKE accelerator, such as tpu-v5p-slice"),
    "topology": ("[1-9][0-9]*(x[1-9][0-9]*){1,2}", "a TPU topology, such as 4x4 or 4x4x8"),
    "slurm": ("[A-Za-z0-9_][A-Za-z0-9_.,:+-]*", "a name of Slurm's, without spaces"),
    "slurm time": ("([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}", "minutes, H:MM:SS or D-HH:MM:SS"),
    "file": ("[A-Za-z0-9_./%][A-Za-z0-9_./%=+-]*", "a path without spaces"),
    "directory": (
        r"gs://[a-z0-9][a-z0-9._-]+(/[\w.=+@%,/-]*)?|(?!-|[A-Za-z0-9+.-]+:/)[^\x00-\x1f\x7f]+",
        "a local directory or gs://BUCKET/...",
    ),
    "module": (r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "a Python module"),
    "environment": (r"[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x1f\x7f]*", "NAME=VALUE"),
}


class Refused(Exception):
    """What the user gave cannot be used; one sentence, and exit code 2."""

    code = 2


class Failed(Refused):
    """What was asked for did not come about, and may another time; one sentence, exit code 1."""

    code = 1


def name(kind: str) -> Callable[[str], str]:
    """A type for argparse: gives back a name of this kind, and refuses every other string."""
    pattern, wanted = NAMES[kind]

    def check(text: str) -> str:
        if re.fullmatch(pattern, text, re.ASCII) is None:
            raise argparse.ArgumentTypeError(f"{text!r} must be {wanted}")
        return text

    return check


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: an integer."""

    def check(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {least}")
        return int(text)

    return check


class Parser(argparse.ArgumentParser):
    """A launcher's options; its help is the program's docstring. A mistake is Refused."""

    def __init__(self, description: str | None):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; see {self.prog} --help")

    def add_children(self, grace: str) -> None:
        """--grace, whose help is `grace`, and --module, of the processes that it starts itself."""
        self.add_argument(
            "--grace", type=at_least(0), default=30, metavar="SECONDS", help=f"{grace} (30)"
        )
        self.add_argument(
            "--module", type=name("module"), default=NLHF, help=f"runs in place of {NLHF}"
        )

    def add_dry_run(self) -> None:
        self.add_argument(
            "--dry_run", action="store_true", help="print what would be done, and do nothing"
        )


def job_of(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A launcher's own arguments, and the `nlhf` command that stands after the first `--`.

    Raises:
      Refused: the command is no job with options, or cannot be printed.
    """
    if "--" not in arguments:
        return list(arguments), []
    place = list(arguments).index("--")
    own, job = list(arguments[:place]), list(arguments[place + 1 :])
    if not job or re.fullmatch("[a-z_]+", job[0], re.ASCII) is None:
        met = repr(job[0]) if job else "nothing"
        raise Refused(f"after -- stands {met}, where a job of nlhf is wanted, such as train")
    for argument in job:
        if not argument.isprintable():
            raise Refused(f"the argument {argument!r} has characters that cannot be printed")
    return own, job


def required(job: Sequence[str]) -> list[str]:
    """The job; Refused if there is none."""
    if not job:
        raise Refused("the nlhf command is missing: give it after --, as in -- train --workdir=...")
    return list(job)


def shown(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command as one line that a shell reads as the same list."""
    variables = [f"{key}={value}" for key, value in (environment or {}).items()]
    return shlex.join([*(["env", *variables] if variables else []), *command])


def say(sentence: str) -> None:
    """Progress, on stderr, with the launcher's name."""
    print(f"{sys.argv[0].rpartition('/')[2]}: {sentence}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str], *, given: str = "", capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a list of arguments, without a shell; what fails is in the result's `returncode`.

    Args:
      command: the program and its arguments.
      given: what it reads on standard input.
      capture: keep stdout and stderr in the result instead of letting them through.

    Raises:
      Refused: there is no such program.
    """
    output = subprocess.PIPE if capture else None
    try:
        return subprocess.run(
            command, input=given, text=True, stdout=output, stderr=output, check=False
        )
    except FileNotFoundError as error:
        raise Refused(f"the program {command[0]} is not installed here (not on PATH)") from error


def exit_with(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a launcher: Refused becomes one sentence and exit code 2, Ctrl-C 130."""
    try:
        code = main(sys.argv[1:])
    except Refused as error:
        say(f"error: {error}")
        code = error.code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
