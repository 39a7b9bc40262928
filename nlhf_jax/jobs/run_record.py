"""What a training is known by, in `WORKDIR/run.json`: it goes on as the same, or says what differs.

The record has every setting, what each checkpoint was that it began from, and hashes of the data
and the vocabulary. It is written before the first step. Once there is a checkpoint, a training that
differs from the record is refused, unless the user accepts that. Then the record has what holds
now, and `changes` what held before, and until which step:

    {"step": 300, "setting": "TAU", "then": 0.1, "now": 0.2, "accepted": true}

A change that nobody had to accept was free, but shows in the result.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from etils import epath

from nlhf_jax import __version__, checkpoints, processes
from nlhf_jax.configuration import Settings
from nlhf_jax.errors import UserError
from nlhf_jax.files import write_json
from nlhf_jax.metrics import Progress
from nlhf_jax.raters import KINDS

FILE_NAME = "run.json"

# What may change in a run, with all that is set there alone.
FREE = frozenset(
    {
        # Where it runs, and in how many parts: the same sums in another order.
        "jobs.train.partitioner",
        "jobs.train.microbatches",
        *(f"builders.{kind}.remat" for kind in ("supervised", "reading", "policy", *KINDS)),
        # What it shows and keeps. Which steps are kept decides which may be the best one, not how
        # good each is: that is measured by one metric on the same data, or the run is another.
        "jobs.train.log_period",
        "jobs.train.eval_period",
        "jobs.train.checkpoint_period",
        "jobs.train.keep_checkpoints",
        "jobs.train.tracking",
        "jobs.train.tracking_project",
        # Where it ends if it goes wrong.
        "jobs.train.guards",
        # How long it is.
        "jobs.train.patience",
        # What else is set to the same macro, such as the end of a decay, is noted.
        "jobs.train.train_steps",
        # Known by what they come to: the arrays.
        "jobs.train.data",
        "jobs.train.eval_examples",
        # Not the run's.
        "jobs.train.workdir",
        "jobs.train.configured",
        "jobs.train.accept_changes",
    }
)
_STEPS = "jobs.train.train_steps"
_BEST = "jobs.train.best_metric"
_SCHEDULE = "optimizers.schedule"
_ENDLESS = ("constant", "rsqrt")  # schedules without an end
_LIBRARIES = ("jax", "numpy", "optax", "orbax-checkpoint")
_MISSING = "not there"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing by which two runs differ.

    Attributes:
      setting: as a user names it.
      then, now: values of JSON.
      accepted: whether it takes the user's word to go on with it.
    """

    setting: str
    then: Any
    now: Any
    accepted: bool = True


def describe_run(
    workdir: str | os.PathLike,
    settings: Settings,
    opened: Mapping[str, tuple[str, str]],
    data: Mapping[str, Mapping[str, np.ndarray]],
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a run as it is now.

    Args:
      workdir: its directory, which may be moved with those around it.
      settings: those that reach the job.
      opened: of checkpoints, the parameter that names one -> (source, what it means now).
      data: split -> its arrays.
      description: what the run's own checkpoints say about themselves.
    """
    template = description["rater_template"]
    return {
        "workdir": os.fspath(workdir),
        **_software(),
        "settings": settings.values,
        "free": settings.free,
        "macros": settings.macros,
        "checkpoints": {name: _checkpoint(*found) for name, found in opened.items()},
        "data": {split: _data(arrays) for split, arrays in data.items()},
        "vocabulary": description["vocabulary"]["sha256"],
        "rater_template": template and hashlib.sha256(json.dumps(template).encode()).hexdigest(),
    }


class Opened:
    """The checkpoints of a job that is done anew each time, such as a tournament."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    def path(self, source: str) -> str:
        """What `source` means now, see `checkpoints.resolve`; the same whenever it is asked for."""
        if source not in self._paths:
            self._paths[source] = processes.from_first(lambda: checkpoints.resolve(source))
        return self._paths[source]

    def write(self, workdir: str | os.PathLike) -> None:
        """Writes them to `workdir/run.json`."""
        found = [_checkpoint(source, path) for source, path in self._paths.items()]
        write_json(epath.Path(workdir) / FILE_NAME, {**_software(), "checkpoints": found})


def begin(
    workdir: str | os.PathLike, now: Mapping[str, Any], settings: Settings, accept: bool
) -> None:
    """Compares a run with its record, writes what holds from here on, and says what is new.

    All processes of a run come here, and must have the same of everything.

    Args:
      workdir: its directory, in which a run of release 0.1 has no record.
      now: from `describe_run`.
      settings: what is a default in the code.
      accept: go on with whatever differs.

    Raises:
      UserError: the run is not the recorded one, with a table, or the record cannot be read.
    """
    for name, found in now.items():
        text = json.dumps(found, sort_keys=True, default=str)
        processes.check_same(f"what {name} is", hashlib.sha256(text.encode()).hexdigest())
    processes.from_first(lambda: _begin(epath.Path(workdir) / FILE_NAME, now, settings, accept))


def _begin(path: epath.Path, now: Mapping[str, Any], settings: Settings, accept: bool) -> None:
    workdir = path.parent
    step = checkpoints.latest_step(os.fspath(workdir))
    if step is None:  # nothing goes on
        write_json(path, {**now, "changes": []})
        return
    progress = Progress(path.parent.name, step)
    then = _read(path)
    if then is None:
        write_json(path, {**now, "recorded_from": step, "changes": []})
        progress.message(
            f"nothing says with which settings and data this run was begun; from step {step} on "
            f"{path} does"
        )
        return
    found = differences(then, now, settings)
    refused = [one for one in found if one.accepted]
    if refused and not accept:
        raise UserError(
            f"{workdir} holds another run at step {step} than this command goes on with: set back "
            f"what differs, use another --workdir, or accept it with --accept_changes\n"
            f"{table(refused)}"
        )
    # Where a damaged checkpoint was left behind, what was changed after it holds from here on.
    changes = [{**one, "step": min(one["step"], step)} for one in then["changes"]]
    changes += [{"step": step, **dataclasses.asdict(one)} for one in found]
    write_json(path, {**then, **now, "changes": changes})
    for one in found:
        progress.message(f"from step {step} on {one.setting} is {one.now}, was {one.then}")


def differences(
    then: Mapping[str, Any], now: Mapping[str, Any], settings: Settings
) -> list[Difference]:
    """What differs between two records and is not free, or is free but shows in the result."""
    found = [*_settings(then, now, settings.defaults), *_checkpoints(then, now)]
    splits = ["train"]
    if then["settings"].get(_BEST) or now["settings"].get(_BEST):
        splits.append("validation")  # which chooses the best step
    for split in splits:
        found.append(Difference(f"{split} data", then["data"].get(split), now["data"].get(split)))
    for name in ("vocabulary", "rater_template"):
        old, new = (record[name] and f"sha256 {record[name][:12]}" for record in (then, now))
        found.append(Difference(name.replace("_", "'s "), old, new))
    found = [one for one in found if one.then != one.now]
    return [one for place, one in enumerate(found) if one not in found[:place]]


def table(found: Sequence[Difference]) -> str:
    """Lines with what differs, and its values then and now."""
    rows = [("", "then", "now"), *((one.setting, str(one.then), str(one.now)) for one in found)]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"  {a:{first}}  {b:{second}}  {c}" for a, b, c in rows)


def differing_lines(old: str, new: str) -> list[Difference]:
    """The settings that differ between two gin files as gin writes them."""
    before, after = _lines(old), _lines(new)
    return [
        Difference(name, before.get(name, "not set"), after.get(name, "not set"))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _lines(config: str) -> dict[str, str]:
    """{name: value} of such a file, where a value may go on in indented lines."""
    settings: dict[str, str] = {}
    name = None
    for line in config.splitlines():
        if match := re.match(r"([^\s#][^=]*?) = (.*)", line):
            name = match[1]
            settings[name] = match[2].rstrip("\\").strip()
        elif name is not None and line.startswith(" "):
            settings[name] += line.strip()
        else:
            name = None
    return settings


def _settings(
    then: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Difference]:
    old, new = then["settings"], now["settings"]
    macros = then["macros"] | now["macros"]
    opened = then["checkpoints"].keys() | now["checkpoints"].keys()
    in_both = {_function(name) for name in old} & {_function(name) for name in new}
    for name in sorted(old.keys() | new.keys()):
        function = _function(name)
        if function not in in_both or name.removeprefix(f"{function}.") in opened:
            continue  # what names the function differs; checkpoints are compared by what they hold
        if name not in old and name in defaults and new[name] == defaults[name]:
            continue  # of a newer release, and nobody has set it
        recorded = name in old and name in new
        accepted = recorded or then["release"] == now["release"]
        if macros.get(name) is not None and macros.get(name) == macros.get(_STEPS):
            accepted = False
            if function.split("/")[-1] == _SCHEDULE and new.get(f"{function}.kind") in _ENDLESS:
                continue
        before = _moved(old.get(name, _MISSING), then["workdir"], now["workdir"])
        yield Difference(macros.get(name, name), before, new.get(name, _MISSING), accepted)


def _checkpoints(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    macros = {name.split(".")[-1]: macro for name, macro in now["macros"].items()}
    for name in sorted(then["checkpoints"].keys() | now["checkpoints"].keys()):
        old, new = (record["checkpoints"].get(name, {}) for record in (then, now))
        if old and new and None in (old["identity"], new["identity"]):
            # It is gone, and if the run needs it, it says so itself.
            same = _moved(old["source"], then["workdir"], now["workdir"]) == new["source"]
        else:
            same = old.get("identity") == new.get("identity")
        if not same:
            paths = [record.get("path") for record in (old, new)]
            if paths[0] == paths[1]:
                paths = [
                    f"{record['path']} (sha256 {record['identity'][:12]})" for record in (old, new)
                ]
            yield Difference(macros.get(name, name), *paths)


def _function(setting: str) -> str:
    return setting.rpartition(".")[0]


def _moved(value: Any, then: str, now: str) -> Any:
    """A path beside the work directory, as it is if that was moved with what is around it."""
    before, after = (os.path.dirname(workdir.rstrip("/")) for workdir in (then, now))
    if before and isinstance(value, str) and value.startswith(f"{before}/"):
        return os.path.join(after, value.removeprefix(f"{before}/"))
    return value


def _software() -> dict[str, Any]:
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    return {"release": __version__, "libraries": libraries}


def _checkpoint(source: str, path: str) -> dict[str, str | None]:
    """Without an identity if it cannot be read: that is an error of whoever has to."""
    try:
        identity = checkpoints.identity(path)
    except UserError:
        identity = None
    return {"source": source, "path": path, "identity": identity}


def _data(arrays: Mapping[str, np.ndarray]) -> str:
    """How many rows, and a hash of them in their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.data)
    return f"{len(next(iter(arrays.values())))} rows, sha256 {digest.hexdigest()[:16]}"


def _read(path: epath.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        for name in ("settings", "checkpoints", "data", "changes"):
            record[name]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the record of a run: put it back, or delete it to go on without "
            "knowing whether this is the run that was begun"
        ) from error
    return record
