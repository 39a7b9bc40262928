"""Other judges beside the deciding one, and the gap between a policy's rater and an independent."""

import dataclasses

import numpy as np
from etils import epath

from nlhf_jax.evaluation import tournament
from nlhf_jax.evaluation.judgements import Judgements
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.report.opinions_section import other_judges
from nlhf_jax.report.parts import Matrix, Table


def words(text: str) -> int:
    return len(text.split())


# The truth counts different words, the rater all of them.
TRUTH = PopulationJudge(
    lambda prompts, first, second: np.array(
        [
            0.5 + 0.1 * np.sign(len(set(a.split())) - len(set(b.split())))
            for a, b in zip(first, second, strict=True)
        ]
    )
)
RATER = PopulationJudge(
    lambda prompts, first, second: np.array(
        [0.5 + 0.1 * np.sign(words(a) - words(b)) for a, b in zip(first, second, strict=True)]
    )
)


def played(tmp_path, references=None):
    """`hacker` repeats itself, which the rater likes, `writer` has more words to say."""
    n = 60
    players = {
        "hacker": Player([f"word{i} " * 9 for i in range(n)]),
        "writer": Player([f"a{i} b{i} c{i}" for i in range(n)]),
        "short": Player([f"x{i} y{i}" for i in range(n)]),
    }
    rater = Judgements(epath.Path(tmp_path), "rater", RATER, None)
    prompts = [str(i) for i in range(n)]
    result = tournament.play(prompts, players, TRUTH, references, others=[rater])
    (opinion,) = result.opinions
    opinion = dataclasses.replace(opinion, trained_against=("hacker", "writer"))
    return dataclasses.replace(result, opinions=(opinion,))


def test_the_gap_is_what_a_policy_s_own_rater_alone_sees(tmp_path):
    result = played(tmp_path)
    (opinion,) = result.opinions
    # The truth: writer > short > hacker; the rater: hacker > writer > short.
    np.testing.assert_allclose(opinion.mean_win_rates["hacker"].value, 0.6)
    np.testing.assert_allclose(opinion.gaps["hacker"].value, 0.2)
    np.testing.assert_allclose(opinion.gaps["writer"].value, -0.1)
    np.testing.assert_allclose(opinion.gaps["short"].value, -0.1)
    assert opinion.agreeing == 1 / 3  # of writer and short alone
    # By chance half agree, each pair being seen from both sides.
    np.testing.assert_allclose(opinion.kappa.value, (1 / 3 - 1 / 2) / (1 - 1 / 2))
    np.testing.assert_allclose(opinion.win_rates.between("hacker", "short").value, 0.6)


def test_what_a_rater_has_taught_and_alone_sees_catches_the_eye(tmp_path):
    section = other_judges(played(tmp_path))
    (table,) = [part for part in section.parts if isinstance(part, Table)]
    flagged = {row[0].text: row[2].flagged for row in table.rows}
    assert flagged == {"hacker": True, "writer": False, "short": False}
    assert [part.rates.names for part in section.parts if isinstance(part, Matrix)]


def test_opinions_are_written_and_read_bit_for_bit(tmp_path):
    result = played(tmp_path, references=[["a reference"]] * 60)
    again = TournamentResult.from_json(result.to_json())
    assert again.to_json() == result.to_json()
    assert again.opinions[0].win_rates.names[-1] == "reference"


def test_a_single_policy_has_an_opinion_over_the_references(tmp_path):
    rater = Judgements(epath.Path(tmp_path), "rater", RATER, None)
    result = tournament.play(["x"], {"A": Player(["a b"])}, TRUTH, [["c"]], others=[rater])
    assert result.opinions[0].gaps == {}
    assert other_judges(result) is not None
