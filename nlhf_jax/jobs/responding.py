"""Players of a tournament write their responses, once: see `nlhf_jax.evaluation.responses`."""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from nlhf_jax import processes
from nlhf_jax.checkpoints.networks import Network
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.templates import feature_length
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import responses
from nlhf_jax.evaluation.best_of import best_of
from nlhf_jax.evaluation.responses import Response, Writing
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.jobs.judging import Bench, Source, compiled, identities_of, paths_of
from nlhf_jax.models.language_model import LanguageModel, response_mask, token_log_probs
from nlhf_jax.rollout import sample_responses


class Written(NamedTuple):
    """What a player handed in; `network` is who wrote it, None of a file from elsewhere."""

    player: Player
    network: Network | None
    sampled: int  # responses that were not there before


@dataclasses.dataclass(frozen=True)
class Entry:
    """Who plays.

    Attributes:
      checkpoint: of a policy.
      file: of JSON lines with `prompt` and `completion`, in place of a checkpoint.
      best_of: responses of which one is sent; 1 for no choice.
      by: how it is chosen, see `evaluation.best_of`.
      rater: checkpoints of who compares them.
    """

    checkpoint: str = ""
    file: str | None = None
    best_of: int = 1
    by: str = "nash"
    rater: Source | None = None


def entry_of(name: str, player: str | Mapping[str, Any], resolve: Callable[[str], str]) -> Entry:
    """What PLAYERS says of one player.

    Args:
      name: the player's.
      player: a checkpoint; a file; or a dict with `checkpoint`, `best_of`, `by` and `rater`.
      resolve: what a checkpoint means now.

    Raises:
      UserError: it is none of these.
    """
    if isinstance(player, str):
        if player.endswith(responses.SUFFIX):
            return Entry(file=player)
        return Entry(resolve(player))
    known = [field.name for field in dataclasses.fields(Entry) if field.name != "file"]
    for key in player:
        if key not in known:
            raise UserError(
                f"PLAYERS has '{name}' with the key {key!r} but only {', '.join(known)} mean "
                "something"
            )
    entry = Entry(**player)
    if not entry.checkpoint or entry.rater is None or entry.best_of < 2:
        raise UserError(
            f"PLAYERS has '{name}': {dict(player)} but a dict needs a checkpoint, best_of of at "
            "least 2, and a rater"
        )
    rater = (
        resolve(entry.rater) if isinstance(entry.rater, str) else tuple(map(resolve, entry.rater))
    )
    return dataclasses.replace(entry, checkpoint=resolve(entry.checkpoint), rater=rater)


class Respondents:
    """Those who answer the same prompts.

    Args:
      bench: what all networks share.
      examples: the prompts.
      reference: checkpoint of the policy to which KL is measured.
      temperature: of the samples.
      workdir: where responses are kept.
    """

    def __init__(
        self, bench: Bench, examples: Examples, reference: str, temperature: float, workdir: str
    ):
        self._bench, self._examples = bench, examples
        self._reference, self._temperature = reference, temperature
        self._directory = epath.Path(workdir)
        self._length = feature_length(bench.feature_lengths, "targets", "a tournament")
        self._programs: dict[str, Callable] = {}

    @functools.cached_property
    def _base(self) -> Network:
        return self._bench.load(self._reference)

    @functools.cached_property
    def _identity_of_reference(self) -> str:
        return identities_of([self._reference])[0]

    def write(self, name: str, entry: Entry) -> Written:
        """A player's responses: read if they are there, sampled if not.

        Args:
          name: the player's; it decides the random numbers, so that players write independently.
          entry: who plays.

        Raises:
          UserError: the checkpoint or the file cannot be used.
        """
        prompts = self._examples.texts("inputs")
        if entry.file is not None:
            found = processes.from_first(
                lambda: [one.text for one in responses.read_file(entry.file or "", prompts)]
            )
            kept = [Response(text) for text in found]
            responses.write_all(self._directory, name, prompts, kept)
            return Written(Player(found), None, 0)
        network = self._bench.open(entry.checkpoint)
        at_once = self._bench.batch_size
        how = self._how(name, entry)
        writing = Writing(self._directory, name, how, prompts, at_once)
        before = len(writing.responses)
        if not writing.complete:
            for batch in self._batches(network, name, entry, before // at_once):
                writing.add(batch)
        written = writing.responses
        # What is chosen of several is not drawn from the policy, whose ratios say no KL then.
        ratios = [sum(one.ratios) for one in written] if entry.best_of == 1 else None
        player = Player(
            responses=[one.text for one in written],
            log_ratios=None if ratios is None else np.array(ratios, np.float64),
            token_counts=np.array([len(one.log_probs) for one in written]),
        )
        return Written(player, network, len(written) - before)

    def _how(self, name: str, entry: Entry) -> dict[str, Any]:
        """All that decides a player's responses."""
        bench = self._bench
        raters = [] if entry.rater is None else paths_of(entry.rater)

        checkpoint, *of_raters = identities_of([entry.checkpoint, *raters])
        best = {"best_of": entry.best_of, "by": entry.by, "raters": of_raters}
        return {
            "player": name,
            **(best if entry.best_of > 1 else {}),
            "checkpoint": {"path": entry.checkpoint, "identity": checkpoint},
            "reference": {"path": self._reference, "identity": self._identity_of_reference},
            "temperature": self._temperature,
            "seed": bench.seed,
            "tokens": self._length,
            "at_once": bench.batch_size,
            "compute_dtype": bench.compute_dtype,
            "prompts": hashlib.sha256(self._examples.arrays["inputs"].tobytes()).hexdigest(),
        }

    def _batches(
        self, network: Network, name: str, entry: Entry, first: int
    ) -> Iterator[list[Response]]:
        """Batches of responses, from number `first` on."""
        if entry.best_of == 1:
            yield from self._sample(network, name, first)
            return
        judge = self._bench.rater_judge(entry.rater or "", f"the rater of player '{name}', which")[
            0
        ]
        prompts, at_once = self._examples.texts("inputs"), self._bench.batch_size
        several = [
            self._sample(network, f"{name}, {one} of {entry.best_of}", first)
            for one in range(entry.best_of)
        ]
        for number, batches in enumerate(zip(*several, strict=True), start=first):
            choices = list(zip(*batches, strict=True))  # of each prompt its responses
            start = number * at_once
            texts = [[one.text for one in of] for of in choices]
            rng = np.random.default_rng([self._bench.seed, zlib.crc32(name.encode()), number])
            asked = prompts[start : start + len(choices)]
            best = best_of(asked, texts, judge, entry.by, rng)
            yield [of[index] for of, index in zip(choices, best, strict=True)]

    def _sample(self, network: Network, name: str, first: int) -> Iterator[list[Response]]:
        """Batches of one response each, from number `first` on."""
        bench, base = self._bench, self._base
        # P(pi > pi') is over independent draws: one key for all would couple their responses. By
        # name, so that a player has the same whoever else plays.
        key = jax.random.fold_in(jax.random.key(bench.seed), zlib.crc32(name.encode()))
        architecture = str(network.model.description())
        if architecture not in self._programs:  # players of one architecture share a program
            sampling = _sampling(network.model, base.model, self._length, self._temperature)
            self._programs[architecture] = compiled(bench.partitioner, sampling)
        program = self._programs[architecture]
        rows = bench.partitioner.whole_shares(bench.batch_size)
        for number, batch in enumerate(self._examples.eval_batches(bench.batch_size, rows)):
            if number < first:
                continue
            inputs = bench.partitioner.place_batch({"inputs": batch["inputs"]})["inputs"]
            found = jax.device_get(
                program(network.params, base.params, inputs, jax.random.fold_in(key, number))
            )
            kept = batch["valid"] > 0
            lengths = np.asarray(response_mask(found[0], network.model.tokens.eos).sum(axis=-1))
            rows_found = zip(*(array[kept] for array in found), lengths[kept], strict=True)
            yield [self._response(*row) for row in rows_found]

    def _response(self, tokens, log_probs, reference_log_probs, length: float) -> Response:
        count, vocabulary = int(length), self._bench.data.vocabulary
        return Response(
            vocabulary.decode(tokens.tolist()),
            vocabulary.pieces(tokens[:count].tolist()),
            _shortest(log_probs[:count]),
            _shortest(reference_log_probs[:count]),
        )


def _shortest(values: np.ndarray) -> list[float]:
    """As numbers of Python that print as short as float32 does."""
    return [float(str(value)) for value in values]


def _sampling(
    policy: LanguageModel, base: LanguageModel, length: int, temperature: float
) -> Callable:
    """(policy's parameters, base's, inputs, key) -> responses `[B, T]`, and the log-probabilities
    of their tokens under each, `[B, T]`.

    The policy's are of the distribution that was sampled, at `temperature`; the base's its own.
    """

    def run(params, base_params, inputs, key):
        responses = sample_responses(policy, params, inputs, key, length, temperature)

        def log_probs(model, values, temperature):
            if temperature == 0:  # all probability is on this response
                return jnp.zeros(responses.shape)
            logits = model.logits(values, model.encode(values, inputs), responses)
            return token_log_probs(logits / temperature, responses)

        return responses, log_probs(policy, params, temperature), log_probs(base, base_params, 1.0)

    return run
