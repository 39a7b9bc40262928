"""How much of a chip's memory a step takes, in closed form: what stays, and the most beside it."""

import dataclasses
import math
from collections.abc import Mapping

from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.planning import costs
from nlhf_jax.planning.runs import Run
from nlhf_jax.planning.sizes import (
    ALONE,
    Mesh,
    Sizes,
    adafactor_bytes,
    adamw_bytes,
    arrays,
    decoding_mesh,
    part_sizes,
    stored_bytes,
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      stays: what is there from step to step, by what it is.
      phases: what each phase of a step needs beside that.
    """

    stays: Mapping[str, float]
    phases: Mapping[str, float]

    @property
    def peak(self) -> float:
        return sum(self.stays.values()) + max(self.phases.values())


def parameters_on_chip(config: T5Config, mesh: Mesh) -> int:
    """Numbers of a network that one chip holds."""
    return sum(array.on_chip(mesh) for array in arrays(config))


def optimizer_bytes(run: Run, mesh: Mesh) -> float:
    """Of the optimiser's state on one chip; one that is not known is taken for AdamW."""
    if run.optimizer == "adafactor":
        return adafactor_bytes(run.model, mesh, run.factored_from)
    return adamw_bytes(run.model, mesh)


def stays(run: Run, mesh: Mesh) -> dict[str, float]:
    """What one chip holds from step to step: exact, by the shapes and the mesh."""
    found: dict[str, float] = {
        "policy" if run.kind == "policy" else "model": stored_bytes(run.model, mesh)
    }
    if run.kind == "policy":
        found["reference"] = stored_bytes(run.model, mesh, run.frozen_dtype)
    if run.rater is not None:
        found["rater"] = stored_bytes(run.rater, mesh, run.frozen_dtype)
    found["optimiser"] = optimizer_bytes(run, mesh)
    if run.kept:
        found["kept sets"] = run.kept * stored_bytes(run.model, mesh)
    return found


def memory(run: Run, mesh: Mesh) -> Memory:
    """Of one chip in a step of `run`; what a phase needs is an estimate."""
    prompts = run.batch_size / mesh.batch_shares
    s = Sizes.of(run.model, mesh)
    length, targets = run.lengths
    needs: dict[str, float] = {}
    if run.kind == "policy":
        needs["rollout"] = _rollout(run, mesh)
        if run.rater is not None:
            tokens, asked = run.rater_lengths
            rater = Sizes.of(run.rater, mesh)
            asked_at_once = prompts / run.microbatches * asked
            needs["score"] = _layer(rater, asked_at_once, tokens) + _gathered(run.rater, mesh)
    if run.encodes_once:  # It is kept for the gradient meanwhile.
        kept = _kept(s, prompts, 0, targets, length, run.remat)
        needs = {phase: bytes_ + kept for phase, bytes_ in needs.items()}
    rows = prompts / run.microbatches * run.rows
    read = prompts / run.microbatches if run.kind == "policy" else rows
    held = 4 * parameters_on_chip(run.model, mesh)
    context = prompts * length * s.embed * s.itemsize if run.kind == "policy" else 0.0
    needs["gradient"] = (
        held * (2 if run.microbatches > 1 else 1)
        + context  # the reference's, of the whole batch
        + _kept(s, read, rows, targets, length, run.remat)
        + 2 * _layer(s, read, length)
        + _gathered(run.model, mesh)
        # Policy's and reference's logits and the gradient of the former, float32.
        + 4 * rows * targets * s.vocabulary * (4 if run.kind == "policy" else 3)
    )
    needs["update"] = 3 * held
    return Memory(stays(run, mesh), needs)


def decoding(run: Run, mesh: Mesh) -> Mesh:
    """How the rollout of a policy's run is laid out, see `sizes.decoding_mesh`."""
    whole = part_sizes(run.model, ALONE)
    itemsize = Sizes.of(run.model).itemsize
    one = itemsize * (whole["decoder"][0] + whole["embedding"][0])
    one += 4 * whole.get("logits", (0, 0))[0]
    return decoding_mesh(run.decode_layout, mesh, run.batch_size, one * len(run.streams))


def _rollout(run: Run, mesh: Mesh) -> float:
    """Caches, decoders' weights in the dtype of activations, and a token's logits."""
    layout = decoding(run, mesh)
    s, prompts = Sizes.of(run.model, layout), run.batch_size / layout.batch_shares
    length, targets = run.lengths
    held, trained = part_sizes(run.model, layout), part_sizes(run.model, mesh)
    total = 4 * 4 * prompts * len(run.players) * run.model.vocab_size
    for streams in run.streams.values():
        total += costs.cache_bytes(s, prompts, streams, targets, length)
        total += prompts * length * s.embed * s.itemsize
        total += s.itemsize * (held["decoder"][0] + held["embedding"][0])
        if layout != mesh:
            total += 4 * held.get("logits", (0, 0))[0]
        if len(run.streams) > 1:  # Stacked as they are trained, before they are laid out.
            total += 4 * (trained["decoder"][0] + trained["embedding"][0])
    return total


def _layer(s: Sizes, rows: float, length: int) -> float:
    """The most that is alive inside a layer: attention logits and weights, or the MLP's hidden."""
    tokens = rows * length
    attention = rows * s.heads * length * length * (4 + 2 * s.itemsize)
    mlp = tokens * s.itemsize * (s.inputs + 1) * s.mlp
    return max(attention, mlp) + tokens * (4 + 4 * s.itemsize) * max(s.embed, s.joined)


def _gathered(config: T5Config, mesh: Mesh) -> float:
    """Weights of one layer and the embedding, gathered along `fsdp`: in flight, twice."""
    if mesh.fsdp == 1:
        return 0.0
    parts = part_sizes(config, mesh)
    layers = max(config.num_encoder_layers, config.num_decoder_layers)
    itemsize = 2 if config.dtype == "bfloat16" else 4
    layer = max(parts["encoder"][1], parts["decoder"][1]) / layers
    return itemsize * (2 * layer + parts["embedding"][1]) + 4 * parts.get("logits", (0, 0))[1]


def _kept(s: Sizes, prompts: float, rows: float, targets: int, length: int, remat: bool) -> float:
    """What the forward pass over prompts and responses keeps for the backward pass."""
    encoder, decoder = prompts * length, rows * targets
    inputs = s.itemsize * s.embed * (s.encoder_layers * encoder + s.decoder_layers * decoder)
    if remat:
        return inputs
    # Each product's operands, twice those of the norms in float32, and attention's weights.
    kept = s.itemsize * (4 * s.joined + 4 * s.embed + 2 * (s.inputs + 1) * s.mlp)
    logits = (4 + s.itemsize) * s.heads
    each_encoder = encoder * kept + logits * prompts * length**2
    each_decoder = decoder * (kept + s.itemsize * (2 * s.joined + 2 * s.embed))
    each_decoder += logits * rows * targets * (targets + length)
    each_decoder += s.itemsize * rows * length * (2 * s.joined)
    return math.fsum((inputs, s.encoder_layers * each_encoder, s.decoder_layers * each_decoder))
