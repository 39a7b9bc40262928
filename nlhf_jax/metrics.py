"""What a run says while it goes: metrics to files, progress to the terminal."""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from etils import epath

# TensorBoard's own protocol buffers and record format; its EventFileWriter would import TensorFlow.
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from nlhf_jax import processes
from nlhf_jax.errors import warn
from nlhf_jax.files import open_to_append, write_whole

FILE_NAME = "metrics.jsonl"
_PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal
_TERMINAL_INTERVAL = 0.1
_NOTEBOOK_INTERVAL = 1.0  # each line travels to the browser
_BAR_WIDTH = 20


class MetricWriter:
    """Writes metrics to `directory/metrics.jsonl` and to a TensorBoard event file beside it.

    A line of the JSON file is `{"step": 10, "split": "train", "loss": 1.5, ...}`. It is on disk,
    or in the bucket, when `write` returns. JSON knows no NaN, so a value that is not finite is
    written as null.

    Args:
      directory: the stage's directory.
      restored_step: the step that the run continues from, 0 where it begins. What an earlier
        attempt wrote about later steps goes, so that every step stands there once; where the run
        begins, all of it.
      again: a split that will be written at `restored_step` once more.
    """

    def __init__(
        self, directory: str | os.PathLike, restored_step: int = 0, again: str | None = None
    ):
        place = epath.Path(directory)
        if processes.is_first():
            place.mkdir(parents=True, exist_ok=True)
        path = place / FILE_NAME
        last_kept = restored_step or -1  # step 0 has numbers too: about the data
        _drop_lines_after(path, last_kept, again)
        self._lines = open_to_append(path)
        self._events = _EventFile(place)
        self._events.forget_after(last_kept)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of `split` ("train", "validation", ...) at `step`."""
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if _is_finite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, "split": split, **finite}, allow_nan=False)
        self._lines.write(f"{line}\n".encode())
        self._lines.flush()
        self._events.scalars(step, {f"{split}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._lines.close()
        self._events.close()


def rows(path: epath.Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl` that can be read; nothing if there is none."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            row["step"], row["split"] = int(row["step"]), str(row["split"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # cut short by a kill
        yield row


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def _drop_lines_after(path: epath.Path, step: int, again: str | None) -> None:
    """Keeps the whole lines up to `step`, but that of the split `again` there.

    A line that a kill cut short, or that something else made unreadable, goes too.
    """
    if not (processes.is_first() and path.exists()):
        return
    kept, unreadable = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line)
            if row["step"] < step or (row["step"] == step and row["split"] != again):
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            unreadable += 1
    if unreadable:
        warn(f"{path} is damaged: {unreadable} lines of it cannot be read and are left out")
    write_whole(path, b"".join(kept))


class RunningMeans:
    """Means of metrics over steps, with the same bits where another process carries them on.

    Args:
      carried: what `to_json` gave; None for no steps yet.
    """

    def __init__(self, carried: Mapping[str, Sequence[float]] | None = None):
        self._sums = {name: (total, count) for name, (total, count) in (carried or {}).items()}

    def add(self, values: Mapping[str, float]) -> None:
        """Takes in one step's metrics; those that are not finite do not count."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            if _is_finite(value):
                total, count = total + value, count + 1
            self._sums[name] = (total, count)

    def take(self) -> dict[str, float]:
        """The means, and starts again; NaN where no value was finite."""
        means = {
            n: total / count if count else math.nan for n, (total, count) in self._sums.items()
        }
        self._sums = {}
        return means

    def to_json(self) -> dict[str, Sequence[float]]:
        return dict(self._sums)


class _EventFile:
    """A TensorBoard event file."""

    def __init__(self, directory: epath.Path):
        # Nanoseconds keep two attempts within one second apart; TensorBoard sorts by the number.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(open_to_append(directory / name))
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        summary = summary_pb2.Summary(
            value=[summary_pb2.Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        )
        self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def forget_after(self, step: int) -> None:
        """TensorBoard drops the events of earlier files whose step is after `step`."""
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start))

    def close(self) -> None:
        self._records.close()

    def _write(self, event: event_pb2.Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


class Progress:
    """The progress of a loop: `name step/steps  rate  loss  time left`.

    On a terminal one line that is written over, elsewhere a plain line about every ten seconds. In
    a notebook one line with a bar, on standard output, as Jupyter shades what stands on standard
    error. Of several processes of a run the first speaks.

    Args:
      name: what is going on, for example the stage's name.
      steps: the step at which it ends.
      stream: where to write.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name = name
        self._steps = steps
        self._first_step = 0
        self._quiet = stream is None and not processes.is_first()
        notebook = _is_notebook(sys.stdout if stream is None else stream)
        if stream is None:
            stream = sys.stdout if notebook else sys.stderr
        self._stream, self._bar = stream, notebook
        self._clock = clock
        self._terminal = notebook or self._stream.isatty()
        self._interval = _PLAIN_INTERVAL
        if self._terminal:
            self._interval = _NOTEBOOK_INTERVAL if notebook else _TERMINAL_INTERVAL
        self._start = clock()
        self._last_shown = self._start
        self._width = 0

    def start(self, step: int) -> None:
        """The rate counts from here: `step` steps are done, and compiling is over."""
        self._first_step = step
        self._start = self._clock()

    def status(self, text: str) -> None:
        """What goes on before the first step; only on a terminal."""
        if self._terminal:
            self._show(f"{self._name}: {text}")

    def update(self, step: int, **values: float) -> None:
        """Shows that `step` steps are done, and `values`, if a line is due."""
        now = self._clock()
        if now - self._last_shown >= self._interval:
            self._last_shown = now
            self._show(self._line(step, now, values))

    def message(self, text: str) -> None:
        """A line of its own, which stays."""
        self._clear()
        if not self._quiet:
            print(f"{self._name}: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        self._clear()

    def _line(self, step: int, now: float, values: Mapping[str, float]) -> str:
        bar = ""
        if self._bar:
            full = _BAR_WIDTH * step // max(self._steps, 1)
            bar = f"{'█' * full}{'░' * (_BAR_WIDTH - full)} "
        parts = [f"{self._name}: {bar}step {step}/{self._steps}"]
        done, elapsed = step - self._first_step, now - self._start
        if done > 0 and elapsed > 0:
            rate = done / elapsed
            parts.append(f"{rate:.3g} steps/s")
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        if done > 0 and elapsed > 0:
            parts.append(f"{duration((self._steps - step) / rate)} left")
        return "  ".join(parts)

    def _show(self, line: str) -> None:
        if self._quiet:
            return
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


def _is_notebook(stream: TextIO) -> bool:
    """It is a Jupyter kernel's, shown where a line can be written over, but is no terminal."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"


def duration(seconds: float) -> str:
    """`7.5 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
