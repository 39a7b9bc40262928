"""The form of a prompt: fixed texts around a user's own, of which only the latter is shortened.

A form is written as Python writes one, `"POST: {post}\\n\\nTL;DR:"`. A prompt that is longer than
its feature length loses the end of its last field, of the one before it when that is used up, and
so on; the fixed texts stay, so that a policy always reads the "TL;DR:" that it continues. Data
pipeline, judges and `nlhf sample` all shorten here. No TensorFlow.
"""

import dataclasses
import functools
import string
from collections.abc import Callable, Mapping
from typing import Any

from nlhf_jax.errors import UserError

Encode = Callable[[str], list[int]]  # text to token ids, without EOS


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """What stands around the fields of a prompt. Raises UserError for a form that is none.

    Attributes:
      form: fixed texts and `{field}`s, each a name; a brace of the text itself is doubled.
    """

    form: str = "{prompt}"

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.form))
        except ValueError as error:
            raise UserError(f"the prompt's form {self.form!r} cannot be read: {error}") from None
        names = [name for _, name, _, _ in parts if name is not None]
        plain = all(not spec and not conversion for _, _, spec, conversion in parts)
        if not names or len(set(names)) < len(names) or not plain:
            raise UserError(
                f"the prompt's form {self.form!r} must have fields such as {{prompt}}, each once "
                "and without a format of its own"
            )
        if not all(name.isidentifier() for name in names):
            raise UserError(f"a field in the prompt's form {self.form!r} is not a plain name")

    @functools.cached_property
    def segments(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The fixed texts, one more than fields, and the names of the fields between them."""
        fixed, names = [""], []
        for text, name, _, _ in string.Formatter().parse(self.form):
            fixed[-1] += text
            if name is not None:
                names.append(name)
                fixed.append("")
        return tuple(fixed), tuple(names)

    @property
    def fields(self) -> tuple[str, ...]:
        return self.segments[1]

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing around one field: every token may go."""
        return not any(self.segments[0]) and len(self.fields) == 1

    def parts(self, fields: Mapping[str, Any]) -> list:
        """The pieces that, joined, are the prompt; the fields may be strings or string tensors."""
        fixed, names = self.segments
        found: list[Any] = []
        for text, name in zip(fixed, names, strict=False):
            found += [text, fields[name]]
        return [*found, fixed[-1]]

    def fill(self, fields: Mapping[str, str]) -> str:
        """The prompt with these fields."""
        return "".join(self.parts(fields))

    def prompt_of(self, record: Mapping[str, str]) -> str:
        """The prompt of the fields in `record`, or `record["prompt"]` if that has the form already.

        White space in the fixed texts may differ, as it does where a prompt must be one line.
        Raises ValueError, with what is missing.
        """
        if all(name in record for name in self.fields):
            return self.fill(record)
        text = record.get("prompt")
        fields = " and ".join(f"'{name}'" for name in self.fields)
        if text is None:
            raise ValueError(f"the keys {fields} are not all there")
        spans = self._spans(text, one_line=True)
        if spans is None:
            raise ValueError(
                f"the prompt is not of the form {self.form!r} that the checkpoint was trained "
                f"with; give it so, or JSON lines with {fields}"
            )
        return self.fill({name: text[start:end] for name, (start, end) in spans.items()})

    def tokens(self, text: str, length: int, encode: Encode) -> list[int]:
        """Token ids of a prompt, shortened to leave room for EOS in `length`; without EOS.

        A text that is not of this form is cut at its end.
        """
        room = length - 1
        whole = encode(text)
        if len(whole) <= room or self.is_plain:
            return whole[:room]
        for start, end in reversed(list((self._spans(text) or {}).values())):
            head, tail = encode(text[:start]), encode(text[end:])
            left = room - len(head) - len(tail)
            if left >= 0:
                field = encode(text[:end])
                # Where a field begins inside a word, its first token may have taken in the text
                # before it.
                kept = field[len(head) :] if field[: len(head)] == head else encode(text[start:end])
                return head + kept[:left] + tail
            text = text[:start] + text[end:]
        return whole[:room]

    def check_length(self, name: str, length: int, encode: Encode) -> None:
        """Raises UserError if `TASK_FEATURE_LENGTHS[name]` has no room for the fixed texts."""
        needed = len(encode(self.fill(dict.fromkeys(self.fields, "")))) + 1
        if not self.is_plain and length <= needed:
            raise UserError(
                f"TASK_FEATURE_LENGTHS['{name}'] is {length} but the prompt's form {self.form!r} "
                f"needs {needed} tokens, EOS included, before it has a word of the text; raise it"
            )

    def _spans(self, text: str, one_line: bool = False) -> dict[str, tuple[int, int]] | None:
        """Where each field is in a text of this form, else None; fixed texts are found from left.

        Not a regular expression, whose time grows with the square of the length where none fits.
        """
        fixed, names = self.segments
        if one_line:
            found = self._spans(text)
            if found is not None:
                return found
            fixed = tuple(_one_line(part) for part in fixed)
        head, *between, tail = fixed
        if one_line:
            head, tail = head.lstrip(), tail.rstrip()
        if not (text.startswith(head) and text.endswith(tail)):
            return None
        position, end = len(head), len(text) - len(tail)
        spans = {}
        for name, part in zip(names, between, strict=False):
            found_at = text.find(part, position, end)
            if found_at < 0:
                return None
            spans[name] = (position, found_at)
            position = found_at + len(part)
        if position > end:
            return None
        return spans | {names[-1]: (position, end)}


PLAIN = PromptForm()


def form_of(prompt_form: str | None) -> PromptForm:
    """The form of prompts that are a user's `prompt`; None: nothing around it. Raises UserError."""
    form = PLAIN if prompt_form is None else PromptForm(prompt_form)
    if form.fields != ("prompt",):
        raise UserError(
            f"PROMPT_FORM is {prompt_form!r} but must have the one field {{prompt}}, the key of "
            "the lines"
        )
    return form


def _one_line(text: str) -> str:
    """White space as single spaces, those at the ends too."""
    words = " ".join(text.split())
    before = " " if text[:1].isspace() else ""
    after = " " if text[-1:].isspace() else ""
    return before + words + after if words else before
