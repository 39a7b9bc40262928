"""The stages of a chain, as its gin file lists them: see `nlhf_jax.jobs.chain`."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nlhf_jax import configuration
from nlhf_jax.errors import UserError

# Where each job's function is; `report` is about the whole chain and has no configuration.
JOBS = {
    "train": "nlhf_jax.jobs:train",
    "evaluate": "nlhf_jax.jobs:evaluate",
    "data": "nlhf_jax.jobs:train_vocabulary",
    "games": "nlhf_jax.jobs:games",
    "exploit": "nlhf_jax.jobs.exploiting:exploit",
    "exploitability": "nlhf_jax.jobs.exploiting:exploitability",
    "comparison": "nlhf_jax.jobs.comparing:comparison",
    "styles": "nlhf_jax.jobs.styles:styles",
    "report": "nlhf_jax.report.writing:write_report",
}
REFERENCE = "stage:"
_KEYS = ("name", "job", "gin_file", "macros", "when", "instead")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One entry of `chain.run.stages`.

    Attributes:
      name: of the stage and its directory.
      job: one of `JOBS`.
      gin_files: the stage's configuration; none for a report.
      macros: values of macros in those files.
    """

    name: str
    job: str
    gin_files: tuple[str, ...] = ()
    macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse_stages(entries: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The stages that run; one whose `when` is false is left out, and its `instead` stands in.

    Raises UserError for an entry that is malformed.
    """
    stages: list[Stage] = []
    stand_ins: dict[str, str] = {}  # of stages that are left out
    for number, entry in enumerate(entries, start=1):
        where = f"chain.run.stages, entry {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where} is {entry!r} but must be a dict with 'name' and 'job'")
        for key in entry:
            if key not in _KEYS:
                raise UserError(
                    f"{where} has the key {key!r} but only {', '.join(map(repr, _KEYS))} mean "
                    "something"
                )
        for key in ("name", "job"):
            if key not in entry:
                raise UserError(f"{where} has no {key!r}")
        name, job = entry["name"], entry["job"]
        if not re.fullmatch(r"\w[\w-]*", str(name)):
            raise UserError(f"{where}: {name!r} cannot name a stage, use letters, digits, _ and -")
        if name in [stage.name for stage in stages]:
            raise UserError(f"{where}: there is a stage {name!r} before it already")
        if job not in JOBS:
            raise UserError(
                f"{where}: the job of {name!r} is {job!r} but must be one of {', '.join(JOBS)}"
            )
        macros = _with_stand_ins(entry.get("macros") or {}, stand_ins)
        if not entry.get("when", True):
            stand_ins[name] = _with_stand_ins(f"{REFERENCE}{entry.get('instead')}", stand_ins)
            continue
        files = entry.get("gin_file", ())
        files = (files,) if isinstance(files, str) else tuple(files)
        stages.append(Stage(name, job, files, macros))
    if not stages:
        raise UserError("chain.run.stages is empty: there is nothing to run")
    return stages


def _with_stand_ins(value: Any, stand_ins: Mapping[str, str]) -> Any:
    """A value in which a stage that stands in is referred to in the place of one left out."""
    if isinstance(value, Mapping):
        return {key: _with_stand_ins(item, stand_ins) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_stand_ins(item, stand_ins) for item in value]
    if isinstance(value, str) and value.startswith(REFERENCE):
        name = stage_of(value)
        return stand_ins.get(name, REFERENCE + name) + value[len(REFERENCE + name) :]
    return value


def with_shared_macros(
    stages: Sequence[Stage], macros: Mapping[str, Any], search_paths: Sequence[str]
) -> list[Stage]:
    """The stages, each with those of the macros that its gin files speak of.

    Raises UserError for a macro that none speaks of.
    """
    unknown, found = set(macros), []
    for stage in stages:
        with naming(stage):
            configuration.parse(stage.gin_files, search_paths=search_paths, complete=False)
        known = {name: macros[name] for name in macros if configuration.speaks_of(name)}
        unknown -= set(known)
        found.append(dataclasses.replace(stage, macros={**known, **stage.macros}))
    if unknown:
        raise UserError(
            f"chain.run.macros has {', '.join(sorted(unknown))}, but no stage's gin file speaks of "
            "it"
        )
    return found


@contextlib.contextmanager
def naming(stage: Stage) -> Iterator[None]:
    """Inside, errors say which stage they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stage {stage.name!r}: {error}") from error


def stage_of(reference: str) -> str:
    """The stage's name in `stage:NAME`, `stage:NAME/path/inside` or `stage:NAME#average`."""
    return re.split("[/#]", reference.removeprefix(REFERENCE))[0]
