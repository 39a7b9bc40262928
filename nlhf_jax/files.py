"""Files of a run, in a local directory or in a bucket of Google Cloud Storage.

All paths of a work directory are `epath.Path`s, which speak to a bucket (`gs://...`) as to a disk,
through TensorFlow. What differs stands here: an object appears whole or not at all by itself, a
local file if it is renamed; an object cannot be appended to; and only a request tells whether one
may write.

Of several processes of one run the first writes, and what is written here by others is not.
"""

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, TextIO

from etils import epath

from nlhf_jax import processes
from nlhf_jax.errors import UserError, first_line

# TensorFlow remembers an object's length for five seconds: what another program, or TensorStore,
# made longer meanwhile would be read up to the old length, without a word.
os.environ.setdefault("GCS_STAT_CACHE_MAX_AGE", "0")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # also what is left of gs://a by a path library


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is one of object storage, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The absolute path. `epath`'s own method makes a local folder `gs:` of a bucket's path."""
    found = epath.Path(path)
    return found if in_bucket(found) else found.absolute()


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes `content`, text as UTF-8, in place of what is at `path`; makes the directory.

    Only the first process of a run does. Whatever moment it is killed at, the old content or the
    new one is there: a bucket has an object once all of it has arrived, a disk a file under its
    name once that is written.

    Raises:
      UserError: a bucket cannot be written.
    """
    if not processes.is_first():
        return
    target = epath.Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if in_bucket(target):
        with _one_error(f"{target} cannot be written"):
            target.write_bytes(data)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / (target.name + ".partial")
    partial.write_bytes(data)
    partial.replace(target)


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """`write_whole` of `content` as JSON."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def open_to_append(path: str | os.PathLike) -> BinaryIO:
    """A file that grows, after what it has already; all of it is there when `flush` returns.

    In other processes than the first it goes nowhere.
    """
    if not processes.is_first():
        return open(os.devnull, "ab")
    target = epath.Path(path)
    return _GrowingObject(target) if in_bucket(target) else target.open("ab")


class _GrowingObject(io.BytesIO):
    """An object of a bucket that is written anew, from memory, at every flush.

    Two thousand lines of metrics are about a megabyte. Composing objects would send less, but is
    bound by the same limit, one change of an object a second, and a kill would leave pieces.
    """

    def __init__(self, path: epath.Path):
        super().__init__()
        self._path = path
        with _one_error(f"{path} cannot be read"):
            if path.exists():
                self.write(path.read_bytes())

    def flush(self) -> None:
        write_whole(self._path, self.getvalue())


@contextlib.contextmanager
def output(path: str | None) -> Iterator[TextIO]:
    """Standard output (None), or a file that appears when all is written; of the first process.

    Raises UserError if the file, which `--output` named, cannot be written.
    """
    if not processes.is_first():
        with open(os.devnull, "w") as nowhere:
            yield nowhere
        return
    if path is None:
        yield sys.stdout
        return
    check_writable(path, "--output", file=True)
    if in_bucket(path):
        text = io.StringIO()
        yield text
        write_whole(path, text.getvalue())
        return
    partial = epath.Path(f"{path}.partial")
    try:
        stream = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        with stream:
            yield stream
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# --- before anything runs ------------------------------------------------------------------------


def check_writable(path: str | os.PathLike, option: str, file: bool = False) -> None:
    """Raises UserError unless a user's path can be written; leaves nothing behind.

    Args:
      path: of a directory, which need not be there yet.
      option: what the user gives it by, for the error.
      file: it is a file's path.
    """
    text = os.fspath(path)
    directory = os.path.dirname(text) if file else text
    failed = f"{option}={text} cannot be written"
    if not file and os.path.isfile(text):
        raise UserError(f"{text} is a file: choose another {option}")
    if not _SCHEME.match(text):
        with _one_error(failed):
            _check_disk(directory)
    elif re.match("gs://[^/]", directory):
        _check_bucket(epath.Path(directory), failed)
    else:
        raise UserError(
            f"{failed}: give a local directory or a bucket of Google Cloud Storage, gs://BUCKET/..."
        )


def _check_disk(directory: str) -> None:
    place = os.path.abspath(directory)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    with tempfile.TemporaryFile(dir=place):
        pass


def _check_bucket(directory: epath.Path, failed: str) -> None:
    """Asks the bucket by each of the libraries that a run reaches it with.

    Those are TensorFlow (`epath`), google-cloud-storage (Orbax looks up what kind of bucket it is)
    and TensorStore (arrays); each finds its credentials by itself.
    """
    try:
        from google.cloud import storage
    except ImportError as error:
        raise UserError(
            f"{failed}: google-cloud-storage is missing, pip install 'nlhf_jax[gcs]'"
        ) from error
    import tensorstore

    with _one_error(
        failed,
        "a run needs credentials (`gcloud auth application-default login`, or "
        "GOOGLE_APPLICATION_CREDENTIALS) that may look up the bucket and write and delete objects",
    ):
        probe = directory / f".probe-{os.urandom(8).hex()}"
        probe.write_bytes(b"whether a run can write here")
        storage.Client().get_bucket(directory.parts[2])
        tensorstore.KvStore.open(str(directory) + "/").result().write(probe.name, None).result()


@contextlib.contextmanager
def _one_error(failed: str, needed: str = "") -> Iterator[None]:
    """Inside, what any storage raises is one UserError: each library has exceptions of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{failed}: {reason}" + (f"; {needed}" if needed else "")) from error
