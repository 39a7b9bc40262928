"""seqio tasks, the same for `tldr_mini`, `tldr` and users' files.

| task | features | meant for |
|---|---|---|
| `{name}_sft` | inputs, targets | supervised training, T5X |
| `{name}_prompts` | inputs | policy training and evaluation |
| `{name}_preferences` | inputs (a rater's packed input), targets ("1" or "2") | T5X |
| `{name}_comparisons` | text, chosen, rejected; weight | our raters, which pack on the device |

All token features end in EOS. Text that is too long is cut, never EOS, the form of a prompt
(`prompts.py`) or a rater's template; the extra feature `{feature}_tokens` says how long it was
(int32, EOS included). The strings are kept beside the tokens as `{feature}_pretokenized`, the
references of a prompt as `references`.

Lengths: "inputs" and "targets" as in T5X; the raters' tasks take "text" and "summary" (of either
summary), both with EOS. `{name}_preferences` also runs on T5X's "inputs" and "targets" alone: then
the text gives way down to its form, and after it the summaries, the longer one first.

`seqio_cache_tasks` keeps what does not depend on lengths: all the tokens, not cut.
"""

from collections.abc import Callable

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from nlhf_jax.data import templates
from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.data.sources import Sources
from nlhf_jax.data.templates import RaterTemplate
from nlhf_jax.data.tf_imports import seqio, tf, tf_text
from nlhf_jax.data.vocabularies import Vocabulary, without_sentinels


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
    def _read_so(self) -> bytes:
        return without_sentinels(self.vocabulary.model_bytes)

    @property
    def tokenizer(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self._read_so)

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
        return tf_text.SentencepieceTokenizer(model=self._read_so)

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


def _shortened(row, name: str, room, words: SeqioVocabulary, form: PromptForm):
    """The prompt's tokens, at most `room` of them; its form stays whole."""
    if form.is_plain:
        return row[name][:room]

    def shorten(text: bytes, room: int) -> np.ndarray:
        return np.array(form.tokens(text.decode(), room + 1, words.vocabulary.encode), np.int32)

    def shorter():
        text = row[f"{name}_pretokenized"]
        return tf.ensure_shape(tf.numpy_function(shorten, [text, room], tf.int32), [None])

    return tf.cond(tf.size(row[name]) > room, shorter, lambda: row[name])


def _end(words: SeqioVocabulary, lengths_of: dict[str, str], prompt: str, form: PromptForm):
    """Cuts each feature to its length and ends it.

    Args:
      words: the vocabulary.
      lengths_of: feature -> name of its length.
      prompt: which of the features is one.
      form: of that.
    """

    def end(dataset: tf.data.Dataset, sequence_length) -> tf.data.Dataset:
        lengths = sequence_length or {}
        if lengths_of[prompt] in lengths:
            length = lengths_of[prompt]
            form.check_length(length, lengths[length], words.vocabulary.encode)

        def tokens(row, name):
            length = lengths.get(lengths_of[name])
            if name == prompt and length is not None:
                return _shortened(row, name, length - 1, words, form)
            return _cut(row[name], length)

        def row(row):
            return {**row, **{name: _with_eos(tokens(row, name), words) for name in lengths_of}}

        return dataset.map(row, num_parallel_calls=tf.data.AUTOTUNE)

    return end


def _pack_for_raters(
    template: RaterTemplate | Callable[[Vocabulary], RaterTemplate],
    words: SeqioVocabulary,
    form: PromptForm,
):
    """Comparisons to a rater's inputs and answers, each comparison in both orders."""

    def pack(dataset: tf.data.Dataset, sequence_length) -> tf.data.Dataset:
        lengths = sequence_length or {}
        rater = template if isinstance(template, RaterTemplate) else template(words.vocabulary)
        instruction, before_first, before_second = (list(segment) for segment in rater)
        labels = words.vocabulary.rater_labels()
        least = 1 + len(words.vocabulary.encode(form.fill(dict.fromkeys(form.fields, ""))))
        if "text" in lengths and "summary" in lengths:
            templates.check_feature_lengths(rater, lengths)
        elif "inputs" in lengths:
            templates.check_inputs(rater, lengths["inputs"], least)
        if "text" in lengths:
            form.check_length("text", lengths["text"], words.vocabulary.encode)

        def rows(row):
            chosen = _cut(row["chosen"], lengths.get("summary"))
            rejected = _cut(row["rejected"], lengths.get("summary"))
            if "inputs" in lengths and not ("text" in lengths and "summary" in lengths):
                room = lengths["inputs"] - 1 - rater.length  # for the text and both summaries
                summaries = tf.size(chosen) + tf.size(rejected)
                of_text = tf.maximum(room - summaries, least)
                if "text" in lengths:
                    of_text = tf.minimum(of_text, lengths["text"] - 1)
                text = _shortened(row, "text", of_text, words, form)
                room -= tf.size(text)
                half = room // 2
                first = tf.maximum(half, room - tf.size(rejected))
                second = tf.maximum(room - half, room - tf.size(chosen))
                chosen, rejected = chosen[:first], rejected[:second]
            elif "text" in lengths:
                text = _shortened(row, "text", lengths["text"] - 1, words, form)
            else:
                text = row["text"]

            def packed(first, second):
                parts = [instruction, text, before_first, first, before_second, second]
                tokens = tf.concat([tf.cast(part, tf.int32) for part in parts], axis=0)
                return _with_eos(tokens, words)

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
    form: PromptForm = PLAIN,
) -> list[str]:
    """Registers the tasks that `sources` has data for, in place of former ones of the same names.

    Args:
      name: prefix of the names.
      sources: where the rows come from.
      vocabulary: it, or a function that loads it, called when a split is read (`SeqioVocabulary`).
      template: the rater's for `{name}_preferences`, which is left out without one; or a function
        that makes it from the vocabulary.
      form: that the prompts have: what of them may be shortened.

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
        end = _end(words, {feature: feature for feature in sft}, "inputs", form)
        found["sft"] = (sources.sft, [*texts, end], sft)
    if sources.prompts is not None:
        texts = [_reference_task_row, _tokenize(words, prompts), kept]
        end = _end(words, {"inputs": "inputs"}, "inputs", form)
        found["prompts"] = (sources.prompts, [*texts, end], prompts)
    if sources.preferences is not None:
        texts = [_comparison_texts, _tokenize(words, votes), kept]
        lengths_of = {"text": "text", "chosen": "summary", "rejected": "summary"}
        end = _end(words, lengths_of, "text", form)
        found["comparisons"] = (sources.preferences, [*texts, end], votes)
        if template is not None:
            if isinstance(vocabulary, Vocabulary):
                vocabulary.rater_labels()
            packed = [*texts, _pack_for_raters(template, words, form)]
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
