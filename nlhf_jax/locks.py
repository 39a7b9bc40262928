"""One living run per work directory.

On a disk a run holds a lock of the operating system on `WORKDIR/.lock`, which goes with the process
whatever ends it; what stands in the file is for the sentence that refuses another run. A bucket has
no locks: there a run changes the object every few seconds, and who finds one watches whether it
changes. The bucket's own generations see to it that of two who take over a dead run's, one does.

Of several processes of one run the first holds it.
"""

import contextlib
import datetime
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from nlhf_jax import processes
from nlhf_jax.errors import UserError
from nlhf_jax.files import in_bucket

FILE_NAME = ".lock"  # in a work directory
BEAT = 5.0  # seconds between changes of a bucket's object
PATIENCE = 6  # beats without a change after which its run is taken for dead


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[None]:
    """Inside, `workdir` is this run's alone; it is made if it is not there.

    Raises:
      UserError: a living run has it, here or on another machine, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:

        def take() -> None:
            bucket = in_bucket(workdir)
            stack.enter_context(_held_object(os.fspath(workdir)) if bucket else _held_file(workdir))

        processes.from_first(take)
        yield


def _about_us() -> dict[str, Any]:
    since = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _refusal(workdir: str | os.PathLike, content: bytes) -> UserError:
    who = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):  # It has not said yet who it is.
        found = json.loads(content)
        who = f", process {found['pid']} on {found['host']} since {found['since']}"
    return UserError(
        f"{workdir} is in use by another run{who}: wait for its end, stop it, or use another "
        "--workdir"
    )


# --- on a disk -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _held_file(workdir: str | os.PathLike) -> Iterator[None]:
    path = os.path.join(workdir, FILE_NAME)
    try:
        os.makedirs(workdir, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    _not_in_forks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _refusal(workdir, os.pread(descriptor, 4096, 0)) from error
        except OSError as error:  # Some network file systems have no locks.
            print(
                f"{path}: cannot be locked ({error.strerror}), so a second run here would not be "
                "noticed",
                file=sys.stderr,
            )
        # It stays there for good: who deletes a file that others may have open lets two of them in.
        with contextlib.suppress(OSError):  # A full disk has room for the lock itself.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_about_us()).encode(), 0)
        yield
    finally:
        _not_in_forks.discard(descriptor)
        os.close(descriptor)


# A lock lasts until the last process that has the file open closes it. Programs that are started
# do not inherit it, forks of this process would.
_not_in_forks: set[int] = set()


def _close_in_fork() -> None:
    while _not_in_forks:
        os.close(_not_in_forks.pop())


os.register_at_fork(after_in_child=_close_in_fork)


# --- in a bucket ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _held_object(workdir: str) -> Iterator[None]:
    import tensorstore

    # Without a cache: what others write is seen.
    store = tensorstore.KvStore.open(workdir.rstrip("/") + "/").result()
    us = json.dumps(_about_us() | {"token": os.urandom(8).hex()}).encode()
    generation = _take(store, workdir, us)
    main = threading.main_thread().ident or 0
    ended = threading.Event()
    lost = threading.Event()

    def beat() -> None:
        nonlocal generation
        while not ended.wait(BEAT):
            with contextlib.suppress(Exception):  # A bucket out of reach: the next beat may arrive.
                written = _write(store, generation, us)
                if written is None:
                    lost.set()
                    print(
                        f"{workdir}: another run has taken over, as this one stood still; it stops",
                        file=sys.stderr,
                        flush=True,
                    )
                    # What is started with `nohup` or `&` may ignore Ctrl-C.
                    heard = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
                    signal.pthread_kill(main, signal.SIGINT if heard else signal.SIGTERM)
                    return
                generation = written

    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if not lost.is_set():
            with contextlib.suppress(Exception):  # Others find out that it does not change.
                store.write(FILE_NAME, None, if_equal=generation).result()


def _take(store: Any, workdir: str, us: bytes) -> bytes:
    """Makes the object ours; its generation."""
    found = store.read(FILE_NAME).result()
    if found.state == "value":
        print(f"{workdir} was in use; looks whether it still is", file=sys.stderr, flush=True)
        until = time.monotonic() + BEAT * PATIENCE
        while time.monotonic() < until:
            time.sleep(BEAT / 5)
            now = store.read(FILE_NAME).result()
            if now.stamp.generation != found.stamp.generation:
                if now.state == "value":
                    raise _refusal(workdir, now.value)
                found = now  # Released.
                break
    written = _write(store, found.stamp.generation, us)
    if written is None:  # Another one was faster.
        raise _refusal(workdir, store.read(FILE_NAME).result().value)
    return written


def _write(store: Any, generation: bytes, us: bytes) -> bytes | None:
    """Replaces the object if it is still of `generation`; the new one, None if another wrote it."""
    written = store.write(FILE_NAME, us, if_equal=generation).result().generation
    if written:
        return written
    now = store.read(FILE_NAME).result()  # Ours arrived, if only the answer to it was lost.
    return now.stamp.generation if now.value == us else None
