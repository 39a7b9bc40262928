"""Registers the tasks `tldr_mini_*` and `tldr_*` when imported.

For programs that know tasks by name, such as T5X (`MIXTURE_OR_TASK_MODULE`) and seqio's
`seqio_cache_tasks --module_import=nlhf_jax.data.registered_tasks`. The import reads, writes and
downloads nothing; that happens when a split is read. The environment, as it is at the import, says
where things are:

| variable | what |
|---|---|
| TFDS_DATA_DIR | TFDS's directory; `seqio.set_tfds_data_dir_override` goes before it |
| NLHF_TLDR_FILES | the published files of `tldr`; default: `downloads/tldr` in TFDS's directory |
| NLHF_VOCABULARY | SentencePiece model of `tldr`; default: that of T5 1.1 |

Files are never downloaded here: `tldr` with DOWNLOAD = True does that. Votes of all levels of
confidence are kept.
"""

import functools
import os

from nlhf_jax.data import sources, tasks, templates, vocabularies
from nlhf_jax.data.tasks import SeqioVocabulary
from nlhf_jax.data.tldr import files as tldr_files
from nlhf_jax.data.vocabularies import Vocabulary

_T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
_VOCABULARY = os.environ.get("NLHF_VOCABULARY", _T5_VOCABULARY)
_TLDR_FILES = os.environ.get("NLHF_TLDR_FILES")


@functools.cache
def _load_tldr_vocabulary() -> Vocabulary:
    return Vocabulary.load(_VOCABULARY)


def tldr_mini_vocabulary() -> SeqioVocabulary:
    """The vocabulary of `tldr_mini_*`, for a model's gin file."""
    return SeqioVocabulary(vocabularies.tldr_mini_vocabulary)


def tldr_vocabulary() -> SeqioVocabulary:
    """The vocabulary of `tldr_*`, for a model's gin file; equal to seqio's of the same model."""
    return SeqioVocabulary(_load_tldr_vocabulary)


tasks.register_tasks(
    "tldr_mini",
    sources.tldr_mini_sources(None),
    vocabularies.tldr_mini_vocabulary,
    templates.short_rater_segments,
)
tasks.register_tasks(
    "tldr",
    sources.tldr_sources(None, _TLDR_FILES),
    _load_tldr_vocabulary,
    templates.rater_segments,
    tldr_files.PROMPT_FORM,
)
