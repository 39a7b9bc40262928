"""The `train` job: one learner."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

from nlhf_jax.checkpoints import describe
from nlhf_jax.configuration import Configured, Settings
from nlhf_jax.data import json_lines
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.easy_pairs import EasyPairs, WithEasyPairs
from nlhf_jax.errors import UserError
from nlhf_jax.guards import Guards
from nlhf_jax.jobs import builders, run_record
from nlhf_jax.learners.learner import Learner
from nlhf_jax.raters import KINDS
from nlhf_jax.sharding import Partitioner
from nlhf_jax.tracking import requested
from nlhf_jax.train import training_loop

# The seqio task that each kind of learner trains on.
_TASKS = {
    "supervised": "sft",
    "reading": "sft",
    "policy": "prompts",
} | dict.fromkeys(KINDS, "comparisons")


class _Batches:
    """The loop's view of the training examples: a batch for every step."""

    def __init__(self, examples, batch_size: int, seed: int):
        self._examples, self._batch_size, self._seed = examples, batch_size, seed

    def batch(self, step_index: int) -> dict[str, np.ndarray]:
        return self._examples.batch(step_index, self._batch_size, self._seed)


def _check_sizes(
    train_steps: int, batch_size: int, microbatches: int, partitioner: Partitioner
) -> None:
    if batch_size < 1 or batch_size % (partitioner.batch_shares * microbatches):
        raise UserError(
            f"BATCH_SIZE is {batch_size} but must be a multiple of the {partitioner.batch_shares} "
            f"devices that share a batch times MICROBATCHES, {microbatches}"
        )
    if train_steps < 1:
        raise UserError(f"TRAIN_STEPS is {train_steps} but must be at least 1")


def _held_out(held_out: Examples, wanted: int | None, seed: int) -> tuple[Examples, dict[str, int]]:
    """The validation examples, and what the metrics say of them if they are not all there are."""
    drawn = held_out.take(wanted or len(held_out), seed)
    if len(drawn) == len(held_out):
        return drawn, {}
    return drawn, {"validation_examples": len(drawn), "validation_seed": seed}


def _data_metrics(data: Dataset, task: str, examples: Examples) -> dict[str, float]:
    """How many examples there are, and what of the data does not reach the learner.

    Lines that were skipped are counted over both splits, and listed on standard error.
    """
    found: dict[str, float] = {"examples": len(examples)}
    for name, count in examples.truncated.items():
        found |= {
            f"truncated_{name}": count,
            f"truncated_{name}_share": count / max(len(examples), 1),
        }
    if any(file.skip for file in data.files.values()):
        skipped = [line for split in ("train", "validation") for line in data.skipped(task, split)]
        found["skipped_lines"] = len(skipped)
        for sentence in json_lines.shortened(skipped):
            print(f"skipped: {sentence}", file=sys.stderr)
    return found


class _Read(NamedTuple):
    """What a training reads, and what its record and its metrics say of it."""

    batches: Examples | WithEasyPairs
    evaluation: list[dict[str, np.ndarray]]
    arrays: dict[str, Mapping[str, np.ndarray]]
    metrics: dict[str, float]


def _read(
    data: Dataset,
    kind: str,
    lengths: Mapping[str, int],
    easy_pairs: EasyPairs | None,
    eval_examples: int | None,
    batch_size: int,
    seed: int,
) -> _Read:
    task = _TASKS[kind]
    examples = data.examples(task, "train", lengths)
    read = _Read(
        examples,
        [],
        {"train": examples.arrays},
        _data_metrics(data, task, examples),
    )
    if easy_pairs is not None and (easy_pairs.steps or easy_pairs.share):
        if task != "comparisons":
            raise UserError("easy pairs are for raters, but this training learns from no votes")
        as_raters_read = {"inputs": lengths["text"], "targets": lengths["summary"]}
        demonstrations = data.examples("sft", "train", as_raters_read)
        mixed = WithEasyPairs(examples, demonstrations, easy_pairs, data.vocabulary, seed)
        read = read._replace(batches=mixed)
        read.arrays["easy_pairs"] = demonstrations.arrays
        read.metrics["easy_pair_steps"] = easy_pairs.steps
        read.metrics["easy_pairs_in_batch"] = easy_pairs.share
    if eval_examples != 0:
        held_out = data.examples(task, "validation", lengths)
        drawn, drawn_how = _held_out(held_out, eval_examples, seed)
        read.evaluation.extend(drawn.eval_batches(batch_size))
        read.arrays["validation"] = drawn.arrays
        read.metrics.update(drawn_how)
    return read


def train(
    workdir: str,
    learner: builders.Builder,
    data: Dataset,
    partitioner: Partitioner,
    optimizer: optax.GradientTransformation,
    feature_lengths: Mapping[str, int],
    train_steps: int,
    batch_size: int,
    seed: int,
    log_period: int,
    checkpoint_period: int,
    eval_period: int | None,
    eval_examples: int | None,
    keep_checkpoints: int,
    microbatches: int,
    best_mode: str,
    best_metric: str | None = None,
    patience: int | None = None,
    guards: Guards | None = None,
    easy_pairs: EasyPairs | None = None,
    accept_changes: bool = False,
    configured: Configured | None = None,
    tracking: str | None = None,
    tracking_project: str | None = None,
) -> None:
    """Trains one learner in `workdir`, or continues there.

    Args:
      workdir: gets checkpoints, metrics and timing.
      learner: a function of `nlhf_jax.jobs.builders`.
      data: tasks with the splits `train` and, for evaluation, `validation`.
      partitioner: the mesh.
      optimizer: from `nlhf_jax.optimizers`.
      feature_lengths: tokens per feature, EOS included; see `data/datasets.py`.
      train_steps: optimiser steps in all.
      batch_size: examples per step, over all devices.
      seed: of parameters, data order and sampling.
      log_period: steps per line of metrics.
      checkpoint_period: steps between checkpoints.
      eval_period: steps between evaluations; None evaluates after the last step only.
      eval_examples: how many validation examples, drawn with `seed`; None for all, 0 for no
        evaluation.
      keep_checkpoints: the latest ones that stay.
      best_metric: a validation metric by which one more checkpoint stays.
      best_mode: "max" or "min".
      patience: evaluations in a row without a better `best_metric` that end the training; None for
        all `train_steps`.
      microbatches: parts in which a batch's gradient is computed.
      guards: what ends a training that goes wrong.
      easy_pairs: of a rater's training, pairs made of the supervised file before the votes or among
        them; None for none. Nothing is measured on them.
      accept_changes: continue a run that was begun with other settings or data, and record that.
      configured: the configuration, if there is one; it is written here.
      tracking: "wandb" or "mlflow": where metrics go beside TensorBoard; None for nowhere.
      tracking_project: the project there, of MLflow the experiment.

    Raises:
      UserError: settings, data or checkpoints that cannot be used, or not those that the run in
        `workdir` was begun with.
    """
    settings = _settings(configured, locals())
    tracked = requested(tracking, tracking_project, _by_macro(settings))
    _check_sizes(train_steps, batch_size, microbatches, partitioner)
    setup = builders.Setup(data, dict(feature_lengths), partitioner, optimizer, seed, microbatches)
    setup = setup.of_run(workdir)
    built = learner(setup)
    read = _read(data, built.kind, feature_lengths, easy_pairs, eval_examples, batch_size, seed)
    description = _describe(built, data, feature_lengths)
    now = run_record.describe_run(workdir, settings, setup.checkpoints, read.arrays, description)
    run_record.begin(workdir, now, settings, accept_changes)
    if configured is not None:
        configured.write(workdir)
    training_loop(
        built,
        _Batches(read.batches, batch_size, seed),
        workdir=workdir,
        steps=train_steps,
        description=description,
        log_period=log_period,
        checkpoint_period=checkpoint_period,
        keep_checkpoints=keep_checkpoints,
        eval_batches=read.evaluation,
        eval_period=eval_period,
        best_metric=best_metric,
        best_mode=best_mode,
        patience=patience,
        data_metrics=read.metrics,
        guards=guards,
        tracking=tracked,
    )


def _settings(configured: Configured | None, arguments: Mapping[str, Any]) -> Settings:
    """All that gin sets; without gin, those arguments of `train` that are plain values."""
    if configured is not None:
        return configured.settings(run_record.FREE)
    plain = (bool, int, float, str, Mapping, type(None))
    named = {f"jobs.train.{name}": v for name, v in arguments.items() if isinstance(v, plain)}
    return Settings({name: v for name, v in named.items() if name not in run_record.FREE})


def _by_macro(settings: Settings) -> dict[str, Any]:
    """Values by the macros that they come from; by their own names where they come from none."""
    return {settings.macros.get(n, n): v for n, v in (settings.values | settings.free).items()}


def _describe(
    learner: Learner, data: Dataset, feature_lengths: Mapping[str, int]
) -> dict[str, Any]:
    """What the checkpoints say about themselves."""
    rater = getattr(learner, "rater", None)
    described = dict(rater.description()) if rater is not None else {}
    template, labels = described.pop("template", None), described.pop("labels", None)
    trained_against = getattr(learner, "trained_against", None)
    return describe(
        kind=learner.kind,
        model=learner.model.description(),
        feature_lengths=feature_lengths,
        vocabulary_bytes=data.vocabulary.model_bytes,
        rater_template=template,
        rater_labels=labels,
        rater_settings=described or None,
        prompt_form=data.prompt_form.form,
        trained_against=trained_against and trained_against(),
    )
