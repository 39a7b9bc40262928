"""`tldr` as a TensorFlow dataset: Reddit posts with summaries, and votes on summaries.

Made of files that are on disk already; they are downloaded only if asked for by name. What depends
on a choice of ours, the prompt's form and which votes to keep, is not in the dataset but applied
when it is read, so that one build serves them all.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from nlhf_jax.data import tfds_local
from nlhf_jax.data.tf_imports import tf, tfds
from nlhf_jax.data.tldr import downloads as tldr_downloads
from nlhf_jax.data.tldr import files as tldr_files
from nlhf_jax.errors import UserError

SPLITS = tuple(tldr_files.POST_FILES)

_DESCRIPTION = """\
Reddit posts with their authors' summaries (TL;DR, filtered), and raters' votes on two summaries of
a post.
"""
_CITATION = """\
@inproceedings{stiennon2020learning,
  title = {Learning to summarize with human feedback},
  author = {Stiennon, Nisan and Ouyang, Long and Wu, Jeffrey and Ziegler, Daniel and Lowe, Ryan and
            Voss, Chelsea and Radford, Alec and Amodei, Dario and Christiano, Paul},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020},
}
"""


@dataclasses.dataclass(eq=False)
class TldrConfig(tfds.core.BuilderConfig):
    """`batches` are the batches of votes it is made of, all of them in a shipped config."""

    batches: tuple[str, ...] = ()


_SFT = TldrConfig(name="sft", description="Posts with their authors' summaries.")
_PREFERENCES = TldrConfig(
    name="preferences", description="Votes on pairs of summaries.", batches=tldr_files.BATCHES
)


def preferences_config(batches: Sequence[str] | None = None) -> TldrConfig:
    """The config of the votes in some batches, by default all; its name says which they are.

    So a build of other batches lies elsewhere and is never taken for this one. Raises UserError
    for names that are no batches.
    """
    if batches is None:
        return _PREFERENCES
    unknown = sorted(map(str, set(batches) - set(tldr_files.BATCHES)))
    if unknown or not batches or isinstance(batches, str):
        raise UserError(
            f"BATCHES is {batches!r}; wanted a list with some of {', '.join(tldr_files.BATCHES)}, "
            "or None for all"
        )
    kept = tuple(batch for batch in tldr_files.BATCHES if batch in batches)
    if kept == tldr_files.BATCHES:
        return _PREFERENCES
    return TldrConfig(
        name="_".join(["preferences", *kept]),
        description=f"Votes on pairs of summaries, {', '.join(kept)}.",
        batches=kept,
    )


def _votes_of(split: str, files: Sequence) -> Iterator[tldr_files.Vote]:
    return (vote for vote in tldr_files.read_votes(files) if vote.split == split)


class Tldr(tfds.core.GeneratorBasedBuilder):
    """Configs `sft` and `preferences`, or a `preferences_config`.

    The features of `sft` are those of `tldr_files.Post`, of votes those of `tldr_files.Vote` but
    the split. Splits train, validation and test; for votes these are train, valid1 and valid2 of
    the files, without those that the batches have no vote of.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[
        dict
    ] = {}  # the sums of downloads are kept beside the files, not beside this module
    BUILDER_CONFIGS = [_SFT, _PREFERENCES]

    def __init__(self, *, files_dir: str | None = None, download: bool = False, **kwargs: Any):
        """Args as of TFDS's builders, and:

        files_dir: where the files are; by default `downloads/tldr` below the data directory.
        download: fetch those that are not there.
        """
        self._files_dir = files_dir
        self._download = download
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = ["id", "subreddit", "title", "post"]
        features = {}
        if self.builder_config.name == "sft":
            names += ["summary"]
        else:
            names += ["chosen", "rejected", "worker", "batch"]
            features["confidence"] = tfds.features.Scalar(tf.int32)
            features["policies"] = tfds.features.Sequence(tfds.features.Text(), length=2)
        features |= {name: tfds.features.Text() for name in names}
        return tfds_local.LocalInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            homepage="https://github.com/openai/summarize-from-feedback",
            license="CC BY 4.0",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the order is part of what the same seed must give
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # keeps sums only of URLs known beforehand
        directory = self._files_dir or self.data_dir_root / "downloads" / "tldr"
        if self.builder_config.name == "sft":
            paths = list(tldr_files.POST_FILES.values())
            files = tldr_downloads.files(directory, paths, self._download)
            return {
                split: self._generate_examples(tldr_files.read_posts(file))
                for split, file in zip(tldr_files.POST_FILES, files, strict=True)
            }
        paths = [tldr_files.vote_file(batch) for batch in self.builder_config.batches]
        files = tldr_downloads.files(directory, paths, self._download)
        counts = tldr_files.count_votes(files)
        self.info.metadata["votes_by_confidence"] = counts
        return {
            split: self._generate_examples(_votes_of(split, files))
            for split in SPLITS
            if sum(counts[split])
        }

    def _generate_examples(self, rows):
        for key, row in enumerate(rows):
            example = dataclasses.asdict(row)
            example.pop("split", None)
            yield key, example


def check_confidence(name: str, levels: Sequence[int] | None) -> None:
    """Raises UserError unless `levels` can be kept; `name` is the setting's."""
    highest = tldr_files.HIGHEST_CONFIDENCE
    if levels is not None and (not levels or not set(levels) <= set(range(1, highest + 1))):
        raise UserError(
            f"{name} is {levels!r}; wanted some of the levels 1 to {highest}, such as "
            "(1, 2, 8, 9), or None for all votes"
        )


def rows(builder: Tldr, split: str, confidence: Sequence[int] | None = None) -> int | None:
    """How many rows `read` gives; None if the dataset is not built yet."""
    if not builder.is_prepared():
        return None
    if split not in builder.info.splits:
        return 0
    if confidence is None:
        return builder.info.splits[split].num_examples
    with tfds_local.damage_is_one_error(str(builder.data_dir)):
        votes = builder.info.metadata["votes_by_confidence"][split]
        return sum(votes[level] for level in set(confidence))


def read(builder: Tldr, split: str, confidence: Sequence[int] | None = None) -> tf.data.Dataset:
    """The rows of a split, in order; the first call builds the dataset.

    Args:
      builder: says which dataset.
      split: one of `SPLITS`.
      confidence: keep only votes of these levels, so none where the rater was not asked.

    Raises UserError for missing or bad files, and if no rows are left.
    """
    tfds_local.prepare(builder)
    if not rows(builder, split, confidence):
        which = f" with confidence {tuple(confidence)}" if confidence else ""
        batches = ", ".join(builder.builder_config.batches)
        raise UserError(
            f"tldr has no votes{which} in the split '{split}' (batches {batches}); name more "
            f"BATCHES, or more levels in {split.upper()}_CONFIDENCE"
        )
    with tfds_local.damage_is_one_error(str(builder.data_dir)):
        dataset = builder.as_dataset(split=split, shuffle_files=False)
    if confidence is not None:
        levels = tf.constant(sorted(set(confidence)), tf.int32)
        dataset = dataset.filter(lambda row: tf.reduce_any(row["confidence"] == levels))
    return dataset
