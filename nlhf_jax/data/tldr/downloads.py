"""Finds the files of TL;DR in a directory, fetches the missing ones if asked, checks their sums.

The directory holds the files side by side (`train.jsonl`, `batch3.json`) or below the paths of
their URLs (`datasets/tldr_3_filtered/train.jsonl`, `dataset/comparisons/batch3.json`). Every
download is recorded beside them in `checksums.tsv`, one line of url, size in bytes and SHA-256
a file. Files with such a line are checked against it before anything is made of them.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence

from etils import epath

from nlhf_jax.data.tldr import files as tldr_files
from nlhf_jax.errors import UserError

CHECKSUMS = "checksums.tsv"
_PIECE = 1 << 20  # bytes
_PATIENCE = 60  # seconds without a byte


def _place(directory: epath.Path, path: str) -> epath.Path | None:
    """Where in `directory` the file is, or None."""
    for candidate in (directory / path.rpartition("/")[2], directory / path):
        if candidate.exists():
            return candidate
    return None


def read_checksums(directory: str | os.PathLike) -> dict[str, tuple[int, str]]:
    """URL -> size and SHA-256, as recorded in `directory`. Raises UserError."""
    file = epath.Path(directory) / CHECKSUMS
    if not file.exists():
        return {}
    found = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) != 3 or not fields[1].isdigit():
            raise UserError(
                f"{file}, line {number}: wanted url, size and SHA-256 with tabs between them, met "
                f"{line[:80]!r}; restore the line, or delete it to trust the file as it is"
            )
        found[fields[0]] = (int(fields[1]), fields[2])
    return found


def _write_checksums(directory: epath.Path, checksums: dict[str, tuple[int, str]]) -> None:
    lines = [f"{url}\t{size}\t{sha256}\n" for url, (size, sha256) in checksums.items()]
    part = directory / f"{CHECKSUMS}.part{os.getpid()}"
    part.write_text("".join(lines))
    part.replace(directory / CHECKSUMS)


def _checksum(file: epath.Path) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            size += len(piece)
            digest.update(piece)
    return size, digest.hexdigest()


def _check(name, met: tuple[int, str], recorded: tuple[int, str], directory: epath.Path) -> None:
    if met != recorded:
        raise UserError(
            f"{name}: has {met[0]} bytes with SHA-256 {met[1]}, but {directory / CHECKSUMS} "
            f"records {recorded[0]} bytes with {recorded[1]}; delete the file to fetch it "
            "again with DOWNLOAD = True, or, to trust it, delete its line there"
        )


def _fetch(url: str, part: epath.Path) -> None:
    """Writes the body of `url` to `part`. Raises UserError."""
    advice = "copy the file to FILES_DIR by other means, or try again"
    try:
        with (
            urllib.request.urlopen(url, timeout=_PATIENCE) as answer,
            part.open("wb") as file,
        ):
            expected, size, start = answer.headers.get("Content-Length"), 0, b""
            while piece := answer.read(_PIECE):
                start = start or piece.lstrip()[:1]
                size += len(piece)
                file.write(piece)
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{url}: the server answers {error.code} {error.reason}; {advice}"
        ) from None
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: cannot download it: {reason}; {advice}") from None
    if expected is not None and size != int(expected):
        raise UserError(f"{url}: the download ended after {size} of {expected} bytes; try again")
    if start != b"{":
        what = "a page of HTML" if start == b"<" else f"something that begins with {start!r}"
        raise UserError(f"{url}: the server sent {what}, wanted JSON lines; {advice}")


def _download(url: str, directory: epath.Path) -> epath.Path:
    """Fetches and records one file, which has its name only when it is whole and checked."""
    file = directory / url.rpartition("/")[2]
    part = directory / f"{file.name}.part{os.getpid()}"  # the process's own: two may fetch at once
    try:
        _fetch(url, part)
        met, recorded = _checksum(part), read_checksums(directory)
        if url in recorded:
            _check(url, met, recorded[url], directory)
        else:
            _write_checksums(directory, {**recorded, url: met})
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def files(
    directory: epath.Path,
    paths: Sequence[str],
    download: bool,
    base_url: str = tldr_files.BASE_URL,
) -> list[epath.Path]:
    """The files of the URLs `{base_url}/{path}`, in the order of `paths`.

    With `download` those that `directory` lacks are fetched into it; without, nothing is. Raises
    UserError: for all missing files at once, and at the first that is not what was recorded.
    """
    directory = epath.Path(directory)
    try:
        found = {path: _place(directory, path) for path in paths}
        missing = [path for path in paths if found[path] is None]
        if missing and not download:
            names = ", ".join(path.rpartition("/")[2] for path in missing)
            raise UserError(
                f"{directory}: {len(missing)} of {len(paths)} files are not there: {names}; set "
                f"FILES_DIR to where they are, or DOWNLOAD = True to fetch them from {base_url} "
                "(for votes, BATCHES may name fewer)"
            )
        recorded = read_checksums(directory)
        for path, file in found.items():
            url = f"{base_url}/{path}"
            if file is not None and url in recorded:
                _check(file, _checksum(file), recorded[url], directory)
        if missing:
            directory.mkdir(parents=True, exist_ok=True)
        for path in missing:
            found[path] = _download(f"{base_url}/{path}", directory)
    except OSError as error:
        raise UserError(f"{directory}: cannot use the files: {error.strerror or error}") from None
    return [found[path] for path in paths]
