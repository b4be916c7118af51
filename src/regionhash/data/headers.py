"""Refuses picture files whose structure would cost a decoder much time or memory.

A decoder visits all pixels for each scan of a JPEG, and Pillow reads segments, chunks and tile
offsets one by one in Python, so a small file can keep it busy for minutes. This module counts them
without decoding, in time linear in the file's size.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_SCANS = 100
"""In a JPEG. Progressive files from cameras and programs have about ten."""

MAX_PARTS = 5_000
"""Segments in a JPEG, chunks in a PNG except pixel data, tags in a TIFF. The largest possible
colour profile, 16 MiB, takes 255 segments."""

MAX_TILES = 100_000
"""In a TIFF. 150 million pixels in tiles of 64 x 64 are 36,622."""

_MAX_JUNK = 1 << 16  # bytes between the segments of a JPEG; Pillow skips them one by one
_BLOCK = 1 << 16
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, padding or a restart
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_STRIPS, _TILES = 273, 324  # tags of their offsets


def check_structure(file: BinaryIO) -> None:
    """Checks a file, and rewinds it.

    Raises:
        ValueError: more scans, parts or tiles than any camera or program writes; or a format that
            stores pixels as text.
    """
    file.seek(0)
    start = file.read(8)
    if start.startswith(b"\xff\xd8"):
        _check_jpeg(file)
    elif start == b"\x89PNG\r\n\x1a\n":
        _check_png(file)
    elif start[:2] in (b"II", b"MM"):
        _check_tiff(file)
    elif start[:1] == b"P" and start[1:2] in (b"1", b"2", b"3"):
        raise ValueError("plain (text) PBM, PGM and PPM are not supported; save it as P4, P5 or P6")
    file.seek(0)


def _check_jpeg(file: BinaryIO) -> None:
    scans = 0
    for parts, (marker, _) in enumerate(markers(file), 1):
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise ValueError(f"a JPEG of more than {MAX_SCANS} scans")
        if parts > MAX_PARTS:
            raise ValueError(f"a JPEG of more than {MAX_PARTS:,} segments")


def markers(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """The markers of the first picture in a JPEG file, as libjpeg meets them, and where each ends.

    The content of segments, such as the preview in EXIF, is skipped.
    """
    position, junk, in_scan = 2, 0, False
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        found = _MARKER.search(block)
        skipped = found.start() if found else max(1, len(block) - 1)  # 0xff may be the last byte
        junk += 0 if in_scan else skipped
        if junk > _MAX_JUNK:
            raise ValueError(f"a JPEG with more than {_MAX_JUNK:,} bytes between its segments")
        position += skipped
        if found is None:
            if len(block) < _BLOCK:
                return
            continue
        marker = block[skipped + 1]
        position += 2
        yield marker, position
        if marker == _END_OF_IMAGE:
            return
        if marker >= 0xC0:  # lower ones have no content
            file.seek(position)
            position += max(2, int.from_bytes(file.read(2)))
        in_scan |= marker == _START_OF_SCAN


def _check_png(file: BinaryIO) -> None:
    parts = 0
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        parts += head[4:] != b"IDAT"
        if parts > MAX_PARTS:
            raise ValueError(f"a PNG of more than {MAX_PARTS:,} chunks")
        file.seek(int.from_bytes(head[:4]) + 4, 1)  # content and checksum


class Tag(NamedTuple):
    """An entry in the directory of a TIFF.

    Attributes:
        number: what it says.
        kind: the number of its type.
        n_values: how many values it has.
        position: where the values are in the file, if they fit into the entry; otherwise, where
            their offset is.
    """

    number: int
    kind: int
    n_values: int
    position: int


def tiff_tags(file: BinaryIO) -> tuple[str, list[Tag]]:
    """Byte order, as `struct` writes it, and tags of the first picture, the one that is read.

    A truncated directory has the tags that are there.

    Raises:
        ValueError: more tags than any camera or program writes.
    """
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    big = file.read(2) == struct.pack(f"{order}H", 43)
    offset, entry, counter = ("Q", "HHQ", "Q") if big else ("L", "HHL", "H")
    tags: list[Tag] = []

    def read(layout: str) -> tuple[int, ...]:
        return struct.unpack(order + layout, file.read(struct.calcsize(order + layout)))

    try:
        file.seek(8 if big else 4)
        position = file.seek(*read(offset)) + struct.calcsize(order + counter)
        (count,) = read(counter)
        if count > MAX_PARTS:
            raise ValueError(f"a TIFF of more than {MAX_PARTS:,} tags")
        for _ in range(count):
            file.seek(position)
            number, kind, n_values = read(entry)
            tags.append(Tag(number, kind, n_values, file.tell()))
            position += 20 if big else 12
    except (struct.error, OverflowError):
        pass  # truncated: the decoder reports it
    return order, tags


def _check_tiff(file: BinaryIO) -> None:
    for tag in tiff_tags(file)[1]:
        if tag.number in (_STRIPS, _TILES) and tag.n_values > MAX_TILES:
            raise ValueError(f"a TIFF of more than {MAX_TILES:,} strips or tiles")
