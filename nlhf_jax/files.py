"""Files of a run, local or in a bucket, that appear whole or not at all.

All paths of a work directory are `epath.Path`s, which speak to a bucket (`gs://...`) as to a disk.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is one of object storage, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes `content`, text as UTF-8, in place of what is at `path`; makes the directory.

    Whatever moment the process is killed at, the old content or the new one is there: a bucket has
    an object once all of it has arrived, a disk a file under its name once that is written.
    """
    target = epath.Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if in_bucket(target):
        target.write_bytes(data)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / (target.name + ".partial")
    partial.write_bytes(data)
    partial.replace(target)


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """`write_whole` of `content` as JSON."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
