"""`nlhf_jax.load`: checkpoints of every format that sample, score and rate strings."""

import jax
import numpy as np
import pytest
from scipy.special import expit, log_softmax

import nlhf_jax
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.response_games import preference_matrices
from nlhf_jax.games.meta_game import nash_average
from nlhf_jax.jobs import sampling
from nlhf_jax.jobs.sampling import whole_machine
from nlhf_jax.raters import PreferenceModel, RewardModel
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints as stored

NETWORK = stored.model()
PROMPTS = ["my boss steals food", "my cousin tells lies", "my boss"]
RESPONSES = ["boss food", "lies", ""]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two policies in each format, and two raters."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed in (1, 2):
        stored.write(root / str(seed), "nlhf", NETWORK, tiny.params(NETWORK, seed))
    for to in ("huggingface", "t5x"):
        stored.write(root / to, to, NETWORK, tiny.params(NETWORK, 1))
    labels = stored.WORDS.rater_labels()
    data = stored.data()
    for kind, settings in (
        ("preference", {"rater_template": data.rater.segments, "rater_labels": labels}),
        ("reward", {"rater_template": data.reward.segments}),
    ):
        stored.write_ours(
            root / kind,
            NETWORK,
            tiny.params(NETWORK, 3),
            kind=kind,
            feature_lengths=stored.RATER_LENGTHS,
            **settings,
        )
    return root


@pytest.fixture(scope="module")
def policies(place):
    devices = jax.devices()[:1]
    return [nlhf_jax.load(str(place / str(seed) / "source"), devices=devices) for seed in (1, 2)]


def tokens(texts, length: int) -> np.ndarray:
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = [*stored.WORDS.encode(text)[: length - 1], tiny.EOS]
        row[: len(ids)] = ids
    return rows


def logits(seed: int) -> np.ndarray:
    params = tiny.params(NETWORK, seed)
    inputs, targets = tokens(PROMPTS, 12), tokens(RESPONSES, 5)
    return np.asarray(NETWORK.logits(params, NETWORK.encode(params, inputs), targets), np.float64)


def check_scores(found, mixed: np.ndarray) -> None:
    """Against the log-softmax of `[N, T, V]` logits at the responses' own tokens."""
    wanted = log_softmax(mixed, axis=-1)
    for row, (text, one) in enumerate(zip(RESPONSES, found, strict=True)):
        ids = [*stored.WORDS.encode(text), tiny.EOS]
        assert one.pieces == stored.WORDS.pieces(ids)
        np.testing.assert_allclose(one.log_probs, wanted[row, range(len(ids)), ids], atol=1e-4)
        np.testing.assert_allclose(one.log_prob, one.log_probs.sum(), rtol=1e-6)


@pytest.mark.parametrize("to", ["nlhf", "huggingface", "t5x"])
def test_a_policy_of_any_format_scores_what_it_may_write(place, to):
    name = place / "1" / "source" if to == "nlhf" else place / to / to
    foreign = {} if to == "nlhf" else {"feature_lengths": stored.LENGTHS}
    if to == "t5x":  # which has no vocabulary beside it
        foreign["vocabulary"] = str(TLDR_MINI_MODEL)
    check_scores(nlhf_jax.load(str(name), **foreign).score(PROMPTS, RESPONSES), logits(1))


def test_it_samples_what_the_command_line_does(place, policies):
    wanted = sampling.sample(str(place / "1" / "source"), PROMPTS, 3, 1.0, 5)
    assert policies[0].sample(PROMPTS, 3, seed=5) == wanted
    assert policies[0].sample(PROMPTS, 3, seed=6) != wanted
    first, second, third = policies[0].sample(PROMPTS[:1], 3, temperature=0)[0]
    assert first == second == third


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_a_mixture_is_the_geometric_one(policies, beta):
    one, other = policies
    mixture = one.mixed(other, beta)
    check_scores(mixture.score(PROMPTS, RESPONSES), (1 - beta) * logits(1) + beta * logits(2))
    again = mixture.mixed(one, 0.5)  # of a mixture and a policy, which is in it already
    both = (1 - beta / 2) * logits(1) + beta / 2 * logits(2)
    check_scores(again.score(PROMPTS, RESPONSES), both)
    with pytest.raises(UserError, match=r"beta is 1.5 but must be in \[0, 1\]"):
        one.mixed(other, 1.5)


def test_log_ratios_are_of_the_two_policies_own_probabilities(policies):
    one, other = policies
    found = one.score(PROMPTS, RESPONSES, reference=other)
    mine, theirs = (policy.score(PROMPTS, RESPONSES) for policy in policies)
    for scored, a, b in zip(found, mine, theirs, strict=True):
        np.testing.assert_allclose(scored.log_ratios, a.log_probs - b.log_probs, atol=1e-6)
        total = f"{scored.log_ratios.sum():+.2f}"
        assert repr(scored).endswith(f"log π {a.log_prob:.2f} nats, log π/μ {total} nats)")
    with pytest.raises(UserError, match="no log ratio without a reference"):
        _ = mine[0].log_ratios


def test_kl_is_of_the_policy_s_own_responses(policies):
    one, other = policies
    assert one.kl(one, PROMPTS).value == 0
    found = one.kl(other, PROMPTS, num_samples=300)
    texts = one.sample(PROMPTS, 300)
    scored = [
        scored.log_ratios.sum()
        for prompt, several in zip(PROMPTS, texts, strict=True)
        for scored in one.score([prompt] * 300, several, other)
    ]
    assert found.value == pytest.approx(np.mean(scored), abs=1e-5)
    assert found.low <= found.value <= found.high and found.value > 0


def test_a_preference_model_is_asked_in_both_orders(place):
    rater = nlhf_jax.load(str(place / "preference"))
    template = stored.data().rater
    model = PreferenceModel(NETWORK, template.segments, stored.WORDS.rater_labels())
    texts = [tokens(PROMPTS, 9), tokens(RESPONSES, 4), tokens(RESPONSES[::-1], 4)]
    forward, backward = model.both_orders(tiny.params(NETWORK, 3), *texts)
    wanted = (expit(np.asarray(forward, np.float64)) + 1 - expit(np.asarray(backward))) / 2
    found = rater.preference(PROMPTS, RESPONSES, RESPONSES[::-1])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    matrix = rater.matrix(PROMPTS[0], RESPONSES)
    np.testing.assert_allclose(matrix + matrix.T, 1)
    np.testing.assert_allclose(matrix[0, 2], found[0], atol=1e-6)
    with pytest.raises(UserError, match="it has no reward of one alone"):
        rater.reward(PROMPTS, RESPONSES)


def test_the_best_of_n_is_in_the_nash_mixture_or_the_largest_reward(place):
    preference, reward = (nlhf_jax.load(place / kind) for kind in ("preference", "reward"))
    texts = [RESPONSES, RESPONSES[::-1], [*RESPONSES[:2], RESPONSES[0]]]
    rewards = [reward.reward([x] * 3, several) for x, several in zip(PROMPTS, texts, strict=True)]
    wanted = [several[np.argmax(r)] for several, r in zip(texts, rewards, strict=True)]
    assert reward.best_of(PROMPTS, texts, "reward") == wanted
    assert reward.best_of(PROMPTS, texts) == wanted  # where no preference is cyclic
    mixtures = nash_average(preference_matrices(PROMPTS, texts, preference._judge))
    for seed in range(5):
        chosen = preference.best_of(PROMPTS, texts, seed=seed)
        for text, several, mixture in zip(chosen, texts, mixtures, strict=True):
            assert mixture[[one == text for one in several]].max() > 1e-4
    matrix = reward.matrix(PROMPTS[2], texts[2])
    assert matrix[0, 2] == matrix[2, 0] == 0.5
    assert reward.reward([], []).shape == reward.preference([], [], []).shape == (0,)


def test_one_text_for_several_is_a_mistake_that_is_said(place, policies):
    rater = nlhf_jax.load(place / "reward")
    for call in (
        lambda: policies[0].sample("my boss"),
        lambda: policies[0].score({"prompt": "my boss"}, RESPONSES[:1]),
        lambda: rater.best_of("my boss", [RESPONSES]),
        lambda: rater.preference("my boss", ["a"], ["b"]),
    ):
        with pytest.raises(UserError, match=r"prompts is one text .* give \[text\]"):
            call()
    with pytest.raises(UserError, match="3 prompts, 2 responses: they must be as many"):
        policies[0].score(PROMPTS, RESPONSES[:2])
    with pytest.raises(UserError, match="num_samples is 0 and temperature 1"):
        policies[0].sample(PROMPTS, 0)


def test_a_reward_model_s_preferences_are_of_its_rewards(place):
    rater = nlhf_jax.load(str(place / "reward"))
    assert repr(rater).endswith("reward, a reward model)")
    model = RewardModel(NETWORK, stored.data().reward.segments)
    wanted = model.reward(tiny.params(NETWORK, 3), tokens(PROMPTS, 9), tokens(RESPONSES, 4))
    found = rater.reward(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    one, other = rater.reward([PROMPTS[0]] * 2, RESPONSES[:2])
    preferred = rater.preference(PROMPTS[:1], RESPONSES[:1], RESPONSES[1:2])
    np.testing.assert_allclose(preferred, expit(one - other), atol=1e-6)


def test_what_a_checkpoint_does_not_say_is_asked_for(place, tmp_path):
    with pytest.raises(UserError, match="give feature_lengths with inputs and targets"):
        nlhf_jax.load(str(place / "huggingface" / "huggingface"))
    with pytest.raises(UserError, match="says of itself what kind would: leave it out"):
        nlhf_jax.load(str(place / "preference"), kind="reward")
    with pytest.raises(UserError, match="does not exist"):
        nlhf_jax.load(str(tmp_path / "nowhere"))
    preference = nlhf_jax.load(str(place / "preference")).network
    with pytest.raises(UserError, match="it rates texts and writes none"):
        sampling.Writer({"it": (preference, 1.0)}, whole_machine())
