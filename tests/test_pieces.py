"""Files whose pixels are sound and whose metadata is not."""

import io
import random
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import costly_pictures as costly
from regionhash.data.images import ImageError, read_image_bytes, read_with_note
from regionhash.data.pieces import joined

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(before=b"", after=b"", picture=None, **options):
    """A PNG with chunks before and after its pixels."""
    content = costly.saved(picture or Image.fromarray(PIXELS), "PNG", **options)
    at, end = content.index(b"IDAT") - 4, content.rindex(b"IEND") - 4
    return content[:at] + before + content[at:end] + after + content[end:]


LONG = zlib.compress(bytes(3 << 20))
ODD = {
    "long profile": (b"iCCP", b"p\0\0" + LONG),
    "odd profile": (b"iCCP", b"p\0\7" + LONG),
    "empty profile": (b"iCCP", b""),
    "long zTXt": (b"zTXt", b"k\0\0" + LONG),
    "odd zTXt": (b"zTXt", b"k\0\7" + LONG),
    "long iTXt": (b"iTXt", b"k\0\1\0\0\0" + LONG),
    "long xmp": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "long tEXt": (b"tEXt", b"k\0" + b"x" * (70 << 20)),
    "odd exif": (b"eXIf", b"no exif"),
    "odd exif text": (b"tEXt", b"Raw profile type exif\0\n1\n2\nno digits"),
    "short gamma": (b"gAMA", b"1"),
    "short size": (b"pHYs", b"1"),
    "short colours": (b"cHRM", b"1"),
    "empty sRGB": (b"sRGB", b""),
    "no frames": (b"acTL", bytes(8)),
    "short acTL": (b"acTL", b"1"),
    "frame of a wrong number": (b"fcTL", (7).to_bytes(4) + bytes(22)),
    "frame outside": (b"fcTL", bytes(4) + (500).to_bytes(4) * 2 + bytes(14)),
    "frame data of a wrong number": (b"fdAT", (9).to_bytes(4) + b"xx"),
    "short fdAT": (b"fdAT", b"1"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", ["before", "after"])
def test_no_metadata_of_a_png_refuses_it(odd, place):
    made = png(**{place: costly.chunk(*ODD[odd])})
    np.testing.assert_array_equal(read_image_bytes(made, "a"), PIXELS)


def test_wrong_checksums_of_metadata_refuse_no_png():
    for kind, content in ODD.values():
        broken = costly.chunk(kind, content[:1000])[:-4] + b"oops"
        np.testing.assert_array_equal(read_image_bytes(png(before=broken), "a"), PIXELS)


def test_an_animation_with_faulty_frames_shows_its_still_picture():
    stream = io.BytesIO()
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    content = stream.getvalue()
    np.testing.assert_array_equal(read_image_bytes(content, "a"), PIXELS)
    for kind in (b"acTL", b"fcTL", b"fdAT"):
        at = content.index(kind) + 4
        broken = content[:at] + b"\xff" * 8 + content[at + 8 :]
        np.testing.assert_array_equal(read_image_bytes(broken, "a"), PIXELS)


def test_what_affects_pixels_stays():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = PIXELS.transpose(1, 0, 2)[:, ::-1]
    text = costly.chunk(b"tEXt", b"Comment\0long" * 50)
    np.testing.assert_array_equal(read_image_bytes(png(text, exif=exif), "a"), turned)
    late = costly.chunk(b"eXIf", exif.tobytes()[6:])
    np.testing.assert_array_equal(read_image_bytes(png(text, late + text), "a"), turned)
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", 'tiff:Orientation="6"', zip=True)
    np.testing.assert_array_equal(read_image_bytes(png(text, pnginfo=info), "a"), turned)
    palette = Image.fromarray(PIXELS).quantize(8)
    clear = read_image_bytes(png(text, picture=palette, transparency=bytes(8)), "a")
    assert (clear == 255).all()
    grey = Image.fromarray(PIXELS[..., 0])
    one = read_image_bytes(png(text, picture=grey, transparency=int(PIXELS[0, 0, 0])), "a")
    assert one[0, 0].tolist() == [255, 255, 255]


def test_what_is_critical_is_not_passed_over():
    broken = png().replace(b"IHDR", b"IHDX")
    for content in (broken, png(before=costly.chunk(b"tRNS", b"1"))):
        with pytest.raises(ImageError, match=r"^a: "):
            read_image_bytes(content, "a")


@pytest.mark.parametrize("seed", range(5))
def test_joined_pieces_are_read_like_their_content(seed):
    chooser = random.Random(seed)
    content = chooser.randbytes(300_000)
    edges = sorted(chooser.choices(range(len(content)), k=12))
    pieces = [*zip(edges[::2], edges[1::2], strict=True)]
    pieces.insert(2, b"between")
    expected = b"".join(p if isinstance(p, bytes) else content[slice(*p)] for p in pieces)
    file, twin = joined(io.BytesIO(content), pieces), io.BytesIO(expected)
    for _ in range(200):
        whence = chooser.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
        at = chooser.randrange(len(expected)) if whence == io.SEEK_SET else 0
        assert file.seek(at, whence) == twin.seek(at, whence)
        for size in (chooser.randrange(100), chooser.randrange(100_000)):
            assert file.read(size) == twin.read(size)
    file.seek(0)
    assert file.read() == expected


def test_metadata_is_left_out_of_files_as_of_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(png(before=costly.chunk(*ODD["long profile"])))
    read = read_with_note(tmp_path / "a.png")
    np.testing.assert_array_equal(read.image, PIXELS)
    assert read.note is None
