"""What builders share: what a job knows, and from which network and parameters a run starts."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from nlhf_jax import checkpoints, processes
from nlhf_jax.checkpoints import open_checkpoint
from nlhf_jax.checkpoints.networks import (
    Network,
    check_params,
    check_vocabulary,
    open_network,
    read_params,
)
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.errors import UserError
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.sharding import Partitioner

_HOW = ("dtype", "scan_layers")  # of a model's description: how it is run, not what it is


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

    def kind_of_start(self) -> str | None:
        """Of the checkpoint that parameters start from its kind; None if it does not say."""
        for setting in ("base_checkpoint", "initial_checkpoint"):
            if setting in self.checkpoints:
                return (open_checkpoint(self.checkpoints[setting][1]).description or {}).get("kind")
        return None

    def learner(self) -> dict[str, Any]:
        """The arguments that all learners share."""
        return {
            "partitioner": self.partitioner,
            "optimizer": self.optimizer,
            "seed": self.seed,
            "microbatches": self.microbatches,
        }


def as_trained(
    model: LanguageModel, remat: bool | None, dropout: float | None = None
) -> LanguageModel:
    """The model with what is of its training alone; a family that has no such thing refuses it."""
    if dropout and not 0 < dropout < 1:
        raise UserError(f"DROPOUT is {dropout} but must be at least 0 and below 1")
    # A description leaves out how a network is trained and how its random parameters are drawn.
    drawn = getattr(getattr(model, "config", None), "reading_init", False)
    wanted = {"remat": remat, "dropout_rate": dropout, "reading_init": drawn}
    how = {name: x for name, x in wanted.items() if x}
    if not how:
        return model
    try:
        return registry.build(model.description() | how)
    except UserError as error:
        given = " and ".join(f"{name.split('_')[0].upper()} is {x}" for name, x in how.items())
        raise UserError(f"{given} but {error}") from error


def begin(
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
    network = as_trained(network, remat, dropout)
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


def fresh_last_logits(
    start: Callable[[], PyTree], network: LanguageModel, count: int, setup: Setup, kind: str
) -> Callable[[], PyTree]:
    """`start`, with the last `count` logits anew: see `LanguageModel.fresh_last_logits`.

    As they are of a checkpoint of the same `kind`, in which they mean already what they are to.
    """

    def read() -> PyTree:
        params = start()
        if setup.kind_of_start() == kind:
            return params
        places = jax.tree.map(lambda x: x.sharding, params)
        key = jax.random.key(setup.seed)
        anew = functools.partial(network.fresh_last_logits, count=count)
        return jax.jit(anew, out_shardings=places)(params, key)

    return read
