"""From a picture to the pixels of a network's input, with NumPy alone: sizes, resizing, boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from regionhash.data.image_set import Image
from regionhash.structures import Floats

STRIDE = 32
"""Input sides are multiples of this: the stride of the coarsest feature map of a ResNet."""

Pixels = NDArray[np.uint8]
"""A picture as a network takes it: (3, h, w)."""

_Boxes = TypeVar("_Boxes", bound=Any)  # an array or a tensor

_BLOCK_BYTES = 256 << 10  # of sums that are made at a time, so that they stay in the cache


def fit_size(height: int, width: int, short: int, stride: int = STRIDE) -> tuple[int, int]:
    """Input size (h, w) for a picture: multiples of `stride`, close to its aspect.

    The short side is the multiple next to `short`, the long side at most twice that. The aspect
    changes by a few per cent (more for pictures longer than 2:1); in return, pictures of one input
    size form a batch without padding, so a code does not depend on the rest of its batch.

    Raises:
        ValueError: a length is not positive.
    """
    if min(height, width, short) < 1:
        raise ValueError(f"lengths must be positive, got {height} x {width}, short side {short}")
    short_side = max(stride, stride * round(short / stride))
    aspect = min(max(height, width) / min(height, width), 2)
    long_side = stride * round(short_side * aspect / stride)
    return (short_side, long_side) if height <= width else (long_side, short_side)


@dataclass(frozen=True, slots=True)
class Frame:
    """The relation of a picture to the network's input made from it.

    Attributes:
        size: (height, width) of the picture in pixels.
        input_size: (height, width) of the input in pixels.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]

    def to_input(self, boxes: _Boxes) -> _Boxes:
        """Boxes (R, 4) xyxy, array or tensor, from pixels of the picture to input pixels."""
        scaled: _Boxes = boxes * self._scale(boxes)
        return scaled

    def to_original(self, boxes: _Boxes) -> _Boxes:
        """Boxes (R, 4) xyxy, array or tensor, from input pixels to pixels of the picture."""
        scaled: _Boxes = boxes / self._scale(boxes)
        return scaled

    def _scale(self, boxes: Any) -> Any:
        y, x = (new / old for new, old in zip(self.input_size, self.size, strict=True))
        if isinstance(boxes, np.ndarray):
            return np.array([x, y, x, y], boxes.dtype)
        return boxes.new_tensor([x, y, x, y])


def clip_boxes(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Boxes (R, 4) within a picture of a size (height, width)."""
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def to_pixels(image: Image, short: int, stride: int = STRIDE) -> tuple[Pixels, Frame]:
    """The picture resized by `fit_size`, (3, h, w) uint8, and the frame of its boxes."""
    size = (image.shape[0], image.shape[1])
    input_size = fit_size(*size, short, stride)
    pixels = resize(image, input_size).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels), Frame(size, input_size)


def resize(image: Image, size: tuple[int, int]) -> Image:
    """A picture (H, W, 3) uint8 in another size (height, width), as torchvision resizes it.

    Bilinear with antialiasing: each value is an average of all the pixels that it replaces. The
    arithmetic is that of torch's kernel for uint8 (`upsample_bilinear2d` with `antialias`), so each
    byte is the same: weights are whole numbers of 16 bits with as many binary places as fit, and
    sums are rounded to bytes after each of the two passes, first along rows. Pillow's own filter
    has weights of 22 binary places, and differs in up to a fifth of the bytes by 1.
    """
    height, width = size
    return _resized(np.ascontiguousarray(_resized(image, 1, width)), 0, height)


def _resized(image: Image, axis: int, n_out: int) -> Image:
    """One pass, along rows (axis 1) or columns (axis 0)."""
    n_in = image.shape[axis]
    if n_in == n_out:
        return image
    first, weights, places = _weights(n_in, n_out)
    taps = [np.minimum(first + tap, n_in - 1) for tap in range(weights.shape[1])]
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    result = np.empty(
        [n_out if n == axis else side for n, side in enumerate(image.shape)], np.uint8
    )
    step = max(1, _BLOCK_BYTES // (4 * 3 * (n_out if axis == 1 else image.shape[1])))
    for start in range(0, result.shape[0], step):
        rows = slice(start, start + step)
        block = image[rows] if axis == 1 else image
        sums: NDArray[np.int32] | None = None
        for tap, column in zip(taps, weights.T, strict=True):
            if axis == 0:
                tap, column = tap[rows], column[rows]
            values = block.take(tap, axis=axis).astype(np.int32)
            values *= column.reshape(shape)
            sums = values if sums is None else np.add(sums, values, out=sums)
        assert sums is not None
        sums += 1 << (places - 1)
        sums >>= places
        result[rows] = np.clip(sums, 0, 255, out=sums)
    return result


@lru_cache(maxsize=64)
def _weights(n_in: int, n_out: int) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """The pixels that each of `n_out` values is made of, from the first one on (n_out,).

    Returns:
        The first pixels, their weights (n_out, taps), and the weights' number of binary places.
    """
    scale = n_in / n_out
    support = max(scale, 1.0)
    centres = scale * (np.arange(n_out) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), n_in)
    taps = np.arange(int((last - first).max()))
    away = (taps + first[:, None] - centres[:, None] + 0.5) * (1 / support)
    shares = np.where(taps < (last - first)[:, None], np.maximum(0, 1 - np.abs(away)), 0)
    # One after another, as torch sums them.
    shares /= np.cumsum(shares, axis=1)[:, -1:]
    largest = shares.max()
    places = 0
    while places < 22 and int(0.5 + largest * (1 << (places + 1))) < 1 << 15:
        places += 1
    weights = (0.5 + shares * (1 << places)).astype(np.int32)
    return first, weights, places
