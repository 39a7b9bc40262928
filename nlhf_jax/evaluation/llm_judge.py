"""An LLM as the judge, behind any server of the OpenAI protocol.

Each comparison is asked in both orders, at temperature 0. Every reply is kept on disk as it comes
(`paid_once`), so nothing is paid twice. `docs/judges.md` has the whole of it.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlhf_jax import processes
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import llm_counts
from nlhf_jax.evaluation.llm_prompt import Prompt, Reply
from nlhf_jax.evaluation.paid_once import PaidOnce, key

if TYPE_CHECKING:
    from nlhf_jax.evaluation.llm_client import Client

_Question = tuple[str, str, str]  # prompt, shown first, shown second
_GRACE = 10.0  # seconds that replies on their way have when something ends the asking
_OTHERS = 900.0  # seconds after which a run that has claimed a question is taken for stuck
_LOOK = 0.1  # seconds between looks whether it has the reply


class LLMJudge:
    """A chat model that is asked which of two responses is better, in both orders.

    A judge of `evaluation.judges.Judge`. An order's answer is P(shown first > shown second) of the
    log-probabilities of the two labels where the server gives them, else 0 or 1, so that a
    comparison whose orders contradict each other is 1/2; `votes` is False for that reason. An
    answer that is no label is asked again with a reminder, a refusal is not (it would be the same
    at temperature 0); what stays without an answer is 1/2, and counted. Equal texts are 1/2 and not
    asked.

    In a run of several processes only the first may ask (`judges.AskedOnce`).

    Args:
      url: the endpoint, up to its version: `http://localhost:8000/v1`.
      model: its name there.
      cache: the file of replies, on a local disk; `~` is the user's home.
      concurrency: requests under way at once, at most.
      timeout: seconds for a request.
      attempts: how often a question is sent at most when the server fails.
      backoff: seconds before the second attempt, about; doubled for each further one.
      asks: how often a question is put at most when the answer is no label, reminders included.
      max_unanswered: the share of questions without an answer above which to stop, of at least
        100 questions.
      max_tokens: of an answer.
      labels, template, answer: as of `llm_prompt.Prompt`.
      log_probs: of how many of the likeliest tokens to ask the log-probabilities; None asks none.
      name: how reports call the judge; None for `model`.
      key_variable: the environment variable with the key; None for a server that wants none.
      request: further fields of the request, such as `{"seed": 1}`; None as a value leaves a field
        out.
      requests_a_minute: at most; None for no limit.
      price_in, price_out: of a million tokens, in a currency of yours; None does not count money.

    Raises:
      UserError: a setting that cannot be; the extra `llm` is missing; when it is asked, a server
        that refuses for good or fails too often, too many questions without an answer.
    """

    votes = False

    def __init__(
        self,
        url: str,
        model: str,
        cache: str,
        concurrency: int,
        timeout: float,
        attempts: int,
        backoff: float,
        asks: int,
        max_unanswered: float,
        max_tokens: int,
        labels: Sequence[str],
        log_probs: int | None = None,
        name: str | None = None,
        key_variable: str | None = None,
        template: str | None = None,
        answer: str | None = None,
        request: Mapping[str, Any] | None = None,
        requests_a_minute: float | None = None,
        price_in: float | None = None,
        price_out: float | None = None,
    ):
        _check(locals())
        self.name = name or model
        self._prompt = Prompt(template, labels, answer)
        body = {"model": model, "temperature": 0, "max_tokens": max_tokens}
        if log_probs is not None:
            body |= {"logprobs": True, "top_logprobs": log_probs}
        body |= request or {}
        self._body = {field: value for field, value in body.items() if value is not None}
        # All that its answers hang on, but for the server: see `judges.Judge`.
        self.identity = [url, self._body, template, list(labels), answer, asks]
        self._concurrency, self._asks = concurrency, asks
        self._max_unanswered = max_unanswered
        self._counts = llm_counts.Counts(price_in, price_out)

        def opened() -> None:  # a setting that is wrong is found out before anything runs
            self._client = _client(url, key_variable, timeout, attempts, backoff, requests_a_minute)
            self._asked = f"{model} at {self._client.url}"
            self._replies = PaidOnce(cache)

        processes.from_first(opened)

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second), the mean of both orders: `[N]` float64 in [0, 1].

        With the responses exchanged it is one minus that, exactly.
        """
        return self.both_orders(prompts, first, second).mean(axis=1)

    def both_orders(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second) as asked with `first` shown first, and with it shown second.

        Returns:
          `[N, 2]` float64 in [0, 1], multiples of 2^-40.

        Raises:
          UserError: as of the class. What was answered until then is kept.
          KeyboardInterrupt: Ctrl-C, after the replies that were on their way have been kept, for
            which they have ten seconds; a second one does not wait.
        """
        orders = [
            [(x.strip(), a.strip(), b.strip()) for x, a, b in zip(prompts, *shown, strict=True)]
            for shown in ((first, second), (second, first))
        ]
        different = np.array([a != b for _, a, b in orders[0]], bool)
        asked = [question for order in orders for question in order if question[1] != question[2]]
        found = self._answers(list(dict.fromkeys(asked)))
        shown_first = np.full((len(prompts), 2), np.nan)
        for column, order in enumerate(orders):
            for row in np.flatnonzero(different):
                answer = found[order[row]]
                shown_first[row, column] = np.nan if answer is None else answer
        self._counts.see(shown_first, different)
        answers = np.nan_to_num(shown_first, nan=0.5)
        answers[:, 1] = 1 - answers[:, 1]
        return answers

    # --- asking ----------------------------------------------------------------------------------

    def _answers(self, questions: Sequence[_Question]) -> dict[_Question, float | None]:
        """P(shown first > shown second) of different questions; None where there is no answer."""
        if not questions:
            return {}
        from anyio.from_thread import start_blocking_portal

        # A thread has the event loop: a notebook's own thread has one already.
        with start_blocking_portal() as portal:
            stop = portal.call(asyncio.Event)
            asking = portal.start_task_soon(self._ask_all, questions, stop)
            try:
                return asking.result()
            except BaseException:
                if not asking.done():  # Ctrl-C, or what else a signal raises here
                    portal.call(stop.set)
                    with contextlib.suppress(TimeoutError, UserError):
                        asking.result(timeout=_GRACE)
                raise

    async def _ask_all(
        self, questions: Iterable[_Question], stop: asyncio.Event
    ) -> dict[_Question, float | None]:
        from nlhf_jax.evaluation.llm_client import Stopped

        answers: dict[_Question, float | None] = {}
        left = iter(questions)

        async def work() -> None:
            for question in left:
                if stop.is_set():
                    return
                with contextlib.suppress(Stopped):
                    answers[question] = await self._ask(question)

        async with self._client.opened(self._concurrency, stop):
            working = {asyncio.create_task(work()) for _ in range(self._concurrency)}
            done, others = await asyncio.wait(working, return_when=asyncio.FIRST_EXCEPTION)
            if others:  # one failed: what others have asked already is kept
                stop.set()
                late, others = await asyncio.wait(others, timeout=_GRACE)
                done |= late
            for worker in others:
                worker.cancel()
        errors = [error for worker in done if (error := worker.exception()) is not None]
        if errors:
            raise errors[0]
        return answers

    async def _ask(self, question: _Question) -> float | None:
        messages = [{"role": "user", "content": self._prompt.question(*question)}]
        for ask in range(1, self._asks + 1):
            reply = await self._paid(self._body | {"messages": messages})
            preference = self._prompt.preference(reply)
            if preference is not None:
                self._counts.answered(self._prompt.has_probabilities(reply))
                return preference
            if reply.refused or not reply.text or ask == self._asks:
                break
            self._counts.asked_again += 1
            messages = [
                *messages,
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": self._prompt.reminder},
            ]
        self._counts.unanswered(reply)
        if self._counts.share_unanswered > self._max_unanswered:
            raise UserError(
                f"the LLM judge {self.name!r} gave no answer to {self._counts.without_answer}"
                f" questions ({self._counts.refused} refused, {self._counts.unparsable} with other"
                f" words, such as {reply.text[:80]!r}), more than LLM_MAX_UNANSWERED,"
                f" {self._max_unanswered:.0%}: see LLM_PROMPT, LLM_LABELS, LLM_ANSWER and"
                " LLM_MAX_TOKENS"
            )
        return None

    async def _paid(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a request: that which is kept, or a new one, which then is."""
        question = key({"url": self._client.url, "body": body} | self._prompt.reads)
        reply = self._replies.find(question)
        if reply is None:
            try:
                await self._claim(question)
                reply = self._replies.find(question)  # another run may have asked meanwhile
                if reply is None:
                    reply = await self._client.send(body, self._prompt.read)
                    self._replies.keep(question, self._asked, reply)
                    self._counts.pay(reply)
                    return reply
            finally:
                self._replies.release(question)
        self._counts.find(reply)
        return reply

    async def _claim(self, question: str) -> None:
        """Returns when no other run is asking the question, or one has for very long."""
        for _ in range(int(_OTHERS / _LOOK)):
            if self._replies.claim(question):
                return
            await self._client.sleep(_LOOK)

    # --- counting --------------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """What was asked and what that cost, as JSON, over all calls so far: see `llm_counts`."""
        spent = self._counts.spent(*self._replies.paid(self._asked))
        sent = {"requests": self._client.requests, "failures": dict(self._client.failures)}
        return sent | self._counts.to_json() | {"ever": spent}

    def sentence(self) -> str:
        """`counts` in words, for a report."""
        return llm_counts.sentence(self.name, self.counts())


def _client(*settings: Any) -> "Client":
    try:
        from nlhf_jax.evaluation.llm_client import Client
    except ImportError as error:
        raise UserError(
            f"an LLM as the judge needs {error.name}, which is not installed: pip install '.[llm]'"
        ) from error
    return Client(*settings)


def _check(given: Mapping[str, Any]) -> None:
    for name in ("concurrency", "attempts", "asks", "max_tokens"):
        if given[name] < 1:
            raise UserError(f"LLM_{name.upper()} is {given[name]} but must be at least 1")
    if not given["timeout"] > 0 or not given["backoff"] >= 0:
        raise UserError(
            f"LLM_TIMEOUT is {given['timeout']} and LLM_BACKOFF {given['backoff']}, but seconds are"
            " above 0"
        )
    if not 0 <= given["max_unanswered"] <= 1:
        raise UserError(f"LLM_MAX_UNANSWERED is {given['max_unanswered']} but is a share, 0 to 1")
    rate = given["requests_a_minute"]
    if rate is not None and not rate > 0:
        raise UserError(f"LLM_REQUESTS_A_MINUTE is {rate} but must be above 0")
    if (given["price_in"] is None) != (given["price_out"] is None):
        raise UserError("give LLM_PRICE_IN and LLM_PRICE_OUT both, or neither")
