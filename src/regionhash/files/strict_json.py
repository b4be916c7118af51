"""Untrusted JSON: read within limits, its fields checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regionhash.files.text import open_regular, read_text, refusing, shown

MAX_BYTES = 16 << 20
"""Largest file. Real ones, even from runs of thousands of epochs, have less than a tenth."""

_MAX_DEPTH = 32


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file in UTF-8; the caller has to check the types of its values.

    As Python reads it: NaN and Infinity are numbers, 1e400 is infinite, and strings may hold half
    of a surrogate pair.

    Args:
        path: the file.
        what: the file's role, for messages: "the instances file".

    Raises:
        ValueError: the file cannot be read, is not JSON, is nested too deeply for Python, or has an
            integer of more than 4300 digits. The message is one line and names the file.
    """
    text = read_text(path, what)
    with refusing(f"{path}: broken JSON"):
        return json.loads(text)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: see `parse_object`.
    """
    with open_regular(path) as file:
        return parse_object(file.read(MAX_BYTES + 1))


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 text.

    Raises:
        ValueError: too long, nested too deeply, not JSON, not an object, or a duplicate key.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES >> 20} MiB")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, got {shown(value)}")
    if _depth(value) > _MAX_DEPTH:  # printing it recurses as reading it does
        raise ValueError("nested too deeply")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in record if names.count(name) > 1)
        raise ValueError(f"duplicate key {shown(duplicate)}")
    return record


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


# -- fields ---------------------------------------------------------------------------------------


def field(record: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """A field of an object. Raises ValueError if it is missing or of another type."""
    if name not in record:
        raise ValueError(f"{name!r} is missing")
    if type(record[name]) is not kind:
        raise ValueError(f"{name} must be {_KINDS[kind]}, got {shown(record[name])}")
    return record[name]


_KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def whole_number(record: dict[str, Any], name: str, low: int, high: int) -> int:
    """A field in [low, high]. Raises ValueError as `field` does, and for other numbers."""
    value: int = field(record, name, int)
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {shown(value)}")
    return value


def class_names(record: dict[str, Any]) -> tuple[str, ...]:
    """The field "classes". Raises ValueError unless it is a list of distinct names."""
    names = field(record, "classes", list)
    for name in names:
        if type(name) is not str or not name:
            raise ValueError(f"classes must be names, got {shown(name)}")
    if len(set(names)) < len(names):
        raise ValueError("classes must be distinct")
    return tuple(names)
