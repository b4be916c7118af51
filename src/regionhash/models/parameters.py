"""The parameters of a model: names, types and defaults, from its signature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from regionhash.files.text import shown

MOST = 65_536
"""Largest integer, seeds excepted: a layer with more outputs takes gigabytes."""

LARGEST = 2**63 - 1


def types_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The type of each parameter of a function or class, or of each field of a dataclass."""
    if is_dataclass(function):
        hints = get_type_hints(function)
        return {field.name: hints[field.name] for field in fields(function)}
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    return {name: hints[name] for name in inspect.signature(function).parameters}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function or class by parameter; those without one are left out."""
    parameters = inspect.signature(function).parameters.values()
    return {x.name: x.default for x in parameters if x.default is not x.empty}


def checked(where: str, value: Any, hint: Any, *, most: int = MOST) -> Any:
    """The value in its type: a float from an integer, a path from a text, a tuple from a list.

    A single value is taken as a tuple of one.

    Raises:
        ValueError: the type is wrong, or the number is out of range: a float that is not finite, an
            integer below 0 or above `most`.
    """
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError(f"{where}: must be one of {', '.join(get_args(hint))}, got {shown(value)}")
    if get_origin(hint) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(checked(where, item, get_args(hint)[0], most=most) for item in items)
    if get_origin(hint) is dict:
        hint = dict
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if Path in allowed and type(value) is str and value and "\0" not in value:
        value = Path(value)
    try:
        if type(value) is int and int not in allowed and float in allowed:
            value = float(value)
    except OverflowError:
        raise ValueError(f"{where}: must be finite, got {shown(value)}") from None
    if (Path if isinstance(value, Path) else type(value)) not in allowed:
        names = " or ".join(kind.__name__ for kind in allowed if kind is not NoneType)
        raise ValueError(f"{where}: must be {names}, got {shown(value)}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{where}: must be finite, got {value}")
    if type(value) is int and not 0 <= value <= most:
        raise ValueError(f"{where}: must be from 0 to {most}, got {shown(value)}")
    if type(value) is str and "\0" in value:
        raise ValueError(f"{where}: must have no NUL, got {shown(value)}")
    return value
