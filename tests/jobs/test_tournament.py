"""What a tournament's programs compute, and what each device has of it."""

import re
import sys

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from nlhf_jax.evaluation.counting import CountingJudge
from nlhf_jax.jobs import judging, responding
from nlhf_jax.metrics import Progress
from nlhf_jax.models.language_model import response_mask
from tests import tiny

DATA, CUBE = (8, 1, 1), (2, 2, 2)
ROWS, LENGTH = 104, 6  # 104 is nothing else's size


def sampling(mesh, temperature):
    """The program, and the policy's and the reference's parameters and prompts on the mesh."""
    network, partitioner = tiny.model(**tiny.MESH_SIZES), tiny.mesh(*mesh)
    run = responding._sampling(network, network, LENGTH, temperature)
    params = [tiny.placed(partitioner, network, tiny.params(network, seed)) for seed in (1, 2)]
    inputs = {"inputs": tiny.texts(np.random.default_rng(0), ROWS, 5)}
    placed = partitioner.place_batch(inputs)["inputs"]
    return judging.compiled(partitioner, run), (*params, placed, jax.random.key(3))


def arrays_of_all_rows(program: str) -> set[str]:
    """Types of the arrays in a compiled program that have the whole batch's rows."""
    return set(re.findall(rf"\b\w+\[(?:\d+,)*{ROWS}(?:,\d+)*\]", program))


@pytest.mark.parametrize("mesh", [DATA, CUBE])
def test_a_device_writes_the_responses_to_its_own_prompts_alone(mesh):
    program, arguments = sampling(mesh, temperature=1.0)
    assert tiny.part(arguments[2]) == (ROWS // tiny.mesh(*mesh).batch_shares, 5)
    compiled = program.lower(*arguments).compile()
    # Whole are the results that the host fetches, tokens and their numbers, and nothing else.
    wanted = {f"s32[{ROWS},{LENGTH}]", f"f32[{ROWS},{LENGTH}]"}
    assert arrays_of_all_rows(compiled.as_text()) == wanted
    assert all(one.is_fully_replicated for one in jax.tree.leaves(compiled.output_shardings))


def test_without_scikit_learn_counting_is_left_out_and_that_is_said(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with judging._said(Progress("here", 1)):
        CountingJudge(["a text"], ["good"], ["bad"], np.ones(1))
    said = "left out: counting needs scikit-learn, which is not installed: pip install"
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("mesh", [DATA, CUBE])
def test_a_device_judges_its_own_prompts_alone(mesh):
    network, partitioner = tiny.model(**tiny.MESH_SIZES), tiny.mesh(*mesh)
    rater = tiny.PreferenceModel(network, tiny.PREFERENCE_TEMPLATE, tiny.LABELS)
    params = tiny.placed(partitioner, network, tiny.params(network, 3))
    texts = {name: tiny.texts(np.random.default_rng(0), ROWS, 5) for name in ("x", "y", "z")}
    program = judging.compiled(partitioner, rater.probability)
    compiled = program.lower(params, *partitioner.place_batch(texts).values()).compile()
    assert arrays_of_all_rows(compiled.as_text()) == {f"f32[{ROWS}]"}
    assert compiled.output_shardings.is_fully_replicated


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probs_are_those_of_the_distribution_that_was_sampled(temperature):
    """The policy's logits over the temperature, as sampled, and the reference's at 1."""
    program, arguments = sampling((1, 1, 1), temperature)
    responses, own, reference = map(np.asarray, program(*arguments))
    network = tiny.model(**tiny.MESH_SIZES)
    for found, params, divisor in ((own, arguments[0], temperature), (reference, arguments[1], 1)):
        expected = _log_probs(network, params, arguments[2], responses, divisor)
        mask = np.asarray(response_mask(responses, tiny.EOS))
        np.testing.assert_allclose(found * mask, expected * mask, rtol=1e-4, atol=1e-4)


def test_without_temperature_all_probability_is_on_what_was_written():
    program, arguments = sampling((1, 1, 1), 0)
    responses, own, reference = map(np.asarray, program(*arguments))
    network = tiny.model(**tiny.MESH_SIZES)
    expected = _log_probs(network, arguments[1], arguments[2], responses, 1)
    np.testing.assert_allclose(reference, expected, rtol=1e-4, atol=1e-4)
    assert not own.any()


def _log_probs(network, params, inputs, responses, temperature):
    logits = np.asarray(network.logits(params, network.encode(params, inputs), responses))
    scaled = log_softmax(logits.astype(np.float64) / temperature, axis=-1)
    return np.take_along_axis(scaled, responses[..., None], axis=-1)[..., 0]
