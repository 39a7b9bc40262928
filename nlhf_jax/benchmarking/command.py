"""`nlhf benchmark`: from options to tables, JSON and a figure."""

import argparse
import os
import posixpath
import sys

import jax

from nlhf_jax import files, processes
from nlhf_jax.benchmarking import benchmark, sweep, tables, workload
from nlhf_jax.errors import UserError
from nlhf_jax.planning import peaks

GIN_FILE = "mini/nash_md.gin"  # where none is given
_FACTORS = "0.25,0.5,1,2"


def run(options: argparse.Namespace) -> None:
    """Times what the options describe, prints it, and writes what they name.

    Raises:
      UserError: options that do not go together, or as of `workload.request` and `benchmark.make`.
    """
    axes = () if options.sweep is None else sweep.axes(options.sweep)
    if options.repeats < 1:
        raise UserError(f"--repeats is {options.repeats} but must be at least 1")
    for name in ("factors", "figure"):
        if getattr(options, name) is not None and not axes:
            raise UserError(f"--{name} says nothing without --sweep")
    by = sweep.factors(options.factors or _FACTORS)
    json, figure = _paths(options)
    if axes and figure is None:
        raise UserError("--sweep makes a figure: say where with --figure=FILE or --workdir=DIR")
    # What was compiled before would seem to compile in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    gin_files = options.gin_file or [GIN_FILE]
    asked = workload.request(
        gin_files,
        options.overrides,
        options.gin_search_paths,
        policy=options.policy,
        rater=options.rater,
        batch=options.batch,
        text=options.text,
        response=options.response,
    )
    described = asked.run()
    workload.check(described, jax.device_count())
    for axis in axes:  # what cannot be swept is known before anything is timed
        list(sweep.workloads(asked, described, axis, by, jax.device_count()))
    _say("measuring the devices' peaks")
    measured = peaks.measure(jax.devices(), described.model.dtype)
    found = benchmark.make(asked, described, measured, options.repeats, say=_say)
    sweeps = [sweep.measure(asked, found, axis, by, options.repeats, _say) for axis in axes]
    if processes.is_first():
        print(tables.terminal(found, sweeps), end="")
    if json is not None:
        files.write_json(json, found.json() | {"sweeps": [one.json() for one in sweeps]})
    if axes and figure is not None:
        from nlhf_jax.benchmarking import figures
        from nlhf_jax.report.plots import png

        devices = f"{found.mesh.chips} x {found.device}"
        files.write_whole(figure, png(figures.growth(sweeps, ", ".join(gin_files), devices)))


def _paths(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """Where the JSON and the figure go, None for nowhere: a file's own option, or WORKDIR."""

    def path(given: str | None, name: str) -> str | None:
        if given is not None or options.workdir is None:
            return given
        return posixpath.join(os.fspath(options.workdir), name)

    return path(options.json, "benchmark.json"), path(options.figure, "benchmark.png")


def _say(sentence: str) -> None:
    if processes.is_first():
        print(f"benchmark: {sentence}", file=sys.stderr, flush=True)
