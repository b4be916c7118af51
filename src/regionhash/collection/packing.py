"""The small types in which a collection keeps boxes, scores, labels and probabilities.

A picture's rows are those of `regionhash.store.rows_of`, except:

- Boxes are uint16, in steps of 1/16 pixel along a side below 4,096 pixels, of 1/8 along one below
  8,192, and so on, twice the step for each bit more. An edge moves by half a step at most. A box
  stays in its picture and keeps an area: if it is narrower than a step, it becomes one step wide,
  and no edge moves by more than a step.
- Scores and the probabilities of classes are float16: they change by less than 1/2000 of what they
  are. A score below 1 stays below 1, which means something; see `meaningful_score`.
- Class indices have as many bytes as the number of classes needs: one up to 128 classes.

What has been packed and read packs to the same again. Collections that were made before this, of
version 2, keep the types of the code file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.store import LAYOUT, dtype_of
from regionhash.structures import Floats, Ints

PACKED_FROM = 3
"""The first version of the database with small types."""

_EDGE = np.dtype("<u2")
_STEP_BITS = 4  # 2^-4 pixels
_WHOLE_BITS = 12  # of a side that takes no larger steps: 12 + 4 = 16
_MOST = np.finfo(np.float16).max
_BELOW_ONE = np.nextafter(np.float16(1), np.float16(0))

Types = Mapping[str, np.dtype[Any]]


def types_of(header: Mapping[str, Any]) -> Types:
    """Type of each dataset in a collection, given its header's "version" and "classes"."""
    types = {name: dtype_of(name) for name in LAYOUT}
    if header["version"] < PACKED_FROM:
        return types
    classes = np.min_scalar_type(-max(1, len(header["classes"]))).newbyteorder("<")
    small = {"scores": np.dtype("<f2"), "class_probs": np.dtype("<f2")}
    return types | small | {"boxes": _EDGE, "labels": classes, "categories": classes}


def packed(rows: Mapping[str, NDArray[Any]], types: Types) -> dict[str, NDArray[Any]]:
    """One picture's rows of each dataset, see `regionhash.store.rows_of`, in the given types."""
    (size,) = rows["sizes"].tolist()
    result = {}
    for name, array in rows.items():
        if array.dtype == types[name]:
            result[name] = array
        elif name == "boxes":
            result[name] = pack_boxes(array, size)
        elif types[name].kind == "f":
            result[name] = _float16(array)
        else:
            result[name] = array.astype(types[name])
    return result


def pack_boxes(boxes: Floats, size: Sequence[int]) -> NDArray[np.uint16]:
    """Boxes (R, 4) float32 of a picture of `size` (height, width) in steps, (R, 4) uint16."""
    sides = np.array(size[::-1])  # (2,): x, y
    step = steps(sides)
    most = np.floor(sides / step)
    edges = boxes.reshape(-1, 2, 2).astype(np.float64) / step  # (R, low and high, x and y)
    rounded = np.minimum(np.maximum(np.rint(edges), 0), most)
    low, high = rounded[:, 0], rounded[:, 1]
    flat = (edges[:, 0] < edges[:, 1]) & (low >= high)
    if flat.any():
        below = np.floor(edges.mean(axis=1))
        below = np.minimum(np.maximum(below, 0), np.maximum(most - 1, 0))
        low[flat] = below[flat]
        high[flat] = np.minimum(below + 1, most)[flat]
    return rounded.reshape(-1, 4).astype(_EDGE)


def steps(sides: NDArray[np.integer[Any]]) -> Floats:
    """Pixels in a step along the sides of pictures, of any shape: float32 of that shape."""
    _, n_bits = np.frexp(sides.astype(np.float64))  # 2^(n_bits - 1) <= side < 2^n_bits
    result: Floats = np.exp2(np.maximum(n_bits - _WHOLE_BITS, 0) - _STEP_BITS).astype(np.float32)
    return result


class PackedBoxes:
    """Boxes (M, 4) in steps, which give float32 pixels for the regions that are asked for.

    Args:
        packed: (M, 4) uint16, see `pack_boxes`; may be memory-mapped.
        offsets: (N + 1,), the regions of each picture.
        sizes: (N, 2), height and width of the pictures.
    """

    def __init__(self, packed: NDArray[np.uint16], offsets: Ints, sizes: NDArray[np.int32]) -> None:
        self.packed = packed
        self._offsets, self._sizes = offsets, sizes
        self._one_step = bool(sizes.max(initial=0) < 1 << _WHOLE_BITS)

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, items: Any) -> Floats:
        """Boxes of regions by an index, a slice, an array of indices or a mask."""
        found: Floats = self.packed[items].astype(np.float32)
        if self._one_step:
            found *= np.float32(2.0**-_STEP_BITS)
            return found
        pictures = np.searchsorted(self._offsets, self._numbers(items), side="right") - 1
        found *= np.tile(steps(self._sizes[pictures][..., ::-1]), 2)
        return found

    def _numbers(self, items: Any) -> Ints:
        """The numbers of the regions that are asked for."""
        if isinstance(items, slice):
            return np.arange(*items.indices(len(self)))
        numbers = np.asarray(items)
        return np.flatnonzero(numbers) if numbers.dtype == bool else numbers % len(self)


def as_kept(score: float, dtype: np.dtype[Any]) -> np.floating[Any]:
    """A threshold as scores of a type are kept, so that it can be compared with them."""
    if dtype != np.float16:
        return np.float32(score)
    (kept,) = _float16(np.array([score], np.float32))
    return np.float16(kept)


def _float16(values: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    rounded: NDArray[np.float16] = np.minimum(np.maximum(values, -_MOST), _MOST).astype("<f2")
    rounded[(values < 1) & (rounded == 1)] = _BELOW_ONE
    return rounded
