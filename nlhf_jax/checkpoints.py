"""Checkpoints that describe themselves: Orbax for the arrays, JSON for what they mean.

One step's directory, `WORKDIR/checkpoints/STEP/`, holds everything that is needed to continue the
run or to use the network: the training state, the position in the data, the model's sizes, the
vocabulary itself. Orbax writes into a temporary directory and renames it when all is on disk, so a
directory under its final name is whole.

All array and directory access goes through Orbax and `epath`, so a path may be a bucket.
"""

import base64
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from nlhf_jax.checkpoint_files import check_state_files
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.stored_params import flattened, nested, open_zarr, orbax_store, read_all

DIRECTORY = "checkpoints"  # inside a stage's directory
_STATE = "state"
_DESCRIPTION = "description"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint's parameters and what they are.

    Attributes:
      params: nested dict as the model made it: NumPy arrays, or `stored_params.StoredArray` where
        it was opened only.
      description: see `describe`; plus `step`, `metrics`, `data_position` and `nlhf_jax`, the
        version.
      vocabulary_bytes: the SentencePiece model that the network was trained with.
      step: training steps taken.
      path: the step's directory.
    """

    params: Any
    description: dict[str, Any]
    vocabulary_bytes: bytes
    step: int
    path: str


def describe(
    *,
    kind: str,
    model: Mapping[str, Any],
    feature_lengths: Mapping[str, int],
    vocabulary_bytes: bytes,
    rater_template: Any = None,
    rater_labels: Any = None,
) -> dict[str, Any]:
    """What a checkpoint says about itself, as a JSON-able dict.

    Args:
      kind: the learner's kind: "supervised", "preference", "reward" or "policy".
      model: the model's configuration, `dataclasses.asdict(config)`.
      feature_lengths: tokens per feature, the EOS included.
      vocabulary_bytes: the SentencePiece model file's content.
      rater_template: token ids of the template's segments; None where the network rates nothing.
      rater_labels: token ids of "1" and "2"; None where the network has no such labels.
    """
    return {
        "kind": kind,
        "model": dict(model),
        "feature_lengths": dict(feature_lengths),
        "rater_template": rater_template,
        "rater_labels": rater_labels,
        "vocabulary": {
            "sha256": hashlib.sha256(vocabulary_bytes).hexdigest(),
            "base64": base64.b64encode(vocabulary_bytes).decode("ascii"),
        },
    }


class Checkpoints:
    """Saves and restores the state of one training run.

    Args:
      directory: the stage's directory; the steps go to `directory/checkpoints/`.
      keep: how many of the latest checkpoints stay.
      best_metric: name in `metrics` by which one more checkpoint, the best, stays too.
      best_mode: "max" or "min": which value of it is best.
      asynchronous: write in the background; `save` then returns once the arrays are on the host.
      frugal: write with little memory beyond the arrays; slower for many small ones.
    """

    def __init__(
        self,
        directory: str,
        keep: int,
        best_metric: str | None = None,
        best_mode: str = "max",
        asynchronous: bool = True,
        frugal: bool = False,
    ):
        if best_mode not in ("max", "min"):
            raise UserError(f"best_mode is {best_mode!r} but is one of 'max' and 'min'")
        if keep < 1:
            raise UserError(
                f"keep_checkpoints is {keep} but at least 1 is needed to continue a run"
            )
        self.directory = epath.Path(directory).absolute() / DIRECTORY
        self._best = {"metric": best_metric, "mode": best_mode}
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if best_metric is not None:
            worst = -math.inf if best_mode == "max" else math.inf
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics.get(best_metric, worst),
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        # Orbax's own choice of format (OCDBT, zarr, zstd) was measured to be the fastest for small
        # models as well: it packs hundreds of small arrays into a few files. For T5 1.1 Large it
        # took half as much memory again as the arrays, files of their own a third.
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=asynchronous,
                cleanup_tmp_directories=True,
            ),
            item_handlers={
                _STATE: ocp.PyTreeCheckpointHandler(
                    use_ocdbt=not frugal,
                    save_device_host_concurrent_gb=1 if frugal else None,
                ),
                _DESCRIPTION: ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The last step with a whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        description: Mapping[str, Any],
        data_position: Mapping[str, int],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Saves `state` (a pytree of arrays) and everything around it as the checkpoint of `step`.

        `metrics` are floats, among them the one that says which checkpoint is best. The state may
        be donated as soon as this returns.
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        description = {
            **description,
            "step": step,
            "data_position": dict(data_position),
            "metrics": metrics,
            "best": self._best,
            "nlhf_jax": _version(),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.PyTreeSave(
                        state, save_args=jax.tree_util.tree_map_with_path(_save_args, state)
                    ),
                    _DESCRIPTION: ocp.args.JsonSave(description),
                }
            ),
            metrics=metrics or None,
        )

    def restore_latest(self, abstract_state: Any) -> tuple[Any, dict[str, int]] | None:
        """The latest checkpoint as `(state, data_position)`, or None where there is none.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings: where each array goes.

        Raises:
          UserError: the checkpoint is damaged, or belongs to another model or optimizer.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        path = self.directory / str(step)
        description = _read_description(path)
        with _damage_is_one_error(path):
            check_state_files(path / _STATE)
        _check_same_arrays(path, abstract_state)
        with _damage_is_one_error(path):
            state = _restore(path, abstract_state)
        return state, description["data_position"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk under its final name."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets the background threads go."""
        self._manager.wait_until_finished()
        self._manager.close()


def open_checkpoint(path: str, *, what: str = "params", best: bool = False) -> Checkpoint:
    """A checkpoint whose parameters are `stored_params.StoredArray`, not read yet.

    Args:
      path: a stage's directory, its `checkpoints/` directory, or one step's directory.
      what: "params", or "average" for the moving average that Nash-EMA keeps beside them.
      best: of several steps, the best by the run's metric instead of the latest.

    Raises:
      UserError: the directory is missing, holds no checkpoint, or the checkpoint is damaged.
    """
    step_path = _step_directory(epath.Path(path), best)
    description = _read_description(step_path)
    with _damage_is_one_error(step_path):
        check_state_files(step_path / _STATE)
        names = flattened(_saved_tree(step_path)[what])
    if not names:
        raise UserError(
            f"the checkpoint {step_path} has no {what!r}: it was trained without a moving average "
            "of the parameters, so load its 'params' instead"
        )
    with _damage_is_one_error(step_path):
        store = orbax_store(step_path / _STATE)
        directories = {name: f"{what}.{name.replace('/', '.')}" for name in names}
        params = nested(open_zarr(store, directories, str(step_path)))
        vocabulary_bytes = base64.b64decode(description["vocabulary"]["base64"])
        if hashlib.sha256(vocabulary_bytes).hexdigest() != description["vocabulary"]["sha256"]:
            raise ValueError("the vocabulary inside does not match its checksum")
    return Checkpoint(params, description, vocabulary_bytes, description["step"], str(step_path))


def load(path: str, *, what: str = "params", best: bool = False) -> Checkpoint:
    """`open_checkpoint`, with the parameters read into NumPy arrays; for looking at them."""
    found = open_checkpoint(path, what=what, best=best)
    return dataclasses.replace(found, params=read_all(found.params))


def read_description(path: str, *, best: bool = False) -> dict[str, Any]:
    """What a checkpoint says about itself, without its arrays; arguments and errors as `load`."""
    return _read_description(_step_directory(epath.Path(path), best))


def check_same_vocabulary(path: str, model_bytes: bytes, vocabulary: Any) -> None:
    """Raises UserError unless `vocabulary` is the one that a checkpoint was trained with.

    Args:
      path: the checkpoint's, for the error.
      model_bytes: its SentencePiece model.
      vocabulary: has `model_bytes`, as `data.vocabularies.Vocabulary`.
    """
    wanted, met = (hashlib.sha256(m).hexdigest() for m in (model_bytes, vocabulary.model_bytes))
    if met != wanted:
        raise UserError(
            f"the vocabulary (sha256 {met[:12]}) is not the one that the checkpoint "
            f"{path} was trained with (sha256 {wanted[:12]}): token ids would mean "
            "other words; use the checkpoint's vocabulary or train again with this one"
        )


def _save_args(path: tuple, array: jax.Array) -> ocp.SaveArgs:
    """Stacked layers are cut between layers: who reads one of them does not unpack all."""
    stacked = array.ndim > 1 and jax.tree_util.DictKey("layers") in path
    return ocp.SaveArgs(shard_axes=(0,)) if stacked else ocp.SaveArgs()


def _version() -> str:
    try:
        return importlib.metadata.version("nlhf_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


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


def _step_directory(path: epath.Path, best: bool) -> epath.Path:
    if not path.exists():
        raise UserError(f"the checkpoint directory {path} does not exist")
    if not path.is_dir():
        raise UserError(
            f"{path} is a file, not a checkpoint: give the directory of a training stage, its "
            f"{DIRECTORY}/ directory, or one step's directory"
        )
    path = path.absolute()
    if (path / _STATE).is_dir() or (path / _DESCRIPTION).is_dir():
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
    best = _read_description(directory / str(steps[-1]))["best"]
    scored = []
    for step in steps:
        try:
            metrics = _read_description(directory / str(step))["metrics"]
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


def _read_description(path: epath.Path) -> dict[str, Any]:
    try:
        description = ocp.JsonCheckpointHandler().restore(path / _DESCRIPTION)
        for key in ("kind", "model", "vocabulary", "step", "data_position", "metrics", "best"):
            if key not in description:
                raise ValueError(f"{key!r} is missing in its description")
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return description


@contextlib.contextmanager
def _damage_is_one_error(path: epath.Path) -> Iterator[None]:
    """Missing or cut files, whoever finds them, become one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _saved_tree(path: epath.Path) -> dict[str, Any]:
    """Shapes and dtypes of everything in the state, as nested dicts."""
    return ocp.PyTreeCheckpointHandler().metadata(path / _STATE).tree


def _restore(path: epath.Path, template: Any) -> Any:
    """The arrays that `template` (ShapeDtypeStructs with shardings) names."""

    def how(leaf):
        return ocp.ArrayRestoreArgs(
            restore_type=jax.Array,
            sharding=leaf.sharding,
            global_shape=leaf.shape,
            dtype=leaf.dtype,
        )

    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(
            path / _STATE,
            args=ocp.args.PyTreeRestore(item=template, restore_args=jax.tree.map(how, template)),
        )


def _check_same_arrays(path: epath.Path, abstract_state: Any) -> None:
    """Raises UserError where the run's arrays are not the checkpoint's: another configuration."""

    def shapes(tree):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {
            jax.tree_util.keystr(key, simple=True, separator="/"): tuple(leaf.shape)
            for key, leaf in leaves
        }

    with _damage_is_one_error(path):
        saved = shapes(_saved_tree(path))
    wanted = shapes(abstract_state)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"the checkpoint {path} does not fit this run: {name} has shape "
                f"{saved.get(name, 'none')} there and {wanted.get(name, 'none')} here; use the "
                "settings that the directory was started with, or another directory"
            )
