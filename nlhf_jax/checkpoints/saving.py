"""Checkpoints that describe themselves: Orbax for the arrays, JSON for what they mean.

One step's directory, `WORKDIR/checkpoints/STEP/`, holds everything that is needed to continue the
run or to use the network: the training state, the position in the data, the model's sizes, the
vocabulary itself. Orbax writes into a temporary directory and renames it when all is on disk, so a
directory under its final name is whole.

All array and directory access goes through Orbax and `epath`, so a path may be a bucket.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from nlhf_jax import __version__
from nlhf_jax.checkpoints.integrity import check_state_files
from nlhf_jax.checkpoints.ours import (
    DESCRIPTION,
    DIRECTORY,
    EVALUATION,
    STATE,
    damage_is_one_error,
    read_step_description,
    saved_tree,
)
from nlhf_jax.errors import UserError
from nlhf_jax.files import absolute, write_whole


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
        self.directory = absolute(directory) / DIRECTORY
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
                STATE: ocp.PyTreeCheckpointHandler(
                    use_ocdbt=not frugal,
                    save_device_host_concurrent_gb=1 if frugal else None,
                ),
                DESCRIPTION: ocp.JsonCheckpointHandler(),
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
        data_position: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Saves `state` (a pytree of arrays) and everything around it as the checkpoint of `step`.

        `data_position` is what the loop needs to go on, as JSON. `metrics` are floats, among them
        the one that says which checkpoint is best; without it this one cannot be. The state may be
        donated as soon as this returns.
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        description = {
            **description,
            "step": step,
            "data_position": dict(data_position),
            "metrics": metrics,
            "best": self._best,
            "nlhf_jax": __version__,
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.PyTreeSave(
                        state, save_args=jax.tree_util.tree_map_with_path(_save_args, state)
                    ),
                    DESCRIPTION: ocp.args.JsonSave(description),
                }
            ),
            metrics=metrics or None,
        )

    def add_evaluation(
        self, step: int, data_position: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Says of a saved step what was found about it later; both replace what `save` was given.

        In a file beside the others: those stay as they were written.
        """
        found = {"data_position": dict(data_position), "metrics": dict(metrics)}
        if jax.process_index() == 0:
            write_whole(self.directory / str(step) / EVALUATION, json.dumps(found))

    def restore_latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
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
        description = read_step_description(path)
        with damage_is_one_error(path):
            check_state_files(path / STATE)
        _check_same_arrays(path, abstract_state)
        with damage_is_one_error(path):
            state = _restore(path, abstract_state)
        return state, description["data_position"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk under its final name."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets the background threads go."""
        self._manager.wait_until_finished()
        self._manager.close()


def _save_args(path: tuple, array: jax.Array) -> ocp.SaveArgs:
    """Stacked layers are cut between layers: who reads one of them does not unpack all."""
    stacked = array.ndim > 1 and jax.tree_util.DictKey("layers") in path
    return ocp.SaveArgs(shard_axes=(0,)) if stacked else ocp.SaveArgs()


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
            path / STATE,
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

    with damage_is_one_error(path):
        saved = shapes(saved_tree(path))
    wanted = shapes(abstract_state)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"the checkpoint {path} does not fit this run: {name} has shape "
                f"{saved.get(name, 'none')} there and {wanted.get(name, 'none')} here; use the "
                "settings that the directory was started with, or another directory"
            )
