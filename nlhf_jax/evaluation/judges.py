"""Who says which of two responses is better: the population of raters, or a model of it."""

import abc
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from scipy.special import expit

from nlhf_jax import __version__, processes
from nlhf_jax.models.language_model import SpecialTokens

POPULATION = "preference of the population"  # how reports call the exact preference


class Judge(Protocol):
    """Compares responses pair by pair.

    Attributes:
      name: how reports call it.
      votes: whether it answers 0 or 1 (to be counted) or with probabilities (to be averaged).

    What a judge may have besides: `identity`, a value of JSON that is another one whenever its
    answers may be others, without which they are not taken from an earlier run; `both_orders`, see
    the function of this name; and `sentence()`, what a report is to say of how it judged.
    """

    name: str
    votes: bool

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second | prompt), or a vote for the first: `[N]` float64 in [0, 1].

        Exchanging the two responses gives one minus the answer, unless they are equal texts.
        """
        ...


def answers(
    judge: Judge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> np.ndarray:
    """What `judge.compare` gives; raises ValueError unless it is `[N]` and in [0, 1]."""
    found = judge.compare(prompts, first, second)
    return _checked(judge, found, (len(prompts),))


def both_orders(
    judge: Judge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """What `answers` gives, and P(first > second) as asked in either order, `[N, 2]`.

    The second is what `judge.both_orders` gives, where the first is shown first and where the
    second is; None of a judge without it, to whom order is nothing. The answer is their mean, or
    what `judge.of_orders` makes of them.
    """
    if getattr(judge, "both_orders", None) is None:
        return answers(judge, prompts, first, second), None
    found = judge.both_orders(prompts, first, second)  # type: ignore[attr-defined]
    orders = _checked(judge, found, (len(prompts), 2))
    of_orders = getattr(judge, "of_orders", None)
    return orders.mean(axis=1) if of_orders is None else of_orders(orders), orders


def _checked(judge: Judge, found: Any, shape: tuple[int, ...]) -> np.ndarray:
    found = np.asarray(found, np.float64)
    if found.shape != shape or not np.all((found >= 0) & (found <= 1)):
        raise ValueError(
            f"the judge {judge.name!r} gave answers of shape {found.shape} for {shape[0]}"
            " prompts, or some outside [0, 1]"
        )
    return found


class AskedOnce:
    """A judge of a user's, whom the first of a run's processes asks and the others hear of.

    Such as one that is paid for its answers, or that does not always give the same. It has
    `both_orders`, `counts` and `sentence` where the judge has (`llm_judge.LLMJudge`).
    """

    def __init__(self, judge: Judge):
        self.name, self.votes = judge.name, judge.votes
        self.identity = getattr(judge, "identity", None)
        self.of_orders = getattr(judge, "of_orders", None)
        if getattr(judge, "both_orders", None) is not None:
            self.both_orders = functools.partial(self._from_first, judge.both_orders)  # type: ignore
        for name in ("counts", "sentence"):
            if hasattr(judge, name):
                setattr(self, name, functools.partial(processes.from_first, getattr(judge, name)))
        self.judge = judge

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        return self._from_first(self.judge.compare, prompts, first, second)

    def _from_first(self, ask: Callable, *texts: Sequence[str]) -> np.ndarray:
        found = processes.from_first(lambda: np.asarray(ask(*texts), np.float64).tolist())
        return np.asarray(found, np.float64)


class PopulationJudge:
    """The exact preference of a population of raters, or one vote of a rater drawn from it.

    Args:
      preferences: `(prompts, firsts, seconds) -> [N]`, the exact P(first > second | prompt).
      votes: draw a vote from every P instead of giving P itself.
      seed: of the votes. A vote is a function of the seed and the three texts: it depends neither
        on the order of the calls nor on which of the two responses is called the first.
      name: of the population, by which its answers are known again; None if they are not to be.
    """

    def __init__(
        self,
        preferences: Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray],
        votes: bool = False,
        seed: int = 0,
        name: str | None = None,
    ):
        self.name = "votes of the population" if votes else POPULATION
        self.votes = votes
        self.identity = name and [self.name, name, __version__, seed]
        self._preferences = preferences
        self._seed = seed

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        probability = np.asarray(self._preferences(prompts, first, second), np.float64)
        if not self.votes:
            return probability
        swapped = np.array([a > b for a, b in zip(first, second, strict=True)], bool)
        draws = np.array(
            [
                _uniform(self._seed, prompt, *sorted((a, b)))
                for prompt, a, b in zip(prompts, first, second, strict=True)
            ]
        )
        # One draw decides for the pair in sorted order; the vote for the other order is its
        # complement.
        vote_for_lesser = draws < np.where(swapped, 1 - probability, probability)
        return np.asarray(vote_for_lesser ^ swapped, np.float64)


def _uniform(seed: int, *texts: str) -> float:
    digest = hashlib.blake2b(repr((seed, texts)).encode("utf-8", "backslashreplace"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2.0**64


class NetworkJudge(abc.ABC):
    """A network that judges; subclasses say what it is asked, and what its answers mean.

    Texts are tokenised as the data pipeline does: tokens and EOS, cut to the feature length with
      EOS kept, and of a prompt its form.

    Args:
      network: int32 tokens, text `[B, S]` and one or two responses `[B, T]`, to float32 with
        leading axis B. Called with full batches only, so it compiles once.
      encode: text to token ids, without EOS.
      encode_prompt: prompt and feature length to token ids without EOS, fewer than that length
        (`data.prompts.PromptForm.tokens`); None cuts a prompt as any text, at its end.
      special: the network's tokens for padding and end.
      text_length, response_length: the feature lengths S and T, in tokens.
      batch_size: B.
    """

    name: str
    votes = False

    def __init__(
        self,
        network: Callable[..., jax.Array],
        encode: Callable[[str], list[int]],
        special: SpecialTokens,
        text_length: int,
        response_length: int,
        batch_size: int,
        encode_prompt: Callable[[str, int], list[int]] | None = None,
    ):
        self._network = network
        # Every response meets every other policy's: the same text is tokenised once.
        encode = functools.lru_cache(maxsize=100_000)(encode)
        self._encode = lambda text, length: encode(text)[: length - 1]
        self._encode_prompt = functools.lru_cache(maxsize=10_000)(encode_prompt or self._encode)
        self._special = special
        self._text_length = text_length
        self._response_length = response_length
        self._batch_size = batch_size

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        if not len(prompts) == len(first) == len(second):
            raise ValueError(
                f"{len(prompts)} prompts, {len(first)} first and {len(second)} second responses"
            )
        return self._compare(prompts, first, second) if prompts else np.zeros(0)

    @abc.abstractmethod
    def _compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second) `[N]` float64, of at least one."""

    def _ask(self, prompts: Sequence[str], *responses: Sequence[str]) -> np.ndarray:
        """The network's answers to N questions, float64 with leading axis N."""
        tokens = [self._tokens(prompts, self._text_length, self._encode_prompt)]
        tokens += [self._tokens(one, self._response_length, self._encode) for one in responses]
        answers = []
        for start in range(0, len(prompts), self._batch_size):
            # The last batch is filled up with its last row: a row of padding alone is no input of
            # the model.
            rows = np.minimum(np.arange(start, start + self._batch_size), len(prompts) - 1)
            answers.append(self._network(*(column[rows] for column in tokens)))
        # Fetched only here, so that the device never waits for the host between two batches.
        found = np.concatenate([np.asarray(jax.device_get(x), np.float64) for x in answers])
        return found[: len(prompts)]

    def _tokens(
        self, texts: Sequence[str], length: int, encode: Callable[[str, int], list[int]]
    ) -> np.ndarray:
        tokens = np.full((len(texts), length), self._special.pad, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = encode(text, length)
            row[: len(ids)] = ids
            row[len(ids)] = self._special.eos
        return tokens


class PreferenceModelJudge(NetworkJudge):
    """A preference model, asked in both orders: `(P(y > y') + 1 - P(y' > y)) / 2`.

    `network` is `(text, first, second) -> P(first > second)` in this one order.
    """

    name = "preference model"

    def _compare(self, prompts, first, second):
        return self.both_orders(prompts, first, second).mean(axis=1)

    def both_orders(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second), `[N, 2]`, with the first shown first, and with the second."""
        if not prompts:
            return np.zeros((0, 2))
        asked = self._ask(prompts, first, second), 1 - self._ask(prompts, second, first)
        return np.stack(asked, axis=1)


class AntisymmetricModelJudge(NetworkJudge):
    """A preference model that is antisymmetric by itself, asked once.

    `network` is `(text, first, second) -> P(first > second)`.
    """

    name = "antisymmetric preference model"

    def _compare(self, prompts, first, second):
        return self._ask(prompts, first, second)


class EmbeddingJudge(NetworkJudge):
    """A network that reads each response alone, once however many it is compared with.

    `network` is `(text, response) -> [B, D]`, and `logit` makes of two such rows, `[N, D]` each,
    the logits of P(first > second), `[N]`.
    """

    name = "preference embedding"

    def __init__(self, *network: Any, logit: Callable[[Any, Any], Any]):
        super().__init__(*network)
        self._logit = logit
        self._read: dict[tuple[str, str], np.ndarray] = {}

    def _compare(self, prompts, first, second):
        both = self.read([*prompts, *prompts], [*first, *second])
        return expit(self._logit(both[: len(prompts)], both[len(prompts) :]))

    def read(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """What the network says of each of N responses, `[N, ...]` float64, asked once."""
        asked = list(zip(prompts, responses, strict=True))
        new = [one for one in dict.fromkeys(asked) if one not in self._read]
        if new:
            self._read |= zip(new, self._ask(*zip(*new, strict=True)), strict=True)
        return np.stack([self._read[one] for one in asked])


class RewardModelJudge(EmbeddingJudge):
    """A reward model's Bradley-Terry preference: `sigmoid(r(x, y) - r(x, y'))`.

    `network` is `(text, response) -> r(text, response)`.
    """

    name = "reward model"

    def __init__(self, *network: Any):
        super().__init__(*network, logit=np.subtract)


class EnsembleJudge:
    """The mean preference of several judges."""

    votes = False

    def __init__(self, members: Sequence[Judge]):
        self.name = f"mean of {len(members)} raters"
        self._members = members

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        return self.both_orders(prompts, first, second).mean(axis=1)

    def both_orders(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """The members' means, `[N, 2]`; those to whom order is nothing say the same twice."""
        asked = []
        for member in self._members:
            scores, orders = both_orders(member, prompts, first, second)
            asked.append(np.stack([scores, scores], axis=1) if orders is None else orders)
        return np.mean(asked, axis=0)
