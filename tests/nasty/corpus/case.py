"""A bad input."""

import dataclasses
from collections.abc import Iterator

from tests.nasty.readers import READERS, Files


@dataclasses.dataclass(frozen=True)
class Case:
    """`words` are in the sentence of a refusal; `None` in `files` takes a good file away."""

    reader: str
    name: str
    files: dict[str, bytes | None]
    wanted: str
    words: str = ""

    def all_files(self) -> Files:
        found = {**READERS[self.reader].good(), **self.files}
        return {name: content for name, content in found.items() if content is not None}


def one(reader: str, wanted: str, table: dict[str, tuple[bytes, str] | bytes]) -> Iterator[Case]:
    """Cases of a reader's main file."""
    for name, entry in table.items():
        content, words = entry if isinstance(entry, tuple) else (entry, "")
        yield Case(reader, name, {READERS[reader].main_file: content}, wanted, words)
