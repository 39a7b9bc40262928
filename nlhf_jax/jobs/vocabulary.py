"""Training vocabularies: of a chain, of `nlhf data vocabulary`, and the one that ships."""

import os
import re
import sys
from collections.abc import Iterator, Mapping

from etils import epath

from nlhf_jax import processes
from nlhf_jax.checkpoints.description import check_same_vocabulary
from nlhf_jax.checkpoints.networks import check_rows
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.data import json_lines, templates, vocabularies
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.tldr_mini.v2 import text as tldr_mini_2_text
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.files import write_whole

_TEMPLATE_TEXTS = (
    templates.RATER_INSTRUCTION,
    templates.RATER_SUMMARY_1,
    templates.RATER_SUMMARY_2,
    templates.REWARD_INSTRUCTION,
    templates.REWARD_SUMMARY,
)
_SHORT_TEMPLATE_TEXTS = (
    templates.SHORT_INSTRUCTION,
    templates.SHORT_SUMMARY_1,
    templates.SHORT_SUMMARY_2,
    templates.SHORT_SUMMARY,
)


def train_vocabulary(
    workdir: str,
    files: Mapping[str, str] | None,
    size: int,
    bad_lines: str | None = None,
    base_checkpoint: str | None = None,
    base_vocabulary: str | None = None,
) -> None:
    """Trains `workdir/vocabulary.model` on JSON lines, or copies there that of a base checkpoint.

    Args:
      workdir: gets the SentencePiece model.
      files: path -> kind, "sft", "preferences" or "prompts"; a base needs none.
      size: pieces, at most.
      bad_lines: as of `data.datasets.json_lines`.
      base_checkpoint: a network, of any format, with which training begins.
      base_vocabulary: the SentencePiece model that it was trained with, if it does not hold it.
    """
    if not processes.is_first():
        return
    path = epath.Path(workdir) / "vocabulary.model"
    if base_checkpoint is not None:
        write_whole(path, _vocabulary_of(base_checkpoint, base_vocabulary))
    elif files is not None:
        train_from_files(files, path, size, bad_lines)
    else:
        raise UserError(
            "FILES is None (in json_lines.gin VOCABULARY_FILES), but without a BASE_CHECKPOINT "
            'there has to be something to train a vocabulary on: {path: "sft"}'
        )


def _vocabulary_of(checkpoint: str, named: str | None) -> bytes:
    found = open_checkpoint(checkpoint)
    if named is not None:
        vocabulary = Vocabulary.load(named)
    elif found.vocabulary_bytes is not None:
        vocabulary = Vocabulary.from_bytes(found.vocabulary_bytes)
    else:
        raise UserError(
            f"the checkpoint {found.path} ({found.format}) holds no vocabulary: set "
            "BASE_VOCABULARY to the SentencePiece model that it was trained with"
        )
    if found.vocabulary_bytes is not None:
        check_same_vocabulary(found.path, found.vocabulary_bytes, vocabulary)
    check_rows(found, vocabulary.size)
    return vocabulary.model_bytes


def train_from_files(
    files: Mapping[str, str],
    path: str | os.PathLike,
    size: int,
    bad_lines: str | None = None,
) -> Vocabulary:
    """Trains a vocabulary on all texts of JSON lines files and the raters' templates.

    `files` maps paths to kinds. Writes the model to `path`. Raises UserError for bad files or a
    `size` too small for the characters in them.
    """
    skip = json_lines.is_skipped(bad_lines)

    def texts() -> Iterator[str]:
        yield from _TEMPLATE_TEXTS
        for path, kind in files.items():
            file = json_lines.File(path, kind, skip)
            for row in file():
                yield from json_lines.texts(row).values()
            for sentence in json_lines.shortened(file.skipped):
                print(f"skipped: {sentence}", file=sys.stderr)

    # In full before the trainer runs: an error inside its callback would lose its message.
    return vocabularies.train_vocabulary(list(texts()), path, size)


def train_tldr_mini_vocabulary(path: str | os.PathLike, version: int = 1) -> Vocabulary:
    """Trains the vocabulary of a version of `tldr_mini`: every word of its world.

    About 250 pieces, one a word; other text is spelled out. That of version 1 has the words of the
    paper's templates too, and all in lower case; that of version 2 those of the short templates,
    and words as they are written.
    """
    if version == 2:
        texts = list(_SHORT_TEMPLATE_TEXTS)
        for post, summaries in tldr_mini_2_text.references("train"):
            texts += [post.text, *summaries]
        words = sorted({word for text in texts for word in re.findall(r"[A-Za-z]+|[-,]", text)})
        return vocabularies.train_vocabulary(texts, path, size=256, whole_words=words)
    texts = list(_TEMPLATE_TEXTS)
    for post, summaries in tldr_mini_text.references("train"):
        texts += [post.text, *summaries]
    words = sorted({word for text in texts for word in re.findall(r"[a-z0-9]+|[-,]", text.lower())})
    return vocabularies.train_vocabulary(texts, path, size=512, fold_case=True, whole_words=words)
