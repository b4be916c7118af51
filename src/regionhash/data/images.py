"""Image files: found on disk, and read into RGB as they are displayed."""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from PIL.ImageFile import ImageFile

from regionhash.data.headers import check_structure
from regionhash.data.image_set import Image
from regionhash.files.names import shown_name
from regionhash.files.text import NOT_REGULAR, open_regular, read_text, reason_of

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""File endings that `find_images` takes from folders and patterns, in lower case."""

# Only formats of photographs: Pillow's decoders for others are little tested, and for EPS it starts
# Ghostscript. The JPEG reader also opens the MPO files of phones.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

MAX_PIXELS = 150_000_000
"""Larger pictures are refused before they are decoded: 0.45 GB as RGB, one and a half times the
largest camera sensors (100 Mpx), and below the 179 Mpx at which Pillow itself refuses."""

_ORIENTATION = 0x0112  # the EXIF tag
_EXIF_IFD, _TAKEN = 0x8769, 0x9003  # the tags of the EXIF block and of DateTimeOriginal in it
_SIDEWAYS = frozenset((5, 6, 7, 8))  # orientations that swap height and width
_BLOCK = 1 << 18  # pixels converted at a time
_CLOCK_NS = 50_000_000
"""Coarser than the clock of any Unix file system; most tick every 1 to 10 ms."""


class ImageError(ValueError):
    """A picture that cannot be read: the message names the file and the reason."""


def read_image(path: str | Path, *, name: str | None = None) -> Image:
    """The picture in a file as (H, W, 3) uint8 RGB, writable, as shown.

    EXIF orientation is applied, transparent parts are put on white, 16 bits per channel are scaled
    to 8, and only the first frame of an animation is read. Pillow reads every format: torchvision's
    JPEG reader gives the same pixels a fifth faster, but is deprecated and will be removed.

    Args:
        path: the file.
        name: for messages; the path by default.

    Raises:
        ImageError: the file is missing, empty, truncated, broken, not a regular file, not a
            picture, larger than `MAX_PIXELS`, refused by `check_structure`, or has pixels without
            a defined white (32-bit floats).
    """
    with _named(name or path), open_regular(path) as file, _opened(file) as image:
        return _rgb(image)


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels of the picture as shown, from the file's header alone.

    Raises:
        ImageError: see `read_image`, as far as the header shows.
    """
    with _named(path), open_regular(path) as file, _opened(file) as image:
        sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


def read_image_bytes(content: bytes, name: str, *, max_pixels: int | None = None) -> Image:
    """The picture in the content of a file; see `read_image`.

    Args:
        content: the bytes, which alone determine the format.
        name: for messages.
        max_pixels: larger pictures are refused before they are decoded; `MAX_PIXELS` by default.

    Raises:
        ImageError: see `read_image`.
    """
    with _named(name), io.BytesIO(content) as file, _opened(file, max_pixels) as image:
        return _rgb(image)


def read_kind(content: bytes, name: str) -> str:
    """Pillow's name of the format of the picture in the content of a file: "JPEG", "PNG".

    Raises:
        ImageError: see `read_image`, as far as the header shows.
    """
    with _named(name), io.BytesIO(content) as file, _opened(file) as image:
        return image.format or ""


def thumbnail(image: Image, size: int) -> bytes:
    """A picture as JPEG, its longer side at most `size` pixels."""
    small = PILImage.fromarray(image)
    small.thumbnail((size, size), PILImage.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _noted_time(file: BinaryIO) -> datetime | None:
    """When the camera took the picture in a file, if EXIF says so.

    The camera's clock has no time zone; UTC is assumed, so that the date stays the same.

    Raises:
        ImageError: see `read_size`.
    """
    with _named("the file"), _opened(file) as image:
        noted = image.getexif().get_ifd(_EXIF_IFD).get(_TAKEN)
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


def _opened(file: BinaryIO, max_pixels: int | None = None) -> ImageFile:
    """The file with its header read."""
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if not file.read(1):
        raise ValueError("the file is empty")
    check_structure(file)
    image = PILImage.open(file, formats=_FORMATS)
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the limit of {max_pixels:,}"
        )
    return image


def _rgb(image: ImageFile) -> Image:
    """The pixels as `read_image` gives them.

    They are converted block by block, so only the result takes memory besides the decoder's pixels
    (4 bytes each in Pillow, but 1 for grey and palettes and 2 for 16 bits).
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    orientation = image.getexif().get(_ORIENTATION)
    decoded = _decoded(image)
    height, width = decoded.height, decoded.width
    sideways = orientation in _SIDEWAYS
    shown: Image = np.empty((width, height, 3) if sideways else (height, width, 3), np.uint8)
    stored = _as_stored(shown, orientation)  # (H, W, 3)
    columns = min(width, _BLOCK)
    rows = max(1, _BLOCK // columns)
    for y in range(0, height, rows):
        for x in range(0, width, columns):
            block = decoded.crop((x, y, min(x + columns, width), min(y + rows, height)))
            stored[y : y + rows, x : x + columns] = _block_rgb(block)
    return shown


def _decoded(image: ImageFile) -> PILImage.Image:
    """The picture with its pixels.

    PGM and PPM whose white is neither 255 nor 65535 are decoded here: Pillow loops over them in
    Python, at a microsecond per value. The values are the same.
    """
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
        return PILImage.fromarray(pixels)
    image.load()
    return image


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


def _block_rgb(block: PILImage.Image) -> NDArray[np.uint8]:
    """A part of a picture as RGB (h, w, 3), or as grey (h, w, 1)."""
    if block.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        values = np.asarray(block)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values must be within 16 bits")
        grey: NDArray[np.uint8] = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return grey[..., None]
    if block.has_transparency_data:
        white = PILImage.new("RGBA", block.size, "white")
        block = PILImage.alpha_composite(white, block.convert("RGBA"))
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
            was written.
    """

    hash: bytes
    n_bytes: int
    mtime_ns: int | None
    taken: float


def file_version(path: str | Path) -> FileVersion:
    """The current version of a file. Raises OSError if it cannot be read."""
    return _read_version(path)[1]


def read_image_version(path: str | Path) -> tuple[Image, FileVersion]:
    """The picture in a file, and the version of the very bytes it was decoded from.

    Raises:
        ImageError: see `read_image`.
    """
    with _named(path):
        content, version = _read_version(path)
    return read_image_bytes(content, str(path)), version


def _read_version(path: str | Path) -> tuple[bytes, FileVersion]:
    """All bytes of a file and their version."""
    with open_regular(path) as file:
        state, now = os.fstat(file.fileno()), time.time_ns()
        content = file.read()
    mtime = state.st_mtime_ns if now - state.st_mtime_ns > _CLOCK_NS else None
    try:
        noted = _noted_time(io.BytesIO(content))
    except ImageError:  # decoding reports it
        noted = None
    taken = noted.timestamp() if noted else state.st_mtime
    return content, FileVersion(hashlib.sha256(content).digest(), len(content), mtime, taken)


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


def find_images(inputs: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Ids and paths of the image files named by `inputs`.

    An input is one of:

    - a file with any name;
    - a folder: the files below it that end in one of `SUFFIXES`, sorted;
    - a pattern such as `photos/**/*.jpg`: likewise, the files that match;
    - a list, `@list` or any `*.txt` file: one path per line, relative to the list's folder, in the
      list's order. Missing files are noticed when they are read.

    Hidden files and folders are left out unless named, links to folders are not followed, and a
    path that occurs twice is taken once. For a single folder or list, ids are relative to it;
    otherwise they are the paths as given. Ids are unique and valid UTF-8.

    Raises:
        ValueError: there is no such file or folder, or it holds no picture.
    """
    found: dict[str, Path] = {}
    for given in map(str, inputs):
        files = list(_expanded(given))
        if not files:
            raise ValueError(f"{given}: no picture ({' '.join(sorted(SUFFIXES))}) found")
        for path, base in files:
            shown = path.relative_to(base) if base and len(inputs) == 1 else path
            # File names need not be UTF-8, but ids are stored and printed.
            found.setdefault(shown_name(shown.as_posix()), path)
    return list(found.items())


def _expanded(given: str) -> Iterator[tuple[Path, Path | None]]:
    """Each file named by one input, with the folder that short ids are relative to."""
    path = Path(given)
    if given.startswith("@"):
        yield from _listed(Path(given[1:]))
    elif path.is_dir():
        for file in _below(path, "**/*"):
            yield file, path
    elif path.is_file() and path.suffix.lower() == ".txt":
        yield from _listed(path)
    elif path.is_file():
        yield path, None
    elif path.exists():
        raise ValueError(f"{given}: {NOT_REGULAR}")
    elif any(map(_is_pattern, path.parts)):
        fixed = [_is_pattern(part) for part in path.parts].index(True)
        for file in _below(Path(*path.parts[:fixed]), str(Path(*path.parts[fixed:]))):
            yield file, None
    else:
        raise ValueError(f"{given}: no such file or folder")


def _is_pattern(part: str) -> bool:
    return any(char in part for char in "*?[")


def _below(folder: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(folder.glob(pattern), key=Path.as_posix):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


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
    with _named(path), open_regular(path) as file, _opened(file) as image:
        orientation: Any = image.getexif().get(_ORIENTATION)
    return int(orientation) if orientation in range(1, 9) else 1
