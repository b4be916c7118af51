"""Encoders: from a picture to a map of features, a vector, or both, with ONNX Runtime and NumPy."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from regionhash.data.frames import Frame, Pixels
from regionhash.data.image_set import Image
from regionhash.encoders.errors import EncoderError
from regionhash.encoders.layout import Layout, run_graph, vectors_of
from regionhash.encoders.preprocessing import Preprocessing
from regionhash.sessions import open_session
from regionhash.structures import Floats

Pooling = Literal["max", "mean"]

_BATCH = 16  # pictures that are encoded at once


class Encoder(Protocol):
    """An image encoder.

    Attributes:
        n_channels: D, channels of the map; 0 without a map.
        n_vector: length of the vector of a whole picture; 0 without one.
        gives_map: whether `map` may be called.
        stride: input pixels per cell of the map; 1 without a map.
        pooling: how regions of the map are best pooled: "max" for maps of convolutions, "mean" for
            tokens.
        fixed_size: (height, width) of the input if the encoder takes no other.
    """

    @property
    def n_channels(self) -> int: ...  # noqa: D102
    @property
    def n_vector(self) -> int: ...  # noqa: D102
    @property
    def gives_map(self) -> bool: ...  # noqa: D102
    @property
    def stride(self) -> int: ...  # noqa: D102
    @property
    def pooling(self) -> Pooling: ...  # noqa: D102
    @property
    def fixed_size(self) -> tuple[int, int] | None: ...  # noqa: D102

    def prepare(self, image: Image, short: int) -> tuple[Pixels, Frame]:
        """The input (3, h, w) uint8 of a picture (H, W, 3), and the frame of its boxes.

        Its short side is `short` and its aspect that of the picture, both as far as sides that are
        multiples of the stride allow; an encoder of a fixed size takes that instead.
        """

    def map(self, pixels: Pixels) -> Floats:
        """The map (D, h / stride, w / stride) float32 of an input (3, h, w)."""

    def vectors(self, inputs: Sequence[Pixels]) -> Floats:
        """The vectors (N, n_vector) float32 of N inputs (3, h, w), each encoded as a whole."""


class OnnxEncoder:
    """An encoder that is an ONNX graph; see `Encoder`. Threads may share it.

    The graph is opened when it is first run.

    Args:
        graph: the graph, or its file.
        preprocessing: of its input.
        layout: of its input and outputs.
        place: the graph, for messages.
        session: of the graph, if it is open already.
    """

    def __init__(
        self,
        graph: bytes | Path,
        preprocessing: Preprocessing,
        layout: Layout,
        place: str,
        session: Any = None,
    ) -> None:
        self.preprocessing = preprocessing
        self.layout = layout
        self.n_channels = layout.n_channels
        self.n_vector = layout.n_vector
        self.gives_map = bool(layout.map_output)
        self.stride = layout.stride
        self.pooling: Pooling = "max" if layout.prefix is None else "mean"
        self.fixed_size = layout.fixed_size
        self._graph, self._place = graph, place
        self._lock = threading.Lock()
        self._session = session

    @property
    def session(self) -> Any:
        """The session of the graph. Raises EncoderError if ONNX Runtime cannot open it."""
        with self._lock:
            if self._session is None:
                self._session = open_session(self._graph, self._place, EncoderError)
            return self._session

    def prepare(self, image: Image, short: int) -> tuple[Pixels, Frame]:
        """The input (3, h, w) uint8 of a picture (H, W, 3), and the frame of its boxes.

        Resized with Pillow's filter that the preprocessing names, to sides of `fit_size`, or to the
        fixed size whatever the aspect.

        Raises:
            ValueError: a side is not positive.
        """
        return self.preprocessing.prepare(image, short, self.stride, self.fixed_size)

    def map(self, pixels: Pixels) -> Floats:
        """The map (D, h / stride, w / stride) float32 of an input (3, h, w) uint8.

        Raises:
            EncoderError: the encoder gives no map, or cannot be run on this input.
        """
        layout = self.layout
        if not self.gives_map:
            raise EncoderError(f"{self._place}: gives a vector of the whole picture, and no map")
        output = self._run(pixels[None], layout.map_output)[0]
        h, w = (side // layout.stride for side in pixels.shape[1:])
        if layout.prefix is not None:
            tokens = output[layout.prefix :]  # (h * w, D)
            if len(tokens) != h * w:
                raise EncoderError(
                    f"{self._place}: {len(output)} tokens are no grid of {h} x {w} cells"
                )
            output = tokens.T.reshape(-1, h, w)
        if output.shape != (layout.n_channels, h, w):
            raise EncoderError(
                f"{self._place}: the map must be {(layout.n_channels, h, w)}, got {output.shape}"
            )
        return np.ascontiguousarray(output)

    def vectors(self, inputs: Sequence[Pixels]) -> Floats:
        """The vectors (N, n_vector) float32 of N inputs (3, h, w) uint8, in their order.

        Inputs of one size are encoded together.

        Raises:
            EncoderError: the encoder gives no vectors, or cannot be run on these inputs.
        """
        if not self.n_vector:
            raise EncoderError(f"{self._place}: gives a map, and no vector of a whole picture")
        found = np.empty((len(inputs), self.n_vector), np.float32)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for row, pixels in enumerate(inputs):
            by_size.setdefault(pixels.shape, []).append(row)
        at_once = _BATCH if self.layout.batched else 1
        for group in by_size.values():
            for start in range(0, len(group), at_once):
                rows = group[start : start + at_once]
                batch = np.stack([inputs[row] for row in rows])
                found[rows] = vectors_of(self._run(batch, self.layout.vector_output))
        return found

    def _run(self, pixels: Pixels, name: str) -> Floats:
        """An output of the graph for inputs (B, 3, h, w) uint8."""
        session = self.session
        try:
            outputs = run_graph(
                session, self.layout.input, self.preprocessing.scaled(pixels), [name]
            )
            if not np.isfinite(outputs[name]).all():
                raise EncoderError("gives values that are no numbers for a picture")
        except EncoderError as error:
            raise EncoderError(f"{self._place}: {error}") from error
        output: Floats = outputs[name]
        return output
