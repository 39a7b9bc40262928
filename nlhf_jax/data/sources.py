"""Where the rows of the tasks come from: `tldr_mini`, `tldr`, JSON lines, or a user's own reader.

Every source gives the same rows, whatever they were made from:

| source | row |
|---|---|
| sft | `prompt`, `completions` (all the reference responses of that prompt, at least one) |
| preferences | `prompt`, `chosen`, `rejected`, `weight` in (0.5, 1] |
| prompts | `prompt`, `completions` (may be empty) |

seqio's own TFDS source may ask Google's servers for prepared data; these never do.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from nlhf_jax.data import json_lines, tfds_local
from nlhf_jax.data.json_lines import Comparison, Demonstration, File, Prompt
from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.data.tf_imports import seqio, tf
from nlhf_jax.data.tldr import builder as tldr
from nlhf_jax.data.tldr.files import PROMPT_FORM
from nlhf_jax.data.tldr_mini import builder as tldr_mini
from nlhf_jax.data.tldr_mini.text import SPLIT_COMPARISONS, SPLIT_POSTS
from nlhf_jax.errors import UserError

_TEXT = tf.TensorSpec((), tf.string)
_TEXTS = tf.TensorSpec((None,), tf.string)
_WITH_COMPLETIONS = {"prompt": _TEXT, "completions": _TEXTS}
_COMPARISON = {
    "prompt": _TEXT,
    "chosen": _TEXT,
    "rejected": _TEXT,
    "weight": tf.TensorSpec((), tf.float32),
}


@dataclasses.dataclass(frozen=True)
class Sources:
    """Sources of a family of tasks; None where there is no such data."""

    sft: seqio.DataSource | None = None
    preferences: seqio.DataSource | None = None
    prompts: seqio.DataSource | None = None


def _ordered(dataset: tf.data.Dataset, rows: int, shuffled: bool, seed: int | None):
    """The dataset, or all of it shuffled: T5X asks for that, our batches have their own order."""
    return dataset.shuffle(rows, seed=seed) if shuffled else dataset


def tldr_mini_sources(data_dir: str | None, version: int = 1) -> Sources:
    """A version of `tldr_mini`, written under `data_dir` when first read. The prompts are `sft`'s.

    `data_dir` may be None, see `tfds_local.data_directory`.
    """

    def sft(split, shuffle_files, seed=None):
        rows = tldr_mini.load("sft", split, data_dir, version)
        rows = _ordered(rows, SPLIT_POSTS[split], shuffle_files, seed)
        return rows.map(lambda row: {"prompt": row["post"], "completions": row["summaries"]})

    def preferences(split, shuffle_files, seed=None):
        rows = tldr_mini.load("preferences", split, data_dir, version)
        rows = _ordered(rows, SPLIT_COMPARISONS[split], shuffle_files, seed)
        return rows.map(
            lambda row: {
                "prompt": row["post"],
                "chosen": row["chosen"],
                "rejected": row["rejected"],
                "weight": row["weight"],
            }
        )

    posts = seqio.FunctionDataSource(sft, SPLIT_POSTS, SPLIT_POSTS)
    votes = seqio.FunctionDataSource(preferences, SPLIT_COMPARISONS, SPLIT_COMPARISONS)
    return Sources(sft=posts, preferences=votes, prompts=posts)


def _tldr_prompt(row):
    return tf.strings.join(PROMPT_FORM.parts(row))


class _TldrSource(seqio.FunctionDataSource):
    """A config of `tldr`; nothing is read or written before a split is asked for."""

    def __init__(self, builder: Callable[[], tldr.Tldr], to_row: Callable, confidence: Mapping):
        self._builder = builder
        self._confidence = confidence

        def dataset(split, shuffle_files, seed=None):
            built, levels = builder(), confidence.get(split)
            rows = tldr.read(built, split, levels)
            rows = _ordered(rows, tldr.rows(built, split, levels), shuffle_files, seed)
            return rows.map(to_row)

        super().__init__(dataset, tldr.SPLITS)

    def num_input_examples(self, split: str) -> int | None:
        """None before the dataset is built."""
        return tldr.rows(self._builder(), split, self._confidence.get(split))


def tldr_sources(
    data_dir: str | None,
    files_dir: str | None = None,
    download: bool = False,
    batches: Sequence[str] | None = None,
    confidence: Mapping[str, Sequence[int] | None] | None = None,
) -> Sources:
    """`tldr`, built under `data_dir` when first read. The prompts are those of `sft`.

    Args:
      data_dir: for the TFDS files; None: see `tfds_local.data_directory`.
      files_dir: where the files are; by default `downloads/tldr` in the data directory.
      download: fetch those that are not there.
      batches: of votes, by default all (see `tldr.preferences_config`).
      confidence: split -> levels of 1 to 9 that votes must have to be kept; without levels all are.

    Raises UserError for batches or levels that do not exist.
    """
    for split, levels in (confidence or {}).items():
        tldr.check_confidence(f"{split.upper()}_CONFIDENCE", levels)
    votes_config = tldr.preferences_config(batches)

    def builder(config) -> tldr.Tldr:
        with tfds_local.damage_is_one_error(f"tldr in {data_dir or 'the directory of TFDS'}"):
            return tldr.Tldr(
                config=config,
                data_dir=tfds_local.data_directory(data_dir),
                files_dir=files_dir,
                download=download,
            )

    posts = _TldrSource(
        lambda: builder("sft"),
        lambda row: {"prompt": _tldr_prompt(row), "completions": row["summary"][None]},
        {},
    )
    votes = _TldrSource(
        lambda: builder(votes_config),
        lambda row: {
            "prompt": _tldr_prompt(row),
            "chosen": row["chosen"],
            "rejected": row["rejected"],
            "weight": tf.constant(1.0),  # one rater a line
        },
        confidence or {},
    )
    return Sources(sft=posts, preferences=votes, prompts=posts)


# What a user's rows are read from: a split's name -> a function that yields its rows.
Demonstrations = Mapping[str, Callable[[], Iterable[Demonstration]]]
Comparisons = Mapping[str, Callable[[], Iterable[Comparison]]]
Prompts = Mapping[str, Callable[[], Iterable[Prompt]]]


def row_sources(
    sft: Demonstrations | None = None,
    preferences: Comparisons | None = None,
    prompts: Prompts | None = None,
    form: PromptForm = PLAIN,
) -> Sources:
    """Rows from anywhere: rows of a split are asked for when it is first read, and kept.

    Without `prompts` the prompts are those of `sft`, each once, with their completions as
    references. `form` is put around each prompt.
    """

    def row_source(splits, kind: str, as_dicts: Callable, signature: dict):
        def formed(rows: Iterable) -> Iterable[dict]:
            return ({**row, "prompt": form.fill(row)} for row in as_dicts(rows))

        return _row_source(splits, kind, formed, signature)

    demonstrations = row_source(sft, "sft", _grouped, _WITH_COMPLETIONS)
    asked = row_source(prompts, "prompts", _without_completions, _WITH_COMPLETIONS)
    return Sources(
        sft=demonstrations,
        preferences=row_source(preferences, "preferences", _as_dicts, _COMPARISON),
        prompts=asked or demonstrations,
    )


def json_lines_sources(
    sft: Mapping[str, str | File] | None = None,
    preferences: Mapping[str, str | File] | None = None,
    prompts: Mapping[str, str | File] | None = None,
    form: PromptForm = PLAIN,
) -> Sources:
    """A user's files; each argument maps a split's name to a path. See `row_sources`.

    Raises UserError if a file does not exist, also one that only the last stage of a chain needs.
    """

    def readers(given: Mapping[str, str | File] | None, kind: str) -> dict[str, File]:
        files = {
            split: file if isinstance(file, File) else File(file, kind)
            for split, file in (given or {}).items()
        }
        for file in files.values():
            json_lines.check_exists(file.path)
        return files

    return row_sources(
        readers(sft, "sft"),
        readers(preferences, "preferences"),
        readers(prompts, "prompts"),
        form,
    )


def _row_source(
    splits: Mapping[str, Callable[[], Iterable]] | None,
    kind: str,
    as_dicts: Callable[[Iterable], Iterable[dict]],
    signature: dict,
) -> seqio.DataSource | None:
    if not splits:
        return None

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        if split not in splits:
            raise UserError(
                f"there is no {kind} file for the split '{split}'; there are {sorted(splits)}"
            )
        found = list(as_dicts(splits[split]()))  # here: a bad line is an error of its own kind
        dataset = tf.data.Dataset.from_generator(lambda: iter(found), output_signature=signature)
        return _ordered(dataset, len(found), shuffle_files, seed)

    return seqio.FunctionDataSource(dataset, tuple(splits))


def _grouped(rows: Iterable[Demonstration]) -> Iterable[dict]:
    completions: dict[str, list[str]] = {}
    for row in rows:
        completions.setdefault(row.prompt, []).append(row.completion)
    return ({"prompt": prompt, "completions": texts} for prompt, texts in completions.items())


def _as_dicts(rows: Iterable[Comparison]) -> Iterable[dict]:
    return map(dataclasses.asdict, rows)


def _without_completions(rows: Iterable[Prompt]) -> Iterable[dict]:
    return ({"prompt": row.prompt, "completions": []} for row in rows)
