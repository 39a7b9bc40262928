"""transformers on what `nlhf convert --to=huggingface` writes: from the directory alone.

Where transformers and torch are installed: the project needs neither.
"""

import jax
import numpy as np
import pytest

from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.jobs.convert import convert
from nlhf_jax.rollout import sample_responses
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.tiny import EOS

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

WORDS = tldr_mini_vocabulary()
LENGTH = 10
# Text that a tokeniser can get wrong: spaces, special pieces, other scripts, nothing.
TEXTS = (
    "hello world",
    "12 and 1, or 2.",
    "  two  spaces\tand\nnewlines ",
    "Summary 1 - yes Summary 2 - no",
    "ÀÉ ﬁ ½ Ｆｕｌｌ 漢字 😀",
    "a▁b tl;dr: x",
    "",
    " ",
)


def texts() -> list[str]:
    references = [post.text for post, _ in tldr_mini_text.references("validation")]
    return [*TEXTS, *references[:50]]


@pytest.fixture(params=["1.1", "1.0, scanned"])
def exported(request, tmp_path):
    """`(directory, model, parameters)` of a random policy that `nlhf convert` exported."""
    settings = tiny_checkpoints.T5_1_0 | {"scan_layers": True} if request.param != "1.1" else {}
    network = tiny_checkpoints.model(**settings)
    params = tiny.params(network, 1)
    source = tiny_checkpoints.write_ours(tmp_path / "source", network, params)
    convert(str(source), str(tmp_path / "out"), "huggingface")
    return tmp_path / "out", network, params


@pytest.fixture
def inputs() -> np.ndarray:
    """Token ids of posts, padded: int32 `[5, 12]`, of different lengths."""
    rows = np.zeros((5, 12), np.int32)
    for i, row in enumerate(rows):
        tokens = WORDS.encode(texts()[-1 - i])[: 11 - 2 * i] + [EOS]
        row[: len(tokens)] = tokens
    return rows


def load(directory):
    model, said = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(said.values()), said  # nothing missing, unexpected or of another shape
    return model.eval()


def as_torch(tokens: np.ndarray) -> dict:
    tokens = torch.tensor(np.asarray(tokens)).long()
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}


def test_transformers_computes_our_logits(exported, inputs):
    directory, network, params = exported
    targets = np.roll(inputs, 1, axis=0)[:, :LENGTH]
    ours = jax.jit(lambda p: network.logits(p, network.encode(p, inputs), targets))(params)
    decoder_inputs = torch.tensor(np.pad(targets[:, :-1], ((0, 0), (1, 0)))).long()
    with torch.no_grad():
        theirs = load(directory)(**as_torch(inputs), decoder_input_ids=decoder_inputs).logits
    real = targets > 0
    np.testing.assert_allclose(theirs.numpy()[real], np.asarray(ours)[real], atol=2e-5)


def test_transformers_generates_our_greedy_decodes(exported, inputs):
    directory, network, params = exported
    ours = sample_responses(network, params, inputs, jax.random.key(0), LENGTH, temperature=0.0)
    with torch.no_grad():
        # Start, end and padding are the directory's: generation_config.json.
        theirs = load(directory).generate(**as_torch(inputs), max_new_tokens=LENGTH)
    theirs = theirs.numpy()
    assert (theirs[:, 0] == 0).all()
    padded = np.zeros((len(theirs), LENGTH), np.int32)
    padded[:, : theirs.shape[1] - 1] = theirs[:, 1:]
    np.testing.assert_array_equal(padded, ours)


def test_transformers_reads_text_as_our_vocabulary_does(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported[0])
    for text in texts():
        assert tokenizer(text)["input_ids"] == [*WORDS.encode(text), EOS], text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    # No sentinels: there are no rows for them.
    assert len(tokenizer) == WORDS.size


def test_transformers_writes_what_we_read(exported, tmp_path):
    directory, network, params = exported
    load(directory).save_pretrained(tmp_path / "again")
    met = tiny_checkpoints.read(tmp_path / "again")
    tiny_checkpoints.assert_equal(met, tiny_checkpoints.per_layer(params))
