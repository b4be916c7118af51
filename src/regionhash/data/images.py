"""Image files: found on disk, and read into RGB as they are displayed."""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError, _imaging, features
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from regionhash.data.cut_off import ADVICE, ends_early, load_what_is_there
from regionhash.data.headers import check_structure
from regionhash.data.image_set import Image
from regionhash.data.notices import Notices
from regionhash.data.pieces import Given, given_to_decoder
from regionhash.data.walking import files_below
from regionhash.files.names import shown_name
from regionhash.files.text import NOT_REGULAR, open_regular, read_text, reason_of

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
        *(".pbm", ".pgm", ".pnm", ".ppm", ".avif", ".heic", ".heif", ".hif"),
    )
)
"""File endings that `find_images` takes from folders and patterns, in lower case. What format a
file has is decided by its content."""

# Only formats of photographs: Pillow's decoders for others are little tested, and for EPS it starts
# Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF")

# ISO/IEC 23008-12: brands of HEIF files; the last two are also those of AVIF files.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_HEIF_BRANDS = (*_HEIC_BRANDS, b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")

MAX_PIXELS = 150_000_000
"""Larger pictures are refused before they are decoded: 0.45 GB as RGB, one and a half times the
largest camera sensors (100 Mpx), and below the 179 Mpx at which Pillow itself refuses."""

_ORIENTATION = 0x0112  # the EXIF tag
_WIDTH, _HEIGHT, _BITS = 256, 257, 258  # tags of a TIFF
_EXIF_IFD, _TAKEN = 0x8769, 0x9003  # the tags of the EXIF block and of DateTimeOriginal in it
_SIDEWAYS = frozenset((5, 6, 7, 8))  # orientations that swap height and width
_BLOCK = 1 << 18  # pixels converted at a time
_CLOCK_NS = 50_000_000
"""Coarser than the clock of any Unix file system; most tick every 1 to 10 ms."""


class ImageError(ValueError):
    """A picture that cannot be read: the message names the file and the reason."""


class ReadImage(NamedTuple):
    """A picture, and what of its file could not be read.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        note: in plain words, that a part of the file is missing, and how much; None if it is whole.
    """

    image: Image
    note: str | None = None


def read_image(path: str | Path, *, name: str | None = None) -> Image:
    """The picture in a file as (H, W, 3) uint8 RGB, writable, as shown.

    Orientation is applied, transparent parts are put on white, 12 and 16 bits per channel are
    scaled to 8, and only the first frame of an animation is read: its still picture, if there is
    one. Metadata that cannot be read is ignored. If the end of the file is missing, at least half
    of the picture must be there; the rest is then grey, black or white.

    Pillow reads every format: torchvision's JPEG reader gives the same pixels a fifth faster, but
    is deprecated and will be removed.

    Args:
        path: the file.
        name: for messages; the path by default.

    Raises:
        ImageError: the file is missing, empty, broken, cut off before half of the picture, not a
            regular file, not a picture, larger than `MAX_PIXELS`, refused by `check_structure`, in
            a format that needs another package, or has pixels without a defined white (32-bit
            floats).
    """
    return read_with_note(path, name=name).image


def read_with_note(path: str | Path, *, name: str | None = None) -> ReadImage:
    """As `read_image`, and whether a part of the file is missing."""
    with _named(name or path), open_regular(path) as file, _opened(file) as opened:
        return _read(opened)


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels of the picture as shown, from the file's header alone.

    Raises:
        ImageError: see `read_image`, as far as the header shows.
    """
    with _named(path), open_regular(path) as file, _opened(file) as opened:
        image = opened.image
        width, height = image.size
        if isinstance(image, TiffImageFile):  # some versions of Pillow have turned it already
            width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
        return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


def read_image_bytes(content: bytes, name: str, *, max_pixels: int | None = None) -> Image:
    """The picture in the content of a file; see `read_image`.

    Args:
        content: the bytes, which alone determine the format.
        name: for messages.
        max_pixels: larger pictures are refused before they are decoded; `MAX_PIXELS` by default.

    Raises:
        ImageError: see `read_image`.
    """
    return read_bytes_with_note(content, name, max_pixels=max_pixels).image


def read_bytes_with_note(content: bytes, name: str, *, max_pixels: int | None = None) -> ReadImage:
    """As `read_image_bytes`, and whether a part of the content is missing."""
    with _named(name), io.BytesIO(content) as file, _opened(file, max_pixels) as opened:
        return _read(opened)


def read_kind(content: bytes, name: str) -> str:
    """Pillow's name of the format of the picture in the content of a file: "JPEG", "PNG".

    Raises:
        ImageError: see `read_image`, as far as the header shows.
    """
    with _named(name), io.BytesIO(content) as file, _opened(file) as opened:
        return opened.image.format or ""


def thumbnail(image: Image, size: int) -> bytes:
    """A picture as JPEG, its longer side at most `size` pixels."""
    small = PILImage.fromarray(image)
    small.thumbnail((size, size), PILImage.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def read_thumbnail(path: str | Path, size: int, *, name: str | None = None) -> bytes:
    """The picture in a file as `thumbnail` gives it, in a fraction of the time for a large JPEG.

    Its decoder gives the picture at an eighth, a quarter or half of its size; the smallest is taken
    that is not smaller than wanted.

    Raises:
        ImageError: see `read_image`.
    """
    with _named(name or path), open_regular(path) as file, _opened(file) as opened:
        opened.image.draft(None, (size, size))
        return thumbnail(_read(opened).image, size)


def _noted_time(file: BinaryIO) -> datetime | None:
    """When the camera took the picture in a file, if EXIF says so.

    The camera's clock has no time zone; UTC is assumed, so that the date stays the same.

    Raises:
        ImageError: see `read_size`.
    """
    with _named("the file"), _opened(file) as opened:
        noted = _exif(opened.image).get_ifd(_EXIF_IFD).get(_TAKEN)
    try:
        return datetime.strptime(str(noted), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


@contextmanager
def _named(name: str | Path) -> Iterator[None]:
    """Turns any error in reading a picture into an ImageError that names it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd metadata, which affects no pixel
            yield
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise ImageError(f"{name}: {_reason(error)}") from error


class _Opened(NamedTuple):
    image: ImageFile
    given: Given


@contextmanager
def _opened(file: BinaryIO, max_pixels: int | None = None) -> Iterator[_Opened]:
    """The file with its header read."""
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if not file.read(1):
        raise ValueError("the file is empty")
    check_structure(file)
    formats = _formats_of(file)
    given = given_to_decoder(file)
    try:
        with PILImage.open(given.file, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than the limit of "
                    f"{max_pixels:,}"
                )
            yield _Opened(image, given)
    except Exception as error:  # what each decoder says of it differs, and helps nobody
        if ends_early(file):
            raise ValueError(f"the file is cut off; {ADVICE}") from error
        raise


def _formats_of(file: BinaryIO) -> tuple[str, ...]:
    """The formats that a file may have. Some need preparation, or another package."""
    file.seek(0)
    start = file.read(12)
    if start[:2] in (b"II", b"MM"):
        _silence_tiff()
    if start[4:8] != b"ftyp":
        return _FORMATS
    brand = start[8:]
    if brand in _AVIF_BRANDS and not features.check("avif"):
        raise ValueError("AVIF needs pip install --upgrade pillow")
    if brand in _HEIF_BRANDS:
        if _prepare_heif():
            return (*_FORMATS, "HEIF")
        if brand in _HEIC_BRANDS:
            raise ValueError('HEIC needs pip install "regionhash[heic]"')
    return _FORMATS


@cache
def _prepare_heif() -> bool:
    """Whether Pillow can read HEIF, now that it has been told how."""
    try:
        import pillow_heif
    except ImportError:
        return False
    # Threads would each take address space, which the service limits.
    pillow_heif.register_heif_opener(
        decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
    )
    return True


@cache
def _silence_tiff() -> None:
    """Keeps libtiff and Pillow from writing to stderr about a TIFF: such lines name no file.

    Errors stay errors. Pillow has no setting for libtiff; where the library is linked in another
    way, its lines remain. What Pillow logs still reaches handlers that the program has set.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _exif(image: ImageFile) -> PILImage.Exif:
    """EXIF as the header has it.

    For a PNG, Pillow's own method decodes all pixels to look for it after them, where
    `given_to_decoder` leaves none.
    """
    return PILImage.Image.getexif(image)


def _orientation(image: ImageFile) -> int | None:
    """The orientation in EXIF or XMP (EXIF 4.6.4 A), if there is one that can be read."""
    try:
        found = _exif(image).get(_ORIENTATION)
    except Exception:  # whatever is wrong with metadata, viewers show the picture
        return None
    return found if isinstance(found, int) else None


def _read(opened: _Opened) -> ReadImage:
    """The pixels as `read_image` gives them.

    They are converted block by block, so only the result takes memory besides the decoder's pixels
    (4 bytes each in Pillow, but 1 for grey and palettes and 2 for 16 bits).
    """
    image = opened.image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    # Pillow itself turns a TIFF when it is loaded, and pillow-heif takes the orientation out.
    orientation = None if image.format == "TIFF" else _orientation(image)
    size = image.size
    decoded, note = _decoded(opened)
    if image.format == "HEIF" and decoded.size != size:
        raise ValueError(f"its header says {size[0]} x {size[1]} pixels, and its content does not")
    white = _white(image)
    height, width = decoded.height, decoded.width
    sideways = orientation in _SIDEWAYS
    shown: Image = np.empty((width, height, 3) if sideways else (height, width, 3), np.uint8)
    stored = _as_stored(shown, orientation)  # (H, W, 3)
    columns = min(width, _BLOCK)
    rows = max(1, _BLOCK // columns)
    for y in range(0, height, rows):
        for x in range(0, width, columns):
            block = decoded.crop((x, y, min(x + columns, width), min(y + rows, height)))
            stored[y : y + rows, x : x + columns] = _block_rgb(block, white)
    if opened.given.is_negative:
        np.subtract(255, shown, out=shown)
    return ReadImage(shown, note)


def _white(image: ImageFile) -> int:
    """The grey value that is white, if it takes more than 8 bits."""
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_BITS) == (12,):
        return 4095
    return 65535


def _decoded(opened: _Opened) -> tuple[PILImage.Image, str | None]:
    """The picture with its pixels, and a note if some are missing.

    PGM and PPM whose white is neither 255 nor 65535 are decoded here: Pillow loops over them in
    Python, at a microsecond per value. The values are the same.
    """
    image = opened.image
    if image.tile and image.tile[0].codec_name == "ppm":
        white = int(tuple(image.tile[0].args or ())[-1])
        most, kind = (65535, np.uint16) if image.mode == "I" else (255, np.uint8)
        values = np.arange(256 if white < 256 else 65536)
        table = np.minimum(most, np.round(values / white * most)).astype(kind)
        shape = (image.height, image.width, *([3] if image.mode == "RGB" else []))
        pixels = np.empty(shape, kind)
        assert image.fp is not None
        image.fp.seek(image.tile[0].offset)
        for row in pixels:
            content = image.fp.read(row.size * (1 if white < 256 else 2))
            row[:] = table[
                np.frombuffer(content, "u1" if white < 256 else ">u2").reshape(row.shape)
            ]
        return PILImage.fromarray(pixels), None
    return image, load_what_is_there(image, opened.given)


def _as_stored(shown: Image, orientation: int | None) -> Image:
    """A view of the pixels as shown, oriented as the file stores them (EXIF 4.6.4 A)."""
    across = shown.transpose(1, 0, 2)
    return {
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: across,
        6: across[::-1],
        7: across[::-1, ::-1],
        8: across[:, ::-1],
    }.get(orientation or 1, shown)


def _block_rgb(block: PILImage.Image, white: int) -> NDArray[np.uint8]:
    """A part of a picture as RGB (h, w, 3), or as grey (h, w, 1)."""
    if block.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        values = np.asarray(block)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values must be within 16 bits")
        scaled = (values.astype(np.uint32) * 255 + white // 2) // white
        grey: NDArray[np.uint8] = np.minimum(scaled, 255).astype(np.uint8)
        return grey[..., None]
    if block.has_transparency_data:
        paper = PILImage.new("RGBA", block.size, "white")
        block = PILImage.alpha_composite(paper, block.convert("RGBA"))
    return np.asarray(block.convert("RGB"))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a known format, or broken"
    if isinstance(error, MemoryError):
        return "it takes more memory than is available"
    return reason_of(error)


class FileVersion(NamedTuple):
    """What identifies the content of a file.

    Attributes:
        hash: SHA-256 of the bytes.
        n_bytes: number of bytes.
        mtime_ns: when the file was written; None if that was so shortly before it was read that a
            later change might have the same time.
        taken: when the picture was taken, in seconds since 1970: from EXIF, otherwise when the file
            was written; None if neither is known.
    """

    hash: bytes
    n_bytes: int
    mtime_ns: int | None
    taken: float | None


def file_version(path: str | Path) -> FileVersion:
    """The current version of a file. Raises OSError if it cannot be read."""
    return _read_version(path)[1]


class ReadVersion(NamedTuple):
    """A picture with its `note`, as `ReadImage`, and the version of the bytes it was read from."""

    image: Image
    version: FileVersion
    note: str | None = None


def read_image_version(path: str | Path) -> ReadVersion:
    """The picture in a file, with its version.

    Raises:
        ImageError: see `read_image`.
    """
    with _named(path):
        content, version = _read_version(path)
    image, note = read_bytes_with_note(content, str(path))
    return ReadVersion(image, version, note)


def _read_version(path: str | Path) -> tuple[bytes, FileVersion]:
    """All bytes of a file and their version."""
    with open_regular(path) as file:
        state, now = os.fstat(file.fileno()), time.time_ns()
        content = file.read()
    mtime = state.st_mtime_ns if now - state.st_mtime_ns > _CLOCK_NS else None
    return content, version_of(content, state.st_mtime, mtime)


def version_of(content: bytes, written: float | None, mtime_ns: int | None = None) -> FileVersion:
    """The version of the content of a file.

    Args:
        content: all bytes.
        written: when the file was written, in seconds since 1970; None if that is unknown.
        mtime_ns: the same as `FileVersion` has it.
    """
    try:
        noted = _noted_time(io.BytesIO(content))
    except ImageError:  # decoding reports it
        noted = None
    taken = noted.timestamp() if noted else written
    return FileVersion(hashlib.sha256(content).digest(), len(content), mtime_ns, taken)


class FileImages(Sequence[Image]):
    """The pictures in some files, each read when asked for.

    Attributes:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return read_image(self.paths[index])

    def version(self, index: int) -> FileVersion:
        """The current version of a file. Raises OSError if it cannot be read."""
        return file_version(self.paths[index])

    def read(self, index: int) -> ReadVersion:
        """A picture with its version. Raises ImageError as `read_image` does."""
        return read_image_version(self.paths[index])


def find_images(
    inputs: Sequence[str | Path], notices: Notices | None = None
) -> list[tuple[str, Path]]:
    """Ids and paths of the image files named by `inputs`.

    An input is one of:

    - a file with any name;
    - a folder: the files below it that end in one of `SUFFIXES`, sorted;
    - a pattern such as `photos/**/*.jpg`: likewise, the files that match;
    - a list, `@list` or any `*.txt` file: one path per line, relative to the list's folder, in the
      list's order. Missing files are noticed when they are read.

    Hidden files and folders, and those of `walking.NOT_THE_USERS`, are left out unless named, links
    to folders are not followed, and a path that occurs twice is taken once. For a single folder or
    list, ids are relative to it; otherwise they are the paths as given. Ids are unique and valid
    UTF-8.

    Args:
        inputs: see above.
        notices: is told what was left out, see `walking.files_below`.

    Raises:
        ValueError: there is no such file or folder, or it holds no picture.
    """
    notices = Notices() if notices is None else notices
    found: dict[str, Path] = {}
    for given in map(str, inputs):
        files = list(_expanded(given, notices))
        if not files:
            known = " ".join(sorted(SUFFIXES))
            noticed = f"; {notices.summary()}" if notices.counts else ""
            raise ValueError(f"{given}: no picture ({known}) found{noticed}")
        for path, base in files:
            shown = path.relative_to(base) if base and len(inputs) == 1 else path
            # File names need not be UTF-8, but ids are stored and printed.
            found.setdefault(shown_name(shown.as_posix()), path)
    return list(found.items())


def _expanded(given: str, notices: Notices) -> Iterator[tuple[Path, Path | None]]:
    """Each file named by one input, with the folder that short ids are relative to."""
    path = Path(given)
    if given.startswith("@"):
        yield from _listed(Path(given[1:]))
    elif path.is_dir():
        for file in files_below(path, "**/*", SUFFIXES, notices):
            yield file, path
    elif path.is_file() and path.suffix.lower() == ".txt":
        yield from _listed(path)
    elif path.is_file():
        yield path, None
    elif path.exists():
        raise ValueError(f"{given}: {NOT_REGULAR}")
    elif any(map(_is_pattern, path.parts)):
        fixed = [_is_pattern(part) for part in path.parts].index(True)
        pattern = str(Path(*path.parts[fixed:]))
        for file in files_below(Path(*path.parts[:fixed]), pattern, SUFFIXES, notices):
            yield file, None
    else:
        raise ValueError(f"{given}: no such file or folder")


def _is_pattern(part: str) -> bool:
    return any(char in part for char in "*?[")


def _listed(path: Path) -> Iterator[tuple[Path, Path | None]]:
    folder = path.parent
    for line in filter(None, map(str.strip, read_text(path, "the list").splitlines())):
        listed = folder / line
        if "\\" in line and not os.path.exists(listed):  # noqa: PTH110 (a name with a NUL)
            listed = folder / line.replace("\\", "/")
        if listed.is_absolute() and not folder.is_absolute():
            whole = folder.absolute()
            listed = folder / listed.relative_to(whole) if listed.is_relative_to(whole) else listed
        yield listed, (folder if listed.is_relative_to(folder) else None)


def read_orientation(path: str | Path) -> int:
    """The EXIF orientation of a picture, 1 to 8, from the file's header alone.

    Raises:
        ImageError: see `read_image`, as far as the header shows.
    """
    with _named(path), open_regular(path) as file, _opened(file) as opened:
        found = _orientation(opened.image)
    return found if found is not None and 1 <= found <= 8 else 1
