"""All examples of a task and split in memory, and batches of them in a reproducible order."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from nlhf_jax.errors import UserError, first_line

# Which length cuts which feature; the others have a length of their own name.
_LENGTH_OF = {"chosen": "summary", "rejected": "summary"}
_ROWS_AT_ONCE = 4096
_DRAW = 2**32 - 1  # in the place of an epoch's number, which never is as large


@functools.lru_cache(maxsize=4)
def _epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


class Examples:
    """Tokenised examples of one task and split.

    Attributes:
        arrays: feature -> int32 [rows, length] padded with 0; of comparisons also
            `vote_share`, float32 [rows] in (0.5, 1], how many of the raters chose `chosen`.
        truncated: feature -> number of rows whose text was longer than the feature's length.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        truncated: Mapping[str, int],
        texts: Mapping[str, list],
    ):
        self.arrays = dict(arrays)
        self.truncated = dict(truncated)
        self._texts = dict(texts)
        (self._rows,) = {len(array) for array in self.arrays.values()}

    def __len__(self) -> int:
        return self._rows

    def texts(self, name: str) -> list:
        """Raw strings, one a row, of a feature; of `references`, a list of strings a row."""
        return self._texts[name]

    def take(self, rows: int, seed: int) -> "Examples":
        """`rows` examples drawn with `seed`, or all if there are not more; `truncated` stays.

        Not the first ones, since files are often sorted. They stay in the order of their source,
        and a larger draw has those of a smaller one among its own.
        """
        if rows >= len(self):
            return self
        drawn = np.random.Generator(np.random.PCG64([seed, _DRAW])).permutation(len(self))
        kept = np.sort(drawn[:rows])
        return Examples(
            {name: array[kept] for name, array in self.arrays.items()},
            self.truncated,
            {name: [texts[row] for row in kept] for name, texts in self._texts.items()},
        )

    def batch(self, step_index: int, batch_size: int, seed: int) -> dict[str, np.ndarray]:
        """Batch `step_index` (from 0) of training, a pure function of its arguments.

        Example number n, counted over the whole training, is row `n mod rows` of a permutation
        drawn for epoch `n div rows`; batches run on over the ends of epochs.
        """
        numbers = np.arange(step_index * batch_size, (step_index + 1) * batch_size)
        epochs, positions = np.divmod(numbers, len(self))
        rows = np.empty(batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            rows[inside] = _epoch_order(len(self), seed, int(epoch))[positions[inside]]
        return {name: array[rows] for name, array in self.arrays.items()}

    def eval_batches(
        self, batch_size: int, rows_of_batch: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """All examples in order, once, `batch_size` in a batch.

        Every batch has `rows_of_batch` rows, by default `batch_size`; `valid`, float32, is 0 for
        those that fill it up, which stand at its end.
        """
        for start in range(0, len(self), batch_size):
            rows = np.arange(start, start + (rows_of_batch or batch_size))
            valid = rows < min(start + batch_size, len(self))
            rows = np.where(valid, rows, start)
            batch = {name: array[rows] for name, array in self.arrays.items()}
            yield {**batch, "valid": valid.astype(np.float32)}


def _readable(rows: Iterable, task: str, errors: type[Exception]) -> Iterator:
    """The rows; raises UserError where TensorFlow finds that a file of theirs is cut or gone."""
    try:
        yield from rows
    except errors as error:
        reason = getattr(error, "message", "") or str(error)
        reason = re.sub(r"\{\{.*?\}\} ?", "", reason)  # where in TensorFlow
        raise UserError(
            f"the data of the task '{task}' cannot be read ({first_line(ValueError(reason))}): "
            "delete what was written for it, and it is written again"
        ) from error


def load_examples(task: str, split: str, feature_lengths: Mapping[str, int]) -> Examples:
    """Reads a registered seqio task into memory, in the order of its source.

    `feature_lengths` gives a length in tokens (EOS included) for "inputs" and "targets", or for
    "text" and "summary" in comparisons. Raises UserError if one is missing, or if the data is bad.
    """
    from nlhf_jax.data.tf_imports import seqio, tf

    if task not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        raise UserError(f"there is no data for the task '{task}'; name its files")
    provider = seqio.get_mixture_or_task(task)
    lengths = {}
    for name in provider.output_features:
        length = _LENGTH_OF.get(name, name)
        if length not in feature_lengths:
            raise UserError(
                f"TASK_FEATURE_LENGTHS has no '{length}', which the task '{task}' needs; it has "
                f"{sorted(feature_lengths)}"
            )
        lengths[name] = feature_lengths[length]
        if not isinstance(lengths[name], int) or lengths[name] < 2:
            raise UserError(
                f"TASK_FEATURE_LENGTHS['{length}'] is {lengths[name]!r}; wanted a whole number of "
                "tokens, at least 2 (one word and EOS)"
            )
    if split not in provider.splits:
        raise UserError(
            f"the task '{task}' has no split '{split}'; it has {sorted(provider.splits)}"
        )
    dataset = provider.get_dataset(
        sequence_length=dict(feature_lengths), split=split, shuffle=False, try_in_mem_cache=False
    )
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in lengths}
    vote_shares: list[np.ndarray] = []
    texts: dict[str, list] = {}
    truncated = dict.fromkeys(lengths, 0)
    for rows in _readable(dataset.ragged_batch(_ROWS_AT_ONCE), task, tf.errors.OpError):
        for name, length in lengths.items():
            ragged = rows[name]
            if not isinstance(ragged, tf.RaggedTensor):  # all of one length
                ragged = tf.RaggedTensor.from_tensor(ragged)
            tokens[name].append(ragged.to_tensor(shape=(None, length)).numpy())
            if f"{name}_tokens" in rows:
                truncated[name] += int(np.sum(rows[f"{name}_tokens"].numpy() > length))
            if f"{name}_pretokenized" in rows:
                strings = rows[f"{name}_pretokenized"].numpy().tolist()
                texts.setdefault(name, []).extend(string.decode() for string in strings)
        if "weight" in rows:
            vote_shares.append(rows["weight"].numpy())
        if "references" in rows:
            found = rows["references"]
            if not isinstance(found, tf.RaggedTensor):  # as many to every prompt
                found = tf.RaggedTensor.from_tensor(found)
            texts.setdefault("references", []).extend(
                [string.decode() for string in strings] for strings in found.to_list()
            )
    arrays = {name: np.concatenate(parts) for name, parts in tokens.items()}
    if vote_shares:
        arrays["vote_share"] = np.concatenate(vote_shares)
    return Examples(arrays, truncated, texts)
