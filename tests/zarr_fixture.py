"""Reads the parameters of a small native T5X checkpoint: just enough for the golden fixtures."""

import gzip
import json
from pathlib import Path

import numpy as np


def read_native_t5x_params(directory: Path) -> dict:
    """The `target` tree of a checkpoint with one float32 gzip chunk per array."""
    params: dict = {}
    for array in sorted(directory.glob("target.*")):
        spec = json.loads((array / ".zarray").read_text())
        assert spec["chunks"] == spec["shape"] and spec["dtype"] == "<f4"
        chunk = gzip.decompress((array / ".".join("0" * len(spec["shape"]))).read_bytes())
        *parents, name = array.name.removeprefix("target.").split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.frombuffer(chunk, np.float32).reshape(spec["shape"])
    return params
