"""The input and the outputs of a detector's graph: found by running it, once, and stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regionhash.detectors.settings import COORDINATES, DETECTION, MAX_SIDE, DetectorSettings
from regionhash.files.strict_json import field
from regionhash.files.text import one_line, shown
from regionhash.structures import Floats, Ints

DEFAULT_SIDE = 640
"""Short side of an input that the graph leaves open, in pixels."""

MAX_BOXES = 5_000
"""More detections of a picture are boxes before suppression; YOLO has 6,300 at 320 pixels."""

_COLUMNS = {
    5: (*COORDINATES, "score"),  # MMDeploy, with another output of labels
    6: DETECTION,
    7: ("batch", *COORDINATES, "class", "score"),  # YOLOv7 end to end
}
MAX_COLUMNS = 256
"""Of a table; those of masks and key points follow the named ones."""

_KINDS = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
_WANTED = (
    "boxes (N, 4) with scores (N,) and labels (N,), or a table (N, 6) of x0, y0, x1, y1, score, "
    "class"
)


@dataclass(frozen=True)
class DetectorLayout:
    """How a graph is fed and read; names of outputs are "" if there are none.

    Attributes:
        input: name of its input.
        kind: type of its input, "float32" or "uint8".
        batched: whether the input has a first side for several pictures, which is 1.
        channels_last: whether the input is (h, w, 3) rather than (3, h, w).
        size: (height, width) of the input if it takes no other.
        table: the output whose rows are detections.
        boxes: otherwise, that of boxes, and scores that of scores.
        labels: that of the numbers of classes, unless the table has them.
        count: that of the number of detections if the others are padded.
    """

    input: str
    kind: str
    batched: bool
    channels_last: bool
    size: tuple[int, int] | None = None
    table: str = ""
    boxes: str = ""
    scores: str = ""
    labels: str = ""
    count: str = ""

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs that are read."""
        named = (self.table, self.boxes, self.scores, self.labels, self.count)
        return [name for name in named if name]

    def to_record(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DetectorLayout:
        """The inverse of `to_record`. Raises ValueError, without a file, for anything else."""
        names = [x.name for x in fields(cls)]
        if set(record) != set(names):
            raise ValueError(f"layout must have {', '.join(names)}")
        values = dict(record)
        for name in names:
            kind = bool if name in ("batched", "channels_last") else str
            if name != "size" and type(values[name]) is not kind:
                raise ValueError(
                    f"layout: {name} must be {kind.__name__}, got {shown(values[name])}"
                )
        if values["kind"] not in _KINDS.values():
            raise ValueError(f"layout: kind must be float32 or uint8, got {shown(values['kind'])}")
        if values["size"] is not None:
            sides = field(values, "size", list)
            if len(sides) != 2 or any(type(x) is not int or not 1 <= x <= MAX_SIDE for x in sides):
                raise ValueError(f"layout: size must be sides or null, got {shown(sides)}")
            values["size"] = tuple(sides)
        if not values["table"] and not (values["boxes"] and values["scores"]):
            raise ValueError("layout: has neither a table nor boxes and scores")
        return cls(**values)


class FoundBoxes(NamedTuple):
    """Boxes (N, 4) xyxy in input pixels, scores (N,), and numbers of classes (N,) or -1."""

    boxes: Floats
    scores: Floats
    numbers: Ints


def find_layout(session: Any, settings: DetectorSettings) -> DetectorLayout:
    """The layout of a graph, found by running it on noise.

    Raises:
        ValueError: it does not take one picture, cannot be run, or its outputs are not detections;
            the message does not name the graph.
    """
    name, kind, shape = _input_of(session)
    batched = len(shape) == 4
    sides = shape[1:] if batched else shape
    channels_last = sides[0] != 3 and sides[2] == 3
    given = [x for x in (sides[:2] if channels_last else sides[1:]) if isinstance(x, int)]
    size = None
    if given:  # a side that is open is like the other
        size = given[0], given[-1]
        if not 1 <= min(size) <= max(size) <= MAX_SIDE:
            raise ValueError(f"its input must have 1 to {MAX_SIDE} pixels a side, got {size}")
    layout = DetectorLayout(name, kind, batched, channels_last, size)
    first = size or settings.size or (DEFAULT_SIDE, DEFAULT_SIDE)
    outputs = run_detector(session, layout, settings, _noise(first))
    if size is None:
        wide = first[0], first[1] + 2 * settings.stride
        try:
            run_detector(session, layout, settings, _noise(wide))
        except ValueError:  # anchors of one size only, say
            size = first
    layout = replace(layout, size=size, **_outputs_of(outputs, settings))  # type: ignore[arg-type]
    read_outputs(outputs, layout, settings, first)
    return layout


def run_detector(
    session: Any, layout: DetectorLayout, settings: DetectorSettings, pixels: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """The outputs that are read, or all of a layout that names none, by name.

    Args:
        session: of ONNX Runtime.
        layout: of the graph.
        settings: of the graph.
        pixels: (h, w, 3) uint8, RGB, of the size that the graph takes.

    Raises:
        ValueError: it fails, or gives values that are no numbers.
    """
    batch: NDArray[Any] = pixels
    if layout.kind == "float32":
        batch = pixels * np.float32(settings.scale) - np.array(settings.mean, np.float32)
        batch /= np.array(settings.std, np.float32)
    if settings.bgr:
        batch = batch[..., ::-1]
    if not layout.channels_last:
        batch = batch.transpose(2, 0, 1)
    batch = np.ascontiguousarray(batch[None] if layout.batched else batch)
    names = layout.outputs or [output.name for output in session.get_outputs()]
    try:
        outputs = dict(zip(names, session.run(names, {layout.input: batch}), strict=True))
    except Exception as error:  # whatever its operators run into
        reason = one_line(str(error).partition("\n")[0])
        size = " x ".join(map(str, pixels.shape[:2]))
        raise ValueError(f"cannot be run on a picture of {size} pixels ({reason})") from error
    for name in layout.outputs:
        if not isinstance(outputs[name], np.ndarray) or outputs[name].dtype.kind not in "fiu":
            raise ValueError(f"its output {one_line(name)} must be an array of numbers")
        if not np.isfinite(outputs[name]).all():
            raise ValueError(f"its output {one_line(name)} has values that are no numbers")
    return {name: x for name, x in outputs.items() if isinstance(x, np.ndarray)}


def read_outputs(
    outputs: Mapping[str, NDArray[Any]],
    layout: DetectorLayout,
    settings: DetectorSettings,
    size: tuple[int, int],
) -> FoundBoxes:
    """The detections of at least the least score.

    Args:
        outputs: of `run_detector`.
        layout: of the graph.
        settings: of the graph.
        size: (height, width) of the input.

    Raises:
        ValueError: the outputs are of another form than at first, or not detections.
    """
    if layout.table:
        table = _rows_of(outputs[layout.table], layout.table)
        columns = _columns_of(table, settings)
        given = np.stack([table[:, columns.index(name)] for name in COORDINATES], axis=1)
        scores = table[:, columns.index("score")]
        numbers = table[:, columns.index("class")] if "class" in columns else None
    else:
        given, scores = _rows_of(outputs[layout.boxes], layout.boxes), outputs[layout.scores]
        numbers = None
    if layout.labels:
        numbers = outputs[layout.labels]
    if numbers is None:
        numbers = np.full(len(given), -1)
    scores, numbers = scores.reshape(-1), numbers.reshape(-1)
    if given.shape[1:] != (4,) or not len(given) == len(scores) == len(numbers):
        raise ValueError(
            f"{len(given)} boxes, {len(scores)} scores and {len(numbers)} labels do not match"
        )
    if len(given) > MAX_BOXES:
        raise ValueError(
            f"gives {len(given):,} boxes of a picture, more than {MAX_BOXES:,}: they must be "
            "those after non-maximum suppression"
        )
    n = int(outputs[layout.count].reshape(-1)[0]) if layout.count else len(given)
    kept = np.flatnonzero(scores[: max(0, n)] >= settings.min_score)
    boxes, scores, numbers = given[kept].astype(np.float32), scores[kept], numbers[kept]
    if (scores > 1).any():
        raise ValueError(f"scores must be in [0, 1], got {scores.max():g}")
    if (numbers != np.round(numbers)).any():
        raise ValueError("numbers of classes must be whole; are these boxes before suppression?")
    boxes = _corners(boxes, settings.format)
    if settings.relative:
        boxes *= np.array([size[1], size[0]] * 2, np.float32)
    elif len(boxes) and boxes.max() <= 1:
        raise ValueError(
            'its boxes are all within 0 to 1: if they are fractions, "relative": true says so in '
            "the .json file beside it"
        )
    return FoundBoxes(boxes, scores.astype(np.float32), numbers.astype(np.int64))


def _corners(boxes: Floats, form: str) -> Floats:
    """Boxes (N, 4) of a format as xyxy."""
    if form == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    if form == "xyxy":
        return boxes
    low, sides = boxes[:, :2], boxes[:, 2:]
    if form == "cxcywh":
        low = low - sides * np.float32(0.5)
    joined: Floats = np.concatenate([low, low + sides], axis=1)
    return joined


# -- finding --------------------------------------------------------------------------------------


def _input_of(session: Any) -> tuple[str, str, list[Any]]:
    """Name, type and shape of the one input; sides that are free are no numbers."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one_line(x.name) for x in inputs) or "none"
        raise ValueError(f"must have one input, a picture; it has {len(inputs)}: {names}")
    name, kind, shape = one_line(inputs[0].name), inputs[0].type, list(inputs[0].shape)
    if kind not in _KINDS:
        raise ValueError(f"its input {name} must be {' or '.join(_KINDS)}, got {kind}")
    batch, sides = (shape[0], shape[1:]) if len(shape) == 4 else (1, shape)
    one_picture = batch == 1 or not isinstance(batch, int)
    if not (
        one_picture
        and len(sides) == 3
        and (3 in (sides[0], sides[2]) or not isinstance(sides[0], int))
    ):
        raise ValueError(
            f"its input {name} must be (1, 3, h, w), got ({', '.join(map(str, shape))})"
        )
    return inputs[0].name, _KINDS[kind], shape


def _noise(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def _outputs_of(outputs: Mapping[str, NDArray[Any]], settings: DetectorSettings) -> dict[str, str]:
    """The names of the outputs in `DetectorLayout`."""
    widths = {
        name: x.shape[-1]
        for name, x in outputs.items()
        if x.dtype.kind == "f" and (x.ndim == 2 or (x.ndim == 3 and x.shape[0] == 1))
    }
    boxes = [name for name, width in widths.items() if width == 4 and not settings.columns]
    boxes = [name for name in boxes if "box" in name.lower()] or boxes
    least = len(settings.columns or ())
    tables = [
        name
        for name, width in widths.items()
        if (least <= width <= MAX_COLUMNS if least else width in _COLUMNS)
    ]
    if not boxes and not tables:
        listed = ", ".join(f"{one_line(name)} {x.shape}" for name, x in outputs.items())
        raise ValueError(
            f"gives no boxes after non-maximum suppression: {_WANTED}; it has {listed} "
            "(Ultralytics exports them with nms=True)"
        )
    if len(boxes or tables) > 1:
        raise ValueError(f"several outputs are boxes: {', '.join(map(one_line, boxes or tables))}")
    chosen = (boxes or tables)[0]
    n = outputs[chosen].shape[-2]
    count = [name for name, x in outputs.items() if name.lower().startswith("num") and x.size == 1]
    others = {
        name: x
        for name, x in outputs.items()
        if name not in (chosen, *count) and x.ndim in (1, 2) and x.size == n
    }
    labels = _named(others, ("label", "class", "cls")) or [
        name for name, x in others.items() if x.dtype.kind in "iu"
    ]
    scores = _named(others, ("score", "conf")) or [name for name in others if name not in labels]
    found = {"count": count[0] if count else ""}
    if not boxes:
        columns = _columns_of(_rows_of(outputs[chosen], chosen), settings)
        found |= {"table": chosen}
        if "class" not in columns:
            found |= {"labels": _only(labels, "labels", optional=True)}
        return found
    return found | {
        "boxes": chosen,
        "scores": _only(scores, "scores"),
        "labels": _only(labels, "labels", optional=True),
    }


def _rows_of(output: NDArray[Any], name: str) -> NDArray[Any]:
    """An output (N, C) or (1, N, C) as (N, C)."""
    if output.ndim == 3 and output.shape[0] == 1:
        output = output[0]
    if output.ndim != 2:
        raise ValueError(f"its output {one_line(name)} must be (N, C), got {output.shape}")
    return output


def _columns_of(table: NDArray[Any], settings: DetectorSettings) -> tuple[str, ...]:
    """The names of the first columns of a table."""
    width = table.shape[1]
    columns = settings.columns or _COLUMNS.get(width)
    if columns is None or len(columns) > width:
        raise ValueError(f"its table has {width} columns, which are not those of detections")
    return columns


def _named(outputs: Mapping[str, Any], words: tuple[str, ...]) -> list[str]:
    return [name for name in outputs if any(word in name.lower() for word in words)]


def _only(names: list[str], what: str, *, optional: bool = False) -> str:
    if len(names) > 1:
        raise ValueError(f"several outputs may be {what}: {', '.join(map(one_line, names))}")
    if not names and not optional:
        raise ValueError(f"gives boxes, but no output is their {what}: {_WANTED}")
    return names[0] if names else ""
