"""The process that compiles: a request as JSON on standard input, an answer as JSON on output."""

import ctypes
import json
import os
import signal
import sys
from typing import Any

from nlhf_jax.errors import UserError
from nlhf_jax.planning import hlo, programs
from nlhf_jax.planning.chips import HERE, topology
from nlhf_jax.planning.compiling import Request

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main() -> None:
    asked = json.load(sys.stdin)
    _end_with(asked.pop("parent"))
    program = asked.pop("program")
    several = ("gin_files", "overrides", "search_paths")
    request = Request(**asked | {name: tuple(asked[name]) for name in several})
    try:
        print(json.dumps(_answer(request, program)))
    except UserError as error:
        print(json.dumps({"user_error": str(error)}))


def _end_with(parent: int) -> None:
    """A compilation takes minutes and gigabytes: nobody waits for it if the parent was killed.

    By the kernel, on Linux: the compiler holds Python's lock, so that no thread could look.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # killed before
        sys.exit(1)


def _answer(request: Request, program: str | None) -> dict[str, Any]:
    import jax

    options: Any = None
    if not request.careful and request.topology != HERE:  # an option of TPU's compiler
        options = {"exec_time_optimization_effort": -1.0}

    # As every job: the program depends on it.
    jax.config.update("jax_threefry_partitionable", True)
    run = request.run()
    lowered = programs.lower(
        run, request.gin_files, request.overrides, request.search_paths, _devices(request.topology)
    )
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error)}
    text = compiled.as_text() or ""
    if program is not None:
        with open(program, "w", encoding="utf-8") as file:
            file.write(text)
    loop = hlo.decode_collectives(text)
    return {
        "peak": _peak(compiled.memory_analysis(), request.topology),
        "collectives": loop and loop.count,
        "sent": loop and loop.sent,
    }


def _peak(memory: Any, topology: str) -> int | None:
    """Bytes at the most; what a CPU's compiler calls the peak leaves out all that is temporary."""
    if memory is None:
        return None
    if topology != HERE:
        return memory.peak_memory_in_bytes
    there = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return there + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def _devices(name: str):
    import jax
    from jax.experimental import topologies

    if name == HERE:
        return jax.devices()
    known = topology(name)
    several = {"num_slices": known.slices} if known.slices > 1 else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=known.slice_name, **several
        )
    except Exception as error:  # libtpu's, of several classes
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--topology is {name!r} but the compiler knows no such chips: {reason[:200]}"
        ) from error
    return found.devices


if __name__ == "__main__":
    main()
