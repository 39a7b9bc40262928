"""Our own checkpoints on disk: finding a step, and reading what it holds."""

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from nlhf_jax.checkpoints.arrays import flattened, nested
from nlhf_jax.checkpoints.integrity import check_state_files
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
    description = read_step_description(step_path)
    with damage_is_one_error(step_path):
        check_state_files(step_path / STATE)
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
    return UserError(
        f"the checkpoint {path} is damaged, files are missing or cut ({first_line(error)}): "
        "copy it again from where it came from, or delete this directory to use the step before it"
    )


# --- finding -------------------------------------------------------------------------------------


def _whole_steps(directory: epath.Path) -> list[int]:
    """Steps under their final name in a `checkpoints/` directory, ascending."""
    return sorted(
        int(child.name)
        for child in directory.iterdir()
        if child.name.isdigit() and child.is_dir() and ocp.path.step.is_checkpoint_finalized(child)
    )


def latest_step(workdir: str) -> int | None:
    """The last step of a training with a whole checkpoint, or None."""
    directory = epath.Path(workdir) / DIRECTORY
    steps = _whole_steps(directory) if directory.is_dir() else []
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
    steps = _whole_steps(directory)
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
    """The best of `steps` by the metric that the run named, the later one of equals."""
    best = read_step_description(directory / str(steps[-1]))["best"]
    scored = []
    for step in steps:
        try:
            metrics = read_step_description(directory / str(step))["metrics"]
        except UserError:
            continue  # A run killed while it deleted an old step leaves a part of that one behind.
        if best["metric"] in metrics:
            scored.append((metrics[best["metric"]], step))
    if not scored:
        raise UserError(
            f"no best checkpoint in {directory}: none of them has the metric {best['metric']!r}; "
            "use the latest, or train with best_metric set"
        )
    sign = 1 if best["mode"] == "max" else -1
    return max(scored, key=lambda pair: (sign * pair[0], pair[1]))[1]


# --- reading -------------------------------------------------------------------------------------


def read_step_description(path: epath.Path) -> dict[str, Any]:
    try:
        description = ocp.JsonCheckpointHandler().restore(path / DESCRIPTION)
        for key in ("kind", "model", "vocabulary", "step", "data_position", "metrics", "best"):
            if key not in description:
                raise ValueError(f"{key!r} is missing in its description")
        if (path / EVALUATION).exists():
            description |= json.loads((path / EVALUATION).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
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
