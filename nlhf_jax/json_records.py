"""Lines of JSON objects that somebody else wrote: read, checked and shown. No TensorFlow."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from nlhf_jax.errors import UserError

MOST_LINE_BYTES = 1 << 26  # a text of 64 MB is a mistake, and could fill the memory
_GZIP = b"\x1f\x8b"
_BLOCK_BYTES = 1 << 20


def lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a file, with the newline that ends them; nothing else does.

    Of a line longer than `MOST_LINE_BYTES` only that many bytes and one more are given. Raises
    UserError, with the file's `name`, if it is compressed.
    """
    line, first = bytearray(), True
    while block := file.read(_BLOCK_BYTES):
        if first and block.startswith(_GZIP):
            raise UserError(f"{name}: the file is compressed with gzip; unpack it first")
        first = False
        *whole, rest = block.split(b"\n")
        for part in whole:
            yield bytes(line) + part + b"\n"
            line.clear()
        line += rest[: MOST_LINE_BYTES + 1 - len(line)]
    if line:
        yield bytes(line)


def record(line: bytes, wanted: str = "") -> dict[str, Any]:
    """The object of one line. Raises ValueError with what is wrong with it.

    `wanted` says what it should have, for the error.
    """
    if len(line) > MOST_LINE_BYTES:
        raise ValueError(f"the line has more than {MOST_LINE_BYTES >> 20} MB")
    try:
        found = json.loads(line.decode("utf-8"), object_pairs_hook=_Object)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} of the line is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except ValueError:
        raise ValueError("not usable JSON: a number with thousands of digits") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    if not isinstance(found, _Object):
        raise ValueError(f"wanted a JSON object{wanted}, met {shown(found)}")
    if found.twice is not None:  # Python's reader would take the last one, without a word
        raise ValueError(f"the key {shown(found.twice)} is there twice")
    return found


def text(found: dict[str, Any], key: str) -> str:
    """`found[key]`, which must be text that UTF-8 can hold and not be blank. Raises ValueError."""
    value = found[key]
    if not isinstance(value, str):
        raise ValueError(f"'{key}' must be text, met {shown(value)}")
    if not value.strip():
        raise ValueError(f"'{key}' is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"'{key}' holds half of a surrogate pair, which is no text") from None
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for an error: one line that any terminal can print."""
    try:
        found = json.dumps(value if not isinstance(value, str) else value[:41], ensure_ascii=False)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that is too large to show"
    found = found if len(found) <= 40 else found[:37] + "..."
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in found)


class _Object(dict):
    """A JSON object that remembers a key that it has twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.twice = None if len(self) == len(names) else max(names, key=names.count)
