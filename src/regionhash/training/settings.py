"""Settings of a training run: from a TOML file, from single assignments, and from flags."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from regionhash.files.text import one_line, read_text, refusing, shown
from regionhash.models import MODELS
from regionhash.models.parameters import LARGEST, MOST, checked, types_of
from regionhash.training.config import TrainingConfig

Arguments = dict[str, Any]
Options = TypeVar("Options")

NO_FLAGS: Mapping[str, Any] = MappingProxyType({})

_MOST_BYTES, _LONGEST_LINE = 1 << 16, 1000
"""Limits on a file of settings: `tomllib` takes time quadratic in the length of a line."""


def training_settings(
    model: str,
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] = NO_FLAGS,
) -> tuple[Arguments, TrainingConfig]:
    """The arguments for the builder of a model, and the configuration of its training.

    A name is an argument of the model's builder or a field of `TrainingConfig`; no name is both.
    Flags override assignments, which override the file.

    Args:
        model: a key of MODELS.
        file: TOML with the tables [model] and [training].
        assignments: "name=value" each; the value as in TOML, except that a single word needs no
            quotes.
        flags: values by name; None means not given.

    Raises:
        ValueError: an unknown model or name, or a value of the wrong type; the message names its
            place and what is allowed.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; known: {', '.join(MODELS)}")
    known = {"model": types_of(MODELS[model]), "training": types_of(TrainingConfig)}
    known["model"].pop("n_classes")  # set from the data
    table_of = {name: table for table, names in known.items() for name in names}
    settings: dict[str, Arguments] = {"model": {}, "training": {}}

    def put(where: str, table: str | None, name: str, value: Any) -> None:
        if table is None:
            raise ValueError(f"{where}: unknown; known are {', '.join(table_of)}")
        settings[table][name] = _setting(
            where, name, value, known[table][name], TrainingConfig if table == "training" else None
        )

    for table, content in _read(file).items() if file else ():
        if table not in known or not isinstance(content, dict):
            raise ValueError(
                f"{file}: unknown key {shown(table)}; known are [model] and [training]"
            )
        for name, value in content.items():
            where = f"{file}: [{table}] {one_line(name)}"
            if name not in known[table]:
                raise ValueError(f"{where}: unknown; known are {', '.join(known[table])}")
            put(where, table, name, value)
    for where, name, value in _given(assignments, flags):
        put(where, table_of.get(name), name, value)
    return settings["model"], TrainingConfig(**settings["training"])


def options_from(
    options: type[Options], assignments: Sequence[str], flags: Mapping[str, Any] = NO_FLAGS
) -> Options:
    """An instance of a frozen dataclass of options; what is not given has its default.

    Args:
        options: the dataclass.
        assignments: "name=value" each, as for `training_settings`.
        flags: values by name, which override the assignments; those that are None were not given.

    Raises:
        ValueError: an unknown name, or a value of another type or out of range; the message names
            where it stands and what would be right.
    """
    known = types_of(options)
    settings: Arguments = {}
    for where, name, value in _given(assignments, flags):
        if name not in known:
            raise ValueError(f"{where}: unknown; known are {', '.join(known)}")
        settings[name] = _setting(where, name, value, known[name], options)
    return options(**settings)


def _given(assignments: Sequence[str], flags: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Where each value was given, its name, and the value: assignments first, then flags."""
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set {assignment}: must be name=value")
        yield f"--set {name}", name, _value(text)
    for name, value in flags.items():
        if value is not None:
            yield name, name, value


def _setting(where: str, name: str, value: Any, hint: Any, kind: Callable[..., Any] | None) -> Any:
    """The value in its type, which the dataclass `kind` takes for this field."""
    value = checked(where, value, hint, most=LARGEST if name == "seed" else MOST)
    if kind is not None:
        try:
            kind(**{name: value})
        except ValueError as error:
            raise ValueError(f"{where}: {error}" if where != name else str(error)) from error
    return value


def _read(file: Path) -> dict[str, Any]:
    text = read_text(file, "the settings", most=_MOST_BYTES)
    with refusing(f"{file}: broken TOML"):
        for row, line in enumerate(text.splitlines(), 1):
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"line {row} is longer than {_LONGEST_LINE} characters")
        return tomllib.loads(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # not TOML, or deeper than Python reads: a word
        return text
