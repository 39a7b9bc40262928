"""A training step in phases, each with its FLOPs, its memory's and its wire's bytes on one chip."""

import dataclasses
from collections.abc import Mapping

from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.planning import costs, memory, wire
from nlhf_jax.planning.chips import Chip
from nlhf_jax.planning.costs import Bytes
from nlhf_jax.planning.runs import Run
from nlhf_jax.planning.sizes import Mesh, Sizes, part_sizes
from nlhf_jax.planning.wire import Wire

# What is assumed of a chip at its slowest: shares of its peaks, and how long a collective takes to
# start, in seconds (at its fastest, at its slowest). At its fastest it uses all links at once, at
# its slowest one link in one direction.
COMPUTE_SHARE, MEMORY_SHARE, OUTSIDE_SHARE = 0.25, 0.6, 0.5
STARTS = (1e-6, 10e-6)


@dataclasses.dataclass(frozen=True)
class Phase:
    """What one chip does in a phase of a step.

    Attributes:
      name: "encode", "decode", "score", "reference", "gradient" or "update".
      flops: of matrix products.
      memory: bytes read and written.
      wire: bytes sent, and collectives.
    """

    name: str
    flops: float
    memory: Bytes
    wire: Wire = wire.NONE

    def __add__(self, other: object) -> "Phase":
        assert isinstance(other, Phase)
        return Phase(
            self.name, self.flops + other.flops, self.memory + other.memory, self.wire + other.wire
        )

    def seconds(self, chip: Chip) -> tuple[float, float]:
        """At the least and at the most.

        At the least compute, memory and wire are busy at the same time, each at its peak, so that
        the slowest counts. At the most they wait for each other, at their shares of the peaks.
        """
        links = max(chip.links, 1)
        between = self.wire.between / chip.outside_speed if chip.outside_speed else 0.0
        least = max(
            between,
            self.flops / chip.flops,
            self.memory.least / chip.memory_speed,
            self.wire.least / (links * chip.link_speed) + self.wire.collectives * STARTS[0],
        )
        most = (
            self.flops / (COMPUTE_SHARE * chip.flops)
            + self.memory.most / (MEMORY_SHARE * chip.memory_speed)
            + self.wire.most / chip.link_speed
            + between / OUTSIDE_SHARE
            + self.wire.collectives * STARTS[1]
        )
        return least, most


class _Network:
    """A network on a mesh, and passes over it as phases."""

    def __init__(self, config: T5Config, mesh: Mesh, stored: str):
        self.sizes, self.mesh, self.config = Sizes.of(config, mesh), mesh, config
        self._stored = 2 if stored == "bfloat16" else 4
        self._parts: Mapping[str, tuple[int, int]] = part_sizes(config, mesh)

    def _weights(self, parts: tuple[str, ...], passes: int) -> tuple[Bytes, Wire]:
        memory, sent = costs.NOTHING, wire.NONE
        for part in parts:
            if part not in self._parts:  # logits that come from the embedding
                continue
            held, used = self._parts[part]
            itemsize = 4 if part == "logits" else self.sizes.itemsize
            stored = 4 if part == "logits" else self._stored
            memory += costs.weight_bytes(held, used, itemsize, stored, passes)
            arrays = {"encoder": 6 * self.sizes.encoder_layers}
            arrays |= {"decoder": 10 * self.sizes.decoder_layers}
            count = arrays.get(part, 1)
            sent += wire.gathered_weights(used, count, self.mesh, passes, itemsize)
        return memory, sent

    def encode(self, rows: float, length: int) -> Phase:
        memory, sent = self._weights(("embedding", "encoder"), 1)
        return Phase(
            "encode",
            costs.encoder_flops(self.sizes, rows, length),
            memory + costs.encoder_bytes(self.sizes, rows, length),
            sent + wire.encoder_sums(self.sizes, rows, length, self.mesh),
        )

    def read(self, name: str, rows: float, targets: int, length: int) -> Phase:
        """A teacher-forced pass over `rows` targets, of prompts that were encoded."""
        s = self.sizes
        memory, sent = self._weights(("embedding", "decoder", "logits"), 1)
        return Phase(
            name,
            costs.decoder_flops(s, rows, targets, length),
            memory + costs.decoder_bytes(s, rows, targets, length),
            sent + wire.decoder_sums(s, rows, targets, self.mesh),
        )

    def decode(self, prompts: float, streams: int, tokens: int, length: int) -> Phase:
        """The loop over so many tokens, and the cross-attention's keys and values before it.

        `self` is laid out as for decoding: where `gathers`, weights are gathered for each token.
        """
        s, mesh = self.sizes, self.mesh
        n = prompts * streams
        step = costs.decode_step_bytes(s, prompts, streams, tokens, length)
        sums = wire.decoder_sums(s, n, 1, mesh) + wire.drawn_logits(s, n, mesh)
        arrays = {"decoder": 9 * s.decoder_layers, "logits": 1, "embedding": 1}
        parts = {name: self._parts[name] for name in arrays if name in self._parts}
        if mesh.fsdp > 1:
            for name, (held, used) in parts.items():
                itemsize = 4 if name == "logits" else s.itemsize
                once = wire.share(mesh.fsdp) * used * itemsize
                sums += Wire(once, once, arrays[name])
                # What is gathered need not go through memory.
                step = Bytes(step.least - itemsize * (used - held), step.most)
        held, used = self._parts["decoder"]
        cast = s.itemsize * held + (self._stored * held if self._stored != s.itemsize else 0)
        before = Bytes(cast, cast + 2 * s.itemsize * used)
        return Phase(
            "decode",
            costs.cross_keys_flops(s, prompts, length)
            + tokens * costs.decode_step_flops(s, n, tokens, length),
            step.times(tokens) + before,
            sums.times(tokens),
        )

    def gradient(self, run: Run, prompts: float, rows: float) -> Phase:
        """Of all microbatches, without what the rollout's reading of the prompts has done of it."""
        s, (length, targets), parts = self.sizes, run.lengths, run.microbatches
        passes = 3 if run.remat else 2
        of_encoder = passes - run.encodes_once
        memory, sent = self._weights(("embedding", "encoder"), of_encoder * parts)
        of_decoder = self._weights(("decoder", "logits"), passes * parts)
        memory, sent = memory + of_decoder[0], sent + of_decoder[1]
        held, used = map(sum, zip(*self._parts.values(), strict=True))
        count = 6 * s.encoder_layers + 10 * s.decoder_layers
        # The gradient of what is summed has the same sums; with `remat` there is one pass more.
        sums = wire.encoder_sums(s, prompts, length, self.mesh).times(of_encoder)
        sums += wire.decoder_sums(s, rows, targets, self.mesh).times(passes)
        done = costs.encoder_flops(s, prompts, length) if run.encodes_once else 0.0
        made = Bytes(4 * used * parts, 4 * 3 * used * parts)
        return Phase(
            "gradient",
            costs.gradient_flops(s, prompts, rows, targets, length, run.remat) - done,
            memory + made + costs.gradient_bytes(s, prompts, rows, targets, length, run.remat),
            sent + sums + wire.gradients(used, held, count, self.mesh, parts),
        )


def phases(run: Run, mesh: Mesh) -> list[Phase]:
    """What one chip does in a step of `run`, in the step's order."""
    prompts = run.batch_size / mesh.batch_shares
    length, targets = run.lengths
    trained = _Network(run.model, mesh, "float32")
    found: list[Phase] = []
    if run.kind == "policy":
        sets = run.streams
        reference = _Network(run.model, mesh, run.frozen_dtype)
        decoding = [
            (reference if name == "reference" else trained, streams)
            for name, streams in sets.items()
        ]
        # The loss reads the reference's encodings, also where it is no player.
        encoding = [n for n, _ in decoding] + [reference] * ("reference" not in sets)
        encoding += [trained] * (run.encodes_once and "policy" not in sets)
        found.append(_total("encode", [n.encode(prompts, length) for n in encoding]))
        found.append(_decode(run, mesh, sets))
        if run.rater is not None:
            tokens, asked = run.rater_lengths
            rater = _Network(run.rater, mesh, run.frozen_dtype)
            rows = prompts * asked / run.microbatches
            part = [rater.encode(rows, tokens), rater.read("score", rows, 1, tokens)]
            found.append(_total("score", part * run.microbatches))
        rows = prompts * run.rows
        found.append(reference.read("reference", rows, targets, length))
        found.append(trained.gradient(run, prompts, rows))
    else:
        rows = prompts * run.rows
        found.append(trained.gradient(run, rows, rows))
    held = memory.parameters_on_chip(run.model, mesh)
    moments = memory.optimizer_bytes(run, mesh)
    found.append(Phase("update", 0.0, costs.update_bytes(held, moments, run.kept)))
    return found


def _decode(run: Run, mesh: Mesh, sets: Mapping[str, int]) -> Phase:
    """The rollout's loop in its layout, and the way of the weights into that."""
    layout = memory.decoding(run, mesh)
    prompts = run.batch_size / layout.batch_shares
    length, targets = run.lengths
    parts = []
    for name, streams in sets.items():
        stored = run.frozen_dtype if name == "reference" else "float32"
        parts.append(_Network(run.model, layout, stored).decode(prompts, streams, targets, length))
    total = _total("decode", parts)
    if layout == mesh:
        return total
    # Once, in the dtype of activations: what a chip needs and does not hold is sent to it.
    trained, needed = (part_sizes(run.model, one)["decoder"][0] for one in (mesh, layout))
    itemsize = Sizes.of(run.model).itemsize
    moved = itemsize * max(0, needed - trained) * len(sets)
    return total + Phase("", 0.0, Bytes(moved, 2 * moved), Wire(moved, moved, 10 * len(sets)))


def _total(name: str, parts: list[Phase]) -> Phase:
    total = Phase(name, 0.0, costs.NOTHING)
    for part in parts:
        total += part
    return dataclasses.replace(total, name=name)
