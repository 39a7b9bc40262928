"""Version 2 of `tldr_mini`: the reward's optimum is a style that others beat."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nlhf_jax.data.tldr_mini.v2 import games, lexicon, population, text
from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.evaluation import response_games
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.games import bradley_terry, measures
from nlhf_jax.games.equilibrium import nash_equilibrium
from nlhf_jax.jobs.vocabulary import train_tldr_mini_vocabulary
from tests.data.test_tldr_mini_text import checksum

THOROUGH, BRIEF, WARM, PLAIN, SLOPPY = range(5)


@pytest.fixture(scope="module")
def posts():
    return text.posts("test")[:100]


def flawless(post, style):
    return text.write_summary(post.facts, style, False, np.random.default_rng(0))


# --- the game ------------------------------------------------------------------------------------


def test_the_table_of_styles_is_the_populations_own_preference(posts):
    table = games.style_preferences()
    for post in posts[:20]:
        ys = [flawless(post, style) for style in population.STYLES]
        found = [[population.preference(post.text, y, z) for z in ys] for y in ys]
        np.testing.assert_allclose(found, table, atol=1e-12)


def test_bold_styles_beat_each_other_in_turn_and_all_of_them_plain():
    table = games.style_preferences()
    cycle = [table[THOROUGH, BRIEF], table[BRIEF, WARM], table[WARM, THOROUGH]]
    np.testing.assert_allclose(cycle, (0.69, 0.65, 0.66))
    np.testing.assert_allclose(table[:3, PLAIN], (0.69, 0.65, 0.66))
    np.testing.assert_allclose(table[:3, SLOPPY], (0.69, 0.65, 0.66))
    assert table[PLAIN, SLOPPY] == 1


def test_the_reward_of_what_people_write_is_largest_where_others_beat_it():
    game = games.style_game()
    reward = bradley_terry.fit(game, game.log_reference).reward
    assert int(jnp.argmax(reward[0])) == PLAIN
    best = bradley_terry.optimum(game, reward)
    assert float(measures.exploitability(game, best)) == pytest.approx(0.19)
    # And it wins most often against what people write: no mere error of the model.
    assert int(jnp.argmax(game.preference[0] @ jnp.exp(game.log_reference[0]))) == PLAIN


def test_the_nash_mixture_is_bold_and_beats_the_rewards_optimum():
    """In closed form: each style's share is the margin between the two others."""
    table = games.style_preferences()
    margins = np.array([table[BRIEF, WARM], table[WARM, THOROUGH], table[THOROUGH, BRIEF]]) - 0.5
    nash = nash_equilibrium(games.style_game())[0]
    np.testing.assert_allclose(nash, [*(margins / margins.sum()), 0, 0], atol=1e-6)
    assert nash @ table[:, PLAIN] == pytest.approx(0.665, abs=0.005)
    assert (table @ nash).max() < 0.5 + 1e-6


def test_a_reward_fitted_to_the_votes_is_largest_at_plain():
    """To those votes that are shown, broken and wrong summaries among them."""
    wins = np.zeros((5, 5))
    for vote in text.votes("train"):
        pair = [population.style_of(vote.post.text, y) for y in (vote.chosen, vote.rejected)]
        if population.OTHER not in pair and pair[0] != pair[1]:
            i, j = map(population.STYLES.index, pair)
            wins[i, j] += vote.weight
            wins[j, i] += 1 - vote.weight

    def loss(reward):
        return (wins * np.logaddexp(0, reward[None] - reward[:, None])).sum() / wins.sum()

    reward = scipy.optimize.minimize(loss, np.zeros(5)).x
    assert np.argmax(reward) == PLAIN
    assert reward[PLAIN] - reward[[THOROUGH, BRIEF, WARM]].max() > 0.3
    rates = wins / (wins + wins.T + np.eye(5))
    assert min(rates[THOROUGH, BRIEF], rates[BRIEF, WARM], rates[WARM, THOROUGH]) > 0.58
    assert rates[:3, PLAIN].min() > 0.58


def test_the_rewards_optimum_is_beaten_on_most_posts(posts):
    """On 0.59 of the posts, measured, among eight written summaries each, by 0.1 on average."""
    rng = np.random.default_rng(0)
    written = [[text.write_reference(post.facts, rng) for _ in range(8)] for post in posts]
    judge = PopulationJudge(population.preferences)
    game = response_games.from_judge([post.text for post in posts], written, judge)
    best = bradley_terry.optimum(game, bradley_terry.fit(game, game.log_reference).reward)
    beaten = np.max(measures.preference_over(game, best), axis=1) - 0.5
    assert np.mean(beaten > 1e-9) > 0.45


# --- the raters ----------------------------------------------------------------------------------


def any_text(rng, post) -> str:
    """Sensible, broken, foreign or empty text."""
    kind = rng.integers(5)
    if kind == 0:
        return text.write_reference(post.facts, rng)
    if kind == 1:
        return text.write_candidate(post.facts, post.facts, text.draw_style(rng), rng)
    if kind == 2:
        return "".join(map(chr, rng.integers(0, 0x2FFF, rng.integers(0, 30))))
    if kind == 3:
        return " ".join(rng.permutation(post.text.split())[: rng.integers(0, 40)])
    return ""


def test_preference_is_a_probability_and_antisymmetric_for_any_texts(posts):
    rng = np.random.default_rng(1)
    for _ in range(2000):
        post = posts[rng.integers(len(posts))]
        first, second = any_text(rng, post), any_text(rng, post)
        p = population.preference(post.text, first, second)
        assert 0 <= p <= 1
        assert p + population.preference(post.text, second, first) == pytest.approx(1, abs=1e-12)
        assert population.preference(post.text, first, first) == 0.5


@pytest.mark.parametrize("style", population.STYLES)
def test_a_style_is_recognised_and_a_wrong_fact_is_worse_than_any_style(posts, style):
    rng = np.random.default_rng(2)
    for post in posts[:30]:
        right = text.write_summary(post.facts, style, False, rng)
        wrong = text.write_summary(post.facts, style, True, rng)
        for summary, faults in ((right, 0), (wrong, 1)):
            reading = population.read(post.text, summary)
            assert (reading.style, reading.faults, reading.wrong) == (style, faults, faults)
        for other in population.STYLES:
            assert population.preference(post.text, flawless(post, other), wrong) == 1


EXPLOITS = {
    "nothing": lambda post: "",
    "the whole post": lambda post: post.text,
    "one sentence of the post": lambda post: post.text.split(".")[1],
    "who alone": lambda post: post.facts.who,
    "one word again and again": lambda post: " ".join([post.facts.who] * 12),
    "keywords": lambda post: " ".join(vars(post.facts).values()),
    "a good summary backwards": lambda post: " ".join(reversed(flawless(post, "thorough").split())),
    "a good summary twice": lambda post: " ".join([flawless(post, "brief")] * 2),
    "all styles at once": lambda post: " ".join(flawless(post, s) for s in population.STYLES),
    "feelings, and all the facts": lambda post: (
        f"{lexicon.FEELINGS[0]} {flawless(post, 'thorough')}"
    ),
    "every possible wish": lambda post: (
        flawless(post, "brief") + "".join(f" and I want {want}" for want in lexicon.WANT.values())
    ),
    "unknown tokens": lambda post: "⁇ ⁇ ⁇",
    "another language": lambda post: "mein Chef klaut Essen seit Ostern",
    "slang": lambda post: " ".join(lexicon.SLOPPY_ENDS),
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_exploits_lose_against_every_style(posts, name):
    for post in posts[:20]:
        for style in population.STYLES:
            assert (
                population.preference(post.text, EXPLOITS[name](post), flawless(post, style)) == 0
            )


def test_of_flawless_texts_only_the_styles_are_free_of_faults(posts):
    """A climber over words, as a policy gradient is one, ends at a sentence of some style."""
    rng = np.random.default_rng(5)
    words = sorted(
        {word for post in posts for s in population.STYLES for word in flawless(post, s).split()}
    )
    for post in posts[:3]:
        others = [flawless(post, style) for style in population.STYLES]
        best = others[SLOPPY].split()

        def score(summary, post=post, others=others):
            return sum(population.preference(post.text, " ".join(summary), y) for y in others)

        value = score(best)
        for _ in range(3000):
            trial = list(best)
            place, action = rng.integers(len(trial) + 1), rng.integers(3)
            if action == 0 and len(trial) > 1:
                trial.pop(min(place, len(trial) - 1))
            elif action == 1:
                trial.insert(place, rng.choice(words))
            else:
                trial[min(place, len(trial) - 1)] = rng.choice(words)
            if score(trial) >= value:
                best, value = trial, score(trial)
        reading = population.read(post.text, " ".join(best))
        assert reading.faults == 0
        assert reading.style in population.STYLES


# --- the texts -----------------------------------------------------------------------------------


def first_records(split: str) -> tuple[str, str]:
    """Checksums of the first 100 posts with references, and of the first 100 votes."""
    references = [
        (post.id, post.text, summaries)
        for post, summaries in itertools.islice(text.references(split), 100)
    ]
    votes = [
        (vote.post.id, vote.chosen, vote.rejected, vote.weight)
        for vote in itertools.islice(text.votes(split), 100)
    ]
    return checksum(references), checksum(votes)


@pytest.mark.parametrize(
    ("split", "references", "votes"),
    [
        ("train", "beff8ad4d16666ef", "6ee76e807ffe5951"),
        ("validation", "4645d7163b339bf8", "c5ace2cf3493fd91"),
        ("test", "8c8256bb61bb9a36", "b0f7c001f7c3feaf"),
    ],
)
def test_first_records_are_the_same_on_every_machine(split, references, votes):
    assert first_records(split) == (references, votes)


def test_splits_share_no_facts():
    facts = {split: {post.facts for post in text.posts(split)} for split in text.SPLIT_POSTS}
    for split, size in text.SPLIT_POSTS.items():
        assert len(facts[split]) == size  # nor does one come twice
    for first, second in itertools.combinations(facts.values(), 2):
        assert not first & second


def test_raters_find_in_a_post_the_facts_that_it_was_written_from():
    for post in text.posts("validation"):
        found = population.facts_of(post.text)
        wanted = {name: frozenset([value.lower()]) for name, value in vars(post.facts).items()}
        assert found == wanted


def test_people_write_the_styles_as_often_as_said():
    counts = dict.fromkeys((*population.STYLES, population.OTHER), 0)
    for post, summaries in text.references("train"):
        for summary in summaries:
            counts[population.style_of(post.text, summary)] += 1
    total = sum(counts.values())
    shares = [counts[style] / total for style in population.STYLES]
    np.testing.assert_allclose(shares, text.SHARES, atol=0.012)  # five standard errors
    assert counts[population.OTHER] == 0


def test_the_majority_is_right_about_most_votes_and_every_vote_has_one():
    votes = list(text.votes("test"))
    rows = [(vote.post.text, vote.chosen, vote.rejected) for vote in votes]
    p = population.preferences(*zip(*rows, strict=True))
    share = np.array([vote.weight for vote in votes])
    assert np.all((share > 0.5) & (share <= 1))
    right = np.where(p == 0.5, 0.5, np.where(p > 0.5, share, 1 - share))
    assert 0.75 < np.mean(right) < 0.9
    assert np.mean(p == 0.5) < 0.15  # two of one style, equally good


# --- its vocabulary ------------------------------------------------------------------------------


def test_its_vocabulary_has_a_piece_a_word_and_nothing_is_cut():
    words = tldr_mini_vocabulary(2)
    assert words.size <= 256  # VOCAB_SIZE of tasks/tldr_mini.gin
    for post, summaries in itertools.islice(text.references("train"), 1000):
        assert len(words.encode(post.text)) < 32  # TASK_FEATURE_LENGTHS of mini/, with EOS
        assert words.decode(words.encode(post.text)) == post.text
        for summary in summaries:
            assert len(words.encode(summary)) == len(re.findall(r"\w+|[.!]", summary)) < 16
            assert words.decode(words.encode(summary)) == summary


def test_its_vocabulary_is_the_one_that_the_code_trains(tmp_path):
    assert train_tldr_mini_vocabulary(tmp_path / "again.model", 2) == tldr_mini_vocabulary(2)
