"""The command line: `nlhf JOB --gin_file=... [--gin.NAME=value ...] --workdir=DIR`.

One call is one job. Bad input gets one sentence on stderr and exit code 2; a training that diverged
exits with 3, one that SIGTERM stopped with 143, one that Ctrl-C stopped with 130.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence

from nlhf_jax import commands, huge_pages, processes
from nlhf_jax.errors import UserError, printable
from nlhf_jax.options import parse

# What takes long to import (JAX, gin, the jobs) is imported by the job that needs it, so that help
# and mistakes are answered at once.

_DESCRIPTION = """\
Nash learning from human feedback in JAX.

jobs:
  run       a whole chain: SFT, preference model, policies, tournament, report
  train     one learner
  evaluate  a tournament between checkpoints, or of each new one of a training
  exploit   how far policies can be exploited, by best responses trained against them
  sample    responses of one checkpoint to prompts
  report    the report of a work directory again
  sheet     blinded comparisons for people, and their answers back
  config    what a gin file comes to: every setting, and where it was set
  plan      what a training takes on chips that you need not have: memory, time, traffic
  benchmark speed of each phase of a step, beside what the devices could do at best
  data      checks JSON lines, trains a vocabulary
  convert   checkpoints of T5X and Hugging Face to ours and back

example:
  nlhf run --gin_file=quickstart.gin --workdir=out

nlhf JOB --help explains a job."""

# A disk that is full, read-only or not ours to write, whichever file finds it out. By its words:
# gin wraps an error in one of the same class without a number.
_CANNOT_WRITE = tuple(
    f"[Errno {number}]"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPERM, errno.EACCES)
)


def command() -> None:
    """What `nlhf` is in a shell: a process of its own, unlike `main`."""
    huge_pages.ask()
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one job; returns the exit code."""
    code = _main(arguments)
    if code and processes.count() > 1:
        processes.leave(code)  # Others may wait for what will not come.
    return code


def _main(arguments: Sequence[str] | None) -> int:
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = parse(arguments)
        if options is None:
            print(_DESCRIPTION)
        else:
            commands.prepare_for_buckets(arguments)
            options.start(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("nlhf: interrupted; the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `nlhf sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, UserError):
            code, kind = 2, "error: "
        elif hasattr(error, "exit_code"):  # The training loop's: it diverged, or was preempted.
            code, kind = error.exit_code, ""
        elif (sentence := processes.lost(error)) is not None:
            print(f"nlhf: {printable(sentence)}", file=sys.stderr)
            return 1
        elif isinstance(error, OSError) and str(error).startswith(_CANNOT_WRITE):
            code, kind = 2, "error: cannot write, the same command continues once this is mended: "
        elif processes.count() > 1:
            traceback.print_exc()
            return 1
        else:
            raise
        from nlhf_jax import configuration

        if processes.is_first() or not isinstance(error, processes.EndedByFirst):
            print(f"nlhf: {kind}{printable(configuration.message(error))}", file=sys.stderr)
        return code


if __name__ == "__main__":
    command()
