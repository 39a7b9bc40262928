"""What holds for the raters of `tldr_mini`, whatever they are given to read."""

import itertools

import numpy as np
import pytest

from nlhf_jax.data.tldr_mini import lexicon, population, text


@pytest.fixture(scope="module")
def posts():
    return text.posts("test")[:300]


@pytest.fixture(scope="module")
def references(posts):
    """20 draws of the reference distribution for each post."""
    rng = np.random.default_rng(0)
    return [[text.write_any_reference(post.facts, rng) for _ in range(20)] for post in posts]


def flawless(post, manner):
    return text.write_summary(post.facts, manner, (), np.random.default_rng(0))


def win_rate(posts, references, summary_of) -> float:
    wins = [
        population.preference(post.text, summary_of(post), reference)
        for post, drawn in zip(posts, references, strict=True)
        for reference in drawn
    ]
    return float(np.mean(wins))


def any_text(rng, post) -> str:
    """Sensible, broken, foreign or empty text."""
    kind = rng.integers(5)
    if kind == 0:
        return text.write_any_reference(post.facts, rng)
    if kind == 1:
        return text.write_candidate(post.facts, post.facts, rng)
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


def test_preference_is_the_mass_of_the_raters_that_prefer(posts):
    rng = np.random.default_rng(2)
    for _ in range(200):
        post = posts[rng.integers(len(posts))]
        first, second = any_text(rng, post), any_text(rng, post)
        ours = population.utilities(post.text, first)
        theirs = population.utilities(post.text, second)
        mass = sum(
            mass * (1.0 if u > v else 0.5 if u == v else 0.0)
            for mass, u, v in zip(population.MASSES, ours, theirs, strict=True)
        )
        assert population.preference(post.text, first, second) == pytest.approx(mass, abs=1e-12)


def test_preferences_of_rows_are_the_preferences_of_each(posts):
    rows = [(post.text, "my boss does stuff", "um") for post in posts[:5]]
    found = population.preferences(*zip(*rows, strict=True))
    assert found.dtype == np.float64
    assert found.tolist() == [population.preference(*row) for row in rows]


def test_manners_are_a_cycle_at_equal_quality(posts):
    for post in posts:
        thorough, headline, careful = (flawless(post, manner) for manner in text.MANNERS)
        assert population.preference(post.text, thorough, headline) == pytest.approx(0.66)
        assert population.preference(post.text, headline, careful) == pytest.approx(0.70)
        assert population.preference(post.text, careful, thorough) == pytest.approx(0.64)


def test_each_type_ranks_the_manners_as_documented(posts):
    for post in posts[:20]:
        points = np.array(
            [population.utilities(post.text, flawless(post, manner)) for manner in text.MANNERS]
        )
        best_first = np.argsort(-points, axis=0).T
        assert best_first.tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_many_triples_of_references_are_cycles(posts, references):
    """0.175 measured; the learned policy, which adds its own noise, must still reach 0.10."""
    cycles = triples = 0
    for post, drawn in zip(posts, references, strict=True):
        distinct = list(dict.fromkeys(drawn))
        for start in range(0, len(distinct) - 2, 3):
            a, b, c = distinct[start : start + 3]
            wins = [
                population.preference(post.text, first, second) - 0.5
                for first, second in ((a, b), (b, c), (c, a))
            ]
            cycles += all(win > 0 for win in wins) or all(win < 0 for win in wins)
            triples += 1
    assert triples > 1500
    assert 0.14 < cycles / triples < 0.22


def test_quality_decides_against_the_references(posts, references):
    """0.83, 0.94, 0.85 measured, 0.87 together; the more slips, the worse."""
    rates = [
        win_rate(posts, references, lambda post, manner=manner: flawless(post, manner))
        for manner in text.MANNERS
    ]
    assert min(rates) > 0.80
    assert np.mean(rates) > 0.85
    rng = np.random.default_rng(3)
    by_slips = [
        win_rate(
            posts,
            references,
            lambda post, slips=slips: text.write_summary(post.facts, text.HEADLINE, slips, rng),
        )
        for slips in itertools.accumulate([(), ("filler",), ("slang",), ("wrong",), ("vague",)])
    ]
    assert by_slips == sorted(by_slips, reverse=True)


def test_even_the_best_mix_has_no_unbeaten_summary(posts):
    """Among all flawless mixes of manners each one loses to another: no pure winner."""
    for post in posts[:20]:
        summaries = [
            flawless(post, text.Manner(hedge, headline, *rest))
            for hedge, headline in ((False, False), (False, True), (True, False))
            for rest in itertools.product((False, True), repeat=3)
        ]
        table = np.array(
            [[population.preference(post.text, a, b) for b in summaries] for a in summaries]
        )
        assert (table.min(axis=1) < 0.5).all()


EXPLOITS = {
    "nothing": lambda post: "",
    "the whole post": lambda post: post.text,
    "one sentence of the post": lambda post: post.text.split(".")[0],
    "who alone": lambda post: post.facts.who,
    "the topic alone": lambda post: post.facts.what,
    "one word again and again": lambda post: " ".join([post.facts.who] * 12),
    "keywords": lambda post: " ".join(vars(post.facts).values()),
    "a good summary backwards": lambda post: " ".join(
        reversed(flawless(post, text.THOROUGH).split())
    ),
    "a good summary twice": lambda post: " ".join([flawless(post, text.HEADLINE)] * 2),
    "all manners at once": lambda post: " ".join(flawless(post, m) for m in text.MANNERS),
    "every possible wish": lambda post: (
        flawless(post, text.HEADLINE) + "".join(f" want {want}" for want in lexicon.WANT)
    ),
    "every headline word": lambda post: " ".join([post.facts.who, *lexicon.SENSATIONS]),
    "unknown tokens": lambda post: "⁇ ⁇ ⁇",
    "another language": lambda post: "mein Chef klaut Essen seit Ostern",
    "filler": lambda post: " ".join(lexicon.FILLERS),
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_exploits_lose_against_the_references(posts, references, name):
    assert win_rate(posts, references, EXPLOITS[name]) < 0.1


def test_another_story_loses_against_the_references(posts, references):
    def other(post):
        facts = text.Facts(
            **{
                name: next(value for value in values if value != getattr(post.facts, name))
                for name, values in (
                    ("who", lexicon.WHO),
                    ("what", lexicon.WHAT),
                    ("since", lexicon.SINCE),
                    ("want", lexicon.WANT),
                )
            }
        )
        return text.write_summary(facts, text.HEADLINE, (), np.random.default_rng(0))

    assert win_rate(posts, references, other) < 0.1


def test_word_salad_loses_against_the_worst_reference(posts):
    rng = np.random.default_rng(4)
    for post in posts[:100]:
        words = rng.permutation(post.text.lower().replace(".", "").split())[:8]
        worst = text.write_summary(post.facts, text.THOROUGH, text.SLIPS, rng)
        assert population.preference(post.text, worst, " ".join(words)) == 1
        assert population.preference(post.text, worst, "") == 1


def test_a_climber_finds_only_sensible_summaries(posts, references):
    """An optimiser over words, as a policy gradient is one, ends at text with no stray word."""
    rng = np.random.default_rng(5)
    words = sorted({word for drawn in references for summary in drawn for word in summary.split()})
    for post, drawn in zip(posts[:3], references, strict=False):

        def score(summary, post=post, drawn=drawn):
            return sum(population.preference(post.text, " ".join(summary), y) for y in drawn)

        best = drawn[0].split()
        value = score(best)
        for _ in range(4000):
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
        assert value / len(drawn) > 0.8
        assert reading.stray == reading.wrong == reading.repeated == reading.fillers == 0
        assert reading.facts >= 2
        assert 3 <= reading.words <= 12
