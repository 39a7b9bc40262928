"""Command lines in child processes, each disturbed at a moment of its own.

A server imports everything once and forks a child for each run, which saves the seven seconds that
a fresh interpreter needs. It has one thread only (`ENVIRONMENT` turns off those of OpenBLAS) and
never starts JAX or TensorFlow, so a child is as a fresh process; the undisturbed runs, with which
all ends are compared, are fresh processes.

Nothing of the program is patched: a moment is the n-th event of Python's audit hooks (a file is
opened for writing, renamed, removed), the n-th call of a function, or a time.
"""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "PJRT_NPROC": "4",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_IMPORTED = [
    "nlhf_jax.main",
    "nlhf_jax.jobs.chain",
    "nlhf_jax.jobs.convert",
    "nlhf_jax.report.writing",
    "nlhf_jax.data.tasks",
    "nlhf_jax.studies.learner_findings",
    "nlhf_jax.studies.reward_findings",
    "tests.drill.children",
]
_IMMUTABLE = 0x10  # FS_IMMUTABLE_FL
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
BALLAST = "ballast"  # beside the run's directory, what fills its disk


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a child is disturbed, and how.

    Attributes:
      kind: "event" (`what` is a key of the trace), "call" (the name of a function of `nlhf_jax` or
        `jax`, as "file.py:name") or "time".
      what: which event or function.
      count: which of them, from 1.
      delay: seconds after it; for "time" after the start.
      action: "SIGKILL", "SIGTERM", "fill" (the disk), "immutable" (its directories) or "hold"
        (waits there for `HOLD` seconds).
      compiles: whether the child compiles all programs itself.
    """

    kind: str
    what: str = ""
    count: int = 1
    delay: float = 0.0
    action: str = "SIGKILL"
    compiles: bool = False


HOLD = 8.0


class Server:
    """Starts children; they share compiled programs through `cache`."""

    def __init__(self, cache: Path):
        self._cache = str(cache)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_IMPORTED)
        before = os.environ.copy()
        os.environ.update(ENVIRONMENT)
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(
        self,
        arguments: list[str],
        workdir: Path,
        log: Path,
        moment: Moment | None = None,
        trace: Path | None = None,
        calls: Sequence[str] = (),
    ) -> BaseProcess:
        """A child that runs the command line; what it prints goes to `log`.

        `trace` gets {"seconds": of the whole, "events": all, "calls": {one of `calls`: how many}}.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        watch = _Watch(str(workdir), moment, trace and str(trace), tuple(calls))
        process = self._context.Process(
            target=_child, args=(arguments, str(log), self._cache, watch)
        )
        process.start()
        return process

    def run(self, *arguments, patience: float = 300.0, **settings) -> int | None:
        """`start` to its end: the exit code, or None if it hangs and was ended."""
        process = self.start(*arguments, **settings)
        process.join(patience)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        return code


def run_fresh(arguments: list[str], log: Path) -> int:
    """The command line as a user starts it, without shared programs; returns the exit code."""
    environment = os.environ | ENVIRONMENT
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nlhf_jax.main", *arguments]
    with log.open("wb") as stream:
        done = subprocess.run(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode


# --- in the child --------------------------------------------------------------------------------


def _child(arguments: list[str], log: str, cache: str, watch: "_Watch") -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    import jax

    from nlhf_jax.main import main

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    watch.start()

    try:
        code = main(arguments)
    except Exception:
        traceback.print_exc()
        code = 1
    watch.end()
    sys.exit(code)


class _Watch:
    """Counts events and calls; acts at the moment, or writes down what there was."""

    def __init__(
        self, workdir: str, moment: Moment | None, trace: str | None, calls: tuple[str, ...]
    ):
        self._root = os.path.realpath(workdir)
        self._moment = moment
        self._trace = trace
        self._seen = dict.fromkeys(calls, 0)
        self._events: list[str] = []
        self._met = 0
        self._busy = False

    def start(self) -> None:
        self._begin = time.monotonic()
        moment = self._moment
        if self._trace is not None:
            sys.addaudithook(self._on_event)
            sys.setprofile(self._on_call)
        elif moment is None:
            return
        elif moment.kind == "event":
            sys.addaudithook(self._on_event)
        elif moment.kind == "call":
            self._seen = {moment.what: 0}
            sys.setprofile(self._on_call)
        else:
            self._act_after(moment.delay)
        if moment is not None and moment.compiles:
            import jax

            jax.config.update("jax_enable_compilation_cache", False)

    def end(self) -> None:
        sys.setprofile(None)
        self._busy = True
        if self._trace is not None:
            seconds = time.monotonic() - self._begin
            found = {"seconds": seconds, "events": self._events, "calls": self._seen}
            Path(self._trace).write_text(json.dumps(found))

    def _on_event(self, name: str, arguments: tuple) -> None:
        if self._busy or name not in _EVENTS:
            return
        key = _EVENTS[name](self._root, *arguments)
        if key is None:
            return
        if self._moment is None:
            self._events.append(key)
        elif key == self._moment.what:
            self._meet()

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        key = code.co_filename.rpartition("/")[2] + ":" + code.co_name
        if key in self._seen:
            self._seen[key] += 1
            if self._moment is not None:
                self._meet()

    def _meet(self) -> None:
        self._met += 1
        if self._met == self._moment.count:
            sys.setprofile(None)
            self._act_after(self._moment.delay)

    def _act_after(self, delay: float) -> None:
        if not delay:
            self._act()
            return
        timer = threading.Timer(delay, self._act)
        timer.daemon = True
        timer.start()

    def _act(self) -> None:
        self._busy = True
        _ACTIONS[self._moment.action](self._root)
        self._busy = False


def _path(root: str, path: Any, directory: int = -1) -> str | None:
    """`path` inside `root`, with # for numbers and other names that change; None if outside."""
    if isinstance(path, int):
        return None
    path = os.fsdecode(os.fspath(path))
    if directory is not None and directory >= 0 and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
    path = os.path.abspath(path)
    if path != root and not path.startswith(root + os.sep):
        return None
    inside = os.path.relpath(path, root)
    inside = re.sub(r"incomplete\.\w+", "incomplete", inside)
    inside = re.sub(r"events\.out\.tfevents.*", "events", inside)
    return re.sub(r"[0-9a-f]{32}|\d+", "#", inside)


def _opened(root: str, path: Any, mode: str | None, flags: int) -> str | None:
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    inside = _path(root, path) if writes or (mode and set(mode) & set("wax+")) else None
    return inside and f"open {inside}"


def _renamed(root: str, old: Any, new: Any, *directories: int) -> str | None:
    inside = _path(root, new)
    return inside and f"rename to {inside}"


def _one_path(word: str) -> Callable[..., str | None]:
    def key(root: str, path: Any, *rest: Any) -> str | None:
        inside = _path(root, path, rest[-1] if rest and isinstance(rest[-1], int) else -1)
        return inside and f"{word} {inside}"

    return key


_EVENTS: dict[str, Callable[..., str | None]] = {
    "open": _opened,
    "os.rename": _renamed,
    "os.mkdir": _one_path("mkdir"),
    "os.remove": _one_path("remove"),
    "os.rmdir": _one_path("rmdir"),
    "shutil.rmtree": _one_path("rmtree"),
}


# --- what happens at the moment ------------------------------------------------------------------


def _fill(root: str) -> None:
    """Writes beside the directory until its disk is full."""
    stream = os.open(os.path.join(os.path.dirname(root), BALLAST), os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 4096, 1):
        try:
            while os.write(stream, bytes(size)):
                pass
        except OSError:
            continue
    os.close(stream)


def make_immutable(root: str, on: bool = True) -> None:
    """Nothing can be made, renamed or removed in any directory below `root`, not even by root.

    Raises OSError where the file system knows no such flag.
    """
    for directory, _, _ in list(os.walk(root)):
        found = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            value = int.from_bytes(fcntl.ioctl(found, _GET_FLAGS, bytes(8)), sys.byteorder)
            value = value | _IMMUTABLE if on else value & ~_IMMUTABLE
            fcntl.ioctl(found, _SET_FLAGS, value.to_bytes(8, sys.byteorder))
        finally:
            os.close(found)


_ACTIONS: dict[str, Callable[[str], None]] = {
    "SIGKILL": lambda root: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda root: os.kill(os.getpid(), signal.SIGTERM),
    "fill": _fill,
    "immutable": make_immutable,
    "hold": lambda root: time.sleep(HOLD),
}
