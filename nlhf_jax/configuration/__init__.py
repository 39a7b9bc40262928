"""Gin files, the values in them, and errors about them that say what to change."""

from nlhf_jax.configuration.configured import Settings, settings_of
from nlhf_jax.configuration.messages import message
from nlhf_jax.configuration.parsing import (
    FILE_NAME,
    Configured,
    arguments,
    macro,
    parse,
    replace_strings,
    run,
    speaks_of,
    text,
    write,
)

__all__ = [
    "FILE_NAME",
    "Configured",
    "Settings",
    "arguments",
    "macro",
    "message",
    "parse",
    "replace_strings",
    "run",
    "settings_of",
    "speaks_of",
    "text",
    "write",
]
