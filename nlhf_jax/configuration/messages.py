"""Gin's errors in words that say what to change."""

import difflib
import inspect
import re
import sys
from typing import Any

import gin

from nlhf_jax.configuration.bindings import all_bindings


def message(error: BaseException) -> str:
    """What an error says, without the lines about the call that gin appends to it."""
    return str(error).split("\n  In call to configurable ")[0].split("\n  No values supplied by")[0]


def reason(error: BaseException) -> str:
    """Gin's reason in one line, with a suggestion where there is one."""
    reason = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().split("\n")[0]
    reason = " ".join(reason.rstrip(".").split())
    if match := re.match(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", reason):
        parameters = inspect.signature(gin.get_configurable(match[1])).parameters
        return f"{match[1]} has no parameter {match[2]!r}{did_you_mean(match[2], parameters)}"
    if match := re.search(r"<module '([\w.]+)'.*> has no attribute (\w+)", reason):
        names = [name for name in dir(sys.modules[match[1]]) if not name.startswith("_")]
        return f"{match[1]} has no {match[2]!r}{did_you_mean(match[2], names)}"
    if match := re.match(r"No configurable matching '(.+)'", reason):
        bound = {selector.rpartition(".")[2] for (_, selector), _ in all_bindings()}
        name = match[1].rpartition(".")[2]
        return f"nothing in the gin files is called {match[1]!r}{did_you_mean(name, bound)}"
    if match := re.match(r"Unable to open file: (.+?)\. Searched config paths", reason):
        return f"the gin file {match[1]} does not exist"
    return reason


def did_you_mean(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
