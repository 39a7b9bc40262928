"""A run's plan: what it holds, what a step costs, whether it fits, and how long it takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

from nlhf_jax.errors import UserError
from nlhf_jax.planning import compiling, phases
from nlhf_jax.planning.chips import Topology
from nlhf_jax.planning.compiling import Compiled, Request
from nlhf_jax.planning.memory import Memory, memory
from nlhf_jax.planning.phases import Phase
from nlhf_jax.planning.runs import Run
from nlhf_jax.planning.sizes import Mesh, parameters

_MOST_COMPILES = 8  # of a search


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is said of a run on some chips.

    Attributes:
      run, topology, mesh: what is planned.
      memory: of a chip, in closed form.
      phases: of a step, on one chip.
      compiled: what the compiler says; None if it was not asked.
      helps: where the run does not fit, settings that help and the closed form's peak with them.
      careful: whether that was compiled as the run itself will.
      largest_batch: (the largest that fits, who says so); None if it was not looked for.
    """

    run: Run
    topology: Topology
    mesh: Mesh
    memory: Memory
    phases: list[Phase]
    compiled: Compiled | None = None
    careful: bool = False
    helps: tuple[tuple[str, float], ...] = ()
    largest_batch: tuple[int, str] | None = None

    @property
    def step_seconds(self) -> tuple[float, float]:
        """At the least and at the most, of a step."""
        each = [phase.seconds(self.topology.chip) for phase in self.phases]
        return sum(least for least, _ in each), sum(most for _, most in each)

    @property
    def fits(self) -> bool:
        """By the compiler if it said something, else by the closed form."""
        if self.compiled is not None and self.compiled.verdict in ("fits", "does not fit"):
            return self.compiled.verdict == "fits"
        return self.memory.peak <= self.topology.chip.memory

    def json(self) -> dict[str, Any]:
        """Everything, as JSON has it: bytes, seconds, FLOPs."""
        least, most = self.step_seconds
        steps, chips = self.run.train_steps, self.topology.chips
        return {
            "run": dataclasses.asdict(self.run),
            "networks": networks(self.run),
            "topology": self.topology.name,
            "chips": chips,
            "chip": dataclasses.asdict(self.topology.chip),
            "mesh": self.mesh._asdict(),
            "memory": {
                "stays": dict(self.memory.stays),
                "phases": dict(self.memory.phases),
                "peak": self.memory.peak,
                "limit": self.topology.chip.memory,
            },
            "phases": [
                {
                    "name": phase.name,
                    "flops": phase.flops,
                    "memory_bytes": list(phase.memory),
                    "wire_bytes": [phase.wire.least, phase.wire.most],
                    "collectives": phase.wire.collectives,
                    "bytes_between_slices": phase.wire.between,
                    "seconds": list(phase.seconds(self.topology.chip)),
                }
                for phase in self.phases
            ],
            "step_seconds": [least, most],
            "run_hours": [steps * least / 3600, steps * most / 3600],
            "chip_hours": [steps * chips * least / 3600, steps * chips * most / 3600],
            "fits": self.fits,
            "compiled": self.compiled and dataclasses.asdict(self.compiled),
            "helps": [{"setting": setting, "peak": peak} for setting, peak in self.helps],
            "largest_batch": self.largest_batch
            and dict(zip(("rows", "by"), self.largest_batch, strict=True)),
        }


def networks(run: Run) -> dict[str, int]:
    """Parameters of each network of a run."""
    if run.kind != "policy":
        return {"model": parameters(run.model)}
    found = {"policy": parameters(run.model), "reference": parameters(run.model)}
    return found | ({"rater": parameters(run.rater)} if run.rater is not None else {})


def make(
    request: Request,
    topology: Topology,
    *,
    compile_timeout: float | None,
    program: str | None = None,
    largest_batch: bool = False,
) -> Plan:
    """The plan of a gin file's run on a topology.

    Args:
      request: the run.
      topology: what it is planned for.
      compile_timeout: seconds that the compiler has; None: it is not asked.
      program: a file for the compiled program's text.
      largest_batch: look for the largest batch that fits.
    """
    run = request.run()
    mesh = run.mesh_on(topology.chips, topology.slices)
    plan = Plan(run, topology, mesh, memory(run, mesh), phases.phases(run, mesh))
    if compile_timeout is not None:
        found = compiling.compiled(request, run, topology, compile_timeout, program)
        plan = dataclasses.replace(plan, compiled=found, careful=request.careful)
    if not plan.fits:
        plan = dataclasses.replace(plan, helps=tuple(helps(run, topology)))
    if largest_batch:
        plan = dataclasses.replace(
            plan, largest_batch=_largest_batch(request, plan, compile_timeout)
        )
    return plan


def helps(run: Run, topology: Topology) -> list[tuple[str, float]]:
    """Settings that lower the closed form's peak, and that peak; the best ones first."""
    chips = topology.chips // topology.slices
    tried: list[tuple[str, dict[str, Any]]] = []
    if not run.remat:
        tried.append(("REMAT = True", {"remat": True}))
    tried += [
        (f"MICROBATCHES = {n}", {"microbatches": n}) for n in (2, 4, 8) if n > run.microbatches
    ]
    if run.kind == "policy" and run.frozen_dtype != "bfloat16":
        tried.append(('FROZEN_DTYPE = "bfloat16"', {"frozen_dtype": "bfloat16"}))
    tried.append((f"BATCH_SIZE = {run.batch_size // 2}", {"batch_size": run.batch_size // 2}))
    for fsdp, tensor in ((chips, 1), (max(1, chips // 4), min(4, chips)), (1, min(8, chips))):
        text = f"FSDP_AXIS = {fsdp}, TENSOR_AXIS = {tensor}"
        tried.append((text, {"mesh": (-1, fsdp, tensor)}))
    now = _peak(run, topology)
    found = []
    for text, changes in tried:
        try:
            peak = _peak(dataclasses.replace(run, **changes), topology)
        except UserError:  # a mesh that does not divide the batch
            continue
        if peak < 0.98 * now:
            found.append((text, peak))
    return sorted(dict(found).items(), key=lambda pair: pair[1])


def _peak(run: Run, topology: Topology) -> float:
    return memory(run, run.mesh_on(topology.chips, topology.slices)).peak


# --- the largest batch ---------------------------------------------------------------------------


def largest(fits: Callable[[int], bool], unit: int, start: int = 1, most: int = 1 << 20) -> int:
    """The largest multiple of `unit`, below `most` of them, that fits; 0 if the first does not.

    Where one fits, all smaller ones do. Doubles from `start` units, or halves, and then bisects.
    """
    low, high = 0, start
    while high < most and fits(high * unit):
        low, high = high, 2 * high
    if low == 0:  # `start` was too many
        while high > 1:
            smaller = high // 2
            if fits(smaller * unit):
                low = smaller
                break
            high = smaller
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit


def _largest_batch(
    request: Request, plan: Plan, compile_timeout: float | None
) -> tuple[int, str] | None:
    """By the closed form, and then, from there, by the compiler, to a sixteenth of the batch."""
    run, topology = plan.run, plan.topology
    unit = plan.mesh.batch_shares * run.microbatches

    def closed(batch: int) -> bool:
        peak = _peak(dataclasses.replace(run, batch_size=batch), topology)
        return peak <= topology.chip.memory

    by_formula = largest(closed, unit)
    asked = plan.compiled
    if compile_timeout is None or asked is None or asked.verdict == "not compiled":
        return by_formula, "the closed form"
    compiles = 0

    def fits(batch: int) -> bool:
        nonlocal compiles
        if compiles >= _MOST_COMPILES:
            return False
        compiles += 1
        one = compiling.with_setting(request, f"BATCH_SIZE={batch}")
        found = compiling.compiled(one, one.run(), topology, compile_timeout)
        return found.verdict == "fits"

    # Steps of about a sixteenth of what the closed form found.
    units = max(1, by_formula // unit)
    coarse = unit * max(1, units // 16)
    found = largest(fits, coarse, start=max(1, units * unit // coarse))
    return found, f"the compiler, in {compiles} programs, to within {coarse} rows"
