"""SIGTERM and Ctrl-C, as a training sees them: it ends after the step that is in flight."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from nlhf_jax import processes


class Preempted(Exception):
    """A signal to stop came: the step was finished and saved, and the same command continues.

    Args:
      number: the signal's.
      where: what was done and saved.
    """

    def __init__(self, number: int, where: str):
        name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        super().__init__(f"stopped by {name} {where}, and the same command continues")
        self.exit_code = 128 + number  # As a shell says it; 0 would mean that the run is complete.


class Stopped(Exception):
    """A signal came while batches were read."""


class StopSignal:
    """SIGTERM or Ctrl-C, while this is entered: the loop ends after its step.

    A second Ctrl-C ends it at once. `number` is the signal's, None before it came to this process.
    Python lets only the main thread listen.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked: Any = None  # of all processes, not looked at yet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._came)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._came)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self.number is not None:
                raise KeyboardInterrupt
            # Not `print`: that may be what the signal interrupts.
            os.write(2, b"\nfinishes its step and saves; Ctrl-C again to stop at once\n")
        self.number = number

    def agreed(self) -> int | None:
        """The signal's number, if one came to any of the run's processes.

        All of them ask at the same places, and get the same answer there: what each knew when they
        asked the time before. So nobody waits for it.
        """
        if processes.count() == 1:
            return self.number
        asked, self._asked = self._asked, processes.largest(self.number or 0)
        return None if asked is None else int(asked) or None

    def ends(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; raises Stopped when it has come."""
        for batch in batches:
            if self.agreed() is not None:
                raise Stopped
            yield batch
        if self.agreed() is not None:
            raise Stopped
