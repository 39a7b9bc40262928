"""Whether a checkpoint's files are what was written.

Before a step's directory gets its final name, `seal` reads all of its files back, looks into them
and writes their sizes and checksums beside them. Who opens the checkpoint later reads them once
more. TensorStore guards the index of the arrays with checksums of its own, but not what the index
points to, and nobody guards the JSON files; so these checksums are of whole files.

What they cover begins when the storage gives back what it was given: an array that memory or the
device had altered before is not noticed.
"""

import concurrent.futures
import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorstore as ts
from etils import epath

CHECKSUMS = "checksums.json"  # in a step's directory
_COMMITTED = "commit_success.txt"  # Orbax writes it last; on a bucket it is the final name.
_JSON = ("_METADATA", "_sharding", "array_metadatas/*")
_BLOCK = 1 << 22  # bytes read at once, by each thread
_THREADS = 8


class Damage(ValueError):
    """A file is missing, or is not what was written; the message names it."""


# --- checksums -----------------------------------------------------------------------------------


def seal(step: epath.Path) -> None:
    """Writes the checksums of all files of `step`, and puts everything onto the disk."""

    def flushed_sum(name: str) -> list:
        flush(step / name)
        return _sum(step / name)

    names = list(_names(step))
    sums = dict(zip(names, _concurrently(flushed_sum, names), strict=True))
    path = step / CHECKSUMS
    path.write_text(json.dumps(sums, indent=1) + "\n")
    flush(path)
    for directory in {path.parent for path in (step / name for name in [*names, CHECKSUMS])}:
        flush(directory)


def is_sealed(step: epath.Path) -> bool:
    return (step / CHECKSUMS).exists()


def check_checksums(step: epath.Path, part: int = 0, of: int = 1) -> None:
    """Raises Damage, with the file's name, unless all files of a sealed `step` are as written.

    Several processes may share the work: each takes its `part` of the files.
    """
    try:
        sums = json.loads((step / CHECKSUMS).read_text())
        sizes = {name: int(size) for name, (size, _) in sums.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise Damage(f"{CHECKSUMS} is no list of checksums") from error

    def check(name: str) -> None:
        path = step / name
        length = _size(path, name)
        if length != sizes[name]:
            raise Damage(f"{name} has {length} bytes and not the {sizes[name]} that were written")
        if _sum(path) != sums[name]:
            raise Damage(f"{name} is not what was written")

    for _ in _concurrently(check, sorted(sums)[part::of]):
        pass


def guarded(content: Mapping[str, Any]) -> str:
    """JSON of a file that comes after `seal`, with a checksum of its own."""
    text = json.dumps(content)
    return json.dumps({"crc32": _crc(text), "content": text})


def read_guarded(path: epath.Path) -> dict[str, Any]:
    """What was `guarded`. Raises Damage, with the file's name, if it has changed."""
    try:
        found = json.loads(path.read_text())
        if found["crc32"] == _crc(found["content"]):
            return json.loads(found["content"])
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise Damage(f"{path.name} is not what was written")


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _names(step: epath.Path) -> Iterator[str]:
    """All files inside, as paths from `step`, but those that Orbax writes after them."""
    directories = [step]
    while directories:
        for path in sorted(directories.pop().iterdir()):
            if path.is_dir():
                directories.append(path)
            elif (name := str(path.relative_to(step))) not in (CHECKSUMS, _COMMITTED):
                yield name


def _sum(path: epath.Path) -> list:
    """[bytes, CRC-32 as hexadecimal digits], read block by block."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return [size, f"{crc:08x}"]


def flush(path: epath.Path) -> None:
    """From here a local file or directory survives that the machine goes down."""
    if "://" in str(path):
        return  # A bucket has an object for good when it says that it has it.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems cannot do it for directories.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concurrently(function: Callable[[str], Any], names: Iterable[str]) -> Iterator[Any]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, names)


# --- the index of the arrays ---------------------------------------------------------------------


def check_state_files(state: epath.Path) -> None:
    """Raises ValueError or OSError, with the file's name, unless all files of `state` are whole.

    Orbax reads all arrays at once; where files are missing or cut, its concurrent reads end in log
    lines, tracebacks from threads and waits. So the files are looked at first: the index of the
    arrays (TensorStore's OCDBT: a manifest and a B-tree) says which bytes of which file hold them.
    Reads the index and the small JSON files; of the arrays' files only the sizes.
    """
    for pattern in _JSON:
        for path in state.glob(pattern):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                raise Damage(f"{path.relative_to(state)} is no whole JSON") from error
    if not (state / _JSON[0]).exists():
        raise Damage(f"{_JSON[0]} is missing")
    if not json.loads((state / _JSON[0]).read_text()).get("use_ocdbt", True):
        return  # Each array is a directory, whose chunks are looked for when it is opened.
    base = str(state) + "/"
    store = ts.KvStore.open(base if "://" in base else {"driver": "file", "path": base}).result()
    sizes: dict[str, int] = {}
    locations = [ts.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]]
    while locations:
        location = locations.pop()
        kind, directory, rest = location.split(":", 2)
        name, offset, length = rest.rsplit(":", 2)
        name = directory + name
        if name not in sizes:
            sizes[name] = _size(state / name, name)
        needed = int(offset) + int(length)
        if sizes[name] < needed:
            raise Damage(f"{name} has {sizes[name]} bytes of at least {needed}")
        if kind == "btreenode":
            for entry in ts.ocdbt.dump(store, location).result()["entries"]:
                locations += [entry[key] for key in ("location", "indirect_value") if key in entry]


def _size(path: epath.Path, name: str) -> int:
    if not path.exists():
        raise Damage(f"{name} is missing")
    return path.stat().length
