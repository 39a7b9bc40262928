"""A Nash-MD step can be read aloud: what runs while it is traced is short, and in few files."""

import ast
import collections
import sys
from pathlib import Path

import nlhf_jax
from tests import tiny

PACKAGE = Path(nlhf_jax.__file__).parent

# The network, and what a step stands on: the state's pytree and key, where arrays live, and the
# optimiser's view of the parameters. Their names say what they do.
GROUND = ("models/", "learners/state.py", "sharding.py", "optimizers.py")
STEP = {
    "learners/learner.py",
    "learners/policy.py",
    "losses.py",
    "objectives.py",
    "raters/packing.py",
    "raters/pair.py",
    "raters/scorers.py",
    "rollout.py",
}


def traced_functions() -> dict[str, set[int]]:
    """File -> first lines of its functions that run while a Nash-MD step is traced."""
    learner = tiny.learner("nash_md")
    batch = learner.partitioner.place_batch(tiny.batch("nash_md", 0))
    state, frozen = learner.init(), learner._frozen
    found = collections.defaultdict(set)

    ours = f"{PACKAGE}/"

    def look(frame, event, argument):  # It is called some millions of times.
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(ours):
            found[path.removeprefix(ours)].add(frame.f_code.co_firstlineno)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        learner._jitted_train_step.lower(state, frozen, batch)
    finally:
        sys.setprofile(before)
    return found


def lines_of(path: Path, first_lines: set[int]) -> int:
    """Lines of the functions that start there, docstrings included, each line once."""
    lines = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            starts = {node.lineno, *(decorator.lineno for decorator in node.decorator_list)}
            if starts & first_lines:
                lines |= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_a_step_is_at_most_350_lines_in_eight_files():
    found = traced_functions()
    step = {name for name in found if not name.startswith(GROUND)}
    assert step == STEP
    assert sum(lines_of(PACKAGE / name, found[name]) for name in step) <= 350
