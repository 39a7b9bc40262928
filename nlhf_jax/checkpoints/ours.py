"""Our own checkpoints on disk: finding a step, and reading what it holds."""

import base64
import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from nlhf_jax.checkpoints.arrays import flattened, nested
from nlhf_jax.checkpoints.description import check_description
from nlhf_jax.checkpoints.integrity import (
    CHECKSUMS,
    Damage,
    check_checksums,
    check_state_files,
    is_sealed,
    read_guarded,
)
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.checkpoints.zarr import open_zarr, orbax_store
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.files import absolute

DIRECTORY = "checkpoints"  # inside a stage's directory
STATE = "state"  # inside a step's directory
DESCRIPTION = "description"
EVALUATION = "evaluation.json"  # what was found about the step after it was saved
_NOT_PARAMS = ("step", "opt_state")


def read(path: str, what: str = "params", best: bool = False) -> StoredCheckpoint:
    """Opens one of our checkpoints; its arrays are read when they are placed.

    Args:
      path: a stage's directory, its `checkpoints/` directory, or one step's directory.
      what: "params", or the name of another parameter set that the run keeps, such as Nash-EMA's
        "average".
      best: of several steps, the best by the run's metric instead of the latest.

    Raises:
      UserError: the directory is missing, holds no checkpoint, or the checkpoint is damaged.
    """
    step_path = step_directory(epath.Path(path), best)
    with damage_is_one_error(step_path):
        check_step(step_path)
        description = read_step_description(step_path)
        saved = saved_tree(step_path)
        kept = [name for name in saved if flattened(saved[name]) and name not in _NOT_PARAMS]
    if what not in kept:
        others = ", ".join(f"#{name}" for name in sorted(kept) if name != "params")
        raise UserError(
            f"the checkpoint {step_path} has no #{what}: "
            + (f"there is {others}, and #best" if others else "there is only #best")
        )
    names = flattened(saved[what])
    with damage_is_one_error(step_path):
        store = orbax_store(step_path / STATE)
        directories = {name: f"{what}.{name.replace('/', '.')}" for name in names}
        params = nested(open_zarr(store, directories, str(step_path)))
        vocabulary_bytes = base64.b64decode(description["vocabulary"]["base64"])
        if hashlib.sha256(vocabulary_bytes).hexdigest() != description["vocabulary"]["sha256"]:
            raise ValueError("the vocabulary inside does not match its checksum")
    return StoredCheckpoint(
        path=str(step_path),
        format="nlhf",
        params=params,
        model=description["model"],
        step=description["step"],
        vocabulary_bytes=vocabulary_bytes,
        description=description,
    )


def read_description(path: str, *, best: bool = False) -> dict[str, Any]:
    """What a checkpoint says about itself, without its arrays; arguments as `read`'s."""
    return read_step_description(step_directory(epath.Path(path), best))


def _damaged(path: epath.Path, error: Exception) -> UserError:
    before = (
        [step for step in whole_steps(path.parent) if step < int(path.name)]
        if (path.name.isdigit())
        else []
    )
    advice = f", or use {path.parent / str(before[-1])}, the step before it" if before else ""
    return UserError(
        f"the checkpoint {path} is damaged ({first_line(error)}): copy it again from where it came "
        f"from{advice}"
    )


# --- finding -------------------------------------------------------------------------------------


def whole_steps(directory: epath.Path) -> list[int]:
    """Steps under their final name in a `checkpoints/` directory, ascending."""
    if not directory.is_dir():
        return []
    return sorted(
        int(child.name)
        for child in directory.iterdir()
        if child.name.isdigit() and child.is_dir() and ocp.path.step.is_checkpoint_finalized(child)
    )


def latest_step(workdir: str) -> int | None:
    """The last step of a training with a whole checkpoint, or None."""
    directory = epath.Path(workdir) / DIRECTORY
    steps = whole_steps(directory)
    return steps[-1] if steps else None


def step_directory(path: epath.Path, best: bool) -> epath.Path:
    if not path.exists():
        raise UserError(f"the checkpoint directory {path} does not exist")
    if not path.is_dir():
        raise UserError(
            f"{path} is a file, not a checkpoint: give the directory of a training stage, its "
            f"{DIRECTORY}/ directory, or one step's directory"
        )
    path = absolute(path)
    if (path / STATE).is_dir() or (path / DESCRIPTION).is_dir():
        return path
    directory = path / DIRECTORY if (path / DIRECTORY).is_dir() else path
    steps = whole_steps(directory)
    if not steps:
        raise UserError(_nothing_inside(path))
    if not best:
        return directory / str(steps[-1])
    return directory / str(_best_step(directory, steps))


def _nothing_inside(path: epath.Path) -> str:
    children = sorted(path.iterdir())
    stages = [child.name for child in children if (child / DIRECTORY).is_dir()]
    if stages:
        return (
            f"{path} is not one checkpoint but holds those of several stages: "
            f"give one of {', '.join(str(path / name) for name in stages)}"
        )
    if not children or path.name == DIRECTORY or (path / DIRECTORY).is_dir():
        return f"{path} holds no checkpoint: no step was saved there to the end"
    return (
        f"{path} is not a checkpoint: it has neither {DIRECTORY}/ nor numbered step directories "
        "inside"
    )


def _best_step(directory: epath.Path, steps: list[int]) -> int:
    """The best of `steps` by the metric that the run named."""
    best = read_step_description(directory / str(steps[-1]))["best"]
    metrics = {}
    for step in steps:
        with contextlib.suppress(UserError):  # half deleted by a run that was killed meanwhile
            metrics[step] = read_step_description(directory / str(step))["metrics"]
    found = best_step(metrics, best)
    if found is None:
        raise UserError(
            f"no best checkpoint in {directory}: none of them has the metric {best['metric']!r}; "
            "use the latest, or train with best_metric set"
        )
    return found


def best_step(metrics: Mapping[int, Mapping[str, float]], best: Mapping[str, Any]) -> int | None:
    """The step whose metrics are best, the later one of equals; None if none has the metric.

    Args:
      metrics: by step.
      best: as in a description: the name of the "metric", and the "mode", "max" or "min".
    """
    sign = 1 if best["mode"] == "max" else -1
    scored = [
        (sign * m[best["metric"]], step) for step, m in metrics.items() if best["metric"] in m
    ]
    return max(scored)[1] if scored else None


# --- reading -------------------------------------------------------------------------------------


def check_step(path: epath.Path, part: int = 0, of: int = 1) -> None:
    """Raises Damage, with the file's name, unless all files of a step are as they were written.

    Those of release 0.1 have no checksums: their index, sizes and JSON are looked at. Several
    processes may share the work, as in `check_checksums`.
    """
    if (path / EVALUATION).exists():
        read_guarded(path / EVALUATION)
    if is_sealed(path):
        return check_checksums(path, part, of)
    if _description(path).get("checksums"):
        raise Damage(f"{CHECKSUMS} is missing")
    try:
        check_state_files(path / STATE)
    except ValueError as error:  # TensorStore's are of no class of their own.
        raise Damage(first_line(error)) from error


def read_step_description(path: epath.Path) -> dict[str, Any]:
    with damage_is_one_error(path):
        return _description(path)


def _description(path: epath.Path) -> dict[str, Any]:
    if not (path / DESCRIPTION).is_dir():
        raise Damage(f"{DESCRIPTION} is missing")
    try:
        description = ocp.JsonCheckpointHandler().restore(path / DESCRIPTION)
    except (FileNotFoundError, ValueError) as error:
        raise Damage(f"{DESCRIPTION} cannot be read: {first_line(error)}") from error
    for key in ("kind", "model", "vocabulary", "step", "data_position", "metrics", "best"):
        if not isinstance(description, dict) or key not in description:
            raise Damage(f"{key!r} is missing in its {DESCRIPTION}")
    check_description(description)
    if (path / EVALUATION).exists():
        description |= read_guarded(path / EVALUATION)
    return description


@contextlib.contextmanager
def damage_is_one_error(path: epath.Path) -> Iterator[None]:
    """Missing or cut files, whoever finds them, become one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def saved_tree(path: epath.Path) -> dict[str, Any]:
    """Shapes and dtypes of everything in the state, as nested dicts."""
    return ocp.PyTreeCheckpointHandler().metadata(path / STATE).tree
