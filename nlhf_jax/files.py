"""Files that appear whole or not at all, whatever moment the process is killed at."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes `content`, text as UTF-8, in place of what is at `path`; makes the directory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(partial, path)


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """`write_whole` of `content` as JSON."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
