"""seqio tasks, the same for `tldr_mini`, `tldr` and users' files.

| task | features | meant for |
|---|---|---|
| `{name}_sft` | inputs, targets | supervised training, T5X |
| `{name}_prompts` | inputs | policy training and evaluation |
| `{name}_preferences` | inputs (a rater's packed input), targets ("1" or "2") | T5X |
| `{name}_comparisons` | text, chosen, rejected; weight | our raters, which pack on the device |

All token features end in EOS. Text that is too long is cut, never EOS; the extra feature
`{feature}_tokens` says how long it was (int32, EOS included). The strings are kept beside the
tokens as `{feature}_pretokenized`, the references of a prompt as `references`.

Lengths: "inputs" and "targets" as in T5X; the raters' tasks take "text" and "summary" (of either
summary), both with EOS. `{name}_preferences` also runs on T5X's "inputs" and "targets" alone: then
the summaries stay whole and the text gives way.

`seqio_cache_tasks` keeps what does not depend on lengths: all the tokens, not cut.
"""

from collections.abc import Callable

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from nlhf_jax.data import templates
from nlhf_jax.data.sources import Sources
from nlhf_jax.data.templates import RaterTemplate
from nlhf_jax.data.tf_imports import seqio, tf, tf_text
from nlhf_jax.data.vocabularies import Vocabulary


class SeqioVocabulary(seqio.SentencePieceVocabulary):
    """A `Vocabulary` as seqio and T5X use one; equal to seqio's own of the same model.

    It may be given as a function that loads it, which is called whenever it is needed and should
    remember what it loaded; until then nothing is read.
    """

    def __init__(self, vocabulary: Vocabulary | Callable[[], Vocabulary]):
        self._given = vocabulary
        super().__init__(sentencepiece_model_file="")  # never opened: see `sp_model`

    @property
    def vocabulary(self) -> Vocabulary:
        return self._given if isinstance(self._given, Vocabulary) else self._given()

    @property
    def sp_model(self) -> bytes:
        # Not the file's bytes: seqio writes the model again, and we compare ourselves with it.
        proto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
        model = proto.FromString(self.vocabulary.model_bytes)
        return model.SerializeToString()

    @property
    def tokenizer(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.vocabulary.model_bytes)

    def load_model(self) -> None:
        _ = self.vocabulary

    @property
    def bos_id(self) -> None:
        return None

    @property
    def eos_id(self) -> int:
        return self.vocabulary.eos_id

    @property
    def unk_id(self) -> int:
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self.vocabulary.encode(s)

    def _decode(self, ids) -> str:
        return self.vocabulary.decode(ids)

    @property
    def tf_tokenizer(self) -> tf_text.SentencepieceTokenizer:
        return tf_text.SentencepieceTokenizer(model=self.vocabulary.model_bytes)

    def __eq__(self, other) -> bool:
        if isinstance(other, SeqioVocabulary):
            return self._given is other._given or self.vocabulary == other.vocabulary
        return (
            isinstance(other, seqio.SentencePieceVocabulary)
            and not other.extra_ids
            and self.sp_model == other.sp_model
        )

    def __str__(self) -> str:
        return f"SeqioVocabulary({self._given})"  # seqio's own would load it


def _cut(tokens, length: int | None):
    """Tokens that leave room for EOS in `length`; all of them if `length` is None."""
    return tokens if length is None else tokens[: length - 1]


def _with_eos(tokens, words: SeqioVocabulary):
    return tf.concat([tokens, [words.eos_id]], axis=0)


@seqio.map_over_dataset
def _reference_task_row(row):
    return {"inputs": row["prompt"], "references": row["completions"]}


def _one_row_per_completion(dataset: tf.data.Dataset) -> tf.data.Dataset:
    def rows(row):
        count = tf.shape(row["completions"])[0]
        prompts = tf.repeat(row["prompt"], count)
        return tf.data.Dataset.from_tensor_slices(
            {"inputs": prompts, "targets": row["completions"]}
        )

    return dataset.flat_map(rows)


def _comparison_texts(dataset: tf.data.Dataset) -> tf.data.Dataset:
    def row(row):
        return {
            "text": row["prompt"],
            "chosen": row["chosen"],
            "rejected": row["rejected"],
            "weight": row["weight"],
        }

    return dataset.map(row)


def _tokenize(vocabulary: SeqioVocabulary, names: tuple[str, ...]):
    def tokenize(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def row(row):
            row = dict(row)
            for name in names:
                row[f"{name}_pretokenized"] = row[name]
                row[name] = vocabulary.encode_tf(row[name])
                row[f"{name}_tokens"] = tf.size(row[name]) + 1
            return row

        return dataset.map(row, num_parallel_calls=tf.data.AUTOTUNE)

    return tokenize


def _end(words: SeqioVocabulary, lengths_of: dict[str, str]):
    """Cuts each feature to its length and ends it; `lengths_of`: feature -> name of its length."""

    def end(dataset: tf.data.Dataset, sequence_length) -> tf.data.Dataset:
        lengths = sequence_length or {}

        def row(row):
            cut = {
                name: _with_eos(_cut(row[name], lengths.get(length)), words)
                for name, length in lengths_of.items()
            }
            return {**row, **cut}

        return dataset.map(row, num_parallel_calls=tf.data.AUTOTUNE)

    return end


def _pack_for_raters(
    template: RaterTemplate | Callable[[Vocabulary], RaterTemplate], words: SeqioVocabulary
):
    """Comparisons to a rater's inputs and answers, each comparison in both orders."""

    def pack(dataset: tf.data.Dataset, sequence_length) -> tf.data.Dataset:
        lengths = sequence_length or {}
        rater = template if isinstance(template, RaterTemplate) else template(words.vocabulary)
        instruction, before_first, before_second = (list(segment) for segment in rater)
        labels = words.vocabulary.rater_labels()
        if "text" in lengths and "summary" in lengths:
            templates.check_feature_lengths(rater, lengths)

        def rows(row):
            chosen = _cut(row["chosen"], lengths.get("summary"))
            rejected = _cut(row["rejected"], lengths.get("summary"))
            text = _cut(row["text"], lengths.get("text"))
            if "inputs" in lengths and "text" not in lengths:
                taken = rater.length + tf.size(chosen) + tf.size(rejected) + 1
                text = text[: tf.maximum(lengths["inputs"] - taken, 0)]

            def packed(first, second):
                parts = [instruction, text, before_first, first, before_second, second]
                tokens = tf.concat([tf.cast(part, tf.int32) for part in parts], axis=0)
                return _with_eos(_cut(tokens, lengths.get("inputs")), words)

            both = {
                "inputs": tf.stack([packed(chosen, rejected), packed(rejected, chosen)]),
                "targets": [[label, words.eos_id] for label in labels],
                "weight": tf.repeat(row["weight"], 2),
            }
            return tf.data.Dataset.from_tensor_slices(both)

        return dataset.flat_map(rows)

    return pack


def register_tasks(
    name: str,
    sources: Sources,
    vocabulary: Vocabulary | Callable[[], Vocabulary],
    template: RaterTemplate | Callable[[Vocabulary], RaterTemplate] | None = None,
) -> list[str]:
    """Registers the tasks that `sources` has data for, in place of former ones of the same names.

    Args:
      name: prefix of the names.
      sources: where the rows come from.
      vocabulary: it, or a function that loads it, called when a split is read (`SeqioVocabulary`).
      template: the rater's for `{name}_preferences`, which is left out without one; or a function
        that makes it from the vocabulary.

    Returns the names. Raises UserError if the vocabulary, where it is given as such, cannot write a
    rater's answers as one token each.
    """
    for kind in ("sft", "prompts", "comparisons", "preferences"):
        if f"{name}_{kind}" in seqio.TaskRegistry.names():  # of another stage of this process
            seqio.TaskRegistry.remove(f"{name}_{kind}")
    words = SeqioVocabulary(vocabulary)
    kept = seqio.CacheDatasetPlaceholder()
    sft, prompts = ("inputs", "targets"), ("inputs",)
    votes = ("text", "chosen", "rejected")
    found: dict[str, tuple[seqio.DataSource, list, tuple[str, ...]]] = {}
    if sources.sft is not None:
        texts = [_one_row_per_completion, _tokenize(words, sft), kept]
        end = _end(words, {feature: feature for feature in sft})
        found["sft"] = (sources.sft, [*texts, end], sft)
    if sources.prompts is not None:
        texts = [_reference_task_row, _tokenize(words, prompts), kept]
        end = _end(words, {"inputs": "inputs"})
        found["prompts"] = (sources.prompts, [*texts, end], prompts)
    if sources.preferences is not None:
        texts = [_comparison_texts, _tokenize(words, votes), kept]
        end = _end(words, {"text": "text", "chosen": "summary", "rejected": "summary"})
        found["comparisons"] = (sources.preferences, [*texts, end], votes)
        if template is not None:
            if isinstance(vocabulary, Vocabulary):
                vocabulary.rater_labels()
            packed = [*texts, _pack_for_raters(template, words)]
            found["preferences"] = (sources.preferences, packed, sft)
    feature = seqio.Feature(words, add_eos=True, required=True)
    for kind, (source, preprocessors, features) in found.items():
        seqio.TaskRegistry.add(
            f"{name}_{kind}",
            source=source,
            preprocessors=preprocessors,
            output_features=dict.fromkeys(features, feature),
        )
    return [f"{name}_{kind}" for kind in found]
