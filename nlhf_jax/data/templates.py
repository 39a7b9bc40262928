"""How a text and its summaries become one rater's input: token segments and their order.

A preference model reads

    instruction, text, before_first, summary 1, before_second, summary 2, EOS

and a reward model

    instruction, text, before_summary, summary, EOS,

each segment tokenised on its own and packed left without padding between them. The data pipeline
packs words (`tasks.py`), the learners pack sampled tokens on the device; both take the segments
from here.
"""

from collections.abc import Mapping
from typing import NamedTuple

from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError

# The paper's rater, up to the answer, which an encoder-decoder gives at its first decoder position.
RATER_INSTRUCTION = (
    "You are an expert summary rater. Given a piece of text and two of its possible summaries, "
    "output 1 or 2 to indicate which summary is better. Text -"
)
RATER_SUMMARY_1 = ", Summary 1 -"
RATER_SUMMARY_2 = ", Summary 2 -"

REWARD_INSTRUCTION = (
    "You are an expert summary rater. Given a piece of text and one of its possible summaries, "
    "output how good the summary is. Text -"
)
REWARD_SUMMARY = ", Summary -"

# For small models, to which 40 tokens of instruction would be half of their work.
SHORT_INSTRUCTION = "Text -"
SHORT_SUMMARY_1 = "Summary 1 -"
SHORT_SUMMARY_2 = "Summary 2 -"
SHORT_SUMMARY = "Summary -"


class RaterTemplate(NamedTuple):
    """Token ids of the fixed segments of a preference model's input."""

    instruction: tuple[int, ...]
    before_first: tuple[int, ...]
    before_second: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the template alone, without EOS."""
        return sum(map(len, self))

    @property
    def summaries(self) -> int:
        return 2

    @property
    def segments(self) -> tuple[tuple[int, ...] | str, ...]:
        """Fixed segments and the names of what goes between them, as `nlhf_jax.raters` packs."""
        instruction, before_first, before_second = self
        return (instruction, "text", before_first, "first", before_second, "second")


class RewardTemplate(NamedTuple):
    """Token ids of the fixed segments of a reward model's input."""

    instruction: tuple[int, ...]
    before_summary: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the template alone, without EOS."""
        return sum(map(len, self))

    @property
    def summaries(self) -> int:
        return 1

    @property
    def segments(self) -> tuple[tuple[int, ...] | str, ...]:
        """Fixed segments and the names of what goes between them, as `nlhf_jax.raters` packs."""
        return (self.instruction, "text", self.before_summary, "first")


def rater_segments(
    vocabulary: Vocabulary,
    instruction: str = RATER_INSTRUCTION,
    summary_1: str = RATER_SUMMARY_1,
    summary_2: str = RATER_SUMMARY_2,
) -> RaterTemplate:
    """The preference model's template in `vocabulary`'s tokens."""
    texts = (instruction, summary_1, summary_2)
    return RaterTemplate(*(tuple(vocabulary.encode(text)) for text in texts))


def reward_segments(
    vocabulary: Vocabulary,
    instruction: str = REWARD_INSTRUCTION,
    summary: str = REWARD_SUMMARY,
) -> RewardTemplate:
    """The reward model's template in `vocabulary`'s tokens."""
    return RewardTemplate(tuple(vocabulary.encode(instruction)), tuple(vocabulary.encode(summary)))


def short_rater_segments(vocabulary: Vocabulary) -> RaterTemplate:
    """`rater_segments` for small models."""
    return rater_segments(vocabulary, SHORT_INSTRUCTION, SHORT_SUMMARY_1, SHORT_SUMMARY_2)


def feature_length(feature_lengths: Mapping[str, int], name: str, needed_by: str) -> int:
    """One of them, in tokens with EOS. Raises UserError if it is missing or no length."""
    if name not in feature_lengths:
        raise UserError(
            f"TASK_FEATURE_LENGTHS has no '{name}' (it has {sorted(feature_lengths)}), which "
            f"{needed_by} needs"
        )
    length = feature_lengths[name]
    if not isinstance(length, int) or length < 2:
        raise UserError(
            f"TASK_FEATURE_LENGTHS['{name}'] is {length!r}; wanted a whole number of tokens, at "
            "least 2 (one word and EOS)"
        )
    return length


def needed_length(template: RaterTemplate | RewardTemplate, text: int, summary: int) -> int:
    """Tokens of the longest input: whole `text`, summaries of `summary` tokens, and EOS."""
    return text + template.summaries * summary + template.length + 1


def check_inputs(template: RaterTemplate | RewardTemplate, inputs: int, text: int) -> None:
    """Raises UserError if `inputs` tokens have no room for the template, `text` tokens of the text,
    a token of each summary and EOS; for T5X, which names no other lengths.
    """
    needed = needed_length(template, text, 1)
    if inputs < needed:
        raise UserError(
            f"the length of 'inputs' is {inputs} but the rater's template needs at least {needed} "
            f"(text {text} + {template.summaries} x 1 + {template.length} + EOS); raise it"
        )


def check_feature_lengths(
    template: RaterTemplate | RewardTemplate, feature_lengths: Mapping[str, int]
) -> int:
    """Length of the rater's input, in tokens, that `feature_lengths` asks for.

    `feature_lengths` has "text" and "summary", and may have "inputs": the length to pad to, which
    must then be long enough. Without "inputs" the input is as long as it needs to be. Raises
    UserError.
    """
    for name in ("text", "summary"):
        if name not in feature_lengths:
            raise UserError(
                f"TASK_FEATURE_LENGTHS has no '{name}' (it has {sorted(feature_lengths)}); a "
                "rater's input needs 'text' and 'summary'"
            )
    for name, length in feature_lengths.items():
        if not isinstance(length, int) or length < 2:
            raise UserError(
                f"TASK_FEATURE_LENGTHS['{name}'] is {length!r}; wanted a whole number of tokens, "
                "at least 2 (one word and EOS)"
            )
    text, summary = feature_lengths["text"], feature_lengths["summary"]
    needed = needed_length(template, text, summary)
    given = feature_lengths.get("inputs", needed)
    if given < needed:
        raise UserError(
            f"TASK_FEATURE_LENGTHS['inputs'] is {given} but the rater's template needs {needed} "
            f"(text {text} + {template.summaries} x {summary} + {template.length} + EOS); raise it "
            "or lower TASK_FEATURE_LENGTHS['text'] or ['summary']"
        )
    return given
