"""A benchmark for a terminal: tables, and under them what they mean."""

import textwrap
from collections.abc import Sequence

from nlhf_jax.benchmarking.benchmark import Benchmark, Timed
from nlhf_jax.benchmarking.sweep import UNITS, Sweep
from nlhf_jax.planning.chips import GIB
from nlhf_jax.planning.plan import networks
from nlhf_jax.planning.tables import table

_WIDTH = 110
_HEADER = (
    "ms",
    "least to most",
    "of step",
    "GFLOP/s",
    "of peak",
    "GB/s",
    "of peak",
    "floor ms",
    "x floor",
    "compile s",
)


def terminal(found: Benchmark, sweeps: Sequence[Sweep] = ()) -> str:
    """All of it, in lines of at most 110 characters."""
    parts = [_head(found), _times(found), _about(found), *map(_grown, sweeps), _meaning(found)]
    return "\n\n".join(parts) + "\n"


def _head(found: Benchmark) -> str:
    run, mesh = found.run, found.mesh
    counts = ", ".join(f"{name} {count:,}" for name, count in networks(run).items())
    read, written = run.lengths
    asks = f" in {run.microbatches} microbatches" if run.microbatches > 1 else ""
    return (
        f"{mesh.chips} x {found.device} as data {mesh.data} x fsdp {mesh.fsdp} x tensor "
        f"{mesh.tensor}\n"
        f"parameters: {counts}\n"
        f"batch {run.batch_size}{asks}, {read} tokens read and {written} written, "
        f"{run.model.dtype}, {run.optimizer}"
    )


def _times(found: Benchmark) -> str:
    rows: list[tuple[str, ...]] = [("a device's", *_HEADER)]
    rows += [_row(found, part, part.name) for part in found.parts]
    share = found.in_pieces / found.step.timing.median
    pieces = ("in pieces", _ms(found.in_pieces), "", f"{share:.0%}", *[""] * 7)
    return table([*rows, pieces, _row(found, found.step, found.step.name)])


def _row(found: Benchmark, part: Timed, name: str) -> tuple[str, ...]:
    timing = part.timing
    return (
        name,
        _ms(timing.median),
        f"{_ms(timing.least)} to {_ms(timing.most)}",
        f"{timing.median / found.step.timing.median:.0%}",
        _number(part.flops / timing.median / 1e9),
        f"{part.share_of_flops(found.peaks):.0%}",
        _number(part.bytes / timing.median / 1e9),
        f"{part.share_of_memory(found.peaks):.0%}",
        _ms(part.floor),
        f"{timing.median / part.floor:.3g}",
        f"{timing.compile_seconds:.1f}",
    )


def _about(found: Benchmark) -> str:
    step, peaks = found.step.timing, found.peaks
    lines = [f"{1 / step.median:.4g} steps/s"]
    decode = found.named("decode")
    if decode is not None:
        tokens = found.sampled_tokens
        lines[0] += (
            f"; {tokens:,} sampled tokens a step: {_number(tokens / step.median)} tokens/s, "
            f"{_number(tokens / decode.timing.median)} while they are decoded"
        )
    lines.append(
        f"peaks of a device, measured: {_number(peaks.flops / 1e9)} GFLOP/s of matrix products in "
        f"{found.run.model.dtype}, {_number(peaks.memory_speed / 1e9)} GB/s of a copy"
    )
    program = ""
    if step.program_bytes is not None:
        program = f"; the step's program takes {_gib(step.program_bytes)} GiB a device"
    where = "a device's memory" if found.memory.of == "device" else "the process's memory"
    lines.append(f"the most of {where}: {_gib(found.memory.bytes)} GiB{program}")
    return "\n".join(lines)


def _grown(sweep: Sweep) -> str:
    seconds, growth = sweep.seconds, sweep.growth
    rows = [(UNITS[sweep.axis], *(f"{name} ms" for name in seconds))]
    for i, point in enumerate(sweep.points):
        rows.append((f"{point.value:,}", *(_ms(each[i]) for each in seconds.values())))
    if len(sweep.points) > 1:
        powers = [f"^{power:.2f}" for power in growth.values() if power is not None]
        rows.append(("grows as", *powers))
    return table(rows)


def _meaning(found: Benchmark) -> str:
    lines = [
        "times are medians, each program alone and the whole step as training runs it; parameters "
        "and tokens are random, and every response has its full length",
        "GFLOP/s of matrix products and GB/s that must be moved at the least, both counted in "
        "closed form as nlhf plan does, against the measured peaks",
        "the floor of a phase is the larger of both at their peaks, the step's is the sum; in "
        "pieces the phases can take more or less than in the step, where they share work",
    ]
    if found.platform == "cpu" and found.run.model.dtype == "bfloat16":
        lines.append(
            "bfloat16 is slower than float32 on most CPUs: --gin.COMPUTE_DTYPE='\"float32\"'"
        )
    return "\n".join(
        textwrap.fill(line, _WIDTH, initial_indent="- ", subsequent_indent="  ") for line in lines
    )


def _ms(seconds: float) -> str:
    return _number(1e3 * seconds)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
