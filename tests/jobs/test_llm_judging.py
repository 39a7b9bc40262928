"""An LLM as the judge of the `evaluate` job, by its gin file."""

import gin
import numpy as np
import pytest

from nlhf_jax import configuration, jobs
from nlhf_jax.evaluation.judges import POPULATION, AskedOnce, PopulationJudge, answers
from tests.evaluation.llm_program import comparisons
from tests.llm_server import serving


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    gin.clear_config()


def longer(prompt: str, first: str, second: str) -> float:
    return 0.75 if len(first) > len(second) else 0.125


def test_a_tournament_takes_it_by_its_gin_file(tmp_path):
    players = {"PLAYERS": {"a": "a", "b": "b"}, "REFERENCE_CHECKPOINT": "a", "DATA_DIR": "data"}
    with serving(longer) as server:
        macros = {
            "LLM_URL": server.url,
            "LLM_MODEL": "referee",
            "LLM_NAME": "the referee",
            "LLM_CACHE": str(tmp_path / "new" / "cache"),
        }
        files = ["mini/tournament.gin", "judges/llm.gin"]
        configuration.parse(files, macros=players | macros)
        judge = AskedOnce(configuration.arguments(jobs.evaluate, ["workdir"])["judge"])
        assert (judge.name, judge.votes) == ("the referee", False)
        prompts, good, bad = comparisons(3)  # "bad, short 0" is longer
        found = answers(judge, prompts, good, bad)
        np.testing.assert_allclose(found, (0.125 + 1 - 0.75) / 2, atol=1e-9)
        in_orders = judge.both_orders(prompts, good, bad)
        np.testing.assert_allclose(in_orders, [[0.125, 0.25]] * 3, atol=1e-9)
        assert len(server.log) == 6
        assert judge.counts()["replies"] == judge.counts()["from_cache"] == 6
        assert judge.sentence().startswith("the referee was asked 12 questions")


def test_a_judge_without_both_orders_has_none_where_it_is_asked_once():
    other = AskedOnce(PopulationJudge(lambda *texts: np.full(len(texts[0]), 0.25)))
    assert other.name == POPULATION and not hasattr(other, "both_orders")
    np.testing.assert_array_equal(other.compare(["x"], ["a"], ["b"]), [0.25])
