"""Settings of a training run: from a TOML file, from single assignments, and from flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regionhash.files.text import one_line, read_text, reason_of, shown
from regionhash.models import MODELS
from regionhash.models.parameters import LARGEST, MOST, checked, types_of
from regionhash.training.config import TrainingConfig

Arguments = dict[str, Any]

_MOST_BYTES, _LONGEST_LINE = 1 << 16, 1000
"""Limits on a file of settings: `tomllib` takes time quadratic in the length of a line."""


def training_settings(
    model: str,
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
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
        most = LARGEST if name == "seed" else MOST
        value = checked(where, value, known[table][name], most=most)
        if table == "training":
            try:
                TrainingConfig(**{name: value})
            except ValueError as error:
                raise ValueError(f"{where}: {error}" if where != name else str(error)) from error
        settings[table][name] = value

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
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set {assignment}: must be name=value")
        put(f"--set {name}", table_of.get(name), name, _value(text))
    for name, value in (flags or {}).items():
        if value is not None:
            put(name, table_of.get(name), name, value)
    return settings["model"], TrainingConfig(**settings["training"])


def _read(file: Path) -> dict[str, Any]:
    text = read_text(file, "the settings", most=_MOST_BYTES)
    for row, line in enumerate(text.splitlines(), 1):
        if len(line) > _LONGEST_LINE:
            raise ValueError(
                f"{file}: broken TOML: line {row} is longer than {_LONGEST_LINE} characters"
            )
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{file}: broken TOML: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{file}: broken TOML: {reason_of(error)}") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # not TOML, or deeper than Python reads: a word
        return text
