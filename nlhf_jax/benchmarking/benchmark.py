"""A benchmark: times of a step and its phases, beside what the devices could do at best."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from nlhf_jax.benchmarking import measure, phases
from nlhf_jax.benchmarking.measure import Memory, Timing
from nlhf_jax.benchmarking.workload import prepare
from nlhf_jax.errors import UserError
from nlhf_jax.planning import plan
from nlhf_jax.planning.compiling import Request
from nlhf_jax.planning.peaks import Peaks
from nlhf_jax.planning.runs import Run
from nlhf_jax.planning.sizes import Mesh


@dataclasses.dataclass(frozen=True)
class Timed:
    """A phase, or all of a step.

    Attributes:
      name: "encode", "decode", "rating", "gradient", "update" or "step".
      timing: measured.
      flops: of its matrix products on one device, in closed form.
      bytes: that one device must read and write of its memory at the least, in closed form.
      floor: seconds below which one device cannot come at its peaks. Of a phase
        max(flops / peak, bytes / peak); a step's is the sum of those, as one waits for another.
    """

    name: str
    timing: Timing
    flops: float
    bytes: float
    floor: float

    def share_of_flops(self, peaks: Peaks) -> float:
        """Of the measured FLOP/s of matrix products, in [0, 1] unless those were measured low."""
        return self.flops / self.timing.median / peaks.flops

    def share_of_memory(self, peaks: Peaks) -> float:
        """Of the measured bytes/s of a copy."""
        return self.bytes / self.timing.median / peaks.memory_speed

    def json(self, peaks: Peaks, step: float) -> dict[str, Any]:
        """Seconds, bytes, FLOPs; `step` is the whole step's median."""
        timing = self.timing
        return {
            "name": self.name,
            "seconds": list(timing.seconds),
            "median_seconds": timing.median,
            "share_of_step": timing.median / step,
            "flops": self.flops,
            "bytes": self.bytes,
            "flops_per_second": self.flops / timing.median,
            "bytes_per_second": self.bytes / timing.median,
            "share_of_peak_flops": self.share_of_flops(peaks),
            "share_of_peak_bytes": self.share_of_memory(peaks),
            "floor_seconds": self.floor,
            "times_floor": timing.median / self.floor,
            "compile_seconds": timing.compile_seconds,
            "program_bytes": timing.program_bytes,
        }


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """All that is said of one workload.

    Attributes:
      run, mesh: what was timed, and where.
      platform, device: of the devices, such as "cpu" or "gpu", and their kind.
      peaks: of one of them, measured.
      step: the whole, as one program.
      parts: its phases, each as a program of its own.
      memory: see there.
    """

    run: Run
    mesh: Mesh
    platform: str
    device: str
    peaks: Peaks
    step: Timed
    parts: tuple[Timed, ...]
    memory: Memory

    @property
    def sampled_tokens(self) -> int:
        """In a step; none where nothing is sampled."""
        return self.run.batch_size * len(self.run.players) * self.run.lengths[1]

    @property
    def in_pieces(self) -> float:
        """Seconds of all phases, each its median."""
        return sum(part.timing.median for part in self.parts)

    def named(self, name: str) -> Timed | None:
        """The phase of that name."""
        return next((part for part in self.parts if part.name == name), None)

    def json(self) -> dict[str, Any]:
        """Everything, as JSON has it, in seconds, bytes and FLOPs; of one device where it says."""
        step, decode = self.step.timing.median, self.named("decode")
        return {
            "run": dataclasses.asdict(self.run),
            "networks": plan.networks(self.run),
            "platform": self.platform,
            "device": self.device,
            "devices": self.mesh.chips,
            "mesh": self.mesh._asdict(),
            "jax_version": jax.__version__,
            "peaks_of_a_device": {
                "dtype": self.run.model.dtype,
                "flops_per_second": self.peaks.flops,
                "bytes_per_second": self.peaks.memory_speed,
            },
            "step": self.step.json(self.peaks, step),
            "phases": [part.json(self.peaks, step) for part in self.parts],
            "steps_per_second": 1 / step,
            "sampled_tokens": self.sampled_tokens,
            "sampled_tokens_per_second": self.sampled_tokens / step,
            "sampled_tokens_per_second_of_decode": decode
            and self.sampled_tokens / decode.timing.median,
            "peak_memory": dataclasses.asdict(self.memory),
        }


def make(
    asked: Request,
    run: Run,
    peaks: Peaks,
    repeats: int,
    devices: Sequence[jax.Device] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Benchmark:
    """Times a workload.

    Args:
      asked: the gin files.
      run: what they describe, perhaps with other sizes.
      peaks: of `peaks.measure`.
      repeats: calls of each program that count, at least 1.
      devices: all that the mesh takes; None for all there are.
      say: gets sentences on what is going on.

    Raises:
      UserError: the run does not fit the devices or their memory, or has no phases.
    """
    devices = jax.devices() if devices is None else list(devices)
    if repeats < 1:
        raise UserError(f"--repeats is {repeats} but must be at least 1")
    mesh = run.mesh_on(len(devices))
    alone = devices[0].platform == "cpu" and mesh.fsdp * mesh.tensor == 1
    costs = phases.costs(dataclasses.replace(run, apart=alone), mesh)
    say("compiling and timing")
    try:
        timings, memory = measure.time_workload(prepare(asked, run, devices), repeats)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the devices' memory is too small for BATCH_SIZE {run.batch_size}, {run.lengths[0]} "
            f"tokens read and {run.lengths[1]} written: lower them, or see nlhf plan for what helps"
        ) from error
    parts = []
    for name, cost in costs.items():
        floor = max(cost.flops / peaks.flops, cost.memory.least / peaks.memory_speed)
        parts.append(Timed(name, timings[name], cost.flops, cost.memory.least, floor))
    step = Timed(
        phases.STEP,
        timings[phases.STEP],
        sum(part.flops for part in parts),
        sum(part.bytes for part in parts),
        sum(part.floor for part in parts),
    )
    kind = devices[0].device_kind
    return Benchmark(run, mesh, devices[0].platform, kind, peaks, step, tuple(parts), memory)
