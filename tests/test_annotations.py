"""Public functions say the types of what they take and give."""

import ast
from pathlib import Path

import pytest

import nlhf_jax

PACKAGE = Path(nlhf_jax.__file__).parent
LAUNCHERS = PACKAGE.parent / "launch"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
FILES += sorted(f"../launch/{path.name}" for path in LAUNCHERS.glob("*.py"))


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def public_functions(node: ast.AST):
    """Functions and methods that others may call; what is nested in functions is not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and is_public(child.name):
            yield from public_functions(child)
        elif isinstance(child, ast.FunctionDef) and is_public(child.name):
            yield child


def missing(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    taken = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    taken += [found for found in (arguments.vararg, arguments.kwarg) if found is not None]
    names = [
        argument.arg
        for argument in taken
        if argument.annotation is None and argument.arg not in ("self", "cls")
    ]
    if function.returns is None and function.name != "__init__":
        names.append("return")
    return names


@pytest.mark.parametrize("name", FILES)
def test_public_functions_are_annotated(name):
    tree = ast.parse((PACKAGE / name).read_text())
    found = {f.name: missing(f) for f in public_functions(tree)}
    assert {function: names for function, names in found.items() if names} == {}
