"""What watches a training while it goes: a guard warns first, and ends a run that stays wrong.

Guards look at the metrics of every step, which the loop has on the host anyway. They change nothing
about a training but where it ends. What they remember is in the checkpoints, so a run that was
interrupted is warned and stopped at the same steps.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax.errors import UserError

Metrics = Mapping[str, float]
SPLIT = "guards"  # of their lines in metrics.jsonl
_STEADY = 10  # steps, whose median is judged: one batch says little
_RECENT = 100  # steps of a running median


class TrainingDiverged(Exception):
    """A training went wrong: its numbers are NaN or infinite, or a guard ended it.

    The last good checkpoint stays.
    """

    exit_code = 3


@dataclasses.dataclass(frozen=True)
class Guards:
    """Limits of what is normal; None for no such guard. `runs/guards.gin` has values.

    Attributes:
      max_skipped_updates: how many updates in a row may be skipped because the loss or its gradient
        is not finite.
      max_gradient_spike: the gradient's norm, over its median in the first steps or in the last
        hundred, whichever is larger.
      max_kl: of the policy to the reference, in nats a token.
      min_entropy: of the policy, in nats a token, as a share of what it was in the first steps.
      min_length: of its responses, as a share of what it was in the first steps.
      max_saturation: mean of (2 P - 1)^2, 1 where every preference is 0 or 1.
      max_order_bias: how much more probable a rater's preference is for what it reads first.
      patience: steps in a row that a limit is passed before the run ends; ten times as many for
        what a rater in training may still unlearn. None: guards only warn.
    """

    max_skipped_updates: int | None
    max_gradient_spike: float | None
    max_kl: float | None
    min_entropy: float | None
    min_length: float | None
    max_saturation: float | None
    max_order_bias: float | None
    patience: int | None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.name == "patience" else 0
            if value is not None and value < least:
                name = "GUARD_PATIENCE" if field.name == "patience" else field.name.upper()
                raise UserError(f"{name} is {value} but must be at least {least}, or None")


# Without settings, as in a gin file of release 0.1: what is not finite ends the run.
_NONE = Guards(0, None, None, None, None, None, None, None)


@dataclasses.dataclass(frozen=True)
class _Guard:
    """One kind of going wrong.

    Attributes:
      name: in metrics.jsonl.
      setting: the attribute of `Guards` with its limit; in capitals the macro.
      measure: of a step's metrics; a KeyError or NaN where a learner has none.
      says: a sentence about a `{value}`.
      advice: what to change.
      limit_is: "absolute", or a factor of the median over the "first" steps, or of that or the
        running median, the larger one ("recent"); or how many "steps" in a row are let pass.
      steady: of how many steps the median is judged.
      patience: how many times `Guards.patience` it may last.
      doubts_state: a checkpoint from meanwhile is not a good one.
    """

    name: str
    setting: str
    measure: Callable[[Metrics], float]
    says: str
    advice: str
    limit_is: str = "absolute"
    steady: int = _STEADY
    patience: int = 1
    doubts_state: bool = False

    @property
    def is_above(self) -> bool:
        return self.setting.startswith("max_")


def _a_token(name: str) -> Callable[[Metrics], float]:
    return lambda metrics: metrics[name] / metrics["response_length"]


def _saturation(metrics: Metrics) -> float:
    if "preference" in metrics:  # a policy's: the advantage is P - 1/2
        return 4.0 * metrics["advantage_squared"]
    return metrics["saturation"]


def _order_bias(beside: str) -> Callable[[Metrics], float]:
    return lambda metrics: metrics["order_bias"] if beside in metrics else math.nan


SLOWER = "lower LEARNING_RATE, give more WARMUP_STEPS or a smaller CLIP_NORM"
_TOO_FREE = "raise TAU or lower LEARNING_RATE"
_BAD_RATER = "train the rater on more votes or for fewer steps, or lower its LEARNING_RATE"

_GUARDS = (
    _Guard(
        "skipped",
        "max_skipped_updates",
        lambda metrics: metrics["skipped"],
        "the loss or its gradient is not finite, so the update is skipped",
        SLOWER,
        limit_is="steps",
        steady=1,
    ),
    _Guard(
        "gradient_spike",
        "max_gradient_spike",
        lambda metrics: metrics["gradient_norm"],
        "the gradient norm is {value:.3g}",
        SLOWER,
        limit_is="recent",
        steady=1,
        doubts_state=True,
    ),
    _Guard(
        "kl_per_token",
        "max_kl",
        _a_token("kl"),
        "the KL to the reference is {value:.3g} nats a token",
        _TOO_FREE,
        doubts_state=True,
    ),
    _Guard(
        "entropy_per_token",
        "min_entropy",
        _a_token("entropy"),
        "the policy's entropy is {value:.3g} nats a token",
        _TOO_FREE,
        limit_is="first",
        doubts_state=True,
    ),
    _Guard(
        "response_length",
        "min_length",
        lambda metrics: metrics["response_length"],
        "responses are {value:.3g} tokens long",
        _TOO_FREE,
        limit_is="first",
        doubts_state=True,
    ),
    _Guard(
        "saturation",
        "max_saturation",
        _saturation,
        "the rater's preferences are near 0 or 1, with a mean (2 P - 1)^2 of {value:.4g}",
        _BAD_RATER,
    ),
    _Guard(
        "order_bias",
        "max_order_bias",
        _order_bias("preference"),  # a policy's, of its frozen rater
        "the rater prefers what it reads first, or second, by {value:.3g}",
        _BAD_RATER,
    ),
    _Guard(
        "order_bias_in_training",
        "max_order_bias",
        _order_bias("accuracy"),
        "the rater prefers what it reads first, or second, by {value:.3g}",
        "give it more WARMUP_STEPS or another LEARNING_RATE",
        patience=10,
    ),
)


@dataclasses.dataclass
class _Memory:
    """What a guard remembers, as JSON knows it.

    Attributes:
      first: values of the first steps.
      last: the last ones, whose median is judged.
      recent: the last ones within the limit.
      lasting: for how many steps the limit has been passed.
      warnings: how often that began.
    """

    first: list[float] = dataclasses.field(default_factory=list)
    last: list[float] = dataclasses.field(default_factory=list)
    recent: list[float] = dataclasses.field(default_factory=list)
    lasting: int = 0
    warnings: int = 0


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A warning, or the end of the run.

    Attributes:
      text: what is wrong.
      advice: what to change.
      ends_run: whether it has lasted too long.
      numbers: for the metrics, by name.
    """

    text: str
    advice: str
    ends_run: bool
    numbers: Mapping[str, float]


class Watch:
    """Watches one training.

    Args:
      guards: the limits; None ends the run with the first update that is not finite.
      carried: what `to_json` gave where the run was interrupted; None at its start.
    """

    def __init__(self, guards: Guards | None, carried: Mapping[str, Any] | None = None):
        self._settings = guards or _NONE
        self._guards = [g for g in _GUARDS if getattr(self._settings, g.setting) is not None]
        self._memories = {
            guard.name: _Memory(**(carried or {}).get(guard.name, {})) for guard in self._guards
        }

    def to_json(self) -> dict[str, Any]:
        return {name: dataclasses.asdict(memory) for name, memory in self._memories.items()}

    def observe(self, metrics: Metrics) -> list[Alarm]:
        """Takes in the metrics of the next step; what has gone wrong, if anything."""
        alarms = [self._look(guard, self._memories[guard.name], metrics) for guard in self._guards]
        return [alarm for alarm in alarms if alarm is not None]

    @property
    def doubts_state(self) -> bool:
        """Whether a guard warns of the state, which may end the run if that lasts."""
        return self._settings.patience is not None and any(
            guard.doubts_state and self._memories[guard.name].lasting for guard in self._guards
        )

    def _look(self, guard: _Guard, memory: _Memory, metrics: Metrics) -> Alarm | None:
        try:
            value = guard.measure(metrics)
        except (KeyError, ZeroDivisionError):
            return None
        if not math.isfinite(value):
            return None  # That the update was skipped is a guard of its own.
        latest = value
        if guard.limit_is in ("first", "recent") and len(memory.first) < _STEADY:
            memory.first.append(value)
        memory.last = [*memory.last, value][-guard.steady :]
        if len(memory.last) < guard.steady or 0 < len(memory.first) < _STEADY:
            return None
        value = abs(statistics.median(memory.last))  # of what has a sign, the size
        setting = getattr(self._settings, guard.setting)
        limit = _limit(guard, memory, setting)
        if not (value > limit if guard.is_above else value < limit):
            memory.lasting = 0
            if guard.limit_is == "recent":
                memory.recent = [*memory.recent, latest][-_RECENT:]
            return None
        memory.lasting += 1
        memory.warnings += memory.lasting == 1
        ends_run = memory.lasting >= self._patience(guard)
        # Of what comes again and again, the 1st, 2nd, 4th, 8th, ... is said.
        if not ends_run and (memory.lasting > 1 or memory.warnings & (memory.warnings - 1)):
            return None
        numbers = {
            guard.name: value,
            f"{guard.name}_limit": limit,
            f"{guard.name}_warnings": float(memory.warnings),
            f"{guard.name}_steps": float(memory.lasting),
            f"{guard.name}_ended_run": float(ends_run),
        }
        text = _text(guard, value, limit)
        if ends_run and memory.lasting > 1:
            text += f", for {memory.lasting} steps in a row"
        macro = guard.setting.upper()
        advice = f"{guard.advice}, or set {macro}, which is {setting:g}; None turns it off"
        return Alarm(text, advice, ends_run, numbers)

    def _patience(self, guard: _Guard) -> float:
        if guard.limit_is == "steps":
            return getattr(self._settings, guard.setting) + 1
        patience = self._settings.patience
        return math.inf if patience is None else patience * guard.patience


def _limit(guard: _Guard, memory: _Memory, setting: float) -> float:
    if guard.limit_is == "steps":
        return 0.0
    if guard.limit_is == "absolute":
        return setting
    usual = statistics.median(memory.first)
    if guard.limit_is == "recent" and memory.recent:
        usual = max(usual, statistics.median(memory.recent))
    return setting * usual


def _text(guard: _Guard, value: float, limit: float) -> str:
    text = guard.says.format(value=value)
    if guard.limit_is == "steps":
        return text
    return f"{text}, {'above' if guard.is_above else 'below'} the limit of {limit:.3g}"


def summary(lines: Iterable[Metrics]) -> list[str]:
    """What happened, a sentence for each guard, from its lines in `metrics.jsonl`."""
    lines, found = list(lines), []
    for guard in _GUARDS:
        rows = [line for line in lines if guard.name in line]
        if not rows:
            continue
        first, last = rows[0], rows[-1]
        text = _text(guard, first[guard.name], first[f"{guard.name}_limit"])
        text += f" (step {first['step']:.0f}"
        if last[f"{guard.name}_warnings"] > 1:
            text += f", and again up to step {last['step']:.0f}"
        if last.get(f"{guard.name}_ended_run"):
            text += f"; that ended the run at step {last['step']:.0f}"
        found.append(f"{text}).")
    return found


# --- states --------------------------------------------------------------------------------------


@jax.jit  # One small program per shape, which all stages of a process share.
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def not_finite(state: Any) -> str | None:
    """The name of an array of the state that has NaN or infinity in it, None if none has."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    floats = [(key, leaf) for key, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    flags = jax.device_get([_is_finite(leaf) for _, leaf in floats])
    for (key, _), finite in zip(floats, flags, strict=True):
        if not finite:
            return jax.tree_util.keystr(key, simple=True, separator="/")
    return None
