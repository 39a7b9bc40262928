"""`tldr_mini`, written once for all tests of the data."""

import pytest

from nlhf_jax.data import templates, vocabularies

LENGTHS = {"inputs": 40, "targets": 16, "text": 40, "summary": 16}


@pytest.fixture(scope="session")
def mini_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("tldr_mini")


@pytest.fixture(scope="session")
def vocabulary():
    return vocabularies.tldr_mini_vocabulary()


@pytest.fixture(scope="session")
def template(vocabulary):
    return templates.rater_segments(
        vocabulary,
        templates.SHORT_INSTRUCTION,
        templates.SHORT_SUMMARY_1,
        templates.SHORT_SUMMARY_2,
    )


@pytest.fixture(scope="session")
def mini_tasks(mini_directory, vocabulary, template):
    """Registers the tasks of `tldr_mini`; gives the prefix of their names."""
    from nlhf_jax.data import sources, tasks

    tasks.register_tasks(
        "tldr_mini", sources.tldr_mini_sources(mini_directory), vocabulary, template
    )
    return "tldr_mini"
