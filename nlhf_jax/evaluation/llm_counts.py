"""What an LLM judge was asked, what came of it and what it cost."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from nlhf_jax.evaluation.llm_prompt import Reply

_LEAST = 100  # questions before the share without an answer is one of what was asked


class Counts:
    """Of one judge, over all calls. As JSON (`to_json`, with what `LLMJudge.counts` adds):

    | key | what it counts |
    |---|---|
    | comparisons, equal | those asked for; of them those of equal texts, which are not asked |
    | questions | different orders of different texts that were asked |
    | requests | sent: `replies` were paid for, `failures` came to nothing |
    | failures | by cause: "HTTP 429", "time-out", "cut connection", "broken answer", ... |
    | from_cache | replies that had been paid for before |
    | asked_again | reminders, as the answer was no label |
    | refused, unparsable | questions that stayed without an answer: ties |
    | with_probabilities | answers that come of log-probabilities |
    | tokens_in, tokens_out, money | of `replies`, but of `without_usage` the tokens are unknown |
    | first_shown | mean probability of the response shown first, 1/2 without order bias |
    | contradictions | share of comparisons whose orders prefer different responses |
    | models | what the server calls itself, with the number of its replies |
    | ever | replies, tokens and money of all runs with this cache, address and model |

    Args:
      price_in, price_out: of a million tokens, in one currency; None does not count money.
    """

    def __init__(self, price_in: float | None, price_out: float | None):
        self._prices = (price_in, price_out)
        self.asked_again = self.refused = self.unparsable = 0
        self._comparisons = self._equal = self._answered = self._with_probabilities = 0
        self._replies = self._from_cache = self._without_usage = 0
        self._tokens_in = self._tokens_out = 0
        self._models: collections.Counter[str] = collections.Counter()
        self._first_shown, self._orders = 0.0, 0
        self._contradictions, self._both = 0, 0

    # --- replies ---------------------------------------------------------------------------------

    def pay(self, reply: Reply) -> None:
        """A reply came."""
        self._replies += 1
        self._models[reply.model] += 1
        self._tokens_in += reply.tokens_in or 0
        self._tokens_out += reply.tokens_out or 0
        self._without_usage += None in (reply.tokens_in, reply.tokens_out)

    def find(self, reply: Reply) -> None:
        """A reply was there already."""
        self._from_cache += 1
        self._models[reply.model] += 1

    # --- questions -------------------------------------------------------------------------------

    def answered(self, with_probabilities: bool) -> None:
        """A question has an answer."""
        self._answered += 1
        self._with_probabilities += with_probabilities

    def unanswered(self, last: Reply) -> None:
        """A question stays without one."""
        self.refused += last.refused
        self.unparsable += not last.refused

    @property
    def without_answer(self) -> int:
        return self.refused + self.unparsable

    @property
    def share_unanswered(self) -> float:
        """Of the questions so far; in [0, 1], and low for the first hundred."""
        return self.without_answer / max(self._answered + self.without_answer, _LEAST)

    # --- comparisons -----------------------------------------------------------------------------

    def see(self, shown_first: np.ndarray, different: np.ndarray) -> None:
        """Comparisons were made.

        Args:
          shown_first: `[N, 2]`, P(shown first > shown second) of either order, NaN without answer.
          different: bool `[N]`, whether the texts were, and so were asked about.
        """
        self._comparisons += len(different)
        self._equal += int((~different).sum())
        has_answer = ~np.isnan(shown_first)
        self._first_shown += float(shown_first[has_answer].sum())
        self._orders += int(has_answer.sum())
        both = shown_first[has_answer.all(axis=1)] - 0.5
        self._contradictions += int((both[:, 0] * both[:, 1] > 0).sum())
        self._both += len(both)

    # --- what came of it -------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        spent = self.spent(self._replies, self._tokens_in, self._tokens_out)
        return spent | {
            "comparisons": self._comparisons,
            "equal": self._equal,
            "questions": self._answered + self.without_answer,
            "from_cache": self._from_cache,
            "asked_again": self.asked_again,
            "refused": self.refused,
            "unparsable": self.unparsable,
            "with_probabilities": self._with_probabilities,
            "without_usage": self._without_usage,
            "first_shown": self._first_shown / self._orders if self._orders else None,
            "contradictions": self._contradictions / self._both if self._both else None,
            "models": dict(self._models),
        }

    def spent(self, replies: int, tokens_in: int, tokens_out: int) -> dict[str, Any]:
        """These as JSON, with `money`; None where a price is not known."""
        price_in, price_out = self._prices
        money = None
        if price_in is not None and price_out is not None:
            money = (tokens_in * price_in + tokens_out * price_out) / 1e6
        tokens = {"tokens_in": tokens_in, "tokens_out": tokens_out}
        return {"replies": replies, **tokens, "money": money}


def sentence(name: str, count: Mapping[str, Any]) -> str:
    """What `LLMJudge.counts` says, in words."""
    money = "" if count["money"] is None else f", {count['money']:,.2f} in money"
    says = (
        f"{name} was asked {count['questions']:,} questions;"
        f" {count['refused'] + count['unparsable']:,} stayed without an answer and count as ties"
        f" ({count['refused']:,} refused, {count['unparsable']:,} unparsable), and"
        f" {count['with_probabilities']:,} answers come of log-probabilities."
        f" {count['replies']:,} replies were paid for ({count['tokens_in']:,} tokens in and"
        f" {count['tokens_out']:,} out{money}); {count['from_cache']:,} had been before."
    )
    if failures := count["failures"]:
        causes = ", ".join(f"{cause}: {number:,}" for cause, number in failures.items())
        says += f" {sum(failures.values()):,} requests failed and were sent again ({causes})."
    if count["contradictions"] is not None:
        says += (
            f" The response shown first is preferred with {count['first_shown']:.3f}; in"
            f" {count['contradictions']:.1%} of comparisons the two orders contradict each other."
        )
    return says
