"""What a detector's graph does not say itself: names of classes, scale of pixels, form of boxes.

It is in `FILE.json` beside the graph, or, for exports of Ultralytics, in the graph's metadata.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from regionhash.files.text import is_text, refusing, shown

MAX_SIDE = 4096
"""Largest side of a graph's input, in pixels."""

MAX_STRIDE = 512
DEFAULT_STRIDE = 32
DEFAULT_MIN_SCORE = 0.25

BoxFormat = Literal["xyxy", "yxyx", "xywh", "cxcywh"]
"""The four numbers of a box: two corners, either way, or a corner or the centre and the size."""

COORDINATES = ("x0", "y0", "x1", "y1")
"""Names of the columns of a table that are the numbers of a box, whatever its format."""

DETECTION = (*COORDINATES, "score", "class")
"""Columns of a table as Ultralytics exports it with nms=True."""

_TASKS = ("detect", "segment", "pose")  # of Ultralytics; others have no upright boxes
_MAX_TEXT = 1 << 20  # characters of names in metadata
_MAX_NUMBER = 1_000_000  # of a class

_RGB = tuple[float, float, float]


@dataclass(frozen=True)
class DetectorSettings:
    """How a detector is fed and read.

    Attributes:
        names: of the classes, by number; None if they have none.
        size: (height, width) of the input if the graph leaves it open; only the shorter counts if
            the graph takes any. None is 640 x 640.
        stride: sides of an open input are multiples of this.
        scale: what pixels 0 to 255 are multiplied with, unless the graph takes bytes.
        mean: of red, green and blue, subtracted after that; std: divides then.
        bgr: whether the channels are blue, green, red.
        format: see `BoxFormat`.
        relative: whether boxes are fractions of the input's sides.
        columns: the first ones of a table of detections; None is what its width stands for.
        min_score: detections of a lower score are left out.
    """

    names: dict[int, str] | None = None
    size: tuple[int, int] | None = None
    stride: int = DEFAULT_STRIDE
    scale: float = 1 / 255
    mean: _RGB = (0.0, 0.0, 0.0)
    std: _RGB = (1.0, 1.0, 1.0)
    bgr: bool = False
    format: BoxFormat = "xyxy"
    relative: bool = False
    columns: tuple[str, ...] | None = None
    min_score: float = DEFAULT_MIN_SCORE

    def to_record(self) -> dict[str, Any]:
        """As JSON stores it."""
        record = asdict(self)
        if self.names is not None:
            record["names"] = {str(number): name for number, name in self.names.items()}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DetectorSettings:
        """The settings of a record, which may lack any of them.

        Raises:
            ValueError: an unknown field, or a value that it cannot have.
        """
        known = [field.name for field in fields(cls)]
        for name in record:
            if name not in known:
                raise ValueError(f"unknown field {shown(name)}; known: {', '.join(known)}")
        return cls(**{name: _READ[name](name, x) for name, x in record.items() if x is not None})

    @classmethod
    def of_graph(
        cls, metadata: Mapping[str, str], record: Mapping[str, Any] | None, min_score: float | None
    ) -> DetectorSettings:
        """The settings of a graph.

        Args:
            metadata: its own.
            record: the file beside it, which counts before the metadata; None without one.
            min_score: counts before both.

        Raises:
            ValueError: see `from_record`; or the graph finds no upright boxes.
        """
        task = metadata.get("task", "detect")
        if task not in _TASKS:
            raise ValueError(f"metadata: task must be {' or '.join(_TASKS)}, got {shown(task)}")
        said = {
            name: _literal(key, metadata[key])
            for key, name in (("names", "names"), ("imgsz", "size"), ("stride", "stride"))
            if key in metadata and (record or {}).get(name) is None
        }
        if task != "detect":  # coefficients of masks or key points follow
            said["columns"] = DETECTION
        with refusing("metadata"):
            of_metadata = cls.from_record(said)
        beside = cls.from_record(record or {})
        given = {name: x for name in record or {} if (x := getattr(beside, name)) is not None}
        settings = replace(of_metadata, **given)
        if min_score is None:
            return settings
        return replace(settings, min_score=_share("min_score", min_score))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, each once; without names, their numbers up to 99."""
        return tuple(dict.fromkeys(self.names_or_numbers.values()))

    @property
    def names_or_numbers(self) -> dict[int, str]:
        """The names of the classes by number."""
        return {n: str(n) for n in range(100)} if self.names is None else self.names


def _literal(key: str, text: str) -> Any:
    """The value in a text of metadata, as Python writes it."""
    with refusing(f"metadata: {key}", ValueError, SyntaxError):
        if len(text) > _MAX_TEXT:
            raise ValueError(f"longer than {_MAX_TEXT:,} characters")
        return ast.literal_eval(text)


def _names(name: str, value: Any) -> dict[int, str]:
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f"{name} must be a list of names, or an object from number to name, got {shown(value)}"
        )
    found: dict[int, str] = {}
    for key, text in value.items():
        digits = str(key)
        if type(key) not in (int, str) or not (digits.isascii() and digits.isdecimal()):
            raise ValueError(f"{name} must have numbers of classes, got {shown(key)}")
        if len(digits) > 9 or int(digits) >= _MAX_NUMBER:
            raise ValueError(f"{name}: numbers must be below {_MAX_NUMBER:,}, got {shown(key)}")
        if type(text) is not str or not text.strip() or not is_text(text):
            raise ValueError(f"{name} must be texts that are not blank, got {shown(text)}")
        found[int(digits)] = text.strip()
    return dict(sorted(found.items()))


def _size(name: str, value: Any) -> tuple[int, int]:
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or any(type(x) is not int or not 1 <= x <= MAX_SIDE for x in sides):
        raise ValueError(
            f"{name} must be a side or [height, width] in [1, {MAX_SIDE}], got {shown(value)}"
        )
    return sides[0], sides[1]


def _stride(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_STRIDE:
        raise ValueError(f"{name} must be a whole number in [1, {MAX_STRIDE}], got {shown(value)}")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {shown(value)}")
    return float(value)


def _positive(name: str, value: Any) -> float:
    if _number(name, value) <= 0:
        raise ValueError(f"{name} must be greater than 0, got {shown(value)}")
    return float(value)


def _share(name: str, value: Any) -> float:
    if not 0 <= _number(name, value) <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {shown(value)}")
    return float(value)


def _three(name: str, value: Any) -> _RGB:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{name} must be three numbers, got {shown(value)}")
    read = _positive if name == "std" else _number
    red, green, blue = (read(name, number) for number in value)
    return red, green, blue


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, got {shown(value)}")
    return value


def _format(name: str, value: Any) -> BoxFormat:
    for known in get_args(BoxFormat):
        if value == known:
            found: BoxFormat = known
            return found
    raise ValueError(f"{name} must be one of {', '.join(get_args(BoxFormat))}, got {shown(value)}")


def _columns(name: str, value: Any) -> tuple[str, ...]:
    columns = tuple(value) if isinstance(value, list | tuple) else ()
    needed = (*COORDINATES, "score")
    texts = all(isinstance(column, str) for column in columns)
    counts = {column: columns.count(column) for column in (*needed, "class")}
    if not texts or any(counts[column] != 1 for column in needed) or counts["class"] > 1:
        raise ValueError(
            f"{name} must name {', '.join(needed)} once each, and class unless another output "
            f"has it, got {shown(value)}"
        )
    return columns


_READ: dict[str, Any] = {
    "names": _names,
    "size": _size,
    "stride": _stride,
    "scale": _positive,
    "mean": _three,
    "std": _three,
    "bgr": _flag,
    "format": _format,
    "relative": _flag,
    "columns": _columns,
    "min_score": _share,
}
