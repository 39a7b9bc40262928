"""Checkpoints as objects that speak text: `nlhf_jax.load(DIR)`, for notebooks and scripts.

policy = nlhf_jax.load("out/nash_md")
policy.sample(["My boss steals my food all the time ..."], num_samples=2)
policy.score([post], [response], reference=nlhf_jax.load("out/sft"))
rater = nlhf_jax.load("out/preference#best")
rater.preference([post], [one], [other])
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nlhf_jax.checkpoints import open_checkpoint
from nlhf_jax.checkpoints.networks import Network, open_network
from nlhf_jax.data import datasets
from nlhf_jax.data.prompts import form_of
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.best_of import best_of
from nlhf_jax.evaluation.intervals import Estimate, bootstrap_mean
from nlhf_jax.evaluation.judges import EmbeddingJudge
from nlhf_jax.evaluation.response_games import preference_matrices
from nlhf_jax.jobs.sampling import Writer, judge_alone, whole_machine
from nlhf_jax.raters import KINDS
from nlhf_jax.report.scored import Scored
from nlhf_jax.sharding import Partitioner

Prompt = str | Mapping[str, str]  # a text, or the fields of the checkpoint's form of prompts


def load(
    checkpoint: str | os.PathLike,
    *,
    kind: str | None = None,
    vocabulary: str | None = None,
    feature_lengths: Mapping[str, int] | None = None,
    prompt_form: str | None = None,
    short_template: bool = False,
    compute_dtype: str | None = None,
    batch_size: int = 32,
    devices: Sequence[jax.Device] | None = None,
) -> "Policy | Rater":
    """A checkpoint of any format, on the devices that are there.

    Ours says all of itself; of one of T5X or Hugging Face the keyword arguments say the rest.

    Args:
      checkpoint: as in `checkpoints.open_checkpoint`, such as "DIR", "DIR#best" or "DIR#average".
      kind: what a foreign one is: "policy" (the default), "preference" or "reward".
      vocabulary: path of a foreign one's SentencePiece model, where none lies beside it.
      feature_lengths: of a foreign one, in tokens with EOS: `inputs` and `targets` of a policy,
        `text` and `summary` of a rater.
      prompt_form: of a foreign one, what stands around a prompt's text.
      short_template: of a foreign rater, whether its input was without the paper's instruction.
      compute_dtype: of activations; None for that of the checkpoint's run.
      batch_size: rows at once.
      devices: by default all; they share parameters and rows.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it says too little of itself.
    """
    checkpoint = os.fspath(checkpoint)
    found = open_checkpoint(checkpoint)
    foreign = {
        "kind": kind,
        "vocabulary": vocabulary,
        "feature_lengths": feature_lengths,
        "prompt_form": prompt_form,
    }
    given = [name for name, value in foreign.items() if value is not None]
    if found.description is not None and given:
        raise UserError(f"{checkpoint} says of itself what {', '.join(given)} would: leave it out")
    partitioner = whole_machine(devices)
    if found.vocabulary_bytes is not None and vocabulary is None:
        words = Vocabulary.from_bytes(found.vocabulary_bytes)
    elif vocabulary is not None:
        words = Vocabulary.load(vocabulary)
    else:
        raise UserError(f"no vocabulary lies beside {checkpoint}: give vocabulary=FILE")
    network = open_network(
        checkpoint,
        partitioner,
        datasets.without_tasks(words, form_of(prompt_form), short_template),
        dtype=None,
        kind=kind or "policy",
        compute_dtype=compute_dtype,
        feature_lengths=feature_lengths,
    )
    needed = ("text", "summary") if network.kind in KINDS else ("inputs", "targets")
    if missing := [name for name in needed if name not in network.feature_lengths]:
        raise UserError(
            f"{checkpoint} does not say how long its texts are: give feature_lengths with "
            f"{' and '.join(missing)}"
        )
    if network.kind in KINDS:
        return Rater(checkpoint, network, partitioner, batch_size)
    return Policy({checkpoint: (network, 1.0)}, partitioner, batch_size)


class Policy:
    """What writes; made by `load`."""

    def __init__(
        self,
        parts: Mapping[str, tuple[Network, float]],
        partitioner: Partitioner,
        batch_size: int,
    ):
        self._parts, self._partitioner, self._batch_size = dict(parts), partitioner, batch_size
        self._writer = Writer(parts, partitioner, batch_size)

    def __repr__(self) -> str:
        parts = [f"{weight:g} of {name}" for name, (_, weight) in self._parts.items()]
        return f"Policy({next(iter(self._parts)) if len(parts) == 1 else ', '.join(parts)})"

    @property
    def network(self) -> Network:
        """The network, or the first of a mixture, with its model, parameters and description."""
        return next(iter(self._parts.values()))[0]

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[list[str]]:
        """`num_samples` responses to each prompt; at temperature 0 the most likely tokens."""
        if num_samples < 1 or temperature < 0:
            raise UserError(
                f"num_samples is {num_samples} and temperature {temperature} but they must be at "
                "least 1 and 0"
            )
        return self._writer.sample(_several(prompts, "prompts"), num_samples, temperature, seed)

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        reference: "Policy | None" = None,
    ) -> list[Scored]:
        """How likely it is to write each response to its prompt, at temperature 1.

        A text is read as the vocabulary cuts it into tokens, which may be others than those it was
        sampled as. `reference` is a policy with the same vocabulary.
        """
        prompts, responses = _paired(prompts=prompts, responses=responses)
        found = [Scored(*one) for one in self._writer.score(prompts, responses)]
        if reference is None:
            return found
        if reference.network.vocabulary_bytes != self.network.vocabulary_bytes:
            raise UserError(f"{self} and {reference} have two vocabularies: no token is in both")
        both = list(zip(found, reference.score(prompts, responses), strict=True))
        if any(len(one.pieces) != len(other.pieces) for one, other in both):
            raise UserError(f"{self} and {reference} cut a response at two lengths")
        return [Scored(one.pieces, one.log_probs, other.log_probs) for one, other in both]

    def kl(
        self,
        reference: "Policy",
        prompts: Sequence[Prompt],
        num_samples: int = 4,
        seed: int = 0,
    ) -> Estimate:
        """KL(pi || mu) of a response, in nats: the mean log ratio of its own responses.

        Of `num_samples` to each prompt; the interval of 95 % is over prompts.
        """
        prompts = _several(prompts, "prompts")
        texts = self.sample(prompts, num_samples, seed=seed)
        repeated = [prompt for prompt in prompts for _ in range(num_samples)]
        scored = self.score(repeated, [text for several in texts for text in several], reference)
        sums = np.array([one.log_ratios.sum() for one in scored])
        return bootstrap_mean(sums.reshape(len(prompts), num_samples).mean(axis=1), seed)

    def mixed(self, reference: "Policy", beta: float) -> "Policy":
        """The geometric mixture pi^(1 - beta) mu^beta, a token at a time (Munos et al. 2024, 7).

        Of two policies of one architecture and vocabulary; `beta` in [0, 1]. Its scores are of the
        mixture's own, normalised distribution.
        """
        if not 0 <= beta <= 1:
            raise UserError(f"beta is {beta} but must be in [0, 1]")
        if beta in (0, 1):  # no other programs to compile
            return reference if beta else self
        parts: dict[str, tuple[Network, float]] = {}
        for whose, share in ((self, 1 - beta), (reference, beta)):
            for name, (network, weight) in whose._parts.items():
                before = parts[name][1] if name in parts else 0.0
                parts[name] = (network, before + share * weight)
        return Policy(parts, self._partitioner, self._batch_size)


class Rater:
    """What says which of two responses is better; made by `load`."""

    def __init__(self, name: str, network: Network, partitioner: Partitioner, batch_size: int):
        self._name, self.network = name, network
        self._judge = judge_alone(network, name, partitioner, batch_size)

    def __repr__(self) -> str:
        return f"Rater({self._name}, a {self.kind} model)"

    @property
    def kind(self) -> str:
        """Which of `raters.KINDS` it is."""
        return self.network.kind

    def preference(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second | prompt), float64 `[N]`; a preference model's mean of both orders."""
        prompts, first, second = _paired(prompts=prompts, first=first, second=second)
        return self._judge.compare(prompts, first, second)

    def matrix(self, prompt: str, responses: Sequence[str]) -> np.ndarray:
        """P(y_i > y_j | prompt) of K responses to one prompt: float64 `[K, K]`.

        1/2 on the diagonal, and of equal texts.
        """
        return preference_matrices([prompt], [_several(responses, "responses")], self._judge)[0]

    def best_of(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        by: str = "nash",
        seed: int = 0,
    ) -> list[str]:
        """Of the N responses to each prompt, as `Policy.sample` gives them, the one to send.

        `by` is "nash", drawn from the Nash mixture of the N; "borda", the most preferred on
        average; or "reward", of a rater that has rewards. See `evaluation.best_of`.
        """
        rng = np.random.default_rng(seed)
        chosen = best_of(_several(prompts, "prompts"), responses, self._judge, by, rng)
        return [several[index] for several, index in zip(responses, chosen, strict=True)]

    def reward(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """A number for each response, float64 `[N]`, of which only differences mean something.

        Raises UserError for a rater that has none.
        """
        if not (self._has_rewards and isinstance(self._judge, EmbeddingJudge)):
            raise UserError(f"{self._name} compares responses: it has no reward of one alone")
        prompts, responses = _paired(prompts=prompts, responses=responses)
        if not prompts:
            return np.zeros(0)
        return self._judge.read(prompts, responses).reshape(len(prompts), -1)[:, 0]

    @functools.cached_property
    def _has_rewards(self) -> bool:
        return self.network.rater().rewards


def _paired(**given: Sequence[Any]) -> list[list[Any]]:
    """Lists of one length."""
    lists = [_several(several, name) for name, several in given.items()]
    if len({len(several) for several in lists}) > 1:
        counts = [f"{len(several)} {name}" for several, name in zip(lists, given, strict=True)]
        raise UserError(f"{', '.join(counts)}: they must be as many")
    return lists


def _several(given: Sequence[Any], name: str) -> list[Any]:
    """A list; one text, which is a sequence of letters, is none."""
    if isinstance(given, str | Mapping):
        raise UserError(f"{name} is one text but must be a list of them: give [text]")
    return list(given)
