"""A plan for a terminal: tables, and under them what was assumed."""

from collections.abc import Sequence

from nlhf_jax.planning import phases as costs
from nlhf_jax.planning.chips import GIB
from nlhf_jax.planning.memory import decoding
from nlhf_jax.planning.plan import Plan, networks
from nlhf_jax.planning.sizes import ALONE, stored_bytes


def terminal(plan: Plan) -> str:
    """All of it, in lines of at most 110 characters."""
    parts = [_head(plan), _memory(plan), _compiled(plan), _step(plan), _total(plan), _assumed(plan)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(plan: Plan) -> str:
    run, mesh, topology = plan.run, plan.mesh, plan.topology
    asks = f", {run.microbatches} microbatches" if run.microbatches > 1 else ""
    read, written = run.lengths
    return (
        f"{topology.chips} x {topology.chip.name} as data {mesh.data} x fsdp {mesh.fsdp} x tensor "
        f"{mesh.tensor}\n"
        f"batch {run.batch_size}{asks}, {read} tokens read and {written} written, "
        f"{'with' if run.remat else 'without'} rematerialisation, {run.optimizer}"
    )


def _memory(plan: Plan) -> str:
    counts = networks(plan.run)
    rows = [("", "parameters", "GiB in all", "GiB a chip")]
    for name, held in plan.memory.stays.items():
        whole = ""
        if name in counts:
            config = plan.run.rater if name == "rater" else plan.run.model
            assert config is not None
            frozen = name in ("reference", "rater")
            whole = _gib(
                stored_bytes(config, ALONE, plan.run.frozen_dtype if frozen else "float32")
            )
        count = f"{counts[name]:,}" if name in counts else ""
        rows.append((name, count, whole, _gib(held)))
    worst = max(plan.memory.phases, key=lambda name: plan.memory.phases[name])
    rows.append((f"the most beside them ({worst})", "", "", _gib(plan.memory.phases[worst])))
    rows.append(
        ("in all, closed form", "", "", f"{_gib(plan.memory.peak)} of {_gib(_limit(plan))}")
    )
    return table(rows)


def _compiled(plan: Plan) -> str:
    found = plan.compiled
    lines = []
    if found is not None:
        told = f" {_gib(found.peak)} of {_gib(_limit(plan))} GiB a chip" if found.peak else ""
        over = (
            f", {_gib(found.peak - _limit(plan))} too much"
            if found.peak and found.verdict == "does not fit"
            else ""
        )
        why = f": {found.reason}" if found.reason else ""
        how = " (remembered)" if found.remembered else f" ({found.seconds:.0f} s)"
        how = how if found.seconds else ""
        how = f", compiled quickly{how}" if how and not plan.careful else how
        lines.append(f"compiled: {found.verdict}{told}{over}{why}{how}")
        if found.collectives is not None and found.sent is not None:
            lines.append(
                f"in the decode loop: {found.collectives:.0f} collectives a token, by which a chip "
                f"sends {found.sent / 1e6:.2f} MB; {found.sent * plan.run.lengths[1] / 1e9:.2f} GB "
                "a step"
            )
    if plan.helps:
        lines.append("what lowers the closed form's peak:")
        lines += [f"  {setting}: {_gib(peak)} GiB" for setting, peak in plan.helps]
    if plan.largest_batch is not None:
        rows, by = plan.largest_batch
        lines.append(f"largest batch that fits: {rows} by {by}")
    return "\n".join(lines)


def _step(plan: Plan) -> str:
    chip = plan.topology.chip
    rows = [("a step, on one chip", "TFLOP", "memory GB", "wire GB", "collectives", "ms")]
    for phase in plan.phases:
        least, most = phase.seconds(chip)
        rows.append(
            (
                phase.name,
                _number(phase.flops / 1e12),
                _range(phase.memory.least / 1e9, phase.memory.most / 1e9),
                _range(phase.wire.least / 1e9, phase.wire.most / 1e9),
                f"{phase.wire.collectives:.0f}",
                _range(1e3 * least, 1e3 * most),
            )
        )
    least, most = plan.step_seconds
    flops = sum(phase.flops for phase in plan.phases)
    rows.append(("in all", _number(flops / 1e12), "", "", "", _range(1e3 * least, 1e3 * most)))
    return table(rows)


def _total(plan: Plan) -> str:
    least, most = plan.step_seconds
    steps, chips = plan.run.train_steps, plan.topology.chips
    hours = _range(steps * least / 3600, steps * most / 3600)
    chip_hours = _range(chips * steps * least / 3600, chips * steps * most / 3600)
    return (
        f"{_range(1 / most, 1 / least)} steps/s; {steps:,} steps in {hours} hours, {chip_hours} "
        "chip-hours"
    )


def _assumed(plan: Plan) -> str:
    chip = plan.topology.chip
    links = "" if chip.links == 0 else f", {chip.links} links of {chip.link_speed / 1e9:.0f} GB/s"
    peaks = "measured" if plan.topology.name == "here" else "published"
    outside = []
    if plan.topology.slices > 1:
        between = sum(phase.wire.between for phase in plan.phases)
        outside.append(
            f"between slices a chip sends {between / 1e9:.3g} GB a step, over "
            f"{(chip.outside_speed or 0) / 1e9:.4g} GB/s, or {costs.OUTSIDE_SHARE:.0%} of that"
        )
    lines = [
        f"{peaks}: {chip.flops / 1e12:.4g} TFLOP/s, {chip.memory_speed / 1e9:.4g} GB/s of memory"
        f"{links}",
        "the least time: compute, memory and wire each at their peak and at once, all links busy, "
        f"{1e6 * costs.STARTS[0]:.0f} us to start a collective",
        "the most: one after the other, at "
        f"{costs.COMPUTE_SHARE:.0%} of the peak, {costs.MEMORY_SHARE:.0%} of the memory's speed, "
        f"one link, {1e6 * costs.STARTS[1]:.0f} us a collective",
        *outside,
        "every response has its full length, which early training comes near to; evaluation, "
        "checkpoints and reading of data are not counted",
        *plan.run.assumed,
        *_about_decoding(plan),
    ]
    if plan.run.optimizer not in ("adafactor", "adamw"):
        lines.append(f"the optimiser {plan.run.optimizer} keeps what AdamW keeps")
    return "assumed:\n" + "\n".join(f"- {line}" for line in lines)


def _about_decoding(plan: Plan) -> list[str]:
    run = plan.run
    if run.kind != "policy":
        return []
    layout = decoding(run, plan.mesh)
    if layout != plan.mesh:
        weights = f"1/{layout.tensor} of the weights" if layout.tensor > 1 else "all weights"
        rows = run.batch_size / layout.batch_shares
        return [f"responses are decoded with {weights} and {rows:g} prompts on each chip"]
    if plan.mesh.fsdp > 1:
        return ["in the decode loop weights are gathered along fsdp for every token"]
    return []


def _limit(plan: Plan) -> float:
    return plan.topology.chip.memory


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _number(value: float) -> str:
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.0e}"


def _range(least: float, most: float) -> str:
    return _number(least) if least == most else f"{_number(least)} to {_number(most)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Names on the left, numbers on the right of their columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *shown]).rstrip())
    return "\n".join(lines)
