"""What a gin file's training is, as far as its cost depends on it; no data and no array is read."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from nlhf_jax import configuration, jobs, objectives
from nlhf_jax.checkpoints import open_checkpoint
from nlhf_jax.configuration import effective
from nlhf_jax.data.templates import (
    SHORT_INSTRUCTION,
    SHORT_SUMMARY,
    feature_length,
    rater_segments,
    reward_segments,
    short_rater_segments,
)
from nlhf_jax.data.vocabularies import Vocabulary, tldr_mini_vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import builders
from nlhf_jax.jobs.setup import describe_base, of_base
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.objectives import Objective
from nlhf_jax.planning.sizes import Mesh
from nlhf_jax.raters import PreferenceModel, PreferenceScorer, RewardModel, RewardScorer
from nlhf_jax.sharding import MESH_AXES

# What a run needs and its cost does not depend on: those that a file requires get some value.
_ANY: Mapping[str, Any] = {
    "INITIAL_CHECKPOINT": "",
    "RATER_CHECKPOINT": "",
    "DATA_DIR": "",
    "DATA": None,
    "SFT_FILES": {},
    "PREFERENCE_FILES": {},
    "VOCABULARY": "",
    "LEARNING_RATE": 1e-4,
    "TAU": 0.1,
}
# The paper's instruction and its short form in tokens of T5's vocabulary, about, of a preference
# model and of a reward model; taken where the vocabulary is not at hand.
_TEMPLATE = {("preference", False): 63, ("preference", True): 14}
_TEMPLATE |= {("reward", False): 45, ("reward", True): 9}


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, as its cost depends on it.

    Attributes:
      kind: of the learner, "supervised", "preference", "reward" or "policy".
      model: what is trained.
      train_steps, batch_size, microbatches, remat: as in gin.
      mesh: the sizes of its axes as in gin, where `data` may be -1.
      lengths: tokens of a row that is trained on: (read, written). Of raters what they read is the
        whole template, and they write one token.
      rows: such rows for each example of a batch: 2 of a pairwise loss.
      optimizer: its name in gin.
      factored_from: Adafactor's `min_dim_size_to_factor`.
      players: of a policy, the parameter sets that each writer of a response runs.
      kept: how many parameter sets an opponent keeps.
      rater: of a policy, the network that scores; None if there is none.
      rater_lengths: (tokens that it reads, how often it is asked about a prompt).
      frozen_dtype: of a policy, in which reference and rater are stored.
      decode_layout: how a rollout is laid out, see `sizes.decoding_mesh`.
      template: how many tokens of a rater's input are fixed.
      apart: whether networks decode each by itself, see `models.lockstep`: CPUs.
      assumed: sentences on what was taken for granted.
    """

    kind: str
    model: T5Config
    train_steps: int
    batch_size: int
    microbatches: int
    remat: bool
    mesh: tuple[int, int, int]
    lengths: tuple[int, int]
    rows: int
    optimizer: str
    factored_from: int
    players: tuple[tuple[str, ...], ...] = ()
    kept: int = 0
    rater: T5Config | None = None
    rater_lengths: tuple[int, int] = (0, 0)
    frozen_dtype: str = "float32"
    decode_layout: str = "auto"
    template: int = 0
    apart: bool = False
    assumed: tuple[str, ...] = ()

    @property
    def streams(self) -> dict[str, int]:
        """Parameter set -> streams it decodes: of networks together as many as the busiest has."""
        names = sorted(set().union(*self.players))
        own = {name: sum(name in player for player in self.players) for name in names}
        return own if self.apart else dict.fromkeys(names, max(own.values(), default=0))

    @property
    def encodes_once(self) -> bool:
        """Whether the gradient uses the rollout's reading of the prompts by what is trained."""
        return self.kind == "policy" and self.microbatches == 1

    def mesh_on(self, chips: int, slices: int = 1) -> Mesh:
        """The mesh of so many devices in all. Raises UserError if it is none of them."""
        data, fsdp, tensor = self.mesh
        if data == -1:
            data = max(1, chips // (fsdp * tensor))
        if data * fsdp * tensor != chips:
            raise UserError(
                f"the mesh data={data} x fsdp={fsdp} x tensor={tensor} needs "
                f"{data * fsdp * tensor} devices, but the topology has {chips}; change DATA_AXIS, "
                "FSDP_AXIS or TENSOR_AXIS"
            )
        if data % slices:
            raise UserError(
                f"the mesh has data={data} but that must be a multiple of the {slices} slices; "
                "change DATA_AXIS, FSDP_AXIS or TENSOR_AXIS"
            )
        shares = data * fsdp * self.microbatches
        if self.batch_size < 1 or self.batch_size % shares:
            raise UserError(
                f"BATCH_SIZE is {self.batch_size} but must be a multiple of the {data * fsdp} "
                f"devices that share a batch times MICROBATCHES, {self.microbatches}"
            )
        return Mesh(data, fsdp, tensor, slices)


def parse(gin_files: Sequence[str], overrides: Sequence[str], search_paths: Sequence[str]) -> None:
    """Makes a training's files the configuration, without what its cost does not depend on."""
    parsed = functools.partial(configuration.parse, gin_files, overrides, search_paths=search_paths)
    parsed(complete=False)
    required = {s.name for s in effective.settings(gin_files, overrides) if s.is_required}
    given = {name: value for name, value in _ANY.items() if name in required}
    parsed(macros_if_known=given)


def read(
    gin_files: Sequence[str],
    overrides: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    policy: str | None = None,
    rater: str | None = None,
) -> Run:
    """The training that gin files describe.

    Args:
      gin_files, overrides, search_paths: as of `configuration.parse`.
      policy: sizes of the network that is trained, where its checkpoint does not tell: a file of
        `gin_configs/models`, by its name: `t5_1_1_large`, `large` or `models/large.gin`.
      rater: those of the rater.

    Raises:
      UserError: the files describe no training, or sizes are not known.
    """
    named = {
        option: model_named(name, f"--{option}")
        for option, name in (("policy", policy), ("rater", rater))
        if name is not None
    }
    parse(gin_files, overrides, search_paths)
    settings = configuration.settings_of(jobs.train).values
    learner = str(settings.get("jobs.train.learner", ""))
    kind = learner.removeprefix("@builders.")
    if kind not in ("supervised", "preference", "reward", "policy"):
        raise UserError(
            f"jobs.train.learner is {learner or 'not set'} but what a step costs is known of "
            "trainings by @builders.supervised, preference, reward and policy"
        )
    if kind != "policy" and named:
        raise UserError(f"--{next(iter(named))} says nothing: this run's MODEL has the sizes")
    axes = {name: settings[f"sharding.Partitioner.{name}"] for name in MESH_AXES}
    lengths = configuration.macro("TASK_FEATURE_LENGTHS") or settings["jobs.train.feature_lengths"]
    factoring = settings.get("optimizers.adafactor.min_dim_size_to_factor", 128)
    common = {
        "train_steps": settings["jobs.train.train_steps"],
        "batch_size": settings["jobs.train.batch_size"],
        "microbatches": settings["jobs.train.microbatches"],
        "decode_layout": settings.get("sharding.Partitioner.decode_layout", "auto"),
        "mesh": (axes["data"], axes["fsdp"], axes["tensor"]),
        "optimizer": str(settings["jobs.train.optimizer"]).strip("@()").rpartition(".")[2],
        "factored_from": factoring,
        "remat": bool(settings.get(f"builders.{kind}.remat")),
    }
    make = _policy if kind == "policy" else _other
    return make(kind, common, lengths, settings, named)


def _other(kind, common, lengths, settings, named) -> Run:
    arguments = configuration.arguments(getattr(builders, kind), ["setup"])
    model = _t5(registry.model_of(arguments["model"]))
    if (base := arguments.get("base_checkpoint")) is not None:
        model = _t5(of_base(describe_base(base), arguments["model"]))
    if kind == "supervised":
        inputs, targets = (feature_length(lengths, n, "SFT") for n in ("inputs", "targets"))
        return Run(kind, model, lengths=(inputs, targets), rows=1, **common)
    fixed, assumed = _template_tokens(kind, settings)
    text, summary = (feature_length(lengths, name, "a rater") for name in ("text", "summary"))
    summaries = 2 if kind == "preference" else 1
    read = max(text + summaries * summary + fixed + 1, lengths.get("inputs", 0))
    return Run(kind, model, lengths=(read, 1), rows=2, template=fixed, assumed=assumed, **common)


def _policy(kind, common, lengths, settings, named) -> Run:
    arguments = configuration.arguments(builders.policy, ["setup"])
    changes = {"dtype": arguments["compute_dtype"], "scan_layers": arguments["scan_layers"]}
    changes = {name: value for name, value in changes.items() if value is not None}
    opponent = arguments["opponent"]
    pairwise = opponent is not None
    wanted = {"policy": ("INITIAL_CHECKPOINT", arguments["initial_checkpoint"])}
    if arguments["rater_checkpoint"] is not None:
        wanted["rater"] = ("RATER_CHECKPOINT", arguments["rater_checkpoint"])
    elif "rater" in named:
        raise UserError("--rater says nothing: RATER_CHECKPOINT is None")
    found, assumed = _networks(wanted, named)
    models = {name: dataclasses.replace(config, **changes) for name, config in found.items()}
    scorer_kind = "preference" if pairwise else "reward"
    fixed, about_template = _template_tokens(scorer_kind, settings)
    inputs, targets = (feature_length(lengths, n, "a policy") for n in ("inputs", "targets"))
    if arguments.get("scorer") is not None:
        about_template += ("SCORER is taken to ask the rater as the built-in scorer does",)
    rater = models.get("rater")
    objective: Objective = arguments.get("objective") or objectives.ipo(1.0)
    players = objective.players(opponent and opponent.weights, _scorer(models, pairwise))
    asked = 2 if pairwise and arguments["both_orders"] else 1
    return Run(
        kind,
        models["policy"],
        lengths=(inputs, targets),
        rows=objective.learned,
        players=tuple(tuple(player) for player in players),
        kept=len(opponent.keeps) if opponent is not None else 0,
        rater=rater,
        rater_lengths=(inputs + (2 if pairwise else 1) * targets + fixed + 1, asked),
        frozen_dtype=arguments["frozen_dtype"],
        template=fixed,
        assumed=assumed + about_template,
        **common,
    )


def _scorer(models: Mapping[str, T5Config], pairwise: bool):
    model = registry.model_of(models["policy"])
    if pairwise:
        return PreferenceScorer(PreferenceModel(model, ("text", "first", "second"), (0, 1)), True)
    return RewardScorer(RewardModel(model, ("text", "first")))


# --- sizes of networks ---------------------------------------------------------------------------


def model_named(name: str, option: str) -> T5Config:
    """The T5 that a gin file makes MODEL, or of the file of `gin_configs/models` with that size."""
    path = name if name.endswith(".gin") else f"models/{name.removeprefix('t5_1_1_')}.gin"
    files = ["runs/sft.gin", path]
    try:
        configuration.parse(files, complete=False)
        # T5's vocabulary, for the files that leave it open.
        open_macros = {s.name for s in effective.settings(files, ()) if s.is_required}
        vocabulary = {"VOCAB_SIZE": 32128} if "VOCAB_SIZE" in open_macros else {}
        configuration.parse(files, macros_if_known=vocabulary, complete=False)
    except UserError as error:
        raise UserError(
            f"{option} is {name!r} but must name a model, such as t5_1_1_large, or a gin file with "
            f"one, such as models/large.gin: {error}"
        ) from error
    return _t5(registry.model_of(configuration.arguments(builders.supervised, ["setup"])["model"]))


def _networks(
    wanted: Mapping[str, tuple[str, str]], named: Mapping[str, T5Config]
) -> tuple[dict[str, T5Config], tuple[str, ...]]:
    """Sizes as they were named, or else those of the checkpoints."""
    found: dict[str, T5Config] = {}
    missing, assumed = [], []
    for option, (setting, path) in wanted.items():
        if option in named:
            found[option] = named[option]
            assumed.append(f"{setting} has the sizes of --{option}")
            continue
        try:
            if not path:
                raise UserError(f"{setting} is not set")
            found[option] = _t5(registry.build(open_checkpoint(path).model))
        except UserError as error:
            missing.append((option, str(error)))
    if missing:
        options = " ".join(
            f"--{option}={'t5_1_1_xl' if option == 'rater' else 't5_1_1_large'}"
            for option, _ in missing
        )
        raise UserError(
            f"the sizes of the {' and the '.join(option for option, _ in missing)} are those of "
            f"checkpoints that cannot be opened ({'; '.join(why for _, why in missing)}): say "
            f"which they are, such as {options}"
        )
    return found, tuple(assumed)


def _t5(model: LanguageModel) -> T5Config:
    if not isinstance(model, T5):
        raise UserError(
            f"the model is of the family {model.description().get('family')!r}, but what a step "
            "costs is known of T5 alone"
        )
    return model.config


def _template_tokens(kind: str, settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """How many tokens of a rater's input are fixed, and what was assumed for that."""
    source = str(settings.get("jobs.train.data", "")).strip("@()")
    short = bool(settings.get(f"{source}.short_template"))
    path = settings.get(f"{source}.vocabulary")
    if source == "datasets.tldr_mini":
        vocabulary = tldr_mini_vocabulary(settings.get(f"{source}.version") or 1)
    elif isinstance(path, str) and os.path.isfile(path):
        vocabulary = Vocabulary.load(path)
    else:
        tokens = _TEMPLATE[kind, short]
        return tokens, (
            f"what is fixed of a rater's input is {tokens} tokens, as in T5's vocabulary",
        )
    if kind == "preference":
        texts = short_rater_segments if short else rater_segments
        return texts(vocabulary).length, ()
    texts_of_one = (SHORT_INSTRUCTION, SHORT_SUMMARY) if short else ()
    return reward_segments(vocabulary, *texts_of_one).length, ()
