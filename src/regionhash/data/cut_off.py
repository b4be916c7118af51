"""The pixels of a picture whose file is cut off, as far as they are there.

Downloads and copies that were interrupted end early. Viewers show what is there, and so does this,
if it is at least half of the picture; Pillow's own switch for it (`LOAD_TRUNCATED_IMAGES`) is
shared by all threads, and does not say how much is missing.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from regionhash.data.pieces import Given, chunks

MOST_MISSING = 0.5
"""Share of a picture that may be missing. An object in the half that is there can be found."""

ADVICE = "copy or download the file again"
_BLOCK = 1 << 20  # bytes
_ROWS = 64
_MOST_BOXES = 1000  # of ISO/IEC 14496-12; pictures have about four
_STRIPS, _TILES, _SIZES_OF = 273, 324, {273: 279, 324: 325}  # tags of a TIFF
_COMPRESSION, _PLANES = 259, 284
_ADAM7 = (  # first row and column, and the steps of both
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
_GIF_PASSES = (slice(0, None, 8), slice(4, None, 8), slice(2, None, 4), slice(1, None, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of a PNG


def load_what_is_there(image: ImageFile, given: Given) -> str | None:
    """Loads the pixels; a note if some are missing, which are then grey, black or transparent.

    Raises:
        ValueError: more than `MOST_MISSING` is missing.
        OSError: another reason why it cannot be read.
    """
    tiles = image.tile[:]
    try:
        image.load()
    except OSError as error:
        there = _share_there(image, given, tiles, str(error))
        if there is None:
            raise
        if there >= MOST_MISSING:
            image.tile = []
            image.load()  # what was decoded
            _finish(image, tiles, there)
    else:
        if image.format != "JPEG" or not given.is_cut:
            return None
        there = _rows_not_grey(image) / image.height
    if there < MOST_MISSING:
        raise ValueError(
            f"the file is cut off, and only {int(100 * there)} % of the picture is there; {ADVICE}"
        )
    if there == 1:
        return f"the end of the file is missing, and perhaps some detail with it; {ADVICE}"
    missing = max(1, round(100 * (1 - there)))
    return f"the end of the file is missing, and {missing} % of the picture with it; {ADVICE}"


def ends_early(file: BinaryIO) -> bool:
    """Whether a WebP, AVIF or HEIC, which is then not read, is shorter than it says."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return 8 + int.from_bytes(start[4:8], "little") > length
    end = 0
    for _ in range(_MOST_BOXES if start[4:8] == b"ftyp" else 0):
        file.seek(end)
        head = file.read(16)
        size = int.from_bytes(head[:4])
        if size == 1:
            size = int.from_bytes(head[8:])
        if size < 8:  # 0: to the end of the file
            return False
        end += size
        if end >= length:
            return end > length
    return False


def _share_there(image: ImageFile, given: Given, tiles: list[Any], error: str) -> float | None:
    """The share of the pixels that could be decoded; None if the file is not cut off."""
    length = given.file.seek(0, io.SEEK_END)
    if image.format == "PNG" and given.is_cut:
        return _png_share(image, given)
    if isinstance(image, TiffImageFile):
        return _tiff_share(image, length)
    if image.format == "BMP" and tiles[0].codec_name == "raw":
        _, stride, _ = tiles[0].args
        rows = max(0, length - int(tiles[0].offset)) // int(stride)
        return rows / image.height if rows < image.height else None
    if image.format == "GIF" and "truncated" in error:
        x0, y0, x1, y1 = tiles[0].extents
        image.tile = []
        image.load()
        empty = _rows_as(image.crop((x0, y0, x1, y1)), image.info.get("transparency", 0))
        order = np.concatenate([np.arange(y1 - y0)[own] for own in _gif_passes(tiles)])
        full = np.flatnonzero(~empty[order])
        return (int(full.max()) + 1 if len(full) else 0) / (int(y1) - int(y0))
    return None


def _finish(image: ImageFile, tiles: list[Any], there: float) -> None:
    """Turns a TIFF as its tags say, and repeats the row above each one that was not reached."""
    if image.format == "TIFF":
        image.load_end()  # without effect if it was done
        return
    if image.format == "PNG" and image.info.get("interlace"):
        # The last pass has the odd rows: half of the pixels, or a little less.
        x0, y0, x1, y1 = 0, 0, image.width, image.height
    elif image.format == "GIF" and len(_gif_passes(tiles)) > 1:
        x0, y0, x1, y1 = tiles[0].extents
    else:
        return
    rows = range(y0 + 1, y1, 2)
    reached = len(rows) - int(np.ceil((1 - there) * (y1 - y0)))
    for y in rows[max(0, reached) :]:
        image.im.paste(image.im.crop((x0, y - 1, x1, y)), (x0, y, x1, y + 1))


def _png_share(image: ImageFile, given: Given) -> float:
    width, height = image.size
    given.file.seek(24)
    depth, colours = given.file.read(2)
    bits = depth * _CHANNELS.get(colours, 1)
    passes = _ADAM7 if image.info.get("interlace") else ((0, 0, 1, 1),)
    whole = 0
    for top, left, down, across in passes:
        rows, columns = len(range(top, height, down)), len(range(left, width, across))
        whole += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    unpacking, unpacked = zlib.decompressobj(), 0
    for kind, start, end in chunks(given.file):
        if kind != b"IDAT":
            continue
        while start < end:
            given.file.seek(start)
            packed = given.file.read(min(_BLOCK, end - start))
            if not packed:
                break
            start += len(packed)
            try:
                while packed and unpacked < whole:
                    unpacked += len(unpacking.decompress(packed, _BLOCK))
                    packed = unpacking.unconsumed_tail
            except zlib.error:  # it is broken as well: Pillow came no further either
                return unpacked / whole
    return min(1.0, unpacked / whole)


def _tiff_share(image: TiffImageFile, length: int) -> float | None:
    """By its strips or tiles; those that are compressed are there only as a whole."""
    tags = image.tag_v2
    at = _STRIPS if _STRIPS in tags else _TILES
    offsets, sizes = tags.get(at, ()), tags.get(_SIZES_OF[at], ())
    if not offsets or len(offsets) != len(sizes) or tags.get(_PLANES, 1) != 1:
        return None
    inside = [max(0, min(size, length - at)) for at, size in zip(offsets, sizes, strict=True)]
    if inside == list(sizes):
        return None
    if tags.get(_COMPRESSION, 1) == 1:
        return float(sum(inside) / sum(sizes))
    whole = [own == size for own, size in zip(inside, sizes, strict=True)]
    return whole.index(False) / len(whole)


def _rows_not_grey(image: PILImage.Image) -> int:
    """Rows of a JPEG down to the last that has data: libjpeg makes the others medium grey."""
    last = np.asarray(image.crop((image.width - 1, image.height - 1, *image.size))).reshape(-1)
    if not np.isin(last, (127, 128)).all():
        return image.height
    for bottom in range(image.height, 0, -_ROWS):
        top = max(0, bottom - _ROWS)
        empty = _rows_as(image.crop((0, top, image.width, bottom)), last)
        if not empty.all():
            return top + int(np.flatnonzero(~empty).max()) + 1
    return 0


def _rows_as(image: PILImage.Image, colour: Any) -> NDArray[np.bool_]:
    """For each row, whether all of its pixels are of one colour."""
    rows: NDArray[np.bool_] = np.equal(np.asarray(image), colour).reshape(image.height, -1).all(1)
    return rows


def _gif_passes(tiles: list[Any]) -> Sequence[slice]:
    _, is_interlaced, _ = tiles[0].args
    return _GIF_PASSES if is_interlaced else (slice(None),)
