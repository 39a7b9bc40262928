"""Checkpoints that describe themselves: Orbax for the arrays, JSON for what they mean.

One step's directory, `WORKDIR/checkpoints/STEP/`, holds everything that is needed to continue the
run or to use the network: the training state, the position in the data, the model's sizes, the
vocabulary itself. Orbax writes into a temporary directory; when all is there, it is read back and
its checksums are written beside it (`integrity`); then it gets its final name, and only then are
older steps deleted. So a directory under its final name was whole, and can show that it still is.

All array and directory access goes through Orbax and `epath`, so a path may be a bucket.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from nlhf_jax import __version__, processes
from nlhf_jax.checkpoints.failures import failure_is_one_error
from nlhf_jax.checkpoints.integrity import Damage, check_state_files, flush, guarded, seal
from nlhf_jax.checkpoints.ours import (
    DESCRIPTION,
    DIRECTORY,
    EVALUATION,
    STATE,
    best_step,
    check_step,
    damage_is_one_error,
    read_step_description,
    saved_tree,
    whole_steps,
)
from nlhf_jax.errors import UserError, first_line, unreadable_is_one_error
from nlhf_jax.files import absolute, write_whole

SET_ASIDE = "damaged"  # beside DIRECTORY: steps that were found damaged


class Checkpoints:
    """Saves and restores the state of one training run.

    Args:
      directory: the stage's directory; the steps go to `directory/checkpoints/`.
      keep: how many of the latest checkpoints stay.
      best_metric: name in `metrics` by which one more checkpoint, the best, stays too.
      best_mode: "max" or "min": which value of it is best.
      asynchronous: write in the background; `save` then returns once the arrays are on the host.
      frugal: write with little memory beyond the arrays; slower for many small ones.

    Attributes:
      set_aside: what `restore_latest` found damaged, a sentence for each.

    Raises:
      UserError: `directory` cannot be made or cleaned up.
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
        self.set_aside: list[str] = []
        self._policy = _LatestAndBest(self.directory, keep, self._best)
        # Orbax's own choice of format (OCDBT, zarr, zstd) was measured to be the fastest for small
        # models as well: it packs hundreds of small arrays into a few files. For T5 1.1 Large it
        # took half as much memory again as the arrays, files of their own a third.
        with failure_is_one_error(self.directory):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy,
                    enable_async_checkpointing=asynchronous,
                    cleanup_tmp_directories=True,
                    # Where a directory cannot be made, what waits for it would wait for minutes.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                    temporary_path_class=_sealed(self.directory),
                    # It need not look into the steps that are there, which may be damaged.
                    lightweight_initialize=True,
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
            "checksums": True,
            "nlhf_jax": __version__,
        }
        arguments = ocp.args.Composite(
            **{
                STATE: ocp.args.PyTreeSave(
                    state, save_args=jax.tree_util.tree_map_with_path(_save_args, state)
                ),
                DESCRIPTION: ocp.args.JsonSave(description),
            }
        )
        with failure_is_one_error(self.directory):
            self._manager.save(step, args=arguments, metrics=metrics or None)

    def add_evaluation(
        self, step: int, data_position: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Says of a saved step what was found about it later; both replace what `save` was given.

        In a file beside the others: those stay as they were written.
        """
        found = {"data_position": dict(data_position), "metrics": dict(metrics)}
        with failure_is_one_error(self.directory):
            write_whole(self.directory / str(step) / EVALUATION, guarded(found))

    def restore_latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The latest whole checkpoint as `(state, data_position)`, or None where there is none.

        Damaged ones after it are moved to `damaged/` beside `checkpoints/`; `set_aside` says so.
        Older ones that a process was killed before it had removed are removed.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings: where each array goes.

        Raises:
          UserError: all checkpoints are damaged, or it belongs to another model or optimizer.
        """
        with unreadable_is_one_error(str(self.directory), "the checkpoints"):
            step = self._newest_whole_step()
        if step is None:
            return None
        path = self.directory / str(step)
        description = read_step_description(path)
        _check_same_arrays(path, abstract_state)
        with damage_is_one_error(path):
            state = _restore(path, abstract_state)
        with failure_is_one_error(self.directory):
            for old in self._policy.not_kept(sorted(self._manager.all_steps())):
                self._manager.delete(old)
        return state, description["data_position"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk under its final name.

        Raises UserError if it could not be saved, as `save` does for the one before it.
        """
        with failure_is_one_error(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets the background threads go."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _newest_whole_step(self) -> int | None:
        """Sets aside what is after it; where nothing is whole, everything stays where it is."""
        damages: dict[int, str] = {}
        for step in reversed(whole_steps(self.directory)):
            damage = _damage(self.directory / str(step))
            if damage is None:
                break
            damages[step] = damage
        else:
            if damages:
                raise UserError(_nothing_whole(self.directory, damages))
            return None
        for damaged, reason in damages.items():
            target = _set_aside(self.directory / str(damaged))
            self.set_aside.append(
                f"the checkpoint of step {damaged} is damaged ({reason}) and was moved to "
                f"{target}; step {step} before it is used"
            )
        if damages:
            self._manager.reload()
        return step


# --- what Orbax is told --------------------------------------------------------------------------


def _sealed(directory: epath.Path) -> type:
    """Orbax's temporary directories, which are checked and sealed before they get their name."""
    base: Any = ocp.path.atomicity_defaults.get_default_temporary_path_class(directory)

    class Sealed(base):
        _metadata: Any = None

        @classmethod
        def from_final(cls, final_path, *, checkpoint_metadata_store=None, **options):
            # The base class would change the metadata once more, after the checksums were taken.
            path = super().from_final(final_path, **options)
            path._metadata = checkpoint_metadata_store
            return path

        async def create(self) -> epath.Path:
            path = await super().create()
            if self.get_final().parent == directory:
                (path / "_CHECKPOINT_METADATA").write_text("{}")  # Orbax adds to it.
            return path

        async def finalize(self) -> None:
            is_step = self.get_final().parent == directory  # else an item's, inside of it
            if is_step:
                if self._metadata is not None:  # A thread of Orbax's may still write them.
                    await asyncio.to_thread(self._metadata.wait_until_finished)
                await asyncio.to_thread(_check_and_seal, self.get())
            await super().finalize()
            if is_step:
                await asyncio.to_thread(flush, directory)

    return Sealed


def _check_and_seal(step: epath.Path) -> None:
    read_step_description(step)
    check_state_files(step / STATE)
    seal(step)


class _LatestAndBest:
    """Which steps Orbax keeps. Its own `BestN` forgets, with the process, how good they were."""

    def __init__(self, directory: epath.Path, keep: int, best: Mapping[str, Any]):
        self._directory, self._keep, self._best = directory, keep, best
        self._metrics: dict[int, Mapping[str, float]] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        for checkpoint in checkpoints:
            if checkpoint.metrics is not None:  # of this process
                self._metrics.setdefault(checkpoint.step, checkpoint.metrics)
        steps = [checkpoint.step for checkpoint in checkpoints]
        leaving = self.not_kept(steps)
        return [step not in leaving for step in steps]

    def not_kept(self, steps: Sequence[int]) -> list[int]:
        """Those of the steps, which ascend, that may go."""
        for step in steps:
            if step not in self._metrics:
                self._metrics[step] = self._read(step)
        kept = {*steps[-self._keep :], best_step({s: self._metrics[s] for s in steps}, self._best)}
        return [step for step in steps if step not in kept]

    def _read(self, step: int) -> Mapping[str, float]:
        try:
            return read_step_description(self._directory / str(step))["metrics"]
        except UserError:  # half deleted by a run that was killed, not saved yet, or damaged
            return {}


# --- damage --------------------------------------------------------------------------------------


def _damage(path: epath.Path) -> str | None:
    """What is wrong with a step's files. Several processes look at a part of them each.

    Other errors than Damage go up: storage that is away for a while is no reason to go back.
    """
    count = processes.count()
    try:
        check_step(path, processes.index(), count)
        damage = None
    except Damage as error:
        damage = first_line(error)
    if count > 1:  # All take the same step.
        found = multihost_utils.process_allgather(np.int32(damage is not None))
        if damage is None and found.any():
            damage = f"process {int(np.argmax(found))} has found it"
    return damage


def _set_aside(path: epath.Path) -> epath.Path:
    """Moves a step's directory to where nobody takes it for a checkpoint; says where that is."""
    directory = path.parent.parent / SET_ASIDE
    target, number = directory / path.name, 1
    while target.exists():
        number += 1
        target = directory / f"{path.name}.{number}"
    if processes.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    processes.wait(f"set aside {target}")
    return target


def _nothing_whole(directory: epath.Path, damages: Mapping[int, str]) -> str:
    what = "; ".join(f"step {step}: {damage}" for step, damage in damages.items())
    return (
        f"no checkpoint in {directory} is whole ({what}): copy one again from where there is a "
        f"copy, or remove {directory} to start from the first step"
    )


# --- arrays --------------------------------------------------------------------------------------


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
