"""What storage says when a checkpoint cannot be saved, as one sentence."""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

from nlhf_jax.checkpoints.integrity import Damage
from nlhf_jax.errors import UserError, first_line

# TensorStore's and TensorFlow's: a status, what was done, and the system's own words.
_STATUS = re.compile(r"[A-Z_]+: ")
_SYSTEM = re.compile(r".*: (.+?) \[os_error_code=")


@contextlib.contextmanager
def failure_is_one_error(directory: epath.Path) -> Iterator[None]:
    """Inside, what storage raises while it saves into `directory` is a UserError.

    What there is of the checkpoint goes: it would fill the disk for others, too. Orbax raises what
    fails in its threads when it is asked for the next time.
    """
    try:
        yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        with contextlib.suppress(Exception):
            for path in directory.glob("*.orbax-checkpoint-tmp"):
                path.rmtree()
        raise UserError(
            f"cannot save a checkpoint in {directory}: {reason}; those before it are as they "
            "were: free or allow what is missing, and the same command continues"
        ) from error


def _reason(error: Exception) -> str | None:
    """What storage says; None if the error is not of storage."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    if found := _SYSTEM.search(text):
        return found[1]
    if isinstance(error, (OSError, UserError, Damage)) or _STATUS.match(text):
        return first_line(error)
    return None


class _NoTracebacks(logging.Filter):
    """Orbax logs what fails in its threads; the same error is then raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)


def _without_late_answers(unraisable: Any) -> None:
    """Where a save has failed, TensorStore's threads still tell of other arrays to Orbax's event
    loop, which has ended by then."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _unraisablehook(unraisable)


logging.getLogger("absl").addFilter(_NoTracebacks())
_unraisablehook, sys.unraisablehook = sys.unraisablehook, _without_late_answers
