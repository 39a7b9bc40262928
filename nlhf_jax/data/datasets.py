"""A family of tasks, as a gin file names one: vocabulary, examples, and who judges.

The feature lengths are tokens with EOS: `inputs` and `targets` for policies, `text` and `summary`
for raters.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nlhf_jax.data.batches import Examples, load_examples
from nlhf_jax.data.templates import (
    SHORT_INSTRUCTION,
    SHORT_SUMMARY,
    RaterTemplate,
    RewardTemplate,
    check_feature_lengths,
    rater_segments,
    reward_segments,
    short_rater_segments,
)
from nlhf_jax.data.tldr_mini import population
from nlhf_jax.data.vocabularies import Vocabulary, tldr_mini_vocabulary
from nlhf_jax.evaluation.judges import Judge, PopulationJudge

if TYPE_CHECKING:  # it imports TensorFlow, which is left to those who read data
    from nlhf_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Registered seqio tasks `{name}_sft`, `{name}_prompts`, `{name}_comparisons`, ...

    Attributes:
      name: prefix of the tasks.
      vocabulary: of all of them.
      rater: template of a preference model.
      reward: template of a reward model.
      judge: who the raters are, where they are known exactly; None on real data.
    """

    name: str
    vocabulary: Vocabulary
    rater: RaterTemplate
    reward: RewardTemplate
    judge: Judge | None = None
    _read: dict[tuple, Examples] = dataclasses.field(default_factory=dict, repr=False)

    def examples(self, task: str, split: str, feature_lengths: Mapping[str, int]) -> Examples:
        """All examples of `sft`, `prompts` or `comparisons`; read once and kept.

        Raises UserError for bad data.
        """
        key = (task, split, *sorted(feature_lengths.items()))
        if key not in self._read:
            if task == "comparisons":
                check_feature_lengths(self.rater, feature_lengths)
            self._read[key] = load_examples(f"{self.name}_{task}", split, feature_lengths)
        return self._read[key]


@functools.cache  # the stages of a chain share what one of them has read
def tldr_mini(data_dir: str, short_template: bool = True) -> Dataset:
    """The generated posts and summaries, written under `data_dir` when first read.

    Args:
      data_dir: a directory for the TFDS files.
      short_template: leave the paper's instruction out of the rater's input, which for a small
        model would be half of what it reads.
    """
    from nlhf_jax.data import sources, tasks

    vocabulary = tldr_mini_vocabulary()
    dataset = Dataset(
        "tldr_mini",
        vocabulary,
        *_templates(vocabulary, short_template),
        judge=PopulationJudge(population.preferences),
    )
    tasks.register_tasks(
        dataset.name, sources.tldr_mini_sources(data_dir), vocabulary, dataset.rater
    )
    return dataset


@functools.cache
def _tldr(vocabulary: str, short_template: bool, read_so: tuple) -> Dataset:
    words = Vocabulary.load(vocabulary)
    return Dataset("tldr", words, *_templates(words, short_template))


def tldr(
    data_dir: str,
    vocabulary: str,
    download: bool,
    short_template: bool,
    files_dir: str | None = None,
    batches: Sequence[str] | None = None,
    train_confidence: Sequence[int] | None = None,
    validation_confidence: Sequence[int] | None = None,
    test_confidence: Sequence[int] | None = None,
) -> Dataset:
    """Reddit posts and votes on their summaries, built under `data_dir` when first read.

    What is built stays: for other files of the same names choose another `data_dir`.

    Args:
      data_dir: a directory for the TFDS files.
      vocabulary: path of a SentencePiece model.
      files_dir: where the published files are (see `data/tldr/downloads.py` for their places); by
        default `downloads/tldr` below `data_dir`.
      download: fetch those that are not there.
      batches: those of the votes to use, such as ["batch3", "batch22"]; by default all.
      train_confidence: levels (1 to 9) of the votes to train on; votes without one are then left
        out. By default all votes.
      validation_confidence: the same of the votes that choose a model (valid1).
      test_confidence: the same of the votes for final numbers (valid2).
      short_template: as in `tldr_mini`.

    Raises UserError for a setting or a vocabulary that cannot be used.
    """
    from nlhf_jax.data import sources, tasks

    levels = {
        "train": train_confidence,
        "validation": validation_confidence,
        "test": test_confidence,
    }
    found = sources.tldr_sources(data_dir, files_dir, download, batches, levels)
    # The stages of a chain share what one of them has read; lists cannot be keys.
    read_so = (data_dir, repr(batches), repr(levels))
    dataset = _tldr(vocabulary, short_template, read_so)
    # Also when the dataset is an old one: another's tasks may have taken their names since.
    tasks.register_tasks(dataset.name, found, dataset.vocabulary, dataset.rater)
    return dataset


def json_lines(
    vocabulary: str,
    sft: Mapping[str, str],
    preferences: Mapping[str, str],
    short_template: bool,
    prompts: Mapping[str, str] | None = None,
    name: str = "json_lines",
) -> Dataset:
    """A user's files: `{split: path}` for each kind (see `data/json_lines.py` for their keys).

    Args:
      vocabulary: path of a SentencePiece model.
      sft: prompts with completions.
      preferences: comparisons.
      prompts: for policy training and tournaments; by default those of `sft`.
      name: prefix of the tasks.
      short_template: as in `tldr_mini`.
    """
    from nlhf_jax.data import sources

    found = sources.json_lines_sources(sft, preferences, prompts)
    return _registered(name, vocabulary, found, short_template)


def from_rows(
    name: str,
    vocabulary: str,
    sft: "sources.Demonstrations",
    preferences: "sources.Comparisons",
    prompts: "sources.Prompts | None" = None,
    short_template: bool = False,
    judge: Judge | None = None,
) -> Dataset:
    """Data from anywhere: call it in a function of your own, which a gin file names as DATA.

    Args:
      name: prefix of the tasks.
      vocabulary: path of a SentencePiece model.
      sft: the name of each split -> a function that yields its rows, `json_lines.Demonstration`.
      preferences: the same of `json_lines.Comparison`.
      prompts: the same of `json_lines.Prompt`; by default those of `sft`.
      short_template: as in `tldr_mini`.
      judge: who the raters are, where they are known exactly.
    """
    from nlhf_jax.data import sources

    return _registered(
        name, vocabulary, sources.row_sources(sft, preferences, prompts), short_template, judge
    )


def _registered(
    name: str,
    vocabulary: str,
    found: "sources.Sources",
    short_template: bool,
    judge: Judge | None = None,
) -> Dataset:
    from nlhf_jax.data import tasks

    words = Vocabulary.load(vocabulary)
    dataset = Dataset(name, words, *_templates(words, short_template), judge=judge)
    tasks.register_tasks(name, found, words, dataset.rater)
    return dataset


def _templates(vocabulary: Vocabulary, short: bool) -> tuple[RaterTemplate, RewardTemplate]:
    if short:
        return (
            short_rater_segments(vocabulary),
            reward_segments(vocabulary, SHORT_INSTRUCTION, SHORT_SUMMARY),
        )
    return rater_segments(vocabulary), reward_segments(vocabulary)
