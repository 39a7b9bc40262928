"""What is benchmarked: a gin file's learner with random parameters, and a random batch."""

import contextlib
import dataclasses
import functools
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nlhf_jax import configuration, jobs
from nlhf_jax.checkpoints.networks import shapes
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import builders
from nlhf_jax.learners.learner import Learner
from nlhf_jax.learners.state import TrainState
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.opponents import LOOKAHEAD
from nlhf_jax.planning import programs
from nlhf_jax.planning.chips import HERE
from nlhf_jax.planning.compiling import Request, with_setting
from nlhf_jax.planning.runs import Run, model_named, parse
from nlhf_jax.planning.sizes import Mesh
from nlhf_jax.sharding import Partitioner

# No token has this number, so that no response ends before its last one: the work is always the
# same. Nothing else is told of it: prompts end, and raters read, with the usual one.
_NO_EOS = -1
_EOS = 1


@dataclasses.dataclass
class Workload:
    """A learner, and what its step takes.

    Attributes:
      run: what it costs depends on that.
      mesh: the devices.
      learner: as the gin file's builder makes it.
      state, frozen, batch: what the step takes, on the mesh.
    """

    run: Run
    mesh: Mesh
    learner: Learner
    state: TrainState
    frozen: PyTree
    batch: dict[str, jax.Array]


def request(
    gin_files: Sequence[str],
    overrides: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    *,
    policy: str | None = None,
    rater: str | None = None,
    batch: int | None = None,
    text: int | None = None,
    response: int | None = None,
) -> Request:
    """What to benchmark.

    Args:
      gin_files, overrides, search_paths: as of `configuration.parse`.
      policy, rater: sizes, as of `planning.runs.read`. Where a policy's checkpoint is not set
        either, they are those of the SFT and the rater's run beside its gin file.
      batch: rows of a step in all; None for BATCH_SIZE.
      text: tokens of a prompt; None for what TASK_FEATURE_LENGTHS says.
      response: tokens of a response; None for the same.

    Raises:
      UserError: the gin files cannot be read, or a number is not positive.
    """
    asked = Request(tuple(gin_files), tuple(overrides), tuple(search_paths), policy, rater, HERE)
    learner = _learner(asked)
    if not learner:
        raise UserError(
            f"{', '.join(gin_files)} has no jobs.train.learner: what is timed is a training's "
            "step, such as that of mini/nash_md.gin"
        )
    asked = changed_to(asked, batch=batch, text=text, response=response)
    return _with_sizes(asked) if learner.endswith(".policy") else asked


def changed_to(
    asked: Request,
    batch: int | None = None,
    text: int | None = None,
    response: int | None = None,
) -> Request:
    """The same with other numbers, as of `request`."""
    for option, value in (("batch", batch), ("text", text), ("response", response)):
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value} but must be at least 1")
    if batch is not None:
        asked = with_setting(asked, f"BATCH_SIZE={batch}")
    if text is None and response is None:
        return asked
    given = zip(_names(_learner(asked)), (text, response), strict=True)
    wanted = dict(configuration.macro("TASK_FEATURE_LENGTHS") or {})
    wanted |= {name: length for name, length in given if length is not None}
    return with_setting(asked, f"TASK_FEATURE_LENGTHS={wanted!r}")


def lengths(asked: Request) -> dict[str, int]:
    """Tokens of a "text" and of a "response", as the gin files say them."""
    names = _names(_learner(asked))
    said = configuration.macro("TASK_FEATURE_LENGTHS") or {}
    return {ours: said[name] for ours, name in zip(("text", "response"), names, strict=True)}


def _learner(asked: Request) -> str:
    """What makes it, `@builders.policy`; afterwards the gin files are the configuration."""
    configuration.parse(
        asked.gin_files, asked.overrides, search_paths=asked.search_paths, complete=False
    )
    return str(configuration.settings_of(jobs.train).values.get("jobs.train.learner", ""))


def _names(learner: str) -> tuple[str, str]:
    """What TASK_FEATURE_LENGTHS calls a text and a response."""
    ours = learner.endswith((".policy", ".supervised"))
    return ("inputs", "targets") if ours else ("text", "summary")


def _with_sizes(asked: Request) -> Request:
    """With the sizes of the runs beside a policy's, where nothing else tells them."""
    parse(asked.gin_files, asked.overrides, asked.search_paths)
    arguments = configuration.arguments(builders.policy, ["setup"])
    against = "reward" if arguments.get("opponent") is None else "preference"
    found: dict[str, Any] = {}
    for option, setting, run in (
        ("policy", "initial_checkpoint", "sft"),
        ("rater", "rater_checkpoint", against),
    ):
        if arguments[setting] == "" and getattr(asked, option) is None:
            path = posixpath.join(posixpath.dirname(asked.gin_files[-1]), f"{run}.gin")
            # Where there is none, the plan of the run says what is missing.
            with contextlib.suppress(UserError):
                model_named(path, f"--{option}")
                found[option] = path
    return dataclasses.replace(asked, **found)


def prepare(asked: Request, run: Run, devices: Sequence[jax.Device]) -> Workload:
    """Makes the arrays of a step.

    Args:
      asked: the gin files, for all that `run` does not say.
      run: what `asked` describes, perhaps with other sizes.
      devices: all that the mesh takes.

    Raises:
      UserError: the run does not fit the devices, or has no phases.
    """
    mesh = check(run, len(devices))
    known = run
    if run.kind == "policy":
        known = dataclasses.replace(run, model=dataclasses.replace(run.model, eos_id=_NO_EOS))
    learner, batch = programs.sized_learner(
        known,
        asked.gin_files,
        asked.overrides,
        asked.search_paths,
        devices,
        read=functools.partial(random_params, seed=1),
    )
    frozen = learner._frozen if run.kind == "policy" else None
    state = learner._factory.random()
    return Workload(run, mesh, learner, state, frozen, _batch(learner, run.model, batch))


def check(run: Run, devices: int) -> Mesh:
    """The mesh of so many devices. Raises UserError as of `prepare`."""
    if any(LOOKAHEAD in player for player in run.players):
        raise UserError(
            "the opponent looks a step ahead, which is a step inside the step: nlhf benchmark has "
            "no phases for that"
        )
    if run.rater is not None and run.rater.vocab_size < run.model.vocab_size:
        raise UserError(
            f"the rater's vocabulary of {run.rater.vocab_size} tokens is smaller than the policy's "
            f"of {run.model.vocab_size}: --policy and --rater must read the same tokens"
        )
    return run.mesh_on(devices)


def random_params(
    model: LanguageModel, partitioner: Partitioner, dtype: str, seed: int = 0
) -> PyTree:
    """Parameters that `seed` draws, in the form and places of those that are read in `dtype`."""
    places = partitioner.tree_sharding(model.logical_axes(), shapes(model))

    def draw() -> PyTree:
        return model.frozen_params(model.init(jax.random.key(seed)), dtype)

    return jax.jit(draw, out_shardings=places)()


def _batch(
    learner: Learner, config: T5Config, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Texts of full length, each of random tokens and EOS."""
    rng = np.random.default_rng(0)

    def draw(like: jax.ShapeDtypeStruct) -> np.ndarray[Any, Any]:
        if like.dtype == np.float32:  # shares of votes
            return rng.uniform(0.6, 1.0, like.shape).astype(np.float32)
        tokens = rng.integers(2, config.vocab_size, like.shape, dtype=np.int32)
        tokens[:, -1] = _EOS
        return tokens

    return learner.partitioner.place_batch({name: draw(like) for name, like in wanted.items()})
