"""What the input and the outputs of a graph mean: found by running it, once, and stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.encoders.errors import EncoderError
from regionhash.encoders.preprocessing import MAX_SIDE, side_pair
from regionhash.files.strict_json import field, whole_number
from regionhash.files.text import one_line
from regionhash.structures import Floats

MAP_NAMES = ("last_hidden_state",)
VECTOR_NAMES = ("image_embeds", "pooler_output")
"""Outputs of transformers, best first; others are taken if there is only one of their form."""

MAX_PREFIX = 16
"""Most tokens before those of the grid: a class token and registers."""

_SIDES = (224, 256, 384, 336, 448, 518, 512)  # tried if nothing says what a graph takes
_MAX_CHANNELS = 65_536


@dataclass(frozen=True)
class Hints:
    """What files beside a graph say of it, as far as they do.

    Attributes:
        sizes: (height, width) of pictures that it takes, the likeliest first.
        patch: input pixels per token.
        prefix: tokens before those of the grid.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    patch: int | None = None
    prefix: int | None = None


@dataclass(frozen=True)
class Layout:
    """How a graph is fed and read.

    Attributes:
        input: name of its input (B, 3, h, w) float32.
        map_output: name of the output that is a map, "" if none is: (1, D, h, w), or tokens
            (1, T, D).
        prefix: number of tokens before those of the grid; None if the output is a map already.
        n_channels: D, 0 without a map.
        stride: input pixels per cell; 1 without a map.
        vector_output: name of the output that is a vector (B, N), "" if none is. If it is that of
            the tokens, the first token is the vector.
        n_vector: N, 0 without a vector.
        fixed_size: (height, width) of the input if it takes no other.
        batched: whether it takes several pictures at once.
    """

    input: str
    map_output: str
    prefix: int | None
    n_channels: int
    stride: int
    vector_output: str
    n_vector: int
    fixed_size: tuple[int, int] | None
    batched: bool

    def to_record(self) -> dict[str, Any]:
        """As JSON stores it."""
        record = asdict(self)
        record["fixed_size"] = self.fixed_size and list(self.fixed_size)
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Layout:
        """The inverse of `to_record`. Raises ValueError, without a file, for anything else."""
        prefix, size = record.get("prefix"), record.get("fixed_size")
        layout = cls(
            input=field(record, "input", str),
            map_output=field(record, "map_output", str),
            prefix=None if prefix is None else whole_number(record, "prefix", 0, MAX_PREFIX),
            n_channels=whole_number(record, "n_channels", 0, _MAX_CHANNELS),
            stride=whole_number(record, "stride", 1, 1024),
            vector_output=field(record, "vector_output", str),
            n_vector=whole_number(record, "n_vector", 0, _MAX_CHANNELS),
            fixed_size=None if size is None else side_pair(size, "fixed_size"),
            batched=record.get("batched") is True,
        )
        if set(record) != set(asdict(layout)) or type(record["batched"]) is not bool:
            raise EncoderError(f"layout must have {', '.join(asdict(layout))}")
        if bool(layout.map_output) != bool(layout.n_channels) or bool(layout.vector_output) != bool(
            layout.n_vector
        ):
            raise EncoderError("layout contradicts itself")
        if not layout.map_output and not layout.vector_output:
            raise EncoderError("layout has neither a map nor a vector")
        return layout


def find_layout(session: Any, hints: Hints, place: str) -> Layout:
    """The layout of a graph, found by running it on noise in one or two sizes.

    Args:
        session: of ONNX Runtime.
        hints: from files beside it.
        place: the graph, for messages.

    Raises:
        EncoderError: it does not take pictures, cannot be run, its outputs are neither a map nor a
            vector, or there are several ways to read them.
    """
    try:
        name, shape = _input_of(session)
        size, outputs = _first_run(session, name, shape, hints)
        map_output, vector_output = _choose(outputs)
        readings: list[_Reading] = [_Reading(1, None)]
        fixed = True
        if map_output:
            readings = _readings(outputs[map_output], size, hints)
            if not any(isinstance(side, int) for side in shape[2:]):
                wide = (size[0], 2 * size[1])
                with suppress(EncoderError):  # positions of one size only, say
                    other = run_graph(session, name, _noise(wide))[map_output]
                    agreeing = [reading for reading in readings if reading.fits(other, wide)]
                    readings, fixed = agreeing or readings, not agreeing
            if len(readings) > 1:
                strides = " or ".join(str(reading.stride) for reading in readings)
                raise EncoderError(
                    f"its {outputs[map_output].shape[1]} tokens may be cells of {strides} pixels; "
                    "a config.json beside it with patch_size decides"
                )
        reading = readings[0]
        if not vector_output and reading.prefix:
            vector_output = map_output
        vectors: Floats = np.zeros((1, 0), np.float32)
        if vector_output:
            vectors = vectors_of(outputs[vector_output])
        batched = bool(vector_output) and not isinstance(shape[0], int)
        return Layout(
            input=name,
            map_output=map_output,
            prefix=reading.prefix,
            n_channels=reading.channels(outputs[map_output]) if map_output else 0,
            stride=reading.stride,
            vector_output=vector_output,
            n_vector=vectors.shape[1],
            fixed_size=size if fixed else None,
            batched=batched and _runs_in_batches(session, name, size, vector_output, vectors),
        )
    except EncoderError as error:
        raise EncoderError(f"{place}: {error}") from error


def run_graph(
    session: Any, name: str, batch: Floats, outputs: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """The outputs of a graph by name.

    Args:
        session: of ONNX Runtime.
        name: of the input.
        batch: the input (B, 3, h, w).
        outputs: the names wanted; none for all.

    Raises:
        EncoderError: it fails; the message does not name the graph.
    """
    names = list(outputs) or [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {name: batch}), strict=True))
    except Exception as error:  # whatever its operators run into
        size = " x ".join(map(str, batch.shape[2:]))
        reason = one_line(str(error).partition("\n")[0])
        raise EncoderError(f"cannot be run on a picture of {size} pixels ({reason})") from error


def vectors_of(output: NDArray[Any]) -> Floats:
    """The vectors (B, N) of an output: vectors, maps of one cell, or the first of the tokens."""
    return output[:, 0] if output.ndim == 3 else output.reshape(len(output), -1)


@dataclass(frozen=True)
class _Reading:
    """A way to read an output as a map; see `Layout`."""

    stride: int
    prefix: int | None

    def fits(self, output: NDArray[Any], size: tuple[int, int]) -> bool:
        h, w = size[0] // self.stride, size[1] // self.stride
        if self.prefix is None:
            return tuple(output.shape[2:]) == (h, w)
        return int(output.shape[1]) == self.prefix + h * w

    def channels(self, output: NDArray[Any]) -> int:
        return int(output.shape[1 if self.prefix is None else 2])


def _input_of(session: Any) -> tuple[str, list[Any]]:
    """Name and shape of the one input; sides that are free are no numbers."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one_line(x.name) for x in inputs) or "none"
        raise EncoderError(f"must have one input, a picture; it has {len(inputs)}: {names}")
    name, kind, shape = one_line(inputs[0].name), inputs[0].type, list(inputs[0].shape)
    if kind != "tensor(float)":
        raise EncoderError(f"its input {name} must be tensor(float), got {kind}")
    batch, channels = [*shape, None, None][:2]
    wrong = isinstance(channels, int) and channels != 3
    if len(shape) != 4 or wrong or (isinstance(batch, int) and batch != 1):
        raise EncoderError(
            f"its input {name} must be (B, 3, h, w), got ({', '.join(map(str, shape))})"
        )
    return inputs[0].name, shape


def _first_run(
    session: Any, name: str, shape: list[Any], hints: Hints
) -> tuple[tuple[int, int], dict[str, NDArray[Any]]]:
    """The first size that the graph takes, and its outputs."""
    sizes = hints.sizes or [(side, side) for side in _SIDES]
    height, width = (side if isinstance(side, int) else None for side in shape[2:])
    sizes = list(dict.fromkeys((height or h, width or w) for h, w in sizes))
    if max(max(size) for size in sizes) > MAX_SIDE:
        raise EncoderError(f"its input must have at most {MAX_SIDE} pixels a side")
    first: EncoderError | None = None
    for size in sizes:
        try:
            return size, run_graph(session, name, _noise(size))
        except EncoderError as error:
            first = first or error
    assert first is not None
    if not hints.sizes:
        raise EncoderError(
            f"{first}; if it takes another size, a preprocessor_config.json beside it says which"
        )
    raise first


def _noise(size: tuple[int, int]) -> Floats:
    """A picture (1, 3, h, w) of noise, normalised."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, 3, *size), np.float32)


def _choose(outputs: dict[str, NDArray[Any]]) -> tuple[str, str]:
    """The names of the outputs that are the map and the vector, "" where none is."""
    outputs = {name: x for name, x in outputs.items() if x.dtype == np.float32 and x.size}
    vectors = [name for name, x in outputs.items() if x.ndim == 2 or x.shape[2:] == (1, 1)]
    maps = [name for name, x in outputs.items() if x.ndim == 4 and name not in vectors]
    tokens = [name for name, x in outputs.items() if x.ndim == 3]
    known = [name for name in MAP_NAMES if name in maps or name in tokens]
    if maps:  # of several stages, the last
        fewest = min(math.prod(outputs[name].shape[2:]) for name in maps)
        maps = [name for name in maps if math.prod(outputs[name].shape[2:]) == fewest][-1:]
    chosen = (
        _only(known or maps or tokens, "maps"),
        _only([name for name in VECTOR_NAMES if name in vectors][:1] or vectors, "vectors"),
    )
    if not any(chosen):
        raise EncoderError("no output is a map (1, D, h, w), tokens (1, T, D) or a vector (1, D)")
    for name in filter(None, chosen):
        if not np.isfinite(outputs[name]).all():
            raise EncoderError(f"its output {one_line(name)} has values that are no numbers")
    return chosen


def _only(names: list[str], what: str) -> str:
    if len(names) > 1:
        listed = ", ".join(map(one_line, names))
        raise EncoderError(f"several outputs are {what}: {listed}; one must remain")
    return names[0] if names else ""


def _readings(output: NDArray[Any], size: tuple[int, int], hints: Hints) -> list[_Reading]:
    """The ways to read an output as a map of a picture of `size`; at least one."""
    height, width = size
    if output.ndim == 4:
        h, w = output.shape[2:]
        if height % h or width % w or height // h != width // w:
            raise EncoderError(
                f"its map of {h} x {w} cells has no whole number of the {height} x {width} pixels "
                "per cell"
            )
        return [_Reading(height // h, None)]
    n_tokens = output.shape[1]
    found = []
    for stride in range(1, min(height, width) + 1):
        prefix = n_tokens - (height // stride) * (width // stride)
        if 0 <= prefix <= MAX_PREFIX:
            found.append(_Reading(stride, prefix))
    # A patch that leaves pixels over at the edges is rare: it must be named or the only one.
    exact = [reading for reading in found if height % reading.stride == width % reading.stride == 0]
    named = [reading for reading in found if reading.stride == hints.patch]
    found = named or exact or found
    if not found or (len(found) > 1 and not exact):
        raise EncoderError(f"its {n_tokens} tokens are no grid of {height} x {width} pixels")
    return [reading for reading in found if reading.prefix == hints.prefix] or found


def _runs_in_batches(
    session: Any, name: str, size: tuple[int, int], output: str, one: Floats
) -> bool:
    """Whether two pictures at once give the vectors of one at a time."""
    try:
        two = vectors_of(run_graph(session, name, np.repeat(_noise(size), 2, axis=0))[output])
    except EncoderError:
        return False
    return two.shape == (2, one.shape[1]) and np.allclose(two, one, rtol=1e-3, atol=1e-4)
