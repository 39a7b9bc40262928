"""The core needs no TensorFlow: a pod that only trains does not have to have it."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# None in sys.modules makes an import of that name fail.
PROGRAM = """
import sys

for name in ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"):
    sys.modules[name] = None

import importlib
import pkgutil

import nlhf_jax
import nlhf_jax.games
import nlhf_jax.checkpoints
import nlhf_jax.learners
import nlhf_jax.models

for package in (nlhf_jax.checkpoints, nlhf_jax.games, nlhf_jax.learners, nlhf_jax.models):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for name in ("losses", "opponents", "optimizers", "raters", "rollout", "sharding"):
    importlib.import_module("nlhf_jax." + name)

from tests import tiny

learner = tiny.learner("nash_md")
batch = learner.partitioner.place_batch(tiny.batch("nash_md", 0))
state, metrics = learner.train_step(learner.init(), batch)
print(int(state.step))
"""


def test_the_core_imports_and_trains_with_tensorflow_blocked():
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (program.returncode, program.stdout) == (0, "1\n"), program.stderr
