"""What a chip can do, and which chips a topology has."""

import dataclasses
import math
import os
import re

from nlhf_jax.errors import UserError

GIB = 2**30
HERE = "here"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as in a topology.
      flops: peak of matrix products in bfloat16, FLOP/s; of the devices at hand what was measured.
      memory: bytes that a program can have.
      memory_speed: of that memory, bytes/s.
      link_speed: of one link to a neighbour, in one direction, bytes/s.
      links: how many of them a chip has.
      dimensions: of the torus that they make; 0: any chip reaches any other.
      outside_speed: a chip's share of its machine's network, over which slices talk, bytes/s; None
        if we know of none.
    """

    name: str
    flops: float
    memory: float
    memory_speed: float
    link_speed: float = math.inf
    links: int = 0
    dimensions: int = 0
    outside_speed: float | None = None

    @property
    def is_tpu(self) -> bool:
        return self.dimensions > 0


# TPU: https://docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read as the tables there have them:
# peak compute a chip (bf16), HBM capacity and bandwidth, and "bidirectional inter-chip interconnect
# bandwidth", which is links x 2 directions x link_speed; of the data center network the bandwidth a
# chip, or a pod's by its chips. The memory is what the compiler lets a
# program have: on v5e 15.75 of 16 GiB, and the same share elsewhere.
# GPU: NVIDIA's data sheets of H100 SXM and H200 SXM: bf16 without sparsity, NVLink 900 GB/s in both
# directions together. JAX takes three quarters of a GPU's memory unless told otherwise; here 95 %.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 31.5 * GIB, 1.228e12, 50e9, 6, 3),
        Chip("v5e", 197e12, 15.75 * GIB, 0.819e12, 50e9, 4, 2, 6.4e12 / 8 / 256),
        Chip("v5p", 459e12, 94.5 * GIB, 2.765e12, 100e9, 6, 3, 50e9 / 8),
        Chip("v6e", 918e12, 31.25 * GIB, 1.638e12, 100e9, 4, 2, 25.6e12 / 8 / 256),
        Chip("h100", 989e12, 0.95 * 80e9, 3.35e12, 450e9, 1),
        Chip("h200", 989e12, 0.95 * 141e9, 4.8e12, 450e9, 1),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some chips of a kind.

    Attributes:
      name: what the user calls it, such as `2xv5e:4x4`.
      chip: of which kind they are.
      chips: how many, in all slices.
      slices: how many; between them is the network of the machines.
      slice_name: what JAX calls one of them: `v5e:4x4`.
    """

    name: str
    chip: Chip
    chips: int
    slices: int = 1
    slice_name: str = HERE


def topology(name: str) -> Topology:
    """What `v5e:4x4`, `2xv5e:4x4`, `h100:8` or `here` means; the last is measured, for a second.

    Raises UserError if it means nothing.
    """
    if name == HERE:
        return _here()
    found = re.fullmatch(r"(?:(\d+)x(?=[a-z]))?([a-z]\w*):(\d+(?:x\d+)*)", name)
    kind = found and CHIPS.get(found[2])
    if not found or kind is None:
        raise UserError(
            f"--topology is {name!r} but must be KIND:SHAPE, such as v5e:4x4, v5p:2x2x4 or h100:8, "
            f"with KIND one of {', '.join(CHIPS)}; or several slices, such as 2xv5e:4x4; or {HERE},"
            " for the devices at hand"
        )
    slices, shape = int(found[1] or 1), [int(size) for size in found[3].split("x")]
    wanted = kind.dimensions or 1
    if len(shape) != wanted or math.prod(shape) < 1 or slices < 1:
        example = {1: "8", 2: "4x4", 3: "2x2x4"}[wanted]
        raise UserError(
            f"--topology is {name!r} but chips of the kind {kind.name} have {wanted} "
            f"dimension{'s' * (wanted > 1)}, such as {kind.name}:{example}"
        )
    if slices > 1 and kind.outside_speed is None:
        known = ", ".join(chip.name for chip in CHIPS.values() if chip.outside_speed)
        raise UserError(
            f"--topology is {name!r} but how fast slices of {kind.name} talk to each other is not "
            f"known: only for {known}"
        )
    chips, slice_name = slices * math.prod(shape), f"{kind.name}:{found[3]}"
    return Topology(name, kind, chips, slices, slice_name)


def _here() -> Topology:
    """The devices of this process, all of them busy at once while they are measured."""
    import jax

    from nlhf_jax.planning import peaks

    devices = jax.devices()
    if devices[0].platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    else:
        memory = (devices[0].memory_stats() or {}).get("bytes_limit", math.inf)
    dtype = peaks.usual_dtype(devices[0].platform)
    flops, copied = peaks.measure(devices, dtype, quick=True)
    name = f"{devices[0].device_kind.lower()} at hand"
    # Devices of one host pass arrays through its memory.
    chip = Chip(name, flops, memory, copied, copied / 2, 1)
    return Topology(HERE, chip, len(devices))
