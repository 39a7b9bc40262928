"""The `sample` job: responses of one checkpoint, which needs no configuration."""

import functools
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from nlhf_jax.checkpoints import open_checkpoint
from nlhf_jax.checkpoints.networks import load_network
from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.rollout import sample_responses
from nlhf_jax.sharding import Partitioner


def prompt_form(checkpoint: str) -> PromptForm:
    """What stands around a prompt's text, as in the checkpoint's training; nothing if it is silent.

    Raises UserError if the checkpoint cannot be read.
    """
    form = (open_checkpoint(checkpoint).description or {}).get("prompt_form")
    return PLAIN if form is None else PromptForm(form)


def sample(
    checkpoint: str,
    prompts: Sequence[str | Mapping[str, str]],
    num_samples: int,
    temperature: float,
    seed: int,
    batch_size: int = 32,
    devices: Sequence[jax.Device] | None = None,
) -> list[list[str]]:
    """`num_samples` responses of one checkpoint to each prompt.

    A prompt is a text, or the fields of the checkpoint's form of prompts; it is put into that form
    and shortened as in training. How many were shortened is said on standard error. Parameters and
    rows are shared by the `devices`, by default all; how many there are does not change the
    responses.

    Raises UserError if the checkpoint cannot be read or is a rater's.
    """
    devices = list(jax.devices() if devices is None else devices)
    partitioner = Partitioner(1, len(devices), 1, devices)
    network = load_network(checkpoint, partitioner, dtype=None)
    if network.kind not in ("supervised", "policy"):
        raise UserError(
            f"the checkpoint {checkpoint} is a {network.kind} model: it rates texts and writes none"
        )
    lengths = network.feature_lengths
    vocabulary = Vocabulary.from_bytes(network.vocabulary_bytes)
    special = network.model.tokens
    rows = np.full((len(prompts), lengths["inputs"]), special.pad, np.int32)
    form, cut = network.prompt_form, 0
    form.check_length("inputs", lengths["inputs"], vocabulary.encode)
    for row, prompt in zip(rows, prompts, strict=True):
        text = form.prompt_of({"prompt": prompt} if isinstance(prompt, str) else prompt)
        tokens = [*form.tokens(text, lengths["inputs"], vocabulary.encode), special.eos]
        row[: len(tokens)] = tokens
        cut += len(vocabulary.encode(text)) >= lengths["inputs"]
    if cut:
        print(
            f"{cut} of {len(prompts)} prompts are longer than the checkpoint's "
            f"{lengths['inputs']} tokens and were cut",
            file=sys.stderr,
        )
    rows = np.repeat(rows, num_samples, axis=0)

    @functools.partial(jax.jit, out_shardings=partitioner.replicated)
    def run(params, inputs, key):
        with partitioner.activate():
            length = lengths["targets"]
            return sample_responses(network.model, params, inputs, key, length, temperature)

    texts = []
    shared = partitioner.whole_shares(batch_size)
    for start in range(0, len(rows), batch_size):
        chunk = rows[np.minimum(np.arange(start, start + shared), len(rows) - 1)]
        inputs = partitioner.place_batch({"inputs": chunk})["inputs"]
        key = jax.random.fold_in(jax.random.key(seed), start)
        found = np.asarray(run(network.params, inputs, key))[:batch_size]
        texts += [vocabulary.decode(row.tolist()) for row in found]
    return [texts[i * num_samples : (i + 1) * num_samples] for i in range(len(prompts))]
