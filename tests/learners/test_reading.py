"""Reading lessons: their right answers by hand, how responses are made, what is learned."""

import itertools

import jax
import numpy as np
import optax
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.learners.reading import ReadingLearner, made_up, right_answers
from nlhf_jax.learners.votes import VoteLearner
from nlhf_jax.models.language_model import logits_after
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from tests import tiny
from tests.tiny import EOS, PAD, TOKENS

WORDS, TEXT, RESPONSE = 60, 16, 10


def texts(index: int, size: int) -> np.ndarray:
    """Random words, EOS and padding: int32 `[B, TEXT]`."""
    rng = np.random.default_rng(index)
    tokens = rng.integers(2, WORDS, (size, TEXT)).astype(np.int32)
    end = rng.integers(4, TEXT, (size, 1))
    tokens = np.where(np.arange(TEXT) == end, EOS, tokens)
    return np.where(np.arange(TEXT) > end, PAD, tokens).astype(np.int32)


def words(row: np.ndarray) -> list[int]:
    return [token for token in row.tolist() if token not in (EOS, PAD)]


def test_the_right_answers_by_hand():
    given = texts(0, 8)
    responses = np.asarray(made_up(jax.random.key(0), given, 4, RESPONSE, TOKENS))
    answers = np.asarray(right_answers(given, responses, TOKENS))
    assert answers.shape == (8, 4, RESPONSE, 2)
    for row, of_text in zip(range(8), map(words, given), strict=True):
        pairs = set(zip(of_text, of_text[1:], strict=False))
        for response, answer in zip(responses[row], answers[row], strict=True):
            for place, token in enumerate(response[:-1]):
                assert answer[place, 0] == (token in of_text)
                before = place and (response[place - 1], token) in pairs
                assert answer[place, 1] == bool(before)


def test_responses_are_put_together_of_the_text_and_its_neighbour_evenly():
    given = texts(0, 64)
    responses = np.asarray(made_up(jax.random.key(1), given, 4, RESPONSE, TOKENS))
    assert np.all(responses[..., -1] == EOS)
    assert not np.any(np.isin(responses[..., :-1], [EOS, PAD]))
    answers = np.asarray(right_answers(given, responses, TOKENS))[:, :, :-1]
    for row in range(64):
        both = {*words(given[row]), *words(given[row - 1])}
        assert set(responses[row, :, :-1].ravel().tolist()) <= both
    # One half is the text's own, and of the neighbour's words some happen to stand there too.
    assert 0.5 < answers[..., 0].mean() < 0.65
    # Pieces follow each other where word by word nearly nothing does.
    assert answers[:, 1::2, 1:, 1].mean() > 5 * answers[:, ::2, 1:, 1].mean()


def learned(steps: int, **settings) -> dict[str, float]:
    model = T5(
        T5Config(
            vocab_size=WORDS + 4,
            emb_dim=32,
            num_heads=4,
            head_dim=8,
            mlp_dim=64,
            num_encoder_layers=1,
            num_decoder_layers=1,
            **settings,
        )
    )
    schedule = optax.linear_schedule(0.0, 5e-3, 20)
    learner = ReadingLearner(
        model=model,
        partitioner=tiny.one_device(),
        optimizer=optax.adam(schedule, b2=0.99),
        seed=0,
    )
    state = learner.init()
    targets = np.full((16, RESPONSE), EOS, np.int32)
    for index in range(steps):
        state, _ = learner.train_step(state, {"inputs": texts(index, 16), "targets": targets})
    held_out = {"inputs": texts(10**6, 16), "targets": targets, "valid": np.ones(16, np.float32)}
    first, again = (jax.device_get(learner.eval_step(state, held_out)) for _ in range(2))
    assert first == again  # the same lessons at every evaluation
    return first


def test_a_network_whose_keys_start_as_its_queries_learns_to_find_words():
    found = learned(150, reading_init=True)
    assert found["in_text"] > 0.9


@pytest.mark.parametrize("microbatches", [2])
def test_the_loss_is_a_sum_over_rows(microbatches):
    """So that its gradient in parts is that of the whole."""
    network = tiny.model(tiny.RATER_VOCABULARY)
    rng = np.random.default_rng(0)
    batch = {"inputs": tiny.texts(rng, 8, 6), "targets": tiny.texts(rng, 8, 4)}
    states = []
    for parts in (1, microbatches):
        learner = ReadingLearner(
            model=network,
            partitioner=tiny.one_device(),
            optimizer=optax.sgd(0.1),
            seed=0,
            initial_params=lambda: tiny.params(network, 1),
            microbatches=parts,
        )
        states.append(learner.train_step(learner.init(), batch)[0])
    for one, other in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


# --- beside the votes ----------------------------------------------------------------------------


def vote_learner(**settings) -> VoteLearner:
    network = tiny.model(tiny.RATER_VOCABULARY)
    return VoteLearner(
        rater=tiny.rater("embedding", network),
        partitioner=tiny.one_device(),
        optimizer=optax.sgd(0.1),
        seed=0,
        initial_params=lambda: tiny.params(network, 1),
        **settings,
    )


def test_lessons_beside_the_votes_are_asked_of_the_same_responses():
    """The votes' loss and metrics are the same; what is trained on has the lessons' cost beside."""
    plain, beside = vote_learner(), vote_learner(reading=0.5)
    batch = {name: jax.numpy.asarray(x) for name, x in tiny.batch("embedding", 0).items()}
    state = plain.init()
    rows, _ = plain.rows(state, None, batch)

    def losses(learner):
        return jax.jit(lambda params: learner.loss(params, None, rows))(state.params)

    (alone, metrics), (total, more) = losses(plain), losses(beside)
    for name, value in metrics.items():
        np.testing.assert_allclose(more[name], value, atol=1e-6, err_msg=name)
    assert alone == metrics["loss"]
    network, responses = plain.model, np.stack([batch["chosen"], batch["rejected"]], axis=1)
    context = network.encode(state.params, batch["text"])
    said = np.asarray(logits_after(network, state.params, context, responses))[..., :2]
    answers = np.asarray(right_answers(batch["text"], responses, TOKENS))
    wrong = np.zeros(8)
    for row, number in itertools.product(range(8), range(2)):
        length = responses[row, number].tolist().index(EOS)
        for question, first in ((0, 0), (1, 1)):
            of_row = [responses[row, n].tolist().index(EOS) - first for n in range(2)]
            for place in range(first, length):
                logit = said[row, number, place, question]
                signed = logit if answers[row, number, place, question] else -logit
                wrong[row] += np.log1p(np.exp(-signed)) / max(sum(max(n, 0) for n in of_row), 1)
    np.testing.assert_allclose(total, alone + 0.5 * wrong.mean(), rtol=1e-5)


def test_other_kinds_have_no_lessons():
    with pytest.raises(UserError, match="READING is 0.5 but a preference model has no such"):
        VoteLearner(
            rater=tiny.rater("preference"),
            reading=0.5,
            partitioner=tiny.one_device(),
            optimizer=optax.sgd(0.1),
            seed=0,
        )
