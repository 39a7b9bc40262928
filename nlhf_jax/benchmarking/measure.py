"""Times of compiled programs: every clock stops when the results are there, not when asked for."""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from nlhf_jax.benchmarking import phases
from nlhf_jax.benchmarking.phases import Piece
from nlhf_jax.benchmarking.workload import Workload

_WARM_UP = 2  # calls of each program before its first that counts


@dataclasses.dataclass(frozen=True)
class Timing:
    """One program.

    Attributes:
      seconds: of each call that counts.
      compile_seconds: from the function to the program.
      program_bytes: of a device's memory that the program takes with its arguments and results, by
        the compiler; None where it does not say.
    """

    seconds: tuple[float, ...]
    compile_seconds: float
    program_bytes: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def most(self) -> float:
        return max(self.seconds)


@dataclasses.dataclass(frozen=True)
class Memory:
    """The most that was in use since the process began, once the step had run and nothing else.

    Attributes:
      bytes: of the device that had most; of a backend that keeps no account, of this process.
      of: "device" or "process".
    """

    bytes: int
    of: str


def compiled(piece: Piece, values: dict[str, Any]) -> tuple[Any, float]:
    """The program of a piece for such values, and the seconds that took."""
    start = time.perf_counter()
    program = piece.function.lower(*(values[name] for name in piece.takes)).compile()
    return program, time.perf_counter() - start


def timed(piece: Piece, program: Callable, values: dict[str, Any]) -> float:
    """Seconds of one call; its results take their places among `values`.

    All that it takes must be there already, so that nothing else is waited for.
    """
    arguments = [values[name] for name in piece.takes]
    start = time.perf_counter()
    results = jax.block_until_ready(program(*arguments))
    seconds = time.perf_counter() - start
    values |= zip(piece.gives, results, strict=True)
    return seconds


def time_workload(work: Workload, repeats: int) -> tuple[dict[str, Timing], Memory]:
    """The step and each of its phases, by their names; and memory.

    They take turns: what else slows the machine down for a while slows all of them.

    Args:
      work: its state is used up.
      repeats: calls of each that count.
    """
    values: dict[str, Any] = {"state": work.state, "frozen": work.frozen, "batch": work.batch}
    work.state = None  # type: ignore[assignment]  # the step will have it
    jax.block_until_ready(list(values.values()))
    step, parts = phases.step(work.learner), phases.pieces(work.learner)
    programs: dict[str, tuple[Any, float]] = {}

    def run(chain: Sequence[Piece]) -> Iterator[tuple[str, float]]:
        for piece in chain:
            if piece.name not in programs:  # an argument may come from the piece before
                programs[piece.name] = compiled(piece, values)
            yield piece.name, timed(piece, programs[piece.name][0], values)

    def warm_up(chain: Sequence[Piece]) -> None:
        for _ in range(_WARM_UP):
            list(run(chain))

    warm_up([step])
    memory = _most_memory()
    warm_up(parts)
    found: dict[str, list[float]] = {piece.name: [] for piece in (step, *parts)}
    for _ in range(repeats):
        for name, seconds in run([step, *parts]):
            found[name].append(seconds)
    timings = {
        name: Timing(tuple(seconds), programs[name][1], _program_bytes(programs[name][0]))
        for name, seconds in found.items()
    }
    return timings, memory


def _program_bytes(program: Any) -> int | None:
    found = program.memory_analysis()
    if found is None:
        return None
    there = found.argument_size_in_bytes + found.output_size_in_bytes
    return there + found.temp_size_in_bytes - found.alias_size_in_bytes


def _most_memory() -> Memory:
    counted = [(device.memory_stats() or {}) for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    if peaks:
        return Memory(max(peaks), "device")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(most * (1 if sys.platform == "darwin" else 1024), "process")
