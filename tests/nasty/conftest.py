"""The command line on a few JSON lines, as the end-to-end tests have it."""

from tests.end_to_end.conftest import nlhf, workplace

__all__ = ["nlhf", "workplace"]
