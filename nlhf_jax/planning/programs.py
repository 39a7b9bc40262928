"""The step of a run as it is lowered for devices that may not exist: shapes in place of arrays."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nlhf_jax import configuration, jobs
from nlhf_jax.checkpoints.networks import Network, shapes
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.templates import RaterTemplate, RewardTemplate
from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.jobs import builders
from nlhf_jax.learners.learner import Learner
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.planning import runs
from nlhf_jax.sharding import MESH_AXES, Partitioner

_LABELS = (2, 3)  # a rater's answers; which ones is of no matter to a cost


def lower(
    run: runs.Run,
    gin_files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    devices: Sequence[jax.Device],
) -> jax.stages.Lowered:
    """The program of `run`'s training step on `devices`; arguments as of `abstract_learner`."""
    learner, frozen, batch = abstract_learner(run, gin_files, overrides, search_paths, devices)
    return learner.lower_train_step(frozen, batch)  # type: ignore[arg-type]  # shapes


def abstract_learner(
    run: runs.Run,
    gin_files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    devices: Sequence[jax.Device],
) -> tuple[Learner, PyTree, dict[str, jax.ShapeDtypeStruct]]:
    """The learner that the gin files' builder makes, what it reads and never changes, and a batch.

    Both are shapes. Of `run` it has the sizes of the networks and of the batch.
    """
    learner, batch = sized_learner(
        run, gin_files, overrides, search_paths, devices, read=abstract_params
    )
    return learner, learner._frozen if run.kind == "policy" else None, batch


def sized_learner(
    run: runs.Run,
    gin_files: Sequence[str],
    overrides: Sequence[str],
    search_paths: Sequence[str],
    devices: Sequence[jax.Device],
    read: Callable[[LanguageModel, Partitioner, str], PyTree],
) -> tuple[Learner, dict[str, jax.ShapeDtypeStruct]]:
    """The learner of `abstract_learner`, and the shapes of a batch.

    In place of what checkpoints have, its frozen networks' parameters are what `read` gives: from
    a model, a mesh and the dtype in which they are stored.
    """
    # What gin would make of them are the real data and a mesh of the devices that are here.
    without = ("jobs.train.data=None", "jobs.train.partitioner=None")
    layout = _mesh_settings(gin_files, overrides, search_paths)
    runs.parse(gin_files, [*overrides, *without], search_paths)
    partitioner = Partitioner(*run.mesh_on(len(devices)).axes, devices=devices, **layout)
    arguments = configuration.arguments(jobs.train, ["workdir"])
    setup = builders.Setup(
        _no_data(run.template),
        dict(arguments["feature_lengths"]),
        partitioner,
        arguments["optimizer"],
        arguments["seed"],
        run.microbatches,
        continues=True,
        describe_base=lambda _: registry.describe(run.model),
        open_network=functools.partial(_network, run, read),
    )
    learner = arguments["learner"](setup)
    return learner, _batch(learner, run, arguments, partitioner)


def _mesh_settings(
    gin_files: Sequence[str], overrides: Sequence[str], search_paths: Sequence[str]
) -> dict[str, Any]:
    """What gin says of the mesh beside its axes."""
    runs.parse(gin_files, overrides, search_paths)
    prefix = "sharding.Partitioner."
    settings = configuration.settings_of(jobs.train).values
    found = {name.removeprefix(prefix): v for name, v in settings.items() if prefix in name}
    return {name: value for name, value in found.items() if name not in (*MESH_AXES, "devices")}


def _no_data(template: int) -> Dataset:
    """A vocabulary with T5's special tokens, and templates of the right length."""
    fixed = (2,) * template
    return Dataset(
        "plan", tldr_mini_vocabulary(), RaterTemplate(fixed, (), ()), RewardTemplate(fixed, ())
    )


def _network(
    run: runs.Run,
    read: Callable[[LanguageModel, Partitioner, str], PyTree],
    source: str,
    partitioner: Partitioner,
    data: Dataset,
    dtype: str,
    **settings: Any,
) -> Network:
    """In place of `checkpoints.networks.open_network`: the run's sizes, and what `read` gives."""
    kind = settings["kind"]
    config = run.model if kind == "policy" else run.rater
    assert config is not None
    model = registry.model_of(config)
    templates = {"preference": data.rater.segments, "reward": data.reward.segments}
    description = {
        "kind": kind,
        "feature_lengths": {},
        "rater_template": templates.get(kind),
        "rater_labels": _LABELS if kind == "preference" else None,
    }
    reading = functools.partial(read, model, partitioner)
    return Network(model, reading, dtype, description, b"", None)  # type: ignore[arg-type]


def abstract_params(model: LanguageModel, partitioner: Partitioner, dtype: str) -> PyTree:
    """Shapes, dtypes and places of a network's parameters that are stored in `dtype`."""
    wanted = shapes(model)
    places = partitioner.tree_sharding(model.logical_axes(), wanted)
    stored = jax.eval_shape(lambda params: model.frozen_params(params, dtype), wanted)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        stored,
        places,
    )


def _batch(
    learner: Learner, run: runs.Run, arguments: Mapping[str, Any], partitioner: Partitioner
) -> dict[str, jax.ShapeDtypeStruct]:
    lengths = arguments["feature_lengths"]
    rater = {"text": "text", "chosen": "summary", "rejected": "summary"}
    features = {
        "supervised": {"inputs": "inputs", "targets": "targets"},
        "policy": {"inputs": "inputs"},
    }.get(learner.kind, rater)
    wanted: dict[str, tuple] = {
        key: ((run.batch_size, lengths[name]), np.int32) for key, name in features.items()
    }
    if "chosen" in wanted:
        wanted["vote_share"] = ((run.batch_size,), np.float32)
    return {
        key: jax.ShapeDtypeStruct(
            shape, dtype, sharding=partitioner.sharding(("batch", None)[: len(shape)], shape)
        )
        for key, (shape, dtype) in wanted.items()
    }
