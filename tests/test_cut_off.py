"""Files that end early, as an interrupted download leaves them."""

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import costly_pictures as costly
from regionhash.data.image_set import ImageSet
from regionhash.data.images import (
    FileImages,
    ImageError,
    read_bytes_with_note,
    read_image_bytes,
    read_image_version,
)
from regionhash.models.encoding import read_inputs
from regionhash.structures import Target

SIDE = 320
GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.integers(40, 216, (SIDE, SIDE, 3), dtype=np.uint8)
PHOTO = np.kron(GENERATOR.integers(40, 216, (SIDE // 8, SIDE // 8, 3)), np.ones((8, 8, 1)))
PHOTO = (PHOTO + GENERATOR.integers(-9, 10, PHOTO.shape)).astype(np.uint8)


def interlaced_png(pixels):
    """An Adam7 PNG of RGB pixels; Pillow does not write them."""
    rows = b""
    for top, left, down, across in (
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
        *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
    ):
        part = pixels[top::down, left::across]
        rows += b"".join(b"\0" + row.tobytes() for row in part if part.shape[1])
    height, width, _ = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    body = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(costly.chunk(*own) for own in body)


def deflated_tiff(pixels, rows=16, orientation=1):
    """A TIFF of compressed strips whose directory comes first."""
    height, width, _ = pixels.shape
    strips = [zlib.compress(pixels[y : y + rows].tobytes()) for y in range(0, height, rows)]
    count, tags = len(strips), 12
    after = 8 + 2 + 12 * tags + 4
    start = after + 6 + 8 * count
    offsets = [start + sum(map(len, strips[:n])) for n in range(count)]
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, after), (259, 3, 1, 8)),
        *((262, 3, 1, 2), (273, 4, count, after + 6), (274, 3, 1, orientation), (277, 3, 1, 3)),
        *((278, 4, 1, rows), (279, 4, count, after + 6 + 4 * count), (284, 3, 1, 1)),
        (339, 3, 1, 1),
    ]
    content = b"II*\0" + struct.pack("<IH", 8, tags)
    content += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    content += struct.pack(f"<3H{2 * count}I", 8, 8, 8, *offsets, *map(len, strips))
    return content + b"".join(strips)


def missing_of(note):
    """Percent of the picture that a note says is missing."""
    found = re.search(r"missing, and (\d+) % of the picture", note)
    return int(found[1]) if found else 0


WHOLE = {
    "JPEG": costly.saved(Image.fromarray(PHOTO), "JPEG", quality=90),
    "grey JPEG": costly.saved(Image.fromarray(PHOTO[..., 0]), "JPEG", quality=90),
    "CMYK JPEG": costly.saved(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=90),
    "PNG": costly.saved(Image.fromarray(NOISE), "PNG"),
    "alpha PNG": costly.saved(Image.fromarray(NOISE).convert("RGBA"), "PNG"),
    "16 bit PNG": costly.saved(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
    "GIF": costly.saved(Image.fromarray(NOISE).quantize(64), "GIF", interlace=0),
    "BMP": costly.saved(Image.fromarray(NOISE), "BMP"),
    "TIFF": costly.saved(Image.fromarray(NOISE), "TIFF"),
    "deflated TIFF": deflated_tiff(NOISE),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("kept", [0.55, 0.7, 0.9, 0.97])
def test_what_is_there_is_read_and_what_is_missing_is_noted(kind, kept):
    whole = read_bytes_with_note(WHOLE[kind], "whole")
    assert whole.note is None
    image, note = read_bytes_with_note(WHOLE[kind][: int(kept * len(WHOLE[kind]))], "cut")
    missing = missing_of(note)
    assert abs(missing - 100 * (1 - kept)) < 8, note
    rows = int(SIDE * (1 - (missing + 0.5) / 100)) - 16  # the last ones of a JPEG are half there
    same = slice(SIDE - rows, None) if kind == "BMP" else slice(rows)  # from the bottom up
    np.testing.assert_array_equal(image[same], whole.image[same])
    assert image.shape == whole.image.shape


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("kept", [0.05, 0.25, 0.4])
def test_less_than_half_a_picture_is_refused_with_the_reason(kind, kept):
    content = WHOLE[kind][: int(kept * len(WHOLE[kind]))]
    with pytest.raises(ImageError, match=r"^cut: the file is cut off, and only \d+ % of .* again$"):
        read_bytes_with_note(content, "cut")


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("kind", WHOLE)
def test_the_last_bytes_may_be_missing(kind, n_bytes):
    whole = read_image_bytes(WHOLE[kind], "whole")
    image, note = read_bytes_with_note(WHOLE[kind][:-n_bytes], "cut")
    changed = (image != whole).any((1, 2)).sum()
    assert changed <= 18 and (changed == 0 or note)
    if kind.endswith("JPEG"):
        assert note


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_progressive_jpeg_is_there_as_a_whole_with_less_detail(kept):
    content = costly.saved(Image.fromarray(PHOTO), "JPEG", quality=90, progressive=True)
    whole = read_image_bytes(content, "whole").astype(int)
    image, note = read_bytes_with_note(content[: int(kept * len(content))], "cut")
    assert "perhaps some detail" in note
    assert np.abs(image - whole).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_rows_that_an_interlaced_file_does_not_reach_are_those_above(kind):
    if kind == "PNG":
        content = interlaced_png(NOISE)
    else:
        content = costly.saved(Image.fromarray(NOISE).quantize(64), "GIF", interlace=1)
    whole = read_image_bytes(content, "whole")
    if kind == "PNG":
        np.testing.assert_array_equal(whole, NOISE)
    image, note = read_bytes_with_note(content[: int(0.75 * len(content))], "cut")
    assert abs(missing_of(note) - 25) < 3
    np.testing.assert_array_equal(image[::2], whole[::2])
    np.testing.assert_array_equal(image[1:140:2], whole[1:140:2])
    np.testing.assert_array_equal(image[181::2], whole[180::2])
    with pytest.raises(ImageError, match="cut off"):
        read_bytes_with_note(content[: int(0.45 * len(content))], "cut")


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("compress", [False, True])
def test_a_tiff_that_is_cut_off_is_turned_all_the_same(orientation, compress):
    if compress:
        content = deflated_tiff(NOISE[:, :160], orientation=orientation)
    else:
        content = costly.saved(Image.fromarray(NOISE[:, :160]), "TIFF", tiffinfo={274: orientation})
    image, note = read_bytes_with_note(content[: int(0.8 * len(content))], "cut")
    assert 15 < missing_of(note) < 30
    upright = {1: image, 3: image[::-1, ::-1], 6: image[:, ::-1].transpose(1, 0, 2)}[orientation]
    np.testing.assert_array_equal(upright[:220], NOISE[:220, :160])


def test_a_file_that_is_broken_but_not_cut_off_is_refused():
    flat = PHOTO // 64 * 64
    for content in (costly.saved(Image.fromarray(flat), "PNG"), deflated_tiff(flat)):
        content = bytearray(content)
        content[-4000:-2000] = bytes(2000)
        with pytest.raises(ImageError, match="broken: "):
            read_bytes_with_note(bytes(content), "broken")


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_formats_that_are_read_as_a_whole_say_that_they_are_cut_off(kind, kept):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    content = costly.saved(Image.fromarray(PHOTO), kind)
    assert read_bytes_with_note(content, "whole").note is None
    with pytest.raises(ImageError, match=r"^cut: .*copy or download the file again$"):
        read_bytes_with_note(content[: int(kept * len(content))], "cut")


def test_a_png_that_is_cut_off_and_broken_is_refused_or_read():
    for place in range(200, 3000, 97):
        content = bytearray(costly.saved(Image.fromarray(PHOTO // 64 * 64), "PNG")[:4000])
        content[place] ^= 255
        try:
            assert read_bytes_with_note(bytes(content), "a").note
        except ImageError as error:
            assert "a: the file is cut off" in str(error)


def test_a_cut_file_costs_no_more_than_its_pixels():
    """What follows the pixels in the stream is not unpacked."""
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    bomb = zlib.compress(bytes(400 << 20))
    content = b"\x89PNG\r\n\x1a\n" + costly.chunk(b"IHDR", head) + costly.chunk(b"IDAT", bomb)[:-90]
    assert read_image_bytes(content, "a").shape == (8, 8, 3)


def test_the_stream_of_inputs_carries_the_note(tmp_path):
    (tmp_path / "whole.jpg").write_bytes(WHOLE["JPEG"])
    (tmp_path / "cut.jpg").write_bytes(WHOLE["JPEG"][:-3000])
    paths = [tmp_path / "whole.jpg", tmp_path / "cut.jpg"]
    image_set = ImageSet("a", (), ("whole", "cut"), FileImages(paths), (Target.empty(),) * 2)
    for workers in (0, 1):
        for versions in (False, True):
            (_, whole), (_, cut) = read_inputs(image_set, [0, 1], 64, workers, versions=versions)
            assert whole.note is None and 0 < missing_of(cut.note) < 20
            assert (cut.version is not None) == versions
    assert read_image_version(paths[1]).note == cut.note
