"""Files hold one idea, functions fit on a screen: what does not says why at its place."""

import ast
from pathlib import Path

import pytest

import nlhf_jax

PACKAGE = Path(nlhf_jax.__file__).parent
LAUNCHERS = PACKAGE.parent / "launch"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
FILES += sorted(f"../launch/{path.name}" for path in LAUNCHERS.glob("*.py"))
TABLES = ("data/tldr_mini/lexicon.py",)  # words
FILE_LINES, FUNCTION_LINES = 400, 60


def lines_of(function: ast.FunctionDef) -> int:
    """Lines from its `def` to its end; the docstring, which has to be complete, is not counted."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


@pytest.mark.parametrize("name", [name for name in FILES if name not in TABLES])
def test_files_and_functions_are_short(name):
    text = (PACKAGE / name).read_text()
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert lines_of(node) <= FUNCTION_LINES, f"{name}: {node.name}"
