"""What of a picture file a decoder is given: not what affects no pixel, but may be broken or huge.

Viewers skip a colour profile, a text, or an animation that they cannot read; Pillow refuses the
picture.
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, BinaryIO, NamedTuple, cast

from regionhash.data.headers import markers, tiff_tags

Piece = bytes | tuple[int, int]
"""Bytes, or start and end of a part of a file."""

_END_OF_IMAGE, _START_OF_SCAN, _COMMENT = 0xD9, 0xDA, 0xFE
_COLOURS = (0xE0, 0xEE)  # APP0 and APP14 of a JPEG say how its channels are to be taken
_APP1 = 0xE1
_ORIENTED = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")  # what APP1 may hold
_NEEDED = (b"tRNS", b"eXIf")  # of the chunks of a PNG that are not critical
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_ORIENTING = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords of such texts
_MOST_TEXT = 1 << 20  # PIL.PngImagePlugin.MAX_TEXT_CHUNK
_BLOCK = 1 << 16
_BITS, _PHOTOMETRIC = 258, 262  # tags
_INTEGERS = {1: "B", 3: "H", 4: "L"}  # types of tags


class Given(NamedTuple):
    """A picture file as a decoder is given it.

    Attributes:
        file: its content, at the start.
        is_cut: whether the file ends before the picture does, for JPEG and PNG.
        is_negative: whether grey values are to be inverted.
    """

    file: BinaryIO
    is_cut: bool = False
    is_negative: bool = False


def given_to_decoder(file: BinaryIO) -> Given:
    """What a decoder is given of a file that `check_structure` has passed."""
    file.seek(0)
    start = file.read(8)
    if start.startswith(b"\xff\xd8"):
        given = _jpeg(file)
    elif start == b"\x89PNG\r\n\x1a\n":
        given = _png(file)
    elif start[:4] in (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"):
        given = _tiff(file)
    else:
        given = Given(file)
    given.file.seek(0)
    return given


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each chunk of a PNG; the last may end after the file.

    Ends after IEND, and before anything that is no chunk.
    """
    position = 8
    while True:
        file.seek(position)
        head = file.read(8)
        kind = head[4:]
        if len(head) < 8 or not kind.isalpha():
            return
        end = position + 8 + int.from_bytes(head[:4])
        yield kind, position + 8, end
        if kind == b"IEND":
            return
        position = end + 4


def _png(file: BinaryIO) -> Given:
    length = file.seek(0, io.SEEK_END)
    dropped: list[tuple[int, int]] = []
    late: list[Piece] = []
    seen: set[bytes] = set()
    pixels_at = None
    is_cut = True
    for kind, start, end in chunks(file):
        is_cut = kind != b"IEND"
        if kind == b"IDAT" and pixels_at is None:
            pixels_at = start - 8
        own = (start - 8, min(end + 4, length))
        if not kind[:1].islower():
            continue
        if not _is_needed(file, kind, start, end, seen):
            dropped.append(own)
        elif kind != b"tRNS" and pixels_at is not None:
            dropped.append(own)
            late.append(own)
    if not dropped:
        return Given(file, is_cut)
    pieces = _rest(dropped, length)
    if late and pixels_at is not None:  # moved, so that the header alone has the orientation
        before = [part for part in dropped if part[0] < pixels_at]
        after = [part for part in dropped if part[0] > pixels_at]
        pieces = [*_rest(before, pixels_at), *late, *_rest(after, length, pixels_at)]
    return Given(joined(file, pieces), is_cut)


def _is_needed(file: BinaryIO, kind: bytes, start: int, end: int, seen: set[bytes]) -> bool:
    """Whether a chunk that is not critical has transparency, or an orientation that can be read."""
    if kind not in _TEXTS and kind not in _NEEDED:
        return False
    if kind == b"tRNS":
        return True
    if end - start > _MOST_TEXT:
        return False
    file.seek(start)
    content = file.read(end - start)
    key = kind if kind in _NEEDED else content.partition(b"\0")[0]
    if key in seen or (kind in _TEXTS and key not in _ORIENTING):
        return False
    if file.read(4) != zlib.crc32(kind + content).to_bytes(4) or not _unpacks(kind, key, content):
        return False
    seen.add(key)
    return True


def _unpacks(kind: bytes, key: bytes, content: bytes) -> bool:
    """Whether a chunk is not compressed, or is as Pillow takes it."""
    rest = content[len(key) + 1 :]
    if kind == b"zTXt":
        method, packed = rest[:1], rest[1:]
    elif kind == b"iTXt" and rest[:1] not in (b"", b"\0"):
        method, packed = rest[1:2], rest[2:].split(b"\0", 2)[-1]
    else:
        return True
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _MOST_TEXT)
    except zlib.error:
        return False
    return method == b"\0" and not unpacking.unconsumed_tail


def _jpeg(file: BinaryIO) -> Given:
    length = file.seek(0, io.SEEK_END)
    dropped: list[tuple[int, int]] = []
    is_cut, in_scan = True, False
    for marker, position in markers(file):
        is_cut = marker != _END_OF_IMAGE
        in_scan |= marker == _START_OF_SCAN
        if in_scan or not (0xE0 <= marker <= 0xEF or marker == _COMMENT) or marker in _COLOURS:
            continue
        file.seek(position)
        end = position + max(2, int.from_bytes(file.read(2)))
        if end <= length and not (marker == _APP1 and file.read(40).startswith(_ORIENTED)):
            dropped.append((position - 2, end))
    if not dropped and not is_cut:
        return Given(file)
    # libjpeg waits for more until it meets an end; what is missing before it becomes grey.
    end_of_image = [b"\xff\xd9"] if is_cut else []
    return Given(joined(file, [*_rest(dropped, length), *end_of_image]), is_cut)


def _tiff(file: BinaryIO) -> Given:
    """The file, as one whose 0 is black if it has grey of 12 or 16 bits whose 0 is white.

    Pillow inverts fewer bits, not these: it reads some as they are stored and refuses others.
    """
    order, tags = tiff_tags(file)
    found = {tag.number: tag for tag in tags if tag.number in (_BITS, _PHOTOMETRIC)}
    file.seek(0)
    odd = (tag.n_values != 1 or tag.kind not in _INTEGERS for tag in found.values())
    if len(found) < 2 or any(odd):
        return Given(file)
    values = {}
    for number, tag in found.items():
        file.seek(tag.position)
        layout = order + _INTEGERS[tag.kind]
        content = file.read(struct.calcsize(layout))
        if len(content) < struct.calcsize(layout):
            return Given(file)
        (values[number],) = struct.unpack(layout, content)
    if values[_PHOTOMETRIC] != 0 or values[_BITS] not in (12, 16):
        return Given(file)
    at = found[_PHOTOMETRIC].position
    black = struct.pack(order + _INTEGERS[found[_PHOTOMETRIC].kind], 1)
    length = file.seek(0, io.SEEK_END)
    patched = joined(file, [(0, at), black, (at + len(black), length)])
    return Given(patched, is_negative=True)


def _rest(dropped: list[tuple[int, int]], end: int, start: int = 0) -> list[Piece]:
    """What remains between two places of a file without parts that are in order."""
    edges = [start, *(edge for part in dropped for edge in part), end]
    return [own for own in zip(edges[::2], edges[1::2], strict=True) if own[0] < own[1]]


def joined(file: BinaryIO, pieces: list[Piece]) -> BinaryIO:
    """The pieces of a file as a file."""
    return cast(BinaryIO, io.BufferedReader(_Joined(file, pieces), _BLOCK))


class _Joined(io.RawIOBase):
    """The pieces of a file, read from it when asked for."""

    def __init__(self, file: BinaryIO, pieces: list[Piece]) -> None:
        self._file, self._pieces = file, pieces
        sizes = (len(p) if isinstance(p, bytes) else p[1] - p[0] for p in pieces)
        self._starts = [0, *accumulate(sizes)]
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a position, and returns it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Reads the rest of one piece, at most, and returns the number of bytes."""
        number = bisect_right(self._starts, self._position) - 1
        if number >= len(self._pieces):
            return 0
        piece, skipped = self._pieces[number], self._position - self._starts[number]
        wanted = min(len(buffer), self._starts[number + 1] - self._position)
        if isinstance(piece, bytes):
            content = piece[skipped : skipped + wanted]
        else:
            self._file.seek(piece[0] + skipped)
            content = self._file.read(wanted)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
