"""The settings that reach a function: names and plain values, whichever way they are written."""

import json

import gin
import pytest

from nlhf_jax import configuration
from tests import gin_example

HEADER = "from __gin__ import dynamic_registration\nfrom tests import gin_example\n"
FILE = (
    HEADER
    + """
STEPS = 3
SIZES = @gin_example.Sizes()
UNUSED = 1
gin_example.learn.sizes = %SIZES
gin_example.learn.steps = %STEPS
gin_example.learn.lengths = {"inputs": %STEPS}
gin_example.Sizes.emb_dim = 8
gin_example.fail.line = 5
"""
)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    gin.clear_config()


def settings(text: str, *free: str) -> configuration.Settings:
    with open("run.gin", "w", encoding="utf-8") as file:
        file.write(text)
    configuration.parse(["run.gin"])
    return configuration.settings_of(gin_example.learn, free)


def test_what_reaches_the_function_is_there_with_the_codes_defaults_and_nothing_else():
    found = settings(FILE)
    assert found.values == {
        "gin_example.learn.sizes": "@gin_example.Sizes()",
        "gin_example.learn.steps": 3,
        "gin_example.learn.rate": 0.1,
        "gin_example.learn.kind": "sp",
        "gin_example.learn.lengths": {"inputs": 3},
        "gin_example.learn.players": [],
        "gin_example.Sizes.emb_dim": 8,
        "gin_example.Sizes.activations": ["relu"],
    }
    assert found.macros == {"gin_example.learn.steps": "STEPS", "gin_example.learn.sizes": "SIZES"}
    assert found.defaults["gin_example.learn.rate"] == 0.1 and found.free == {}
    assert json.loads(json.dumps(found.values)) == found.values


def test_comments_order_macros_and_other_names_of_modules_are_the_same_settings():
    other = """# A comment.
    from __gin__ import dynamic_registration
    from tests import gin_example as other
    other.Sizes.emb_dim = 8
    other.learn:
        lengths = {"inputs": 3}
        steps = 3
        rate = 0.1
        sizes = @other.Sizes()
    """.replace("\n    ", "\n")
    assert settings(other).values == settings(FILE).values


def test_the_configuration_that_a_run_leaves_behind_is_the_same_settings():
    before = settings(FILE).values
    configuration.run(gin_example.learn, "out")
    with open("out/config.gin", encoding="utf-8") as file:
        assert settings(file.read()).values == before


def test_what_is_set_for_a_free_setting_alone_is_free():
    found = settings(FILE, "gin_example.learn.sizes")
    assert found.free == {
        "gin_example.learn.sizes": "@gin_example.Sizes()",
        "gin_example.Sizes.emb_dim": 8,
        "gin_example.Sizes.activations": ["relu"],
    }
    assert not found.free.keys() & found.values.keys()


def test_a_scope_of_the_users_own_is_part_of_the_name():
    scoped = FILE.replace("= @gin_example.Sizes()", "= @mine/gin_example.Sizes()")
    found = settings(scoped + "mine/gin_example.Sizes.emb_dim = 16\n").values
    assert found["mine/gin_example.Sizes.emb_dim"] == 16
    assert "gin_example.Sizes.emb_dim" not in found
