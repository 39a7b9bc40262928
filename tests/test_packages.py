"""Arrows go one way: nothing imports what stands above it."""

import ast
from pathlib import Path

import pytest

import nlhf_jax

PACKAGE = Path(nlhf_jax.__file__).parent

# Bottom to top. A room may import those before it in the list, and itself.
ORDER = (
    "__init__",
    "errors",
    "json_records",
    "processes",
    "files",
    "locks",
    "metrics",
    "tracking",
    "sharding",
    "models",
    "optimizers",
    "opponents",
    "losses",
    "raters",
    "rollout",
    "objectives",
    "learners",
    "games",
    "evaluation",
    "data",
    "checkpoints",
    "guards",
    "patience",
    "interruption",
    "train",
    "report",
    "studies",
    "configuration",
    "jobs",
    "api",
    "planning",
    "benchmarking",
    "compilation_cache",
    "huge_pages",
    "commands",
    "options",
    "main",
)


def room(module: str) -> str:
    """`nlhf_jax.data.tasks` is in the room `data`; `nlhf_jax` itself is `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def room_of(file: str) -> str:
    return room("nlhf_jax." + file.removesuffix(".py").replace("/", "."))


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from nlhf_jax import x` imports the room x, or a name of `nlhf_jax/__init__.py`.
            modules = [
                f"{node.module}.{alias.name}"
                if node.module == "nlhf_jax" and room(f"nlhf_jax.{alias.name}") in ORDER
                else node.module
                for alias in node.names
            ]
        else:
            continue
        found |= {room(module) for module in modules if module.split(".")[0] == "nlhf_jax"}
    return found


FILES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if "gin_configs" not in path.parts
)


def test_every_file_has_a_room():
    assert {
        room("nlhf_jax." + name.removesuffix(".py").replace("/", ".")) for name in FILES
    } <= set(ORDER)


# `nlhf_jax/__init__.py` hands out `api.load` when it is asked for it.
@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__.py"])
def test_nothing_imports_what_stands_above_it(name):
    above = set(ORDER[ORDER.index(room_of(name)) + 1 :])
    assert not imports(PACKAGE / name) & above


def test_games_are_tables_only():
    """They import errors and each other."""
    for name in FILES:
        if name.startswith("games/"):
            assert imports(PACKAGE / name) <= {"errors", "games", "__init__"}, name


def test_foreign_formats_are_known_in_one_place():
    """Of the readers and writers, only `checkpoints/` and the converter know which there are."""
    for name in FILES:
        text = (PACKAGE / name).read_text()
        if "checkpoints.interop" in text:
            assert name.startswith("checkpoints/") or name == "jobs/convert.py", name
