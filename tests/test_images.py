import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from regionhash.data import images
from regionhash.data.images import (
    SUFFIXES,
    FileImages,
    ImageError,
    file_version,
    find_images,
    read_image,
    read_image_bytes,
    read_image_version,
    read_size,
)

RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.fixture
def picture() -> Image.Image:
    """A picture of 4 x 6 pixels, all of them different."""
    return Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3) * 3)


def smooth(height: int, width: int) -> Image.Image:
    ramp = np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], axis=2))


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_are_read_exactly(tmp_path, picture, suffix):
    path = tmp_path / f"a{suffix}"
    picture.save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, np.asarray(picture))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_lossy_formats_are_read_closely(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    smooth(32, 48).save(path, quality=95)
    image = read_image(path)
    assert image.shape == (32, 48, 3)
    assert np.abs(image.astype(int) - np.asarray(smooth(32, 48))).mean() < 5


# EXIF 4.6.4 A: where row 0 and column 0 of the stored pixels are shown.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


SAVED = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "TIFF": {},
    "LZW": {"format": "TIFF", "compression": "tiff_lzw"},
    "pages": {"format": "TIFF", "save_all": True},
    "MPO": {"save_all": True, "quality": 95},
    "HEIF": {"quality": 95, "chroma": 444},
}


def saved(picture, kind, **options):
    """The content of a file that Pillow writes, one of `SAVED`."""
    options = {"format": kind} | SAVED[kind] | options
    if "save_all" in options:
        options["append_images"] = [Image.new("RGB", (5, 5))]
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    stream = io.BytesIO()
    picture.save(stream, **options)
    return stream.getvalue()


def cells():
    """A picture of 64 x 96 pixels of which lossy formats keep every part apart."""
    values = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    grey = np.kron(values, np.ones((16, 16), np.uint8))
    return Image.fromarray(np.stack([grey, 255 - grey, grey[::-1, ::-1]], 2))


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once_to_pixels_and_size(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a").write_bytes(saved(cells(), kind, exif=exif.tobytes()))
    expected = UPRIGHT[orientation](np.asarray(cells()))
    read = read_image(tmp_path / "a")
    assert read_size(tmp_path / "a") == read.shape[:2] == expected.shape[:2]
    assert np.abs(read.astype(int) - expected).mean() < (3 if "quality" in SAVED[kind] else 1e-9)
    np.testing.assert_array_equal(read_image_bytes((tmp_path / "a").read_bytes(), "a"), read)


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "LZW", "PNG", "WEBP"])
def test_size_and_pixels_agree_on_an_orientation_in_xmp_alone(tmp_path, kind):
    more = {"xmp": XMP}
    if kind == "PNG":
        more = {"pnginfo": PngInfo()}
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif kind in ("TIFF", "LZW"):
        more = {"tiffinfo": {700: XMP}}
    (tmp_path / "a").write_bytes(saved(cells(), kind, **more))
    read = read_image(tmp_path / "a")
    assert read_size(tmp_path / "a") == read.shape[:2] == (96, 64)
    expected = UPRIGHT[6](np.asarray(cells()))
    assert np.abs(read.astype(int) - expected).mean() < (3 if kind == "JPEG" else 1e-9)


def grey_tiff(values, bits, photometric, order="<", compress=False):
    """A TIFF of one strip of grey values (H, W), packed here."""
    height, width = values.shape
    if bits == 16:
        packed = values.astype(f"{order}u2").tobytes()
    else:
        split = np.unpackbits(values.astype(">u2").view("u1").reshape(height, width, 2), axis=2)
        packed = np.packbits(split[..., 16 - bits :].reshape(height, -1), axis=1).tobytes()
    packed = zlib.compress(packed) if compress else packed
    tags = {
        **{256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 8 if compress else 1)},
        **{262: (3, photometric), 273: (4, 8), 277: (3, 1), 278: (4, height)},
        279: (4, len(packed)),
    }
    entries = b""
    for tag, (kind, value) in sorted(tags.items()):
        entries += struct.pack(f"{order}HHL", tag, kind, 1)
        entries += struct.pack(f"{order}{'L' if kind == 4 else 'Hxx'}", value)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8 + len(packed))
    return head + packed + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_a_tiff_whose_zero_is_white_is_read_as_its_twin(bits, order, compress):
    if (bits, order) == (12, ">"):
        pytest.skip("Pillow does not read 12 bits in this order")
    most = 2**bits - 1
    values = np.random.default_rng(bits).integers(0, most + 1, (6, 8))
    values[0, :2] = 0, most
    expected = np.round(values / most * 255).astype(int)
    for photometric, stored in ((1, values), (0, most - values)):
        read = read_image_bytes(grey_tiff(stored, bits, photometric, order, compress), "a")
        assert np.abs(read[..., 0] - expected).max() <= (bits > 8), photometric
        assert read[0, :2, 0].tolist() == [0, 255]


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path, monkeypatch, picture):
    content = saved(picture, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes()[6:]
    chunk = (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "late.png").write_bytes(content[:-12] + chunk + content[-12:])
    assert read_image(tmp_path / "late.png").shape == (6, 4, 3)
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    assert read_size(tmp_path / "a.png") == (4, 6)
    assert read_size(tmp_path / "late.png") == (6, 4)


def test_metadata_that_cannot_be_read_refuses_no_jpeg(picture):
    sound = saved(picture, "JPEG")
    expected = read_image_bytes(sound, "a")
    for marker, content in [
        (0xE1, b"Exif\0\0no tiff"),
        (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        (0xE1, b'http://ns.adobe.com/xap/1.0/\0\xff\xfe tiff:Orientation="9'),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0"),
        (0xE2, b"MPF\0no tiff"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xED, b"Photoshop 3.0\x008BIM"),
    ]:
        segment = bytes([255, marker]) + (len(content) + 2).to_bytes(2) + content
        made = sound[:2] + segment + sound[2:]
        np.testing.assert_array_equal(read_image_bytes(made, "a"), expected, str(content))


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_content_decides_and_not_the_ending(tmp_path, picture, suffix, kind):
    (tmp_path / f"a{suffix}").write_bytes(saved(picture, kind))
    ((_, path),) = find_images([tmp_path])
    np.testing.assert_array_equal(read_image(path), np.asarray(picture))


def test_every_ending_that_pillow_knows_for_these_formats_is_looked_for():
    pytest.importorskip("pillow_heif").register_heif_opener()
    Image.init()
    own = {"JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "HEIF"}
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in own}
    # A floating-point map, sequences of pictures, and a header without a picture.
    assert known - SUFFIXES <= {".pfm", ".avifs", ".heics", ".heifs"}


def test_a_bitmap_without_the_header_of_its_file_is_read(picture):
    content = encoded(picture, "DIB")
    np.testing.assert_array_equal(read_image_bytes(content, "a"), np.asarray(picture))


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(saved(cells(), "HEIF"))
    assert read_image(tmp_path / "a.heic").shape == (64, 96, 3)
    monkeypatch.setattr(images, "_prepare_heif", lambda: False)
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=r'a\.heic: HEIC needs pip install "regionhash\[heic'):
            read(tmp_path / "a.heic")


def test_the_pixels_of_heic_are_limited_before_they_are_decoded(monkeypatch):
    content = saved(cells(), "HEIF")
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(heif.HeifImage, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="a: 96 x 64 pixels are more than the limit of 6,143"):
        read_image_bytes(content, "a", max_pixels=6143)


def test_heic_whose_pixels_are_not_of_the_size_it_says_is_refused():
    content = saved(cells().resize((30, 20)), "HEIF")
    outside = bytearray(content)
    outside[content.index(b"clap") + 6] = 1  # cuts out 286 x 20 pixels of 64 x 64
    with pytest.raises(ImageError, match="a: its header says 286 x 20 pixels"):
        read_image_bytes(outside, "a")
    small = bytearray(content)
    at = content.index(b"ispe") + 8
    small[at : at + 8] = (32).to_bytes(4) * 2
    with pytest.raises(ImageError, match=r"a: .*size"):
        read_image_bytes(small, "a")


def test_what_is_logged_about_a_tiff_without_its_name_is_not_printed():
    content = bytearray(saved(cells(), "TIFF"))
    at = content.index(struct.pack("<HHL", 277, 3, 1))
    content[at + 8 : at + 10] = b"\xff\xff"  # samples per pixel
    code = """if True:
        import sys
        from regionhash.data.images import ImageError, read_image_bytes
        try:
            read_image_bytes(sys.stdin.buffer.read(), "a")
        except ImageError as error:
            print(error)"""
    ran = subprocess.run([sys.executable, "-c", code], input=bytes(content), capture_output=True)
    assert ran.stdout.startswith(b"a: ") and ran.stderr == b""


def test_libtiff_writes_nothing_to_stderr(tmp_path, capfd):
    content = bytearray(saved(cells(), "LZW"))
    content[8:200] = bytes(192)
    (tmp_path / "broken").write_bytes(content)
    for read in (
        lambda: read_image(tmp_path / "broken"),
        lambda: read_image_bytes(content, "broken"),
    ):
        with pytest.raises(ImageError, match="broken: "):
            read()
    assert capfd.readouterr().err == ""


def test_grey_becomes_three_equal_channels(tmp_path, picture):
    picture.convert("L").save(tmp_path / "a.png")
    expected = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.dstack([expected] * 3))


def test_cmyk_jpeg_shows_its_colours(tmp_path):
    Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    image = read_image(tmp_path / "a.jpg")
    assert np.abs(image.astype(int) - [200, 100, 50]).max() <= 3


def test_palette_becomes_its_colours(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[RED, [0, 0, 255]]]


def test_transparency_lies_on_white(tmp_path):
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[RED, WHITE, [127, 127, 127]]]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_transparent_palette_entry_lies_on_white(tmp_path, transparency):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 255, 0, *RED])
    palette.putdata([0, 1])
    palette.save(tmp_path / "a.png", transparency=transparency)
    assert read_image(tmp_path / "a.png").tolist() == [[WHITE, RED]]


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    assert read_image(tmp_path / f"a{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_every_value_of_sixteen_bits_is_rounded(tmp_path, dtype):
    values = np.arange(65536, dtype=dtype).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), np.dstack([expected] * 3))


@pytest.mark.parametrize("white", [1, 100, 254, 256, 4095, 65534])
@pytest.mark.parametrize("kind", ["P5", "P6"])
def test_a_pnm_of_another_white_is_read_as_pillow_reads_it(tmp_path, kind, white):
    bands = 3 if kind == "P6" else 1
    generator = np.random.default_rng(white)
    values = generator.integers(0, 256 if white < 256 else 65536, (7, 9 * bands))
    content = values.astype("u1" if white < 256 else ">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(f"{kind} 9 7 {white}\n".encode() + content)
    read = np.asarray(Image.open(tmp_path / "a.ppm"))
    if read.dtype != np.uint8:
        read = np.round(read / 257).astype(np.uint8)
    expected = np.broadcast_to(read.reshape(7, 9, bands), (7, 9, 3))
    np.testing.assert_array_equal(read_image(tmp_path / "a.ppm"), expected)
    (tmp_path / "cut.ppm").write_bytes(f"{kind} 9 7 {white}\n".encode() + content[:-2])
    with pytest.raises(ImageError, match="cut"):
        read_image(tmp_path / "cut.ppm")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_blocks_make_no_difference(tmp_path, monkeypatch, mode, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    elif mode == "P":
        picture = picture.convert("RGB").convert("P")
        picture.info["transparency"] = 3
    else:
        picture = picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    whole = read_image(tmp_path / "a.png")
    for block in (1, 5, 13, 40):
        monkeypatch.setattr(images, "_BLOCK", block)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), whole)


_MEASURED = """
import sys
from regionhash.data.images import read_image

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(own for own in lines if own.startswith(field)).split()[1]) << 10

for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmRSS")
    height, width, _ = read_image(path).shape
    print((status("VmHWM") - before) / (height * width))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_no_mode_takes_more_than_some_bytes_a_pixel(tmp_path):
    side = 2000
    grey = np.repeat(np.arange(side, dtype=np.uint16)[None] * 20, side, 0)
    colours = Image.fromarray(np.stack([(grey >> shift).astype(np.uint8) for shift in range(4)], 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "rgba.png": (colours, {}),
        "turned.png": (colours, {"exif": exif}),
        "la.png": (colours.convert("LA"), {}),
        "p.png": (colours.convert("RGB").convert("P"), {"transparency": 3}),
        "cmyk.jpg": (colours.convert("CMYK"), {}),
        "turned.jpg": (colours.convert("RGB"), {"exif": exif, "progressive": True}),
        "sixteen.png": (Image.fromarray(grey), {}),
        "sixteen.tiff": (Image.fromarray(grey.astype(np.int32)), {"exif": exif}),
    }
    for name, (picture, options) in made.items():
        picture.save(tmp_path / name, **options | ({"compress_level": 1} if "png" in name else {}))
    command = [sys.executable, "-c", _MEASURED, *(tmp_path / name for name in made)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    # 4 of Pillow's own and 3 of the result; the blocks and what Pillow loads first are the rest.
    taken = dict(zip(made, map(float, ran.stdout.split()), strict=True))
    assert max(taken.values()) < 8.8, taken
    assert taken["sixteen.png"] < 7, taken


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (3, 2), tuple(colour)) for colour in (RED, [0, 0, 255])]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == RED


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (20_000, 30)])
def test_extreme_sizes_are_read(tmp_path, size):
    Image.new("RGB", size, tuple(RED)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)
    assert read_size(tmp_path / "a.png") == (size[1], size[0])


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


CUT_EARLY = [(kind, 0.1) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]


@pytest.mark.parametrize(
    ("kind", "kept"),
    [*CUT_EARLY, *((kind, kept) for kind in ("WEBP", "AVIF") for kept in (0.5, 0.9))],
)
def test_a_truncated_file_is_an_image_error_that_names_it(tmp_path, kind, kept):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    (tmp_path / "cut").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ImageError, match=r"cut: .+"):
        read_image(tmp_path / "cut")


@pytest.mark.parametrize("seed", range(20))
def test_a_broken_file_is_an_image_error_or_a_picture(tmp_path, seed):
    generator = np.random.default_rng(seed)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP"):
        content = bytearray(encoded(smooth(16, 16), kind))
        for place in generator.integers(len(content), size=8):
            content[place] = generator.integers(256)
        (tmp_path / "broken").write_bytes(content)
        try:
            assert read_image(tmp_path / "broken").dtype == np.uint8
        except ImageError as error:
            assert "broken: " in str(error)


@pytest.mark.parametrize("read", [read_image, read_size])
def test_unusable_files_are_image_errors_with_the_reason(tmp_path, read):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "run.jpg").write_bytes(encoded(smooth(4, 4), "EPS"))
    with pytest.raises(ImageError, match=r"empty\.jpg: the file is empty"):
        read(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match=r"text\.jpg: not a picture"):
        read(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match=r"run\.jpg: not a picture"):
        read(tmp_path / "run.jpg")
    with pytest.raises(ImageError, match=r"none\.jpg: No such file"):
        read(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        read(tmp_path)


@pytest.fixture(params=["pipe", "socket", "device", "link"])
def irregular(request, tmp_path):
    """A path that is no regular file."""
    path = tmp_path / "a.jpg"
    if request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            yield path
        return
    if request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe") if request.param == "link" else os.mkfifo(path)
    yield path


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_not_waited_for(irregular):
    for read in (read_image, read_size, read_image_version):
        with pytest.raises(ImageError, match=r"a\.jpg: not a regular file"):
            read(irregular)
    with pytest.raises(ValueError, match=r"a\.jpg: not a regular file"):
        find_images([irregular])
    with pytest.raises(ValueError, match=r"a\.jpg: cannot read the list: not a regular file"):
        find_images([f"@{irregular}"])
    with pytest.raises(ValueError, match="no picture"):
        find_images([irregular.parent])
    (irregular.parent / "list").write_text("a.jpg\n")
    ((_, listed),) = find_images([f"@{irregular.parent / 'list'}"])
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(listed)


def test_bytes_and_files_are_read_alike(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(read_image_bytes(content, "a"), read_image(tmp_path / "a.png"))
    with pytest.raises(ImageError, match="a: 6 x 4 pixels are more than the limit of 23"):
        read_image_bytes(content, "a", max_pixels=23)


def test_floating_point_pixels_are_an_image_error(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="floating-point"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("side", [12_500, 20_000])  # below and above Pillow's own refusal
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path, side):
    content = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    content[18:26] = side.to_bytes(4, "little") * 2  # width and height in the header
    (tmp_path / "bomb.bmp").write_bytes(content)
    with pytest.raises(ImageError, match=r"bomb\.bmp: .*(limit of 150,000,000|exceeds limit)"):
        read_image(tmp_path / "bomb.bmp")


def test_the_pixel_limit_is_the_largest_size_allowed(tmp_path, picture, monkeypatch):
    picture.save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    assert read_image(tmp_path / "a.png").shape == (4, 6, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(ImageError, match="6 x 4 pixels"):
        read_image(tmp_path / "a.png")


def test_odd_metadata_raises_no_warning(tmp_path, picture):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0"  # announces five entries
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3)


def test_file_images_are_read_when_asked_for(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    files = FileImages([tmp_path / "a.png", tmp_path / "missing.png"])
    assert len(files) == 2
    np.testing.assert_array_equal(files[0], np.asarray(picture))
    with pytest.raises(ImageError, match="missing"):
        files[1]


def test_the_time_of_a_picture_is_that_of_the_camera_or_else_that_of_the_file(tmp_path, picture):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "1970:01:02 00:00:07"
    picture.save(tmp_path / "noted.jpg", exif=exif)
    exif.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"
    picture.save(tmp_path / "odd.jpg", exif=exif)
    (tmp_path / "text.jpg").write_text("no picture")
    for name, taken in (("noted.jpg", 86_407.0), ("odd.jpg", 1_000.5), ("text.jpg", 1_000.5)):
        os.utime(tmp_path / name, (1_000.5, 1_000.5))
        assert file_version(tmp_path / name).taken == taken


def test_the_time_of_a_file_that_was_written_just_before_it_was_read_is_not_trusted(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"content")
    os.utime(path, ns=(10**18, 10**18))
    for later, trusted in ((-1, False), (0, False), (20_000_000, False), (1_000_000_000, True)):
        monkeypatch.setattr(images.time, "time_ns", lambda later=later: 10**18 + later)
        assert file_version(path).mtime_ns == (10**18 if trusted else None)


def test_a_folder_gives_its_pictures_sorted_with_ids_from_it(tmp_path):
    names = ["b.jpg", "a.JPG", "sub/c.png", "sub.png"]
    others = ["notes.md", ".hidden.jpg", ".cache/d.jpg", "sub/.e.jpg"]
    touch(*(tmp_path / name for name in names + others))
    found = find_images([tmp_path])
    assert found == [(name, tmp_path / name) for name in ["a.JPG", "b.jpg", "sub.png", "sub/c.png"]]


def test_links_that_loop_are_harmless(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "sub/b.jpg")
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    (tmp_path / "sub/again").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert [image_id for image_id, _ in find_images([tmp_path])] == ["a.jpg", "sub/b.jpg"]
    found = find_images([f"{tmp_path}/**/*.jpg"])
    assert [path for _, path in found] == [tmp_path / "a.jpg", tmp_path / "sub/b.jpg"]


def test_a_link_to_a_folder_is_followed_when_named(tmp_path):
    touch(tmp_path / "real/a.jpg")
    (tmp_path / "link").symlink_to("real")
    assert find_images([tmp_path / "link"]) == [("a.jpg", tmp_path / "link/a.jpg")]


def test_files_and_patterns_keep_their_paths_as_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(*map(Path, ["x/b.jpg", "x/a.jpg", "x/notes.md", "odd.name", "x/[1].jpg"]))
    assert [image_id for image_id, _ in find_images(["odd.name"])] == ["odd.name"]
    assert find_images([tmp_path / "odd.name"])[0][0] == f"{tmp_path}/odd.name"
    assert [image_id for image_id, _ in find_images(["x/[1].jpg"])] == ["x/[1].jpg"]
    found = [image_id for image_id, _ in find_images(["x/?.*"])]
    assert found == ["x/a.jpg", "x/b.jpg"]


def test_several_inputs_give_unique_ids_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(*map(Path, ["x/a.jpg", "y/a.jpg"]))
    found = find_images(["y", "x/a.jpg", "x"])
    assert found == [("y/a.jpg", Path("y/a.jpg")), ("x/a.jpg", Path("x/a.jpg"))]


@pytest.mark.parametrize("named", ["{}/list.txt", "@{}/list.txt", "@{}/list"])
def test_a_list_gives_its_files_in_its_order(tmp_path, named):
    touch(tmp_path / "b.jpg", tmp_path / "sub/a.jpg")
    lines = "\ufeffsub/a.jpg\r\n\n b.jpg \ngone.jpg\n/far.jpg\nb.jpg\n"
    for name in ("list", "list.txt"):
        (tmp_path / name).write_text(lines)
    found = find_images([named.format(tmp_path)])
    ids = ["sub/a.jpg", "b.jpg", "gone.jpg"]
    assert found == [(name, tmp_path / name) for name in ids] + [("/far.jpg", Path("/far.jpg"))]


def test_a_file_name_that_is_no_utf8_has_an_id_that_is(tmp_path):
    touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.jpg")))
    ((image_id, path),) = find_images([tmp_path])
    assert image_id == "\\xe9.jpg"
    assert path.is_file()


def test_inputs_without_a_picture_are_errors_that_name_them(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "full/a.jpg", tmp_path / "empty/notes.md")
    (tmp_path / "latin.txt").write_bytes(b"\xe9.jpg")
    for inputs, reason in [
        (["full", "empty"], "empty: no picture .*found"),
        (["empty/*.md"], r"empty/\*\.md: no picture"),
        (["none.jpg"], r"none\.jpg: no such file or folder"),
        (["@none.lst"], r"none\.lst: cannot read the list"),
        (["latin.txt"], r"latin\.txt: cannot read the list"),
    ]:
        given = [
            f"@{tmp_path}/{name[1:]}" if name[0] == "@" else tmp_path / name for name in inputs
        ]
        with pytest.raises(ValueError, match=reason):
            find_images(given)
