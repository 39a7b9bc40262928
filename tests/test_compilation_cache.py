import jax
import pytest

from nlhf_jax import compilation_cache


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """Home is empty and the cache is on, with no directory; returns which one is chosen now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    }
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(chosen, tmp_path):
    compilation_cache.keep_programs()
    assert chosen().startswith(str(tmp_path / "caches" / "nlhf_jax" / "programs-"))
    first = chosen()
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.keep_programs()
    assert chosen() == first


def test_a_directory_that_was_chosen_stays(chosen, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compilation_cache.keep_programs()
    assert chosen() == str(tmp_path / "mine")
    assert not (tmp_path / "caches").exists()


def test_no_cache_is_no_cache(chosen, tmp_path):
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.keep_programs()
    assert chosen() is None
    assert not (tmp_path / "caches").exists()


def test_where_nothing_can_be_written_programs_are_compiled_anew(chosen, tmp_path):
    (tmp_path / "caches").write_text("a file where the directory should be")
    compilation_cache.keep_programs()
    assert chosen() is None


def test_another_kind_of_processor_has_a_directory_of_its_own(chosen, monkeypatch):
    compilation_cache.keep_programs()
    first = chosen()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "another")
    compilation_cache.keep_programs()
    assert chosen() != first
