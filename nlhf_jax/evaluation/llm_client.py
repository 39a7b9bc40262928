"""Speaks to a server of the OpenAI protocol until it answers, or has refused for good.

Needs the extra `llm`: httpx and tenacity.
"""

import asyncio
import collections
import contextlib
import datetime
import email.utils
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import tenacity

from nlhf_jax.errors import UserError, first_line, warn
from nlhf_jax.evaluation.llm_prompt import BrokenReply, Reply

_LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more
_LONGEST_ASKED_FOR = 600.0  # seconds that a server may ask to wait before one should come back
# What another attempt may mend; 409 and 425 are of servers that are busy with the same request.
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
_FILTERS = ("content_filter", "content_policy_violation")  # an error that is a refusal


class Stopped(Exception):
    """Nothing more is to be sent."""


class _Again(Exception):
    """Another attempt may help.

    Args:
      cause: one of few words, to be counted.
      what: in full, for the error.
      after: seconds that the server asks to wait.
    """

    def __init__(self, cause: str, what: str, after: float = 0.0):
        super().__init__(what)
        self.cause, self.after = cause, after


class Client:
    """One endpoint, `URL/chat/completions`.

    Args:
      url: up to the version, such as `https://api.openai.com/v1`.
      key_variable: the environment variable with the key; None for a server that wants none. The
        key is sent to the server and stands nowhere else.
      timeout: seconds for one request, all of it.
      attempts: how often a question is sent at most.
      backoff: seconds before the second attempt, about; each further wait is twice as long, up to a
        minute, with jitter.
      requests_a_minute: at most, evenly spread; None for no limit.

    Attributes:
      requests: how many were sent.
      failures: cause -> how many of them failed in a way that another attempt may mend.

    Raises:
      UserError: the address is none, or the variable has no key.
    """

    def __init__(
        self,
        url: str,
        key_variable: str | None,
        timeout: float,
        attempts: int,
        backoff: float,
        requests_a_minute: float | None,
    ):
        self.url = _checked(url)
        self._key = _key(key_variable)
        self._timeout = timeout
        self._attempts = attempts
        self._backoff = backoff
        self._interval = 60.0 / requests_a_minute if requests_a_minute else 0.0
        self._next = 0.0  # when the next request may be sent
        self.requests = 0
        self.failures: collections.Counter[str] = collections.Counter()

    @contextlib.asynccontextmanager
    async def opened(self, connections: int, stop: asyncio.Event) -> AsyncIterator[None]:
        """Inside, it can send; what waits to be sent when `stop` is set is not (Stopped)."""
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=60
        )
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits) as http:
            self._http, self._stop, self._turn = http, stop, asyncio.Lock()
            yield

    async def send(self, body: Mapping[str, Any], read: Callable[[Any], Reply]) -> Reply:
        """What `read` makes of the answer to a request; attempts until there is one.

        Raises:
          UserError: the server refuses for good, or fails too often.
          Stopped: `stop` was set while it waited.
        """
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Again),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=_wait(self._backoff),
            sleep=self.sleep,
            reraise=True,
        )
        try:
            return await attempts(self._once, body, read)
        except _Again as error:
            raise UserError(
                f"the LLM judge's server {self.url} failed {self._attempts} times in a row"
                f" (LLM_ATTEMPTS), at last with: {self._without_key(first_line(error))}; what it"
                " has answered is kept, and the same command continues"
            ) from error

    async def _once(self, body: Mapping[str, Any], read: Callable[[Any], Reply]) -> Reply:
        await self._my_turn()
        self.requests += 1
        try:
            return await self._reply(body, read)
        except _Again as error:
            if error.cause not in self.failures:
                warn(f"the LLM judge's server: {self._without_key(first_line(error))}; tries again")
            self.failures[error.cause] += 1
            self._next = max(self._next, time.monotonic() + error.after)
            raise

    async def _reply(self, body: Mapping[str, Any], read: Callable[[Any], Reply]) -> Reply:
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._http.post(f"{self.url}/chat/completions", json=body)
        except TimeoutError as error:
            raise _Again("time-out", f"no answer in {self._timeout:g} s (LLM_TIMEOUT)") from error
        except httpx.ConnectError as error:
            raise _Again("no connection", f"no connection: {error}") from error
        except httpx.RequestError as error:
            raise _Again("cut connection", f"the connection was cut: {error!r}") from error
        if response.status_code != 200:
            return self._failure(response)
        try:
            return read(json.loads(response.content))
        except (BrokenReply, ValueError, RecursionError) as error:
            what = f"its answer cannot be read: {first_line(error)}"
            raise _Again("broken answer", what) from error

    def _failure(self, response: httpx.Response) -> Reply:
        """A reply that is a filter's refusal; raises otherwise."""
        status, said = response.status_code, response.text
        if status == 400 and any(name in said for name in _FILTERS):
            return Reply(said, refused=True, tokens_in=0, tokens_out=0)
        what = f"HTTP {status} {response.reason_phrase}: {_sentence(said)}"
        after = _retry_after(response.headers.get("Retry-After"))
        spent = "insufficient_quota" in said
        if status in _TRANSIENT and not spent and after <= _LONGEST_ASKED_FOR:
            raise _Again(f"HTTP {status}", what, after)
        hint = ""
        if status in (401, 403):
            hint = "; LLM_KEY_VARIABLE names the environment variable with the key"
        elif status == 404:
            hint = "; see LLM_URL and LLM_MODEL"
        elif after > _LONGEST_ASKED_FOR:
            hint = f"; it asks to come back in {after:.0f} s, and the same command continues"
        elif "logprobs" in said:
            hint = "; LLM_LOG_PROBS = None asks for none"
        raise UserError(
            f"the LLM judge's server {self.url} refuses: {self._without_key(what)}{hint}"
        )

    async def _my_turn(self) -> None:
        """Waits for the rate limit, and for what the server has asked to wait; one at a time."""
        async with self._turn:
            while (left := self._next - time.monotonic()) > 0:
                await self.sleep(left)
            if self._stop.is_set():
                raise Stopped
            self._next = max(self._next, time.monotonic() + self._interval)

    async def sleep(self, seconds: float) -> None:
        """Raises Stopped when `stop` is set before the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
            raise Stopped

    def _without_key(self, text: str) -> str:
        """Some servers quote the key that they do not like."""
        return text.replace(self._key, "***") if self._key else text


def _wait(backoff: float) -> Callable[[tenacity.RetryCallState], float]:
    """Exponential with jitter, and never shorter than the server asks for."""
    doubled = tenacity.wait_exponential(multiplier=backoff, max=_LONGEST_WAIT)
    growing = doubled + tenacity.wait_random(0, backoff)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(growing(state), getattr(error, "after", 0.0))

    return wait


def _retry_after(value: str | None) -> float:
    """Seconds of a header, which has them or a date; 0 where it has neither."""
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(value or 0))  # 0 where it is NaN
    with contextlib.suppress(ValueError):
        until = email.utils.parsedate_to_datetime(value or "")
        now = datetime.datetime.now(until.tzinfo or datetime.UTC)
        return max((until.replace(tzinfo=now.tzinfo) - now).total_seconds(), 0.0)
    return 0.0


def _sentence(said: str) -> str:
    """What an error's body says, without its wrapping."""
    try:
        error = json.loads(said)["error"]
        return error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return said.strip() or "nothing more"


def _checked(url: str) -> str:
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise UserError(f"LLM_URL is {url!r}, no address: {error}") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise UserError(f"LLM_URL is {url!r} but must be like 'https://HOST/v1'")
    if found.userinfo or found.query:
        # It would stand in the configuration that a run writes.
        raise UserError(
            "LLM_URL has a password or a query in it: put the key into an environment variable and "
            "its name into LLM_KEY_VARIABLE"
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"LLM_KEY_VARIABLE is {variable!r}, but that variable has no value")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in {variable} has characters that no key has")
    return key
