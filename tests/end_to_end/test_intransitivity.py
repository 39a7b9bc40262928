"""The raters of `tldr_mini` are intransitive where it matters: over what the SFT policy writes."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from nlhf_jax.data.tldr_mini import population
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.evaluation.statistics import count_cyclic_triples

SAMPLES = 4


@pytest.mark.long
def test_a_tenth_of_the_triples_that_the_sft_policy_samples_are_cycles(tmp_path):
    """Of version 1, whose manners are equally common: only a trained policy writes as it does."""
    _nlhf("train", "--gin_file=mini/sft.gin", "--gin.EVAL_EXAMPLES=0", "--gin.TLDR_MINI_VERSION=1",
          f"--gin.DATA_DIR='{tmp_path / 'data'}'", f"--workdir={tmp_path / 'sft'}")  # fmt: skip
    prompts = [post.text for post in tldr_mini_text.posts("test")]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    _nlhf("sample", f"--checkpoint={tmp_path / 'sft'}", f"--prompts={tmp_path / 'prompts.txt'}",
          f"--num_samples={SAMPLES}", f"--output={tmp_path / 'samples.jsonl'}")  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows[::SAMPLES]] == prompts

    texts = np.array([row["completion"] for row in rows], object).reshape(-1, SAMPLES)
    scores = np.full((len(prompts), SAMPLES, SAMPLES), 0.5)
    for i, j in itertools.permutations(range(SAMPLES), 2):
        scores[:, i, j] = population.preferences(prompts, texts[:, i], texts[:, j])
    distinct = (texts[:, :, None] != texts[:, None, :]).astype(bool)
    triples, cyclic = count_cyclic_triples(scores, distinct)
    assert triples > 2000
    assert cyclic / triples >= 0.1


def _nlhf(*arguments: str) -> None:
    # At XLA's own level of optimisation: hundreds of steps repay the compilation.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-m", "nlhf_jax.main", *arguments], env=environment, check=True)
