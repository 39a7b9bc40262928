"""What an LLM is asked about two responses, and what its reply says: pure text, no network."""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError

# Munos et al. 2024 ask PaLM 2 what they ask their preference model, `data.templates`, which has no
# words after the second summary; the last line is ours, for a model that would go on writing.
PAPER = (
    "You are an expert summary rater. Given a piece of text and two of its possible summaries, "
    "output 1 or 2 to indicate which summary is better. "
    "Text - {prompt}, Summary 1 - {first}, Summary 2 - {second}\n\nPreferred Summary -"
)
_MOST = 2**53  # of a number that a server sends
_PLACES = ("prompt", "first", "second")
_PLACE = re.compile("{(" + "|".join(_PLACES) + ")}")
_WRAPPING = r"""[\s"'`*_()\[\].:]*"""  # around a label that is the whole answer


class BrokenReply(ValueError):
    """What a server sent is no reply of the protocol."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply that was paid for, as far as it matters.

    Attributes:
      text: what the model wrote.
      refused: the model, or a filter before it, declines to answer.
      label_log_probs: the likeliest tokens in the place of the label, with their log-probabilities
        in nats; None where the server gives none, or the text has no label.
      model: what the server calls itself.
      tokens_in, tokens_out: what is charged; None where the server does not say.
    """

    text: str
    refused: bool = False
    label_log_probs: Mapping[str, float] | None = None
    model: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None


class Prompt:
    """How a comparison is asked and the answer read.

    Args:
      template: text with `{prompt}`, `{first}` and `{second}`, or the name of a file with it; None
        for the paper's. The texts are put in without white space around them.
      labels: what the model answers for the response that is shown first, and for the other.
      answer: regular expression whose one group is the label, such as `"Answer: (A|B)"`, where the
        model is to reason first; its last match counts. None: the answer is the label, in quotes
        or brackets or with a full stop at the most.

    Raises:
      UserError: the template lacks a place or cannot be read, the labels are not two different
        words, or the expression is none with one group.
    """

    def __init__(
        self,
        template: str | None,
        labels: Sequence[str],
        answer: str | None = None,
    ):
        self.template = _read(PAPER if template is None else template)
        self.labels = tuple(labels)
        if len(set(self.labels)) != 2 or len(self.labels) != 2:
            raise UserError(f"LLM_LABELS is {labels!r} but must be two different words")
        if not all(re.fullmatch(r"\w+", label) for label in self.labels):
            raise UserError(
                f"LLM_LABELS is {labels!r} but a label is one word of letters or digits"
            )
        either = "|".join(map(re.escape, self.labels))
        self.answer = answer or rf"\A{_WRAPPING}({either}){_WRAPPING}\Z"
        try:
            self._answer = re.compile(self.answer)
        except re.error as error:
            raise UserError(f"LLM_ANSWER is {answer!r}, no regular expression: {error}") from error
        if self._answer.groups != 1:
            raise UserError(
                f"LLM_ANSWER is {answer!r} but needs one group in brackets, the label, and has "
                f"{self._answer.groups}"
            )
        self.reminder = f"Answer with {self.labels[0]} or {self.labels[1]}" + (
            "." if answer else " and nothing else."
        )

    @property
    def reads(self) -> dict[str, Any]:
        """What decides which part of an answer is the label, as JSON."""
        return {"answer": self.answer, "labels": list(self.labels)}

    def question(self, prompt: str, first: str, second: str) -> str:
        """The question; what stands in the texts themselves is never taken for a place."""
        texts = {"prompt": prompt, "first": first, "second": second}
        return _whole(_PLACE.sub(lambda place: texts[place[1]].strip(), self.template))

    def preference(self, reply: Reply) -> float | None:
        """P(shown first > shown second) in [0, 1]; None where the reply does not say.

        Of the log-probabilities of both labels where they are given, else 0 or 1. A multiple of
        2^-40, so that sums of a few are exact.
        """
        place = None if reply.refused else self._label(reply.text)
        if place is None:
            return None
        masses = [self._mass(reply, label) for label in self.labels]
        if min(masses) > 0:
            return round(masses[0] / sum(masses) * 2**40) / 2**40
        return float(reply.text[place[0] : place[1]] == self.labels[0])

    def has_probabilities(self, reply: Reply) -> bool:
        """Whether `preference` comes of log-probabilities."""
        return all(self._mass(reply, label) > 0 for label in self.labels)

    def _mass(self, reply: Reply, label: str) -> float:
        likely = reply.label_log_probs or {}
        return sum(math.exp(min(p, 0.0)) for token, p in likely.items() if token.strip() == label)

    def _label(self, text: str) -> tuple[int, int] | None:
        """Where in the text the label stands, from and to."""
        found = list(self._answer.finditer(text))
        if not found or found[-1][1] not in self.labels:
            return None
        return found[-1].span(1)

    def read(self, content: Any) -> Reply:
        """The reply in what a server sends, a JSON object of chat/completions.

        Raises BrokenReply.
        """
        try:
            choice = content["choices"][0]
            message = choice["message"]
            text = message.get("content") or ""
            text = _whole(text) if isinstance(text, str) else text
            refusal = message.get("refusal")
            usage = content.get("usage") or {}
            tokens = [usage.get(f"{side}_tokens") for side in ("prompt", "completion")]
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            said = content.get("error") if isinstance(content, dict) else None
            raise BrokenReply(f"no answer in it: {said or content!r}") from error
        if not isinstance(text, str):
            raise BrokenReply(f"its answer is no text: {text!r}")
        return Reply(
            text=text or (_whole(refusal) if isinstance(refusal, str) else ""),
            refused=bool(refusal) or choice.get("finish_reason") == "content_filter",
            label_log_probs=self._likely(text, choice),
            model=_whole(str(content.get("model") or "")),
            tokens_in=_number(tokens[0]),
            tokens_out=_number(tokens[1]),
        )

    def _likely(self, text: str, choice: Mapping[str, Any]) -> dict[str, float] | None:
        """The likeliest tokens in the place of the label; None unless one of them is the label."""
        place = self._label(text)
        log_probs = choice.get("logprobs")
        tokens = log_probs.get("content") if isinstance(log_probs, dict) else None
        if place is None or not isinstance(tokens, list):
            return None
        try:
            # Of the two, servers strip one, and end the other with special tokens.
            offset = "".join(one["token"] for one in tokens).index(text.strip())
            end = offset + place[1] - (len(text) - len(text.lstrip()))
            ends = itertools.accumulate(len(one["token"]) for one in tokens)
            token = next(one for one, at in zip(tokens, ends, strict=True) if at >= end)
            found = {top["token"]: top["logprob"] for top in token.get("top_logprobs") or ()}
        except (TypeError, KeyError, ValueError, AttributeError):
            return None
        if token["token"].strip() != text[place[0] : place[1]]:
            return None
        return {
            token: float(p)
            for token, p in found.items()
            if isinstance(token, str) and isinstance(p, int | float) and -_MOST < p < _MOST
        }


def _whole(text: str) -> str:
    """Halves of characters, which JSON may have, are sent and kept by nobody."""
    return text.encode("utf-8", "replace").decode()


def _number(found: Any) -> int | None:
    return found if isinstance(found, int) and 0 <= found < _MOST else None


def _read(template: str) -> str:
    if not _PLACE.search(template) and "\n" not in template:  # then it is a file's name
        try:
            template = Path(os.path.expanduser(template)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UserError(
                f"LLM_PROMPT is {template!r}: neither a template with {{prompt}}, {{first}} and "
                f"{{second}} nor a file with one: {getattr(error, 'strerror', None) or error}"
            ) from error
    missing = [name for name in _PLACES if name not in _PLACE.findall(template)]
    if missing:
        raise UserError(f"LLM_PROMPT lacks {{{missing[0]}}}: it reads {template[:80]!r}")
    return template
