"""Image files: found on disk, and read into RGB as a person sees them."""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from regionhash.data.image_set import Image
from regionhash.files import shown_name

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""What `find_images` takes from folders and patterns, in lower case."""

# Only what photographs come in: for others Pillow has decoders that few people test, and for EPS it
# starts Ghostscript. The JPEG reader opens the MPO files of telephones as well.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

MAX_PIXELS = 150_000_000
"""Larger pictures are refused before they are decoded: 0.45 GB as RGB, half as much again as the
largest camera sensors (100 Mpx), and below the 179 Mpx at which Pillow itself refuses."""

_ORIENTATION = 0x0112  # the EXIF tag
_EXIF_IFD, _TAKEN = 0x8769, 0x9003  # the tags of the EXIF block and of DateTimeOriginal in it
_SIDEWAYS = frozenset((5, 6, 7, 8))  # its values that swap height and width


class ImageError(ValueError):
    """A picture that cannot be read: the message names the file and the reason."""


def read_image(path: str | Path) -> Image:
    """The picture in a file as (H, W, 3) uint8 RGB, writable, as shown.

    EXIF orientation is applied, transparent parts lie on white, 16 bits per channel are scaled to
    8, and of an animation the first frame is read. Pillow reads every format: torchvision's JPEG
    reader gives the same pixels a fifth faster, but is deprecated and will be removed.

    Raises:
        ImageError: the file is missing, empty, truncated, broken, no picture, larger than
            `MAX_PIXELS`, or has pixels without a defined white (32-bit floats).
    """
    try:
        # Pillow warns of odd metadata, which does not touch the pixels.
        with warnings.catch_warnings(action="ignore"), _opened(path) as image:
            return np.array(_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise ImageError(f"{path}: {_reason(error, path)}") from error


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels of the picture as shown, from the file's header alone.

    Raises:
        ImageError: as `read_image`, as far as the header tells.
    """
    try:
        with warnings.catch_warnings(action="ignore"), _opened(path) as image:
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
            return (image.width, image.height) if sideways else (image.height, image.width)
    except Exception as error:  # as above
        raise ImageError(f"{path}: {_reason(error, path)}") from error


def read_image_bytes(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The picture in the content of a file, as `read_image` gives it.

    Args:
        content: the bytes; what they are is told by them, not by a name or a type.
        name: for messages.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ImageError: as `read_image`.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            _opened(io.BytesIO(content), max_pixels) as image,
        ):
            return np.array(_rgb(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError as error:
        reason = "not a picture of a known format, or broken" if content else "the file is empty"
        raise ImageError(f"{name}: {reason}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise ImageError(f"{name}: {_reason(error, name)}") from error


def _noted_time(file: io.BytesIO) -> datetime | None:
    """When the camera took the picture in a file, if it has noted that (EXIF).

    The camera's clock has no time zone; it is taken for UTC, so that the date stays the same.
    Raises what a decoder raises for what is no picture.
    """
    with warnings.catch_warnings(action="ignore"), _opened(file) as image:
        noted = image.getexif().get_ifd(_EXIF_IFD).get(_TAKEN)
    try:
        return datetime.strptime(str(noted), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _opened(file: str | Path | io.BytesIO, max_pixels: int | None = None) -> PILImage.Image:
    """The file with its header read."""
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    image = PILImage.open(file, formats=_FORMATS)
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the limit of {max_pixels:,}"
        )
    return image


def _rgb(image: PILImage.Image) -> PILImage.Image:
    """The picture in mode RGB."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values must be within 16 bits")
        image = PILImage.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.has_transparency_data:
        white = PILImage.new("RGBA", image.size, "white")
        image = PILImage.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _reason(error: Exception, path: str | Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = Path(path).stat().st_size == 0
        return "the file is empty" if empty else "not a picture of a known format, or broken"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class FileVersion(NamedTuple):
    """What tells one content of a file from another.

    Attributes:
        hash: SHA-256 of the bytes.
        n_bytes: how many they are.
        mtime_ns: when the file was written; None where that was so shortly before it was read that
            a later change might have the same time.
        taken: when the picture was taken, in seconds since 1970: of EXIF, or else when the file was
            written.
    """

    hash: bytes
    n_bytes: int
    mtime_ns: int | None
    taken: float


_CLOCK_NS = 50_000_000
"""Coarser than the clock of any disk of a Unix system, of which most tick every 1 to 10 ms."""


def file_version(path: str | Path) -> FileVersion:
    """The version of a file as it is now. Raises OSError where it cannot be read."""
    return _read_version(path)[1]


def read_image_version(path: str | Path) -> tuple[Image, FileVersion]:
    """The picture in a file, and the version of just the bytes that it was decoded from.

    Raises:
        ImageError: as `read_image`.
    """
    try:
        content, version = _read_version(path)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    return read_image_bytes(content, str(path)), version


def _read_version(path: str | Path) -> tuple[bytes, FileVersion]:
    """All bytes of a file and their version."""
    with Path(path).open("rb") as file:
        state, now = os.fstat(file.fileno()), time.time_ns()
        content = file.read()
    mtime = state.st_mtime_ns if now - state.st_mtime_ns > _CLOCK_NS else None
    try:
        noted = _noted_time(io.BytesIO(content))
    except Exception:  # no picture, which decoding it tells
        noted = None
    taken = noted.timestamp() if noted else state.st_mtime
    return content, FileVersion(hashlib.sha256(content).digest(), len(content), mtime, taken)


class FileImages(Sequence[Image]):
    """The pictures of some files, each read when asked for.

    Attributes:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: Any) -> Any:
        return read_image(self.paths[n])


def find_images(inputs: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Ids and paths of the image files that `inputs` name.

    An input is one of:

    - a file, whatever its name ends with;
    - a folder: the files below it whose names end as pictures do (`SUFFIXES`), sorted;
    - a pattern such as `photos/**/*.jpg`: the same of the files that match;
    - a list, `@list` or any `*.txt` file: one path a line, from the list's own folder, in the
      list's order. Whether they exist shows when they are read.

    Hidden files and folders are left out unless named, links to folders are not followed, and a
    path that comes twice is taken once. Where a single folder or list is given, ids are relative
    to it; otherwise they are the paths as given. Ids are unique and valid UTF-8.

    Raises:
        ValueError: there is no such file or folder, or it holds no picture.
    """
    found: dict[str, Path] = {}
    for given in map(str, inputs):
        files = list(_expanded(given))
        if not files:
            raise ValueError(f"{given}: no picture ({' '.join(sorted(SUFFIXES))}) found there")
        for path, base in files:
            shown = path.relative_to(base) if base and len(inputs) == 1 else path
            # Names on disk need not be UTF-8; ids are stored and printed, so they must be.
            found.setdefault(shown_name(shown.as_posix()), path)
    return list(found.items())


def _expanded(given: str) -> Iterator[tuple[Path, Path | None]]:
    """Each file that one input names, with the folder that a short id is relative to."""
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
    elif any(map(_is_pattern, path.parts)):
        fixed = [_is_pattern(part) for part in path.parts].index(True)
        for file in _below(Path(*path.parts[:fixed]), str(Path(*path.parts[fixed:]))):
            yield file, None
    else:
        raise ValueError(f"{given}: no such file or folder")


def _is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _below(folder: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(folder.glob(pattern), key=Path.as_posix):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _listed(path: Path) -> Iterator[tuple[Path, Path | None]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the list: {error}") from error
    for line in filter(None, map(str.strip, lines)):
        listed = path.parent / line
        yield listed, (path.parent if listed.is_relative_to(path.parent) else None)
