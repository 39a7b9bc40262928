"""The `sample` job: responses of one checkpoint, which needs no configuration; and their scores."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from nlhf_jax.checkpoints import open_checkpoint
from nlhf_jax.checkpoints.networks import Network, load_network
from nlhf_jax.data import datasets
from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.best_of import best_of as choose_best
from nlhf_jax.evaluation.judges import Judge, NetworkJudge
from nlhf_jax.jobs.judging import Bench
from nlhf_jax.models.language_model import token_log_probs
from nlhf_jax.rollout import rollout
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
    best_of: int = 1,
    by: str = "nash",
    rater: str | None = None,
) -> list[list[str]]:
    """`num_samples` responses of one checkpoint to each prompt, each the best of `best_of`.

    A prompt is a text, or the fields of the checkpoint's form of prompts; it is put into that form
    and shortened as in training. How many were shortened is said on standard error. Parameters and
    rows are shared by the `devices`, by default all; how many there are does not change the
    responses. With `best_of`, `rater` is the checkpoint of who compares, and `by` how one is
    chosen, see `evaluation.best_of`.

    Raises UserError if a checkpoint cannot be read or is of the wrong kind.
    """
    partitioner = whole_machine(devices)
    if best_of > 1 and rater is None:
        raise UserError(f"the best of {best_of} needs a rater who compares them")
    judge = None if rater is None or best_of == 1 else _judge(rater, partitioner, batch_size)
    network = load_network(checkpoint, partitioner, dtype=None)
    writer = Writer({checkpoint: (network, 1.0)}, partitioner, batch_size)
    found = writer.sample(prompts, num_samples * best_of, temperature, seed)
    if judge is None:
        return found
    texts = [one if isinstance(one, str) else network.prompt_form.prompt_of(one) for one in prompts]
    chosen: list[list[str]] = [[] for _ in prompts]
    for number in range(num_samples):
        several = [of[number * best_of : (number + 1) * best_of] for of in found]
        rng = np.random.default_rng([seed, number])
        best = choose_best(texts, several, judge, by, rng)
        for kept, of, index in zip(chosen, several, best, strict=True):
            kept.append(of[index])
    return chosen


def _judge(rater: str, partitioner: Partitioner, batch_size: int) -> Judge:
    network = load_network(rater, partitioner, dtype=None)
    return judge_alone(network, rater, partitioner, batch_size)


def judge_alone(
    network: Network, name: str, partitioner: Partitioner, batch_size: int
) -> NetworkJudge:
    """The judge that a rater's network is where there is no data; `name` names it in errors."""
    words = Vocabulary.from_bytes(network.vocabulary_bytes)
    data = datasets.without_tasks(words, network.prompt_form)
    bench = Bench(data, partitioner, network.feature_lengths, batch_size, 0, None, None)
    return bench.network_judge(network, name)


def whole_machine(devices: Sequence[jax.Device] | None = None) -> Partitioner:
    """A mesh of all devices, which share parameters and rows."""
    devices = list(jax.devices() if devices is None else devices)
    return Partitioner(1, len(devices), 1, devices)


class Writer:
    """Policies of one architecture, mixed token by token, that write and score texts.

    Args:
      parts: name -> a network and its weight in the log-linear mixture (Munos et al. 2024, sec. 7);
        one alone has weight 1.
      partitioner: the mesh that they are on.
      batch_size: rows at once.

    Raises:
      UserError: a network rates texts and writes none, or two are not of one architecture.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[Network, float]],
        partitioner: Partitioner,
        batch_size: int = 32,
    ):
        self._params = {}
        for name, (network, _) in parts.items():
            if network.kind not in ("supervised", "policy"):
                raise UserError(
                    f"the checkpoint {name} is a {network.kind} model: it rates texts and writes "
                    "none"
                )
            self._params[name] = network.params
        self._player = {name: weight for name, (_, weight) in parts.items()}
        first, *others = [network for network, _ in parts.values()]
        for other in others:
            if other.model.description() != first.model.description():
                raise UserError("policies of two architectures cannot be mixed")
            if other.vocabulary_bytes != first.vocabulary_bytes:
                raise UserError("policies with two vocabularies cannot be mixed")
        self._model, self._lengths = first.model, first.feature_lengths
        self._form = first.prompt_form
        self.vocabulary = Vocabulary.from_bytes(first.vocabulary_bytes)
        self._form.check_length("inputs", self._lengths["inputs"], self.vocabulary.encode)
        self._partitioner, self._batch_size = partitioner, batch_size
        self._programs: dict[float, Callable] = {}  # temperature -> what samples at it

    def sample(
        self,
        prompts: Sequence[str | Mapping[str, str]],
        num_samples: int,
        temperature: float,
        seed: int,
    ) -> list[list[str]]:
        """`num_samples` responses to each prompt; see `sample`."""
        rows = {"inputs": np.repeat(self._prompt_rows(prompts), num_samples, axis=0)}
        program, key = self._sampling(temperature), jax.random.key(seed)
        texts = []
        for start, batch in self._batches(rows):
            found = program(self._params, batch["inputs"], jax.random.fold_in(key, start))
            texts += [self.vocabulary.decode(row.tolist()) for row in np.asarray(found)]
        texts = self._without_filling(texts, len(prompts) * num_samples)
        return [texts[i * num_samples : (i + 1) * num_samples] for i in range(len(prompts))]

    def score(
        self, prompts: Sequence[str | Mapping[str, str]], responses: Sequence[str]
    ) -> list[tuple[list[str], np.ndarray]]:
        """Of each response to its prompt: its tokens, EOS the last, and their log-probabilities.

        Returns:
          for each, what its T tokens read as, and float32 `[T]` in nats. A response that is longer
          than those of the training is cut, and then has no EOS.
        """
        special, length = self._model.tokens, self._lengths["targets"]
        tokens = [[*self.vocabulary.encode(text), special.eos][:length] for text in responses]
        targets = np.full((len(tokens), length), special.pad, np.int32)
        for row, ids in zip(targets, tokens, strict=True):
            row[: len(ids)] = ids
        rows = {"inputs": self._prompt_rows(prompts), "targets": targets}
        found: list[np.ndarray] = []
        for _, batch in self._batches(rows):
            scores = self._scoring(self._params, batch["inputs"], batch["targets"])
            found += list(np.asarray(scores))
        found = self._without_filling(found, len(prompts))
        return [
            (self.vocabulary.pieces(ids), scores[: len(ids)])
            for ids, scores in zip(tokens, found, strict=True)
        ]

    def _prompt_rows(self, prompts: Sequence[str | Mapping[str, str]]) -> np.ndarray:
        length, encode = self._lengths["inputs"], self.vocabulary.encode
        special, cut = self._model.tokens, 0
        rows = np.full((len(prompts), length), special.pad, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            fields = {"prompt": prompt} if isinstance(prompt, str) else prompt
            text = self._form.prompt_of(fields)
            tokens = [*self._form.tokens(text, length, encode), special.eos]
            row[: len(tokens)] = tokens
            cut += len(encode(text)) >= length
        if cut:
            print(
                f"{cut} of {len(prompts)} prompts are longer than the checkpoint's {length} tokens "
                "and were cut",
                file=sys.stderr,
            )
        return rows

    def _batches(self, rows: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict]]:
        """The number of the first row, and rows on the mesh: the last of all fill up a batch."""
        count = len(next(iter(rows.values())))
        shared = self._partitioner.whole_shares(self._batch_size)
        for start in range(0, count, self._batch_size):
            chosen = np.minimum(np.arange(start, start + shared), count - 1)
            batch = {name: array[chosen] for name, array in rows.items()}
            yield start, self._partitioner.place_batch(batch)

    def _without_filling(self, found: list, count: int) -> list:
        shared = self._partitioner.whole_shares(self._batch_size)
        batches = (found[start : start + shared] for start in range(0, len(found), shared))
        return [one for batch in batches for one in batch[: self._batch_size]][:count]

    def _sampling(self, temperature: float) -> Callable:
        if temperature in self._programs:
            return self._programs[temperature]

        @functools.partial(jax.jit, out_shardings=self._partitioner.replicated)
        def run(params, inputs, key):
            with self._partitioner.activate():
                contexts = {name: self._model.encode(one, inputs) for name, one in params.items()}
                length = self._lengths["targets"]
                return rollout(
                    self._model, [self._player], params, contexts, key, length, temperature
                )[:, 0]

        self._programs[temperature] = run
        return run

    @functools.cached_property
    def _scoring(self) -> Callable:
        @functools.partial(jax.jit, out_shardings=self._partitioner.replicated)
        def run(params, inputs, targets):
            with self._partitioner.activate():
                mixed = sum(
                    self._player[name]
                    * self._model.logits(one, self._model.encode(one, inputs), targets)
                    for name, one in params.items()
                )
                return token_log_probs(mixed, targets)

        return run
