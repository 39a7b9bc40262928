"""The processes of one run: how they find each other, who of them writes, and what they agree on.

A slice of many hosts runs the same command in one process a host. All of them compute; the first
alone writes files and speaks to the terminal (`is_first`), but for checkpoints, of which each
writes what its devices hold. What the first decides by looking at files, it tells the others
(`from_first`); where one needs what another has written, it waits (`wait`).

Imports JAX only where there are several processes.
"""

import contextlib
import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from nlhf_jax.errors import UserError, first_line

# What says where the others are, where the machine does not.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# A process that has not been heard of for so long is dead, and the others end too.
HEARTBEAT_TIMEOUT = 30  # seconds
_SHUTDOWN_TIMEOUT = 60  # seconds, in which all must have come to their end when one has
_LEAVING = 5.0  # seconds that one which fails waits for others that fail in the same way


# --- at the start --------------------------------------------------------------------------------


def initialize(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Joins the other processes of the run, if there are any; before anything touches a device.

    Args:
      address: of the first process, HOST:PORT; else the environment's JAX_COORDINATOR_ADDRESS.
        Without either, TPU pods, GKE, Slurm and Open MPI say by themselves who is there.
      count: of processes; else JAX_NUM_PROCESSES. 1: there are no others, whatever the machine.
      index: which of them this is; else JAX_PROCESS_ID.
      environment: variables.

    Raises:
      UserError: what is given does not say it in full, or the others do not come.
    """
    import jax

    if jax.distributed.is_initialized():
        return
    count = _number("--processes", count, COUNT, environment)
    if count == 1:
        return
    address = address or environment.get(ADDRESS)
    index = _number("--process", index, INDEX, environment)
    if (address, count, index) == (None, None, None):
        if not _machine_has_several(environment):
            return
    elif None in (address, count, index):
        raise UserError(
            f"several processes need all of --coordinator ({ADDRESS}), --processes ({COUNT}) and "
            f"--process ({INDEX}); met {address!r}, {count} and {index}"
        )
    elif not 0 <= index < count:  # type: ignore[operator]
        raise UserError(f"--process={index} must be at least 0 and below --processes={count}")
    # Signals are ours: a stop is agreed on by `interruption.StopSignal`, for Ctrl-C as well.
    jax.config.update("jax_enable_preemption_service", False)
    if jax.config.values["jax_cpu_collectives_implementation"] is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run do not find each other: {first_line(error)}"
        ) from error


def _number(
    option: str, given: int | None, name: str, environment: Mapping[str, str]
) -> int | None:
    text = environment.get(name)
    if given is not None or text is None:
        return given
    if not text.isdigit():
        raise UserError(f"{name}={text!r} must be a whole number, as {option}")
    return int(text)


def _machine_has_several(environment: Mapping[str, str]) -> bool:
    """Whether `jax.distributed.initialize` finds other processes by itself."""
    if int(environment.get("SLURM_NTASKS", "1")) > 1:  # in a step of srun, not in a batch script
        return {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys()
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in (
        environment
    ):  # GKE
        return True
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    return "tpu" in platforms and _is_tpu_vm()


def _is_tpu_vm() -> bool:
    """Of a machine with TPUs the metadata server knows the slice that it belongs to."""
    from importlib.util import find_spec

    chips = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
    return chips and find_spec("libtpu") is not None


# --- while it goes on ----------------------------------------------------------------------------


def index() -> int:
    """Which process this is, from 0."""
    jax = _joined()
    return 0 if jax is None else jax.process_index()


def count() -> int:
    """How many processes the run has."""
    jax = _joined()
    return 1 if jax is None else jax.process_count()


def _joined() -> Any:
    """JAX, if it was told of other processes, here or by a program that calls the package."""
    jax = sys.modules.get("jax")
    return jax if jax is not None and jax.distributed.is_initialized() else None


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return index() == 0


def wait(name: str) -> None:
    """Returns when all processes have come here; `name` is the same for all."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_first(get: Callable[[], Any]) -> Any:
    """What `get`, which only the first process calls, gives: a value of JSON, the same for all.

    Where it raises UserError, all end with that: the first with the sentence, the others with
    `EndedByFirst`.
    """
    if count() == 1:
        return get()
    error, content = None, b""
    if is_first():
        try:
            content = json.dumps({"value": get()}).encode()
        except UserError as raised:
            error, content = raised, b"{}"
    found = json.loads(_broadcast(content))
    if error is not None:
        raise error
    if "value" not in found:
        raise EndedByFirst
    return found["value"]


class EndedByFirst(UserError):
    """The first process has found an error, and has said so."""

    def __init__(self) -> None:
        super().__init__("the first process of the run says why it ends")


def _broadcast(content: bytes) -> bytes:
    import numpy as np
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    if is_first():
        padded[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()


def largest(value: int) -> Any:
    """The largest of the processes' values, 0 or more, as an int32 scalar that need not be there
    yet: a small program after those that the devices have to do."""
    import jax
    import numpy as np

    shape, sharding, program = _largest_of_all()
    return program(
        jax.make_array_from_callback(shape, sharding, lambda _: np.full(1, value, np.int32))
    )


@functools.cache
def _largest_of_all() -> tuple[tuple[int], Any, Callable]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("all",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    program = jax.jit(jnp.max, out_shardings=everywhere)
    return (jax.device_count(),), NamedSharding(mesh, PartitionSpec("all")), program


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
    """Inside, the first process is alone, and then the others: it makes what they find."""
    if not is_first():
        wait(name)
    yield
    if is_first():
        wait(name)


def check_same(what: str, fingerprint: str) -> None:
    """Raises UserError unless all processes have the same `fingerprint`, 8 hexadecimal digits.

    Args:
      what: has it, for the error.
      fingerprint: the beginning of a hash.
    """
    if count() == 1:
        return
    import numpy as np
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.uint32(int(fingerprint[:8], 16)))
    others = np.flatnonzero(found != found[0])
    if len(others):
        raise UserError(
            f"{what} of process {others[0]} is not that of process 0: give all machines the same"
        )


# --- at the end ----------------------------------------------------------------------------------


def lost(error: Exception) -> str | None:
    """What an error of JAX's says if it is that another process has gone; None if it is another."""
    if count() == 1:
        return None
    text = str(error)
    known = ("Gloo", "coordination", "distributed service", "Connection closed", "peer", "NCCL")
    if not any(word in text for word in known):
        return None
    return (
        f"another of the {count()} processes of this run has ended or cannot be reached "
        f"({first_line(error)}); the same command, in all of them, continues"
    )


def leave(code: int) -> NoReturn:
    """Ends this process with `code`, without waiting long for others, which may not come."""
    sys.stdout.flush()
    sys.stderr.flush()
    import jax

    ending = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    ending.start()
    ending.join(_LEAVING)
    os._exit(code)
