"""Reading a file of JSON that someone else may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regionhash.textfile import read_text, reason_of


def read_json(
    path: Path,
    error: type[ValueError] = ValueError,
    *,
    what: str = "the file",
    most: int | None = None,
) -> Any:
    """What a file of JSON in UTF-8 holds: values of any type, which the caller has to check.

    As Python reads it: NaN and Infinity are numbers, 1e400 is infinite, and strings may hold half
    of a surrogate pair.

    Args:
        path: the file.
        error: what is raised.
        what: the file should be, for messages: "the instances file".
        most: bytes that are read; a larger file is refused. None reads any.

    Raises:
        ValueError: `error`: the file cannot be read, is no JSON, is nested more deeply than Python
            follows, or has an integer of more than 4300 digits. The message is one line, which
            names the file.
    """
    text = read_text(path, what, most=most, error=error)
    try:
        return json.loads(text)
    except RecursionError:
        raise error(f"{path}: broken JSON: nested too deeply") from None
    except MemoryError as failure:
        raise error(f"{path}: broken JSON: too large for the memory") from failure
    except ValueError as failure:
        raise error(f"{path}: broken JSON: {reason_of(failure)}") from failure
