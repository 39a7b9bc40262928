"""Whether the files of a saved state are all there and as long as they must be.

Orbax reads all arrays at once; where files are missing or cut, its concurrent reads end in log
lines, tracebacks from threads and waits. So the files are looked at first: the index of the arrays
(TensorStore's OCDBT: a manifest and a B-tree) says which bytes of which file hold them.
"""

import json

import tensorstore as ts
from etils import epath

_JSON = ("_METADATA", "_sharding", "array_metadatas/*")


def check_state_files(state: epath.Path) -> None:
    """Raises ValueError or OSError, with the file's name, unless all files of `state` are whole.

    Reads the index and the small JSON files; of the arrays' files only the sizes.
    """
    for pattern in _JSON:
        for path in state.glob(pattern):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path.relative_to(state)} is no whole JSON") from error
    if not (state / _JSON[0]).exists():
        raise ValueError(f"{_JSON[0]} is missing")
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
            raise ValueError(f"{name} has {sizes[name]} bytes of at least {needed}")
        if kind == "btreenode":
            for entry in ts.ocdbt.dump(store, location).result()["entries"]:
                locations += [entry[key] for key in ("location", "indirect_value") if key in entry]


def _size(path: epath.Path, name: str) -> int:
    if not path.exists():
        raise ValueError(f"{name} is missing")
    return path.stat().length
