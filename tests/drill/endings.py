"""What a run leaves behind, as names and values that two ends are compared by.

Times, and what only says how a run went (its attempts' event files, its timing), are left out.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax looks for files that we do not write
# Of JSON: times, and where a directory was before it was copied.
_LEFT_OUT = {"seconds", "started", "steps_per_second", "saved_at", "time", "workdir"}
STEPS = "steps that stay"
_NOT_COMPARED = (
    "commit_success.txt",  # Orbax's, with the time
    "_CHECKPOINT_METADATA",
    "timing.json",
    "stages.json",
    "report.html",  # with times, as report.md; what they say is in report.json
    "report.md",
)


def ending(workdir: Path) -> dict[str, str]:
    """{what: its value, or a hash of it} of everything below `workdir`."""
    found: dict[str, str] = {}
    for path in sorted(workdir.rglob("*")) if workdir.exists() else []:
        inside = path.relative_to(workdir).as_posix()
        if path.name == "checkpoints" and path.is_dir():
            found |= {f"{inside}: {name}": value for name, value in _checkpoints(path, workdir)}
        elif "/incomplete." in inside:
            continue  # what a killed build of TFDS leaves, and nobody reads
        elif "checkpoints/" not in inside and path.is_file():
            found |= _file(path, inside, workdir)
    return found


def differences(whole: dict[str, str], end: dict[str, str]) -> list[str]:
    """Names of what `end` lacks of `whole`, has beyond it, or has with another value.

    More checkpoints may stay than must: a run may have been killed before it removed one.
    """
    differ = [name for name in whole.keys() | end.keys() if whole.get(name) != end.get(name)]
    return sorted(name for name in differ if not (STEPS in name and _all_there(whole, end, name)))


def _all_there(whole: dict[str, str], end: dict[str, str], name: str) -> bool:
    wanted, found = (set(json.loads(one.get(name, "[]"))) for one in (whole, end))
    return wanted <= found


def _file(path: Path, inside: str, workdir: Path) -> dict[str, str]:
    if "tfevents" in path.name or path.name == ".lock":
        return {}
    if path.name in _NOT_COMPARED:
        return {inside: "is there" if path.stat().st_size else "is empty"}
    if ".tfrecord" in path.name:  # protocol buffers have no order
        return {inside: str(path.stat().st_size)}
    content = path.read_bytes().replace(str(workdir).encode(), b"WORKDIR")
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in content.decode().splitlines()]
        rows = [row for row in rows if row["split"] != "restarts"]  # what it was disturbed by
        return {f"{inside}: {number}": _timeless(row) for number, row in enumerate(rows)}
    if path.suffix == ".json":
        with contextlib.suppress(ValueError):  # a damaged one
            return {inside: _timeless(json.loads(content))}
    if path.suffix == ".gin":  # where its lines are broken hangs on how long paths are
        content = re.sub(rb"[\\\s]+", b" ", content)
    return {inside: hashlib.sha256(content).hexdigest()}


def _timeless(value: Any) -> str:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(one) for key, one in value.items() if key not in _LEFT_OUT}
        return [without(one) for one in value] if isinstance(value, list) else value

    text = json.dumps(without(value), sort_keys=True)
    return text if len(text) < 200 else hashlib.sha256(text.encode()).hexdigest()


def _checkpoints(directory: Path, workdir: Path) -> Iterator[tuple[str, str]]:
    """The last step with all its arrays, and what else stands in the directory."""
    steps = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    for path in directory.iterdir():
        if not path.name.isdigit():
            yield re.sub(r"\d+", "#", path.name), "is left"
        elif not (path / "commit_success.txt").exists():
            yield path.name, "is left in parts"
    if not steps:
        return
    last = directory / str(steps[-1])
    yield STEPS, str(steps)
    yield "last step", str(steps[-1])
    description = (last / "description" / "metadata").read_text().replace(str(workdir), "WORKDIR")
    # What was found about the step after a stop stands beside it, and replaces the same entries.
    later = json.loads(_content(last / "evaluation.json", '{"content": "{}"}'))["content"]
    yield "description", _timeless(json.loads(description) | json.loads(later))
    for name, array in arrays(last / "state").items():
        text = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        yield name, hashlib.sha256(text).hexdigest()


def _content(path: Path, instead: str) -> str:
    return path.read_text() if path.exists() else instead


def arrays(state: Path) -> dict[str, np.ndarray]:
    """All arrays of a saved state, read by Orbax alone."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(state.absolute()).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = reader.restore(state.absolute(), args=ocp.args.PyTreeRestore(restore_args=how))
    leaves, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {
        jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(leaf)
        for key, leaf in leaves
    }
