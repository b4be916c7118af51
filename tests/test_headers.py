"""What small files can cost, and that they are refused before they do."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import costly_pictures as costly
from regionhash.data import headers
from regionhash.data.images import ImageError, read_image, read_image_bytes, read_size


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (costly.jpeg_of_many_scans(101, side=64), "more than 100 scans"),
        (costly.jpeg_of_many_segments(200_000), "more than 5,000 segments"),
        (
            b"\xff\xd8" + b"\xff" * 200_000 + costly.saved(Image.new("L", (8, 8)), "JPEG")[2:],
            "between its segments",
        ),
        (costly.png_of_chunks(*[(b"aaAa", b"")] * 6_000), "more than 5,000 chunks"),
        (costly.tiff_of_tiny_tiles(4096 * 30), "more than 100,000 strips or tiles"),
        (costly.tiff(8, 8, [(tag, 3, 1, 1) for tag in range(40_000, 46_000)]), "5,000 tags"),
        (costly.plain_pgm(8, 8), "plain"),
        (b"P1 1 1 0", "plain"),
        (b"P3 1 1 255 0 0 0", "plain"),
    ],
)
def test_a_structure_that_would_take_long_is_refused_at_once(tmp_path, content, reason):
    (tmp_path / "a").write_bytes(content)
    started = time.process_time()
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=f"a: .*{reason}"):
            read(tmp_path / "a")
    assert time.process_time() - started < 0.5


def test_a_bomb_in_metadata_is_not_unpacked():
    bomb = zlib.compress(bytes(64 << 20))
    made = [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")]
    made += [(b"zTXt", b"Raw profile type exif\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0")]
    content = costly.png_of_chunks(*[(kind, start + bomb) for kind, start in made] * 70)
    started = time.process_time()
    assert read_image_bytes(content, "a").shape == (8, 8, 3)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiles_are_counted_in_every_kind_of_tiff(order, big):
    head = {"<": b"II", ">": b"MM"}[order]
    if big:
        content = struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
        content += struct.pack(f"{order}QHHQQ", 1, 324, 4, 100_001, 0)
    else:
        content = struct.pack(f"{order}HL", 42, 8) + struct.pack(
            f"{order}HHHLL", 1, 324, 4, 100_001, 0
        )
    with pytest.raises(ValueError, match="strips or tiles"):
        headers.check_structure(io.BytesIO(head + content))


def test_previews_and_pictures_behind_the_first_are_not_counted(monkeypatch):
    preview = costly.jpeg_of_many_scans(30, side=64)
    exif = Image.Exif()
    exif[0x010E] = "a"
    content = costly.saved(Image.new("L", (8, 8)), "JPEG", exif=exif.tobytes() + preview)
    monkeypatch.setattr(headers, "MAX_SCANS", 1)
    assert read_image_bytes(content + preview, "a").shape == (8, 8, 3)


@pytest.mark.parametrize("block", [2, 3, 64, 1 << 16])
def test_scans_are_counted_wherever_blocks_end(monkeypatch, block):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = costly.saved(Image.fromarray(noise), "JPEG", progressive=True)
    monkeypatch.setattr(headers, "_BLOCK", block)
    found = [marker for marker, _ in headers.markers(io.BytesIO(content))]
    # The slow way: what begins a scan is never part of one, as 0xff is stuffed there.
    assert found.count(0xDA) == content.count(b"\xff\xda") == 10
    assert found[-1] == 0xD9


def test_ordinary_progressive_pictures_are_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (640, 480, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", progressive=True, quality=98)
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg"))
    )
