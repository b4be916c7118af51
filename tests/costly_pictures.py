"""Pictures made to take long, or much memory, from few bytes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image, kind, **options):
    """The content of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg_of_many_scans(scans, side=2000):
    """A progressive JPEG whose last scan comes again and again: each goes over all pixels."""
    content = saved(Image.new("RGB", (side, side), (90, 120, 30)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def jpeg_of_many_segments(count):
    """A JPEG with comments of no length."""
    content = saved(Image.new("RGB", (8, 8)), "JPEG")
    return content[:2] + b"\xff\xfe\x00\x02" * count + content[2:]


def png_of_chunks(*chunks):
    """A PNG of 8 x 8 pixels with chunks, each of kind and content, before its pixels."""
    content = saved(Image.new("RGB", (8, 8)), "PNG")
    at = content.index(b"IDAT") - 4
    return content[:at] + b"".join(chunk(*parts) for parts in chunks) + content[at:]


def chunk(kind, content):
    """Of a PNG."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def gif_of_a_long_comment(n_bytes):
    """A GIF with a comment in blocks of 255 bytes."""
    content = saved(Image.new("P", (8, 8)), "GIF")
    at = content.index(b"\x2c", 13 + 3 * (2 << (content[10] & 7)))
    return (
        content[:at]
        + b"\x21\xfe"
        + (b"\xff" + b"x" * 255) * (n_bytes // 255)
        + b"\0"
        + content[at:]
    )


def tiff(width, height, tags, content=b"", at=None):
    """A little-endian TIFF of 8 bits grey with further tags: number, type, count, value."""
    fields = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        277: (3, 1, 1),
    }
    fields |= {tag: (kind, count, value) for tag, kind, count, value in tags}
    head = b"II*\0" + struct.pack("<I", 8 + len(content))
    entries = b"".join(struct.pack("<HHII", tag, *fields[tag]) for tag in sorted(fields))
    return head + content + struct.pack("<H", len(fields)) + entries + bytes(4)


def tiff_of_tiny_tiles(count, width=4096):
    """An uncompressed TIFF of tiles of one pixel."""
    content = np.full(count, 8, "<u4").tobytes()
    return tiff(
        width, count // width, [(322, 4, 1, 1), (323, 4, 1, 1), (324, 4, count, 8)], content
    )


def bmp_of_runs(width, height):
    """A BMP that says in two bytes a row that the row has ended."""
    content = b"\0\0" * height + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(content), 0, 0, 256, 0)
    start = 14 + len(head) + 1024
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(content), 0, 0, start)
        + head
        + bytes(1024)
        + content
    )


def ppm(width, height, maxval=255, kind=b"P5"):
    """A raw PPM or PGM."""
    bands = 3 if kind == b"P6" else 1
    return b"%s %d %d %d\n" % (kind, width, height, maxval) + bytes(width * height * bands)


def plain_pgm(width, height):
    """A PGM in ASCII."""
    return b"P2 %d %d 255\n" % (width, height) + b"7 " * (width * height)
