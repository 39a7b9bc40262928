"""How time grows with the batch, the lengths and the size of the networks."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nlhf_jax.benchmarking import benchmark
from nlhf_jax.benchmarking.benchmark import Benchmark
from nlhf_jax.benchmarking.workload import changed_to, lengths
from nlhf_jax.errors import UserError
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.planning.compiling import Request
from nlhf_jax.planning.runs import Run
from nlhf_jax.planning.sizes import parameters

AXES = ("batch", "text", "response", "size")
UNITS = {
    "batch": "rows",
    "text": "tokens of a prompt",
    "response": "tokens of a response",
    "size": "parameters of the policy",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One workload of a sweep.

    Attributes:
      value: of its axis, in the unit of `UNITS`.
      found: what was measured; its memory is not this workload's alone, as others ran before.
    """

    value: int
    found: Benchmark


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All else as it was, one thing smaller and larger.

    Attributes:
      axis: of `AXES`.
      points: with rising values.
    """

    axis: str
    points: tuple[Point, ...]

    @property
    def seconds(self) -> dict[str, list[float]]:
        """The step and its phases -> their medians at each point."""
        names = [part.name for part in self.points[0].found.parts]
        found: dict[str, list[float]] = {name: [] for name in ("step", *names)}
        for point in self.points:
            found["step"].append(point.found.step.timing.median)
            for part in point.found.parts:
                found[part.name].append(part.timing.median)
        return found

    @property
    def growth(self) -> dict[str, float | None]:
        """By which power of the value each grows from the first to the last point: 1 is in
        proportion. None with one point."""
        if len(self.points) < 2:
            return dict.fromkeys(self.seconds)
        wide = math.log(self.points[-1].value / self.points[0].value)
        return {name: math.log(each[-1] / each[0]) / wide for name, each in self.seconds.items()}

    def json(self) -> dict[str, Any]:
        """The points, and `growth`."""
        points = []
        for point in self.points:
            found = point.found.json()
            del found["peak_memory"]
            points.append({"value": point.value} | found)
        return {
            "axis": self.axis,
            "unit": UNITS[self.axis],
            "growth": self.growth,
            "points": points,
        }


def axes(text: str) -> tuple[str, ...]:
    """The axes that a list with commas names. Raises UserError for others, and for one twice."""
    found = tuple(text.split(","))
    for axis in found:
        if axis not in AXES or found.count(axis) > 1:
            raise UserError(
                f"--sweep is {text!r} but must be some of {', '.join(AXES)}, with commas between "
                "them, each once"
            )
    return found


def factors(text: str) -> tuple[float, ...]:
    """The numbers of a list with commas, rising. Raises UserError for what is none."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < factor < math.inf for factor in found):
        raise UserError(f"--factors is {text!r} but must be positive numbers, such as 0.5,1,2")
    return tuple(found)


def workloads(
    asked: Request, run: Run, axis: str, by: Sequence[float], devices: int
) -> Iterator[tuple[int, Request, Run]]:
    """The values of an axis with their workloads: `run`'s times each of the factors `by`.

    Left out is what cannot be: a batch that so many devices cannot share, and lengths below 2.

    Raises:
      UserError: the networks' sizes are not those of `run`, but in the gin file alone.
    """
    if axis == "size" and run.kind != "policy":
        raise UserError(
            f"--sweep is of the size, but the sizes of a {run.kind} training are its gin file's: "
            "only those of a policy's networks can be swept"
        )
    shares = run.mesh_on(devices).batch_shares * run.microbatches
    seen = set()
    for factor in by:
        changed_run = None
        if axis == "size":
            rater = run.rater and scaled(run.rater, factor)
            changed_run = dataclasses.replace(run, model=scaled(run.model, factor), rater=rater)
            value, changed = parameters(changed_run.model), asked
        elif axis == "batch":
            value = round(run.batch_size * factor)
            if value % shares or not value:
                continue
            changed = changed_to(asked, batch=value)
        else:
            value = round(lengths(asked)[axis] * factor)
            if value < 2:
                continue
            changed = changed_to(asked, **{axis: value})
        if value not in seen:
            seen.add(value)
            yield value, changed, changed_run or changed.run()


def scaled(config: T5Config, factor: float) -> T5Config:
    """A T5 whose widths and heads are so many times as many, in as many layers."""
    return dataclasses.replace(
        config,
        emb_dim=max(1, round(config.emb_dim * factor)),
        mlp_dim=max(1, round(config.mlp_dim * factor)),
        num_heads=max(1, round(config.num_heads * factor)),
    )


def measure(
    asked: Request,
    base: Benchmark,
    axis: str,
    by: Sequence[float],
    repeats: int,
    say: Callable[[str], None] = lambda sentence: None,
) -> Sweep:
    """Times the workloads of an axis; of `base`, which is one of them, what it has found.

    Ends at the first that does not fit the memory, and says so.
    """
    points = []
    for value, changed_request, run in workloads(asked, base.run, axis, by, base.mesh.chips):
        if run == base.run:
            points.append(Point(value, base))
            continue
        say(f"{value:,} {UNITS[axis]}")
        try:
            found = benchmark.make(changed_request, run, base.peaks, repeats)
        except UserError as error:
            say(f"{value:,} {UNITS[axis]}: {error}")
            break
        points.append(Point(value, found))
    if not points:
        raise UserError(f"--factors leaves no workload for --sweep={axis}")
    return Sweep(axis, tuple(points))
