"""Learners as gin files name them: each function here makes one from settings and checkpoints.

A builder gets the `Setup` that all stages share from the job, and the rest from gin. `MODEL` is a
configuration of any family in `nlhf_jax.models.registry`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import optax

from nlhf_jax import checkpoints, objectives, opponents, processes
from nlhf_jax.checkpoints import open_checkpoint
from nlhf_jax.checkpoints.networks import (
    Network,
    check_params,
    check_vocabulary,
    open_network,
    read_params,
    warn_of_short_texts,
)
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.templates import feature_length
from nlhf_jax.errors import UserError
from nlhf_jax.learners.learner import Learner
from nlhf_jax.learners.policy import PolicyLearner
from nlhf_jax.learners.preference import PreferenceLearner
from nlhf_jax.learners.reward import RewardLearner
from nlhf_jax.learners.supervised import SupervisedLearner
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.objectives import Objective
from nlhf_jax.opponents import Opponent
from nlhf_jax.raters import (
    PreferenceModel,
    PreferenceScorer,
    RewardModel,
    RewardScorer,
    Scorer,
)
from nlhf_jax.sharding import Partitioner


def describe_base(source: str) -> Mapping[str, Any]:
    """The description of a checkpoint's network."""
    return open_checkpoint(source).model


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a job knows and every learner needs.

    A run that `continues` has a checkpoint of its own, and needs that alone to begin from.
    `open_network` is that of `checkpoints.networks`, or gives networks that are not there;
    `describe_base` says of a base checkpoint what network it holds, which the run's own does too.
    `checkpoints` has what builders have asked `checkpoint` for: (source, what it means now).
    """

    data: Dataset
    feature_lengths: dict[str, int]
    partitioner: Partitioner
    optimizer: optax.GradientTransformation
    seed: int
    microbatches: int
    continues: bool = False
    describe_base: Callable[[str], Mapping[str, Any]] = describe_base
    open_network: Callable[..., Network] = open_network
    checkpoints: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def checkpoint(self, setting: str, source: str) -> str:
        """What `source` means now, noted in `checkpoints` for the record of the run.

        Args:
          setting: the builder's parameter that names it.
          source: as in `checkpoints.open_checkpoint`.

        Returns:
          What to open in its place: another step may be the latest or the best one soon. Where
          there is nothing, `source` itself, which is an error for whoever has to open it.
        """
        try:
            resolved = processes.from_first(lambda: checkpoints.resolve(source))
        except UserError:
            resolved = source
        self.checkpoints[setting] = (source, resolved)
        return resolved

    def of_run(self, workdir: str | os.PathLike) -> "Setup":
        """The same, for a run that continues if it has checkpoints in `workdir`."""
        own = os.fspath(workdir)
        if checkpoints.latest_step(own) is None:
            return self
        return dataclasses.replace(self, continues=True, describe_base=lambda _: describe_base(own))

    def learner(self) -> dict[str, Any]:
        """The arguments that all learners share."""
        return {
            "partitioner": self.partitioner,
            "optimizer": self.optimizer,
            "seed": self.seed,
            "microbatches": self.microbatches,
        }


Builder = Callable[[Setup], Learner]
_HOW = ("dtype", "scan_layers")  # of a model's description: how it is run, not what it is


def supervised(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """The SFT policy.

    Args:
      setup: from the job.
      model: its configuration; parameters are random.
      initial_checkpoint: of the same model, of any stage and format: where to start instead.
      remat: compute activations inside a layer again for the gradient instead of keeping them.
      dropout: share of features that are zeroed in training, and only there, in [0, 1).
      base_checkpoint: of any stage and format: the network itself, with its sizes; of `model` only
        how it is run holds then, `dtype` and `scan_layers`.

    Raises:
      UserError: settings or checkpoints that do not go together.
    """
    network, start = _begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    return SupervisedLearner(model=network, initial_params=start, **setup.learner())


def preference(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """A preference model; arguments as of `supervised`."""
    network, start = _begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    labels = setup.data.vocabulary.rater_labels()
    rater = PreferenceModel(network, setup.data.rater.segments, labels)
    return PreferenceLearner(rater=rater, initial_params=start, **setup.learner())


def reward(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """A Bradley-Terry reward model; arguments as of `supervised`."""
    network, start = _begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    rater = RewardModel(network, setup.data.reward.segments)
    return RewardLearner(rater=rater, initial_params=start, **setup.learner())


def policy(
    setup: Setup,
    initial_checkpoint: str,
    rater_checkpoint: str | None,
    opponent: Opponent | None,
    both_orders: bool,
    frozen_dtype: str,
    compute_dtype: str | None,
    scan_layers: bool | None,
    objective: Objective | None = None,
    scorer: Callable[[Network | None], Scorer] | None = None,
    tau: float | None = None,
    kl: str | None = None,
    loss: str | None = None,
    average_decay: float | None = None,
    remat: bool | None = None,
) -> Learner:
    """A policy that starts at the SFT checkpoint, which is also its reference.

    Args:
      setup: from the job.
      initial_checkpoint: the SFT policy.
      rater_checkpoint: a preference model; without an opponent a reward model; None for a scorer
        that needs no network.
      opponent: from `nlhf_jax.opponents`, or None for RLHF. With IPO it writes both responses.
      both_orders: ask the preference model in both orders and average.
      frozen_dtype: in which the reference and the rater are stored, "float32" or "bfloat16".
      compute_dtype: of activations; None for those of the checkpoints' runs.
      scan_layers: whether layers are one stacked array; None for as in the checkpoints' runs.
      objective: from `nlhf_jax.objectives`.
      scorer: makes a scorer of the rater's network; None for the one that its kind calls for.
      tau, kl, loss: in place of `objective`, as gin files of release 0.1 say it; `loss` is
        "policy_gradient" or "ipo".
      average_decay: of release 0.1, in place of `moving_average`'s own.
      remat: as in `supervised`.

    Raises:
      UserError: settings or checkpoints that do not go together.
    """
    if average_decay is not None and opponent is not None and "average" in opponent.keeps:
        opponent = opponents.moving_average(average_decay)
    if loss is not None or objective is None:
        objective = _objective_of_release_0_1(loss or "policy_gradient", tau, kl)

    def open_frozen(setting: str, source: str, kind: str) -> Network:
        return setup.open_network(
            setup.checkpoint(setting, source),
            setup.partitioner,
            setup.data,
            frozen_dtype,
            kind=kind,
            compute_dtype=compute_dtype,
            scan_layers=scan_layers,
        )

    reference = open_frozen("initial_checkpoint", initial_checkpoint, "policy")
    wanted = "reward" if opponent is None else "preference"
    rater = None
    if rater_checkpoint is not None:
        rater = open_frozen("rater_checkpoint", rater_checkpoint, wanted)
        warn_of_short_texts(rater, f"RATER_CHECKPOINT {rater_checkpoint}", setup.feature_lengths)
    if scorer is not None:
        chosen_scorer = scorer(rater)
    else:
        chosen_scorer = _scorer_of(rater, rater_checkpoint, wanted, both_orders)
    learner = PolicyLearner(
        model=_as_trained(reference.model, remat),
        opponent=opponent,
        objective=objective,
        scorer=chosen_scorer,
        reference_params=reference.read,
        scorer_params=rater.params if rater is not None else {},
        frozen_dtype=frozen_dtype,
        max_response_length=feature_length(setup.feature_lengths, "targets", "a policy"),
        **setup.learner(),
    )
    learner.trained_against = lambda: rater.identity if rater is not None else {}
    return learner


def _objective_of_release_0_1(loss: str, tau: float | None, kl: str | None) -> Objective:
    if loss not in ("policy_gradient", "ipo"):
        raise UserError(f"LOSS is {loss!r} but must be 'policy_gradient' or 'ipo'")
    if tau is None:
        raise UserError(
            "builders.policy.objective has no value: set OBJECTIVE, for example to "
            "@objectives.policy_gradient()"
        )
    return objectives.ipo(tau) if loss == "ipo" else objectives.policy_gradient(tau, kl)


def _scorer_of(
    rater: Network | None, path: str | None, wanted: str, both_orders: bool
) -> PreferenceScorer | RewardScorer:
    if rater is None:
        raise UserError(
            f"RATER_CHECKPOINT is None but must be a {wanted} model, or SCORER must be set"
        )
    if rater.kind != wanted:
        raise UserError(
            f"the rater {path} is a {rater.kind} model but this opponent needs a {wanted} model"
        )
    if wanted == "reward":
        return RewardScorer(rater.reward_model())
    return PreferenceScorer(rater.preference_model(), both_orders)


def _as_trained(
    model: LanguageModel, remat: bool | None, dropout: float | None = None
) -> LanguageModel:
    """The model with what is of its training alone; a family that has no such thing refuses it."""
    if dropout and not 0 < dropout < 1:
        raise UserError(f"DROPOUT is {dropout} but must be at least 0 and below 1")
    how = {name: x for name, x in {"remat": remat, "dropout_rate": dropout}.items() if x}
    if not how:
        return model
    try:
        return registry.build(model.description() | how)
    except UserError as error:
        given = " and ".join(f"{name.split('_')[0].upper()} is {x}" for name, x in how.items())
        raise UserError(f"{given} but {error}") from error


def _begin(
    setup: Setup,
    config: Any,
    initial_checkpoint: str | None,
    base_checkpoint: str | None,
    remat: bool | None,
    dropout: float | None,
) -> tuple[LanguageModel, Callable[[], PyTree] | None]:
    """The network, and what reads the parameters that it starts from; None for random ones.

    That they fit is known before, if they are needed.
    """
    network, source = registry.model_of(config), None
    if base_checkpoint is not None:
        if initial_checkpoint is not None:
            raise UserError(
                f"INITIAL_CHECKPOINT is {initial_checkpoint} and BASE_CHECKPOINT is "
                f"{base_checkpoint}: give one of them"
            )
        source = setup.checkpoint("base_checkpoint", base_checkpoint)
        network = of_base(setup.describe_base(source), config)
    elif initial_checkpoint is not None:
        source = setup.checkpoint("initial_checkpoint", initial_checkpoint)
    _check_network(network, setup.data)
    network = _as_trained(network, remat, dropout)
    if source is None:
        return network, None
    if setup.continues:  # it may be gone; it is asked for only if all of the run's own are damaged
        return network, lambda: _read_start(_open_start(source, network, setup), network, setup)
    found = _open_start(source, network, setup)
    return network, functools.partial(_read_start, found, network, setup)


def of_base(found: Mapping[str, Any], config: Any) -> LanguageModel:
    """The network that a checkpoint describes, run as the configured one is."""
    how = registry.model_of(config).description()
    if found["family"] != how["family"]:
        return registry.build(found)
    return registry.build({**found, **{name: how[name] for name in _HOW if name in how}})


def _check_network(network: LanguageModel, data: Dataset) -> None:
    """Raises UserError if a network cannot be one of the data's vocabulary."""
    name = type(getattr(network, "config", network)).__name__
    if network.vocab_size < data.vocabulary.size:
        raise UserError(
            f"{name}.vocab_size is {network.vocab_size} but the vocabulary has "
            f"{data.vocabulary.size} pieces; raise it"
        )
    ids = (data.vocabulary.pad_id, data.vocabulary.eos_id)
    if network.tokens[:2] != ids:
        raise UserError(
            f"{name} has padding and EOS {network.tokens[:2]} but the vocabulary has {ids}; use "
            "the vocabulary's"
        )


def _read_start(found: StoredCheckpoint, network: LanguageModel, setup: Setup) -> PyTree:
    return read_params(found, network, setup.partitioner, "float32")


def _open_start(path: str, network: LanguageModel, setup: Setup) -> StoredCheckpoint:
    found = open_checkpoint(path)
    check_vocabulary(found, setup.data)
    check_params(found, network)
    # What no shape tells.
    old, new = registry.build(found.model).description(), network.description()
    for name in sorted(new.keys() - set(_HOW)):
        if old.get(name) != new[name]:
            raise UserError(
                f"INITIAL_CHECKPOINT {path} has {name}={old.get(name)} but the model of this run "
                f"has {name}={new[name]}; use the same model"
            )
    return found
