"""Families of models: from a configuration, or a checkpoint's description of one, to the model.

A family of your own is a frozen dataclass of JSON-able settings and a class that makes a
`LanguageModel` of them:

    registry.register("recurrent", RecurrentModel, RecurrentConfig)

Its `description()` is `registry.describe(config)`. Gin files then name the configuration wherever
they name a model, and a checkpoint says its family. A program that opens such a checkpoint must
have imported the module that registers the family: opening a checkpoint imports nothing by itself.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.models.language_model import LanguageModel
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config


class Family(NamedTuple):
    """`make(config(**settings))` is a model."""

    make: Callable[[Any], LanguageModel]
    config: type


_FAMILIES: dict[str, Family] = {}
_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), bool: (bool,), float: (float, int), str: (str,)}


def register(name: str, make: Callable[[Any], LanguageModel], config: type) -> None:
    """Makes a family known under `name`; `config` is a dataclass with JSON-able fields."""
    _FAMILIES[name] = Family(make, config)


def model_of(config: Any) -> LanguageModel:
    """The model with these settings. Raises UserError if no family has such a configuration."""
    return _FAMILIES[_name_of(config)].make(config)


def describe(config: Any) -> dict[str, Any]:
    """JSON-able settings from which `build` makes the same model again, in this process or not."""
    return {
        "family": _name_of(config),
        # Who must be imported before `build`, for those that the package does not bring.
        **({} if isinstance(config, T5Config) else {"module": type(config).__module__}),
        **dataclasses.asdict(config),
    }


def build(description: Mapping[str, Any]) -> LanguageModel:
    """The model whose `description()` this is. Raises UserError for an unknown one."""
    settings = dict(description)
    family, module = settings.pop("family", None), settings.pop("module", None)
    if not isinstance(family, str) or family not in _FAMILIES:
        hint = f"; {module} registered it: import that, or give --module={module}" if module else ""
        raise UserError(
            f"the model family {family!r} is unknown; there is {', '.join(_FAMILIES)}{hint}"
        )
    make, config = _FAMILIES[family]
    try:
        made = config(**settings)
        hints = typing.get_type_hints(config)
        for name, value in settings.items():
            wanted = hints.get(name)
            if wanted in (int, bool, float, str) and type(value) not in _PLAIN[wanted]:
                raise TypeError(f"{name} is {str(value)[:40]!r}, not {wanted.__name__}")
        return make(made)
    except TypeError as error:
        raise UserError(
            f"the model's description does not fit {config.__name__}: {error}"
        ) from error


def _name_of(config: Any) -> str:
    for name, family in _FAMILIES.items():
        if type(config) is family.config:
            return name
    raise UserError(
        f"MODEL is of the type {type(config).__name__}, which no family of models has: register one"
        f" with models.registry.register; there are {', '.join(_FAMILIES)}"
    )


register("t5", T5, T5Config)
