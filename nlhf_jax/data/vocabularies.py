"""SentencePiece vocabularies, without TensorFlow.

Ids as in T5: padding 0, end of sequence 1, unknown 2, no beginning of sequence.
"""

import functools
import importlib.resources
import io
import os
import re
import string
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece
from etils import epath
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.files import write_whole

# What T5 has and seqio fills up with; a vocabulary with others is refused.
PAD_ID = 0
EOS_ID = 1
UNK_ID = 2

# T5's sentinels, which some models have as pieces that any text may hold.
_SENTINEL = re.compile(r"▁?<extra_id_\d+>")

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes it

# Ship with the package, for the versions of `tldr_mini`.
TLDR_MINI_MODEL = importlib.resources.files("nlhf_jax.data.tldr_mini") / "tldr_mini.model"
TLDR_MINI_2_MODEL = importlib.resources.files("nlhf_jax.data.tldr_mini.v2") / "tldr_mini_2.model"


# What the trainer would leave out without a word: texts longer than that, and those with its own
# characters or NUL.
_MOST_BYTES = 1 << 20
_RESERVED = dict.fromkeys((0, 0x2047, 0x2585), " ")


class Vocabulary:
    """Text to token ids and back; `pad_id`, `eos_id` and `unk_id` are the model's."""

    def __init__(self, model_bytes: bytes, source: str = "the vocabulary"):
        """`source` names the model in errors. Raises UserError if it is not a model like T5's."""
        self.model_bytes = model_bytes
        self.source = source
        self._processor = sentencepiece.SentencePieceProcessor()
        self._encoder = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
            self._encoder.LoadFromSerializedProto(without_sentinels(model_bytes))
        except (RuntimeError, OSError, ValueError, DecodeError):
            raise UserError(f"{source} is not a SentencePiece model") from None
        ids = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        self.pad_id, self.eos_id, self.unk_id = ids
        if ids != (PAD_ID, EOS_ID, UNK_ID):
            raise UserError(
                f"{source} has pad, eos, unk = {ids}; wanted {(PAD_ID, EOS_ID, UNK_ID)} as in T5 "
                "(`nlhf data` trains such a vocabulary)"
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads a SentencePiece model file. Raises UserError if that cannot be done."""
        with unreadable_is_one_error(str(path), "the vocabulary"):
            model_bytes = epath.Path(path).read_bytes()
        return cls(model_bytes, str(path))

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> "Vocabulary":
        """A vocabulary from the contents of a SentencePiece model file."""
        return cls(model_bytes)

    @property
    def size(self) -> int:
        """Number of pieces, the special ones included."""
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without EOS."""
        return self._encoder.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens before the first EOS; padding is ignored.

        Ids beyond the vocabulary, which a model with a padded vocabulary can emit, read as unknown.
        """
        kept = []
        for token in map(int, ids):
            if token == self.eos_id:
                break
            if token != self.pad_id:
                kept.append(token if 0 <= token < self.size else self.unk_id)
        return self._processor.DecodeIds(kept)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token by itself, up to the first EOS, which is the last: `</s>`.

        A token that begins a word begins with a blank.
        """
        found = []
        for token in map(int, ids):
            known = token if 0 <= token < self.size else self.unk_id
            found.append(self._processor.IdToPiece(known).replace(_BLANK, " "))
            if token == self.eos_id:
                break
        return found

    def starts_of_words(self) -> np.ndarray:
        """Which pieces begin a word: bool `[size]`."""
        pieces = map(self._processor.IdToPiece, range(self.size))
        return np.array([piece.startswith(_BLANK) for piece in pieces], bool)

    def rater_labels(self) -> tuple[int, int]:
        """Ids of the answers "1" and "2". Raises UserError if they are not one token each."""
        labels = []
        for answer in ("1", "2"):
            ids = self.encode(answer)
            if len(ids) != 1 or ids[0] == self.unk_id:
                raise UserError(
                    f"{self.source} splits a rater's answer '{answer}' into {len(ids)} tokens or "
                    "does not know it; wanted one token (`nlhf data` trains such a vocabulary)"
                )
            labels.append(ids[0])
        return labels[0], labels[1]

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and self.model_bytes == other.model_bytes

    def __hash__(self) -> int:
        return hash(self.model_bytes)


def without_sentinels(model_bytes: bytes) -> bytes:
    """The model in which a text's own `<extra_id_0>` is read as its letters, as `</s>` is.

    Only what it is called changes how it is read; ids and all other pieces stay. Raises DecodeError
    if the bytes are no model.
    """
    if b"<extra_id_" not in model_bytes:
        return model_bytes
    proto = sentencepiece_model_pb2.ModelProto.FromString(model_bytes)  # type: ignore[attr-defined]
    kinds = type(proto).SentencePiece
    for piece in proto.pieces:
        if piece.type == kinds.USER_DEFINED and _SENTINEL.fullmatch(piece.piece):
            piece.type = kinds.CONTROL
    return proto.SerializeToString()


def _readable(texts: Iterable[str]) -> Iterator[str]:
    """The texts in parts that the trainer reads."""
    most = _MOST_BYTES // 4  # characters, of up to four bytes
    for text in texts:
        text = text.translate(_RESERVED)
        yield from (text[start : start + most] for start in range(0, len(text), most))


@functools.cache
def tldr_mini_vocabulary(version: int = 1) -> Vocabulary:
    """The vocabulary of a version of `tldr_mini`; it ships with the package."""
    file = TLDR_MINI_2_MODEL if version == 2 else TLDR_MINI_MODEL
    return Vocabulary(file.read_bytes(), f"the package's {file.name}")


def train_vocabulary(
    texts: Iterable[str],
    path: str | os.PathLike,
    size: int,
    fold_case: bool = False,
    whole_words: Sequence[str] = (),
) -> Vocabulary:
    """Trains a unigram vocabulary of at most `size` pieces and writes it to `path`.

    A rater's answers "1" and "2", and the `whole_words`, are one piece each; every ASCII character
    is known. With `fold_case` all text is read in lower case. The same texts in the same order give
    the same model. Raises UserError if the texts have too many different characters for `size`, or
    if `path` cannot be written.
    """
    letters = string.ascii_lowercase if fold_case else string.ascii_letters
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=_readable(texts),
            max_sentence_length=_MOST_BYTES,
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            normalization_rule_name="nmt_nfkc_cf" if fold_case else "nmt_nfkc",
            character_coverage=0.9999,
            required_chars="▁" + string.digits + letters + string.punctuation,
            hard_vocab_limit=False,
            user_defined_symbols=[f"▁{word}" for word in dict.fromkeys(("1", "2", *whole_words))],
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]  # after the C++ condition
        raise UserError(f"cannot train a vocabulary of {size} pieces: {reason}") from None
    vocabulary = Vocabulary(model.getvalue(), str(path))
    try:
        write_whole(path, vocabulary.model_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot write the vocabulary: {error.strerror}") from None
    return vocabulary
