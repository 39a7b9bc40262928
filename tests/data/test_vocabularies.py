"""SentencePiece without TensorFlow."""

import itertools

import pytest
import sentencepiece
from etils import epath

from nlhf_jax.data import templates, vocabularies
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.jobs.vocabulary import train_tldr_mini_vocabulary

TEXTS = [
    "The library reads CSV files, and writes them: 100 % of the columns.",
    "A daemon for servers; it listens on port 8080 and answers questions.",
    "Müller's tools (C++) convert images between formats.\nThey are fast.",
] * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    return vocabularies.train_vocabulary(TEXTS, path, 200), path


def test_shipped_vocabulary_has_one_piece_a_word(vocabulary):
    assert vocabulary.size <= 512
    assert len(vocabulary.model_bytes) < 300_000
    for post, summaries in itertools.islice(tldr_mini_text.references("test"), 300):
        assert len(vocabulary.encode(post.text)) <= 43  # 44 with EOS
        for summary in summaries:
            assert len(vocabulary.encode(summary)) == len(summary.split())


def test_shipped_vocabulary_gives_the_text_back_in_lower_case(vocabulary):
    for post, summaries in itertools.islice(tldr_mini_text.references("test"), 300):
        assert vocabulary.decode(vocabulary.encode(post.text)) == post.text.lower()
        for summary in summaries:
            assert vocabulary.decode(vocabulary.encode(summary)) == summary
    foreign = "zebra #42: (what) a mystery, 100%!"
    assert vocabulary.decode(vocabulary.encode(foreign)) == foreign
    unknown = vocabulary.encode("日本")
    assert vocabularies.UNK_ID in unknown and vocabularies.EOS_ID not in unknown


def test_shipped_vocabulary_is_the_one_that_the_code_trains(vocabulary, tmp_path):
    assert train_tldr_mini_vocabulary(tmp_path / "again.model") == vocabulary


def test_raters_template_costs_a_small_model_eight_tokens(template, vocabulary):
    assert template.length == 8
    assert templates.rater_segments(vocabulary).length == 40


def test_decode_ends_at_the_end_of_the_sequence(vocabulary):
    ids = vocabulary.encode("my boss steals food")
    assert vocabulary.decode([*ids, 1, *ids]) == "my boss steals food"
    assert vocabulary.decode([0, *ids, 0, 0]) == "my boss steals food"
    assert vocabulary.decode([1, *ids]) == vocabulary.decode([]) == ""


def test_ids_beyond_the_vocabulary_read_as_unknown(vocabulary):
    assert "⁇" in vocabulary.decode([vocabulary.size + 7])


def test_answers_of_raters_are_one_token_each(vocabulary, trained):
    for words in (vocabulary, trained[0]):
        one, two = words.rater_labels()
        assert one != two
        assert (words.decode([one]), words.decode([two])) == ("1", "2")


def test_training_is_reproducible_and_keeps_case_and_special_ids(trained, tmp_path):
    words, path = trained
    again = vocabularies.train_vocabulary(TEXTS, tmp_path / "again.model", 200)
    assert again.model_bytes == words.model_bytes == path.read_bytes()
    assert Vocabulary.load(path) == words == Vocabulary.from_bytes(words.model_bytes)
    assert words.size <= 200
    assert words.decode(words.encode("Müller reads CSV")) == "Müller reads CSV"


def test_a_size_too_small_for_the_characters_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot train a vocabulary of 30 pieces: Vocabulary size"):
        vocabularies.train_vocabulary(TEXTS, tmp_path / "tiny.model", 30)
    assert not (tmp_path / "tiny.model").exists()


def test_a_missing_or_broken_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="missing.model: cannot read the vocabulary: No such file"):
        Vocabulary.load(tmp_path / "missing.model")
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="broken.model is not a SentencePiece model"):
        Vocabulary.load(tmp_path / "broken.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(UserError, match="empty.model is not a SentencePiece model"):
        Vocabulary.load(tmp_path / "empty.model")


def train_elsewhere(path, **options) -> None:
    """A model by SentencePiece's trainer as other people call it."""
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(path.with_suffix("")),
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )


def test_special_ids_unlike_those_of_t5_are_a_user_error(tmp_path):
    train_elsewhere(tmp_path / "other.model")
    with pytest.raises(UserError, match="other.model has pad, eos, unk"):
        Vocabulary.load(tmp_path / "other.model")


def test_answers_of_several_tokens_are_a_user_error(tmp_path):
    train_elsewhere(tmp_path / "no_two.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    words = Vocabulary.load(tmp_path / "no_two.model")
    with pytest.raises(UserError, match="no_two.model splits a rater's answer '1'"):
        words.rater_labels()


def test_a_bucket_out_of_reach_is_one_sentence(monkeypatch):
    # TensorFlow's errors, which a bucket's path raises, are no OSErrors.
    def out_of_reach(path):
        raise RuntimeError("Error executing an HTTP request: no such host\n\twhen reading")

    monkeypatch.setattr(type(epath.Path("gs://b/v.model")), "read_bytes", out_of_reach)
    with pytest.raises(UserError, match="^gs://b/v.model: cannot read the vocabulary: .* host$"):
        Vocabulary.load("gs://b/v.model")
