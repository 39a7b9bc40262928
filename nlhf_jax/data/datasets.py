"""A family of tasks, as a gin file names one: vocabulary, examples, and who judges.

The feature lengths are tokens with EOS: `inputs` and `targets` for policies, `text` and `summary`
for raters.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from nlhf_jax.data.batches import Examples, load_examples
from nlhf_jax.data.json_lines import File, check_exists, is_skipped
from nlhf_jax.data.prompts import PLAIN, PromptForm, form_of
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
from nlhf_jax.data.tldr.files import PROMPT_FORM
from nlhf_jax.data.tldr_mini import population
from nlhf_jax.data.tldr_mini.v2 import population as population_2
from nlhf_jax.data.vocabularies import Vocabulary, tldr_mini_vocabulary
from nlhf_jax.errors import UserError
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
      prompt_form: what of a prompt stays when it is shortened.
      files: (task, split) -> the user's file that is read for it, where there is one.
    """

    name: str
    vocabulary: Vocabulary
    rater: RaterTemplate
    reward: RewardTemplate
    judge: Judge | None = None
    prompt_form: PromptForm = PLAIN
    files: dict[tuple[str, str], File] = dataclasses.field(default_factory=dict, repr=False)
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

    def skipped(self, task: str, split: str) -> Sequence[str]:
        """What was wrong with the lines that are not among `examples`, a sentence each.

        Where bad lines stop the run there are none.
        """
        file = self.files.get((task, split))
        return file.skipped if file is not None else ()


@functools.cache  # the stages of a chain share what one of them has read
def tldr_mini(data_dir: str, short_template: bool = True, version: int | None = None) -> Dataset:
    """The generated posts and summaries, written under `data_dir` when first read.

    Args:
      data_dir: a directory for the TFDS files.
      short_template: leave the paper's instruction out of the rater's input, which for a small
        model would be half of what it reads.
      version: 1 or 2, of the posts, the summaries and the raters; None for 1, which gin files of
        earlier releases mean.

    Raises:
      UserError: there is no such version.
    """
    from nlhf_jax.data import sources, tasks

    if version not in (None, 1, 2):
        raise UserError(
            f"there is no version {version!r} of tldr_mini; TLDR_MINI_VERSION is 1 or 2"
        )
    version = version or 1
    name, raters = ("tldr_mini_2", population_2) if version == 2 else ("tldr_mini", population)
    vocabulary = tldr_mini_vocabulary(version)
    dataset = Dataset(
        name,
        vocabulary,
        *_templates(vocabulary, short_template),
        judge=PopulationJudge(raters.preferences, name=name),
    )
    tasks.register_tasks(
        name, sources.tldr_mini_sources(data_dir, version), vocabulary, dataset.rater
    )
    return dataset


@functools.cache
def _tldr(vocabulary: str, short_template: bool, read_so: tuple) -> Dataset:
    words = Vocabulary.load(vocabulary)
    templates = _templates(words, short_template)
    return Dataset("tldr", words, *templates, prompt_form=PROMPT_FORM)


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
    tasks.register_tasks(
        dataset.name, found, dataset.vocabulary, dataset.rater, dataset.prompt_form
    )
    return dataset


def json_lines(
    vocabulary: str,
    sft: Mapping[str, str],
    preferences: Mapping[str, str],
    short_template: bool,
    prompts: Mapping[str, str] | None = None,
    name: str = "json_lines",
    prompt_form: str | None = None,
    bad_lines: str | None = None,
    votes_half: int | None = None,
    halve_from: int | None = None,
) -> Dataset:
    """A user's files: `{split: path}` for each kind (see `data/json_lines.py` for their keys).

    Args:
      vocabulary: path of a SentencePiece model.
      sft: prompts with completions.
      preferences: comparisons.
      prompts: for policy training and tournaments; by default those of `sft`.
      name: prefix of the tasks.
      short_template: as in `tldr_mini`.
      prompt_form: what stands around a line's prompt, such as "{prompt}\\n\\nTL;DR:", and stays
        when it is shortened; None: nothing.
      bad_lines: "stop" (or None): a line that cannot be used is an error; "skip": it is left out,
        counted, and listed.
      votes_half: 1 or 2: of the votes to train on, those on that half of the posts, if there are
        enough; None: all.
      halve_from: how many are enough, see `has_halves`.

    Raises UserError for a file or a setting that cannot be used.
    """
    from nlhf_jax.data import sources

    if votes_half not in (None, 1, 2):
        raise UserError(f"VOTES_HALF is {votes_half} but must be 1, 2 or None")
    skip = is_skipped(bad_lines)
    kinds = {"sft": sft, "preferences": preferences, "prompts": prompts}
    files = {
        kind: {split: File(path, kind, skip) for split, path in (paths or {}).items()}
        for kind, paths in kinds.items()
    }
    if votes_half is not None and has_halves(preferences, halve_from):
        files["preferences"]["train"].half = votes_half
    found = sources.json_lines_sources(**files, form=form_of(prompt_form))
    dataset = _registered(name, vocabulary, found, short_template, prompt_form=prompt_form)
    of_tasks = {
        "sft": "sft",
        "comparisons": "preferences",
        "prompts": "prompts" if prompts else "sft",
    }
    dataset.files.update(
        ((task, split), file)
        for task, kind in of_tasks.items()
        for split, file in files[kind].items()
    )
    return dataset


def has_halves(preferences: Mapping[str, str], halve_from: int | None) -> bool:
    """Whether there are enough votes to train two raters, each on half of the posts.

    A chain asks this before it trains the second one, which is to judge what the first one taught.

    Args:
      preferences: `{split: path}` of comparisons.
      halve_from: how many lines the file of `train` needs; 0 halves any, None halves none.
    """
    path = preferences.get("train")
    if halve_from is None or path is None:
        return False
    check_exists(path)
    with epath.Path(path).open("rb") as file:
        return sum(1 for line in file if line.strip()) >= halve_from


def from_rows(
    name: str,
    vocabulary: str,
    sft: "sources.Demonstrations",
    preferences: "sources.Comparisons",
    prompts: "sources.Prompts | None" = None,
    short_template: bool = False,
    judge: Judge | None = None,
    prompt_form: str | None = None,
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
      prompt_form: as in `json_lines`.
    """
    from nlhf_jax.data import sources

    found = sources.row_sources(sft, preferences, prompts, form_of(prompt_form))
    return _registered(name, vocabulary, found, short_template, judge, prompt_form)


def without_tasks(
    vocabulary: Vocabulary, prompt_form: PromptForm = PLAIN, short_template: bool = False
) -> Dataset:
    """What networks need to know of data where there is none to read."""
    templates = _templates(vocabulary, short_template)
    return Dataset("no data", vocabulary, *templates, prompt_form=prompt_form)


def _registered(
    name: str,
    vocabulary: str,
    found: "sources.Sources",
    short_template: bool,
    judge: Judge | None = None,
    prompt_form: str | None = None,
) -> Dataset:
    from nlhf_jax.data import tasks

    words = Vocabulary.load(vocabulary)
    form = form_of(prompt_form)
    dataset = Dataset(name, words, *_templates(words, short_template), judge, form)
    tasks.register_tasks(name, found, words, dataset.rater, form)
    return dataset


def _templates(vocabulary: Vocabulary, short: bool) -> tuple[RaterTemplate, RewardTemplate]:
    if short:
        return (
            short_rater_segments(vocabulary),
            reward_segments(vocabulary, SHORT_INSTRUCTION, SHORT_SUMMARY),
        )
    return rater_segments(vocabulary), reward_segments(vocabulary)
