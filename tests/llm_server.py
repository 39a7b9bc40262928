"""A server of the OpenAI protocol with a known preference, which misbehaves by a seeded plan."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nlhf_jax.evaluation.llm_prompt import PAPER

MODEL = "referee-2024"  # what it calls itself
TOKENS_OUT = 1
LABELS = ("1", "2")
# What happens to a request, and may not to the next one.
TROUBLE = ("429", "500", "hang", "cut", "gone", "broken", "empty")
# What a question gets however often it is asked.
REFUSALS = ("refusal", "filter", "blocked")
# Words that are no label; "mumble" mends itself when the model is reminded.
WORDS = {"mumble": "Summary 1 is better", "swap": "A", "both": "1 or 2", "none": "3"}

_PLACES = re.escape(PAPER).replace(r"\{", "{").replace(r"\}", "}")
_QUESTION = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>.*)", _PLACES), re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Request:
    """What came in, and what was done with it.

    Attributes:
      messages: of the conversation.
      outcome: "answer", or one of the above.
      at: seconds on the server's clock.
      tokens_in: charged; 0 where nothing was answered.
    """

    messages: tuple[str, ...]
    outcome: str
    at: float
    tokens_in: int = 0

    @property
    def paid(self) -> bool:
        """Whether a whole answer was sent."""
        return self.outcome not in TROUBLE and self.outcome not in ("blocked", "status")


def uniform(*key: Any) -> float:
    """In [0, 1), a function of the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Server(ThreadingHTTPServer):
    """Answers `/v1/chat/completions`.

    Args:
      preference: (prompt, shown first, shown second) -> P(shown first > shown second).
      shares: outcome -> the probability of it, for a request (TROUBLE) or a question (others).
      seed: of the plan.
      log_probs: whether it offers log-probabilities.
      seconds: that an answer takes.
      gate: answers only once it is set.
      retry_after: what 429 says.
      status: answers everything with this (status, body), if given.
      key: that it wants.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        preference: Callable[[str, str, str], float],
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
        log_probs: bool = True,
        seconds: float = 0.0,
        gate: threading.Event | None = None,
        retry_after: str = "0",
        status: tuple[int, str] | None = None,
        key: str | None = None,
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.preference, self.shares, self.seed = preference, dict(shares or {}), seed
        self.log_probs, self.seconds, self.retry_after = log_probs, seconds, retry_after
        self.status, self.key, self.gate = status, key, gate
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self.seen: collections.Counter[tuple[str, ...]] = collections.Counter()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def paid(self) -> list[Request]:
        return [request for request in self.log if request.paid]

    def outcome(self, messages: tuple[str, ...]) -> str:
        """What the plan has for this request; no question meets trouble three times in a row."""
        with self.lock:
            times = self.seen[messages]
            self.seen[messages] += 1
        if times % 3 < 2:
            found = self._drawn(TROUBLE, "trouble", messages, times)
            if found is not None:
                return found
        fate = self.fate(messages[0])
        return "answer" if fate == "mumble" and len(messages) > 1 else fate

    def fate(self, question: str) -> str:
        """What the question gets in the end."""
        return self._drawn((*REFUSALS, *WORDS), "fate", question) or "answer"

    def _drawn(self, kinds: tuple[str, ...], *key: Any) -> str | None:
        u = uniform(self.seed, *key)
        for kind in kinds:
            u -= self.shares.get(kind, 0.0)
            if u < 0:
                return kind
        return None


def answer(server: Server, question: str, wants: Mapping[str, Any]) -> dict[str, Any]:
    """A choice: the likelier label, with log-probabilities where they are offered."""
    match = _QUESTION.fullmatch(question)
    assert match, question
    first = server.preference(match["prompt"], match["first"], match["second"])
    label = LABELS[first < 0.5]
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": label},
    }
    if server.log_probs and wants.get("logprobs"):
        # A tenth is on other tokens, and a label has two forms, as in real vocabularies.
        masses = {"1": 0.7 * first, " 1": 0.2 * first, "2": 0.9 * (1 - first), "the": 0.1}
        tops = [{"token": token, "logprob": math.log(p)} for token, p in masses.items() if p > 0]
        tops.sort(key=lambda top: -top["logprob"])
        tokens = [{"token": label, "logprob": math.log(0.5), "top_logprobs": tops}]
        choice["logprobs"] = {"content": tokens}
    return choice


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._post()

    def _post(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions" and body["temperature"] == 0
        messages = tuple(message["content"] for message in body["messages"])
        server = self.server
        if server.gate is not None:
            server.gate.wait()
        time.sleep(server.seconds)
        if server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
            said = f"Incorrect API key provided: {self.headers['Authorization']}"
            self._done(messages, "status", 401, {"error": {"message": said}})
        elif server.status is not None:
            self._done(messages, "status", *server.status)
        else:
            outcome = server.outcome(messages)
            if outcome in TROUBLE:
                self._trouble(outcome, messages)
            else:
                self._answer(outcome, messages, body)

    def _answer(self, outcome: str, messages: tuple[str, ...], body: Mapping[str, Any]) -> None:
        choice = answer(self.server, messages[0], body)
        if outcome == "blocked":
            error = {"code": "content_filter", "message": "the prompt was filtered"}
            return self._done(messages, outcome, 400, {"error": error})
        if outcome != "answer":
            choice.pop("logprobs", None)
            choice["message"]["content"] = WORDS.get(outcome)
        if outcome == "refusal":
            choice["message"]["refusal"] = "I cannot help with that."
        if outcome == "filter":
            choice["finish_reason"] = "content_filter"
        tokens = sum(len(message.split()) for message in messages)
        usage = {"prompt_tokens": tokens, "completion_tokens": TOKENS_OUT}
        content = {"model": MODEL, "choices": [choice], "usage": usage}
        return self._done(messages, outcome, 200, content, tokens)

    def _trouble(self, outcome: str, messages: tuple[str, ...]) -> None:
        whole = json.dumps({"model": MODEL, "choices": [{"message": {"content": "1"}}]}).encode()
        if outcome in ("429", "500"):
            self._done(messages, outcome, int(outcome), "<html>not now</html>")
        elif outcome == "broken":
            self._done(messages, outcome, 200, whole[: len(whole) // 2])
        elif outcome == "empty":
            self._done(messages, outcome, 200, {"error": {"message": "upstream"}})
        else:
            self._log(messages, outcome)
            self.close_connection = True
            if outcome == "cut":
                self.send_response(200)
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole[: len(whole) // 2])
            elif outcome == "hang":  # until the client goes
                while not self.server.closing.is_set():
                    if select.select([self.connection], [], [], 0.05)[0]:
                        break

    def _done(
        self,
        messages: tuple[str, ...],
        outcome: str,
        status: int,
        content: str | bytes | Mapping[str, Any],
        tokens: int = 0,
    ) -> None:
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        data = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self._log(messages, outcome, tokens)  # before, or the client may be faster
        self.wfile.write(data)

    def _log(self, messages: tuple[str, ...], outcome: str, tokens: int = 0) -> None:
        with self.server.lock:
            self.server.log.append(Request(messages, outcome, time.monotonic(), tokens))


@contextlib.contextmanager
def serving(*args: Any, **kwargs: Any) -> Iterator[Server]:
    """A `Server` in threads of this process."""
    server = Server(*args, **kwargs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
