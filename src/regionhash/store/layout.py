"""What codes are on disk: datasets, types, shapes, ranges; shared by both stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import pack_directions
from regionhash.files import strict_json
from regionhash.files.atomic import replacing
from regionhash.files.text import shown
from regionhash.files.urls import Location
from regionhash.precision import PRECISIONS
from regionhash.structures import EncodedImage

FORMAT = "regionhash codes"
VERSION = 1
MAX_BITS = 1 << 16  # of a code
_MAX_PATH = 4096  # Linux's PATH_MAX

LAYOUT = {
    "id_bytes": ("id_byte", "<u1"),
    "sizes": ("image", "<i4"),
    "image_codes": ("image", "<u1"),
    "class_probs": ("image", "<f4"),
    "image_labels": ("image", "<u1"),
    "boxes": ("region", "<f4"),
    "scores": ("region", "<f4"),
    "labels": ("region", "<i8"),
    "region_codes": ("region", "<u1"),
    "categories": ("category", "<i8"),
    "category_probs": ("category", "<f4"),
    "category_codes": ("category", "<u1"),
    "region_features": ("region", "<i1"),
}
"""Dataset: what one row of it describes, and its type. Also the order in a journal's record."""

OFFSETS = {"id_byte": "id_offsets", "region": "offsets", "category": "category_offsets"}
"""What an image owns any number of: the dataset of the offsets that divide it among the images."""

Shapes = dict[str, tuple[int, ...]]


class StoreError(ValueError):
    """A code file or its journal cannot be used; the message names the file and the reason."""


@contextmanager
def reported(path: Path, what: str) -> Iterator[None]:
    """Turns an error of the operating system into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {what}: {error.strerror or error}") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its place at the end.

    Raises:
        ValueError: the path already exists, or does by the end.
        StoreError: writing fails.
    """
    exists = f"{path}: already exists"
    if path.exists():
        raise ValueError(exists)
    with reported(path, "cannot write"):
        try:
            with replacing(path, exclusive=True) as temporary:
                yield temporary
        except FileExistsError:
            raise ValueError(exists) from None


def dtype_of(name: str) -> np.dtype[Any]:
    """Type of a dataset."""
    return np.dtype(LAYOUT[name][1] if name in LAYOUT else "<i8")


def encode_id(image_id: str) -> bytes:
    """UTF-8; a file name that is none keeps its bytes, as `os.fsencode` has it."""
    return image_id.encode("utf-8", "surrogateescape")


def decode_id(encoded: bytes) -> str:
    """The inverse of `encode_id`."""
    return encoded.decode("utf-8", "surrogateescape")


def checked_header(
    path: Location, content: bytes, form: str = FORMAT, version: int = VERSION
) -> dict[str, Any]:
    """The header of a file of codes. Raises StoreError for what cannot be right."""
    try:
        header = strict_json.parse_object(content)
    except ValueError as error:
        raise StoreError(f"{path}: header: {error}") from error
    check_fields(path, header, {"format": form, "version": version})
    try:
        for name in ("model", "model_hash"):
            strict_json.field(header, name, str)
        strict_json.class_names(header)
        for name in ("n_bits", "n_region_bits"):
            if strict_json.whole_number(header, name, 0, MAX_BITS) % 8:
                raise ValueError(f"{name} must be a multiple of 8, got {header[name]}")
        _check_meta(strict_json.field(header, "meta", dict))
    except ValueError as error:
        raise StoreError(f"{path}: header: {error}") from error
    return header


def _check_meta(meta: dict[str, Any]) -> None:
    """Raises ValueError for values that a search would trip over; other keys hold anything."""
    if "checkpoint" in meta and not _is_path(strict_json.field(meta, "checkpoint", str)):
        raise ValueError("meta: checkpoint must be a path")
    if meta.get("precision", PRECISIONS[0]) not in PRECISIONS:
        given = shown(meta["precision"])
        raise ValueError(f"meta: precision must be one of {', '.join(PRECISIONS)}, got {given}")
    for source in strict_json.field(meta, "sources", list) if "sources" in meta else ():
        ok = isinstance(source, dict) and set(source) in ({"folder", "suffix"}, {"data"})
        if not ok or not all(isinstance(text, str) and _is_path(text) for text in source.values()):
            raise ValueError(
                "meta: sources must be objects of texts, with folder and suffix or with data, "
                f"got {shown(source)}"
            )


def _is_path(text: str) -> bool:
    return "\0" not in text and len(text) <= _MAX_PATH


def check_fields(path: Location, header: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises StoreError unless a header has these values."""
    for field, value in expected.items():
        if header.get(field) != value:
            got = shown(header.get(field))
            raise StoreError(f"{path}: {field} must be {value!r}, got {got}")


def row_shapes_of(model: Mapping[str, Any]) -> dict[str, tuple[int | None, ...]]:
    """The shape of one row of each dataset of a model; None is any number.

    Args:
        model: its "classes", "n_bits" and "n_region_bits".
    """
    n_classes = len(model["classes"])
    return {
        "id_bytes": (),
        "sizes": (2,),
        "image_codes": (model["n_bits"] // 8,),
        "class_probs": (n_classes,),
        "image_labels": (n_classes,),
        "boxes": (4,),
        "scores": (),
        "labels": (),
        "region_codes": (model["n_region_bits"] // 8,),
        "categories": (),
        "category_probs": (),
        "category_codes": (None,),
        "region_features": (None,),
    }


def fits(shape: Sequence[int], wanted: tuple[int | None, ...]) -> bool:
    """Whether a row has the wanted shape; None stands for any length up to `MAX_BITS`."""
    return len(shape) == len(wanted) and all(
        got <= MAX_BITS if want is None else got == want
        for got, want in zip(shape, wanted, strict=True)
    )


def _columns(wanted: tuple[int | None, ...]) -> str:
    return f"({', '.join(['*', *('*' if n is None else str(n) for n in wanted)])})"


_FINITE = float(np.finfo(np.float32).max)


def check_ranges(rows: Mapping[str, NDArray[Any]], n_classes: int) -> None:
    """Raises ValueError for values that no picture has: labels without a class, NaN, infinity."""
    limits = {
        "sizes": (0, np.inf),
        "class_probs": (-_FINITE, _FINITE),
        "image_labels": (0, 1),
        "boxes": (-_FINITE, _FINITE),
        "scores": (-_FINITE, _FINITE),
        "labels": (-1, n_classes - 1),
        "categories": (0, n_classes - 1),
        "category_probs": (-_FINITE, _FINITE),
    }
    for name, (low, high) in limits.items():
        values = rows.get(name)
        if values is None or not values.size:
            continue
        least, most = values.min(), values.max()  # both NaN where there is one
        if not (low <= least and most <= high):
            wanted = "finite" if high == _FINITE else f"in [{low}, {high}]"
            raise ValueError(f"{name} must be {wanted}, got values from {least} to {most}")


def rows_of(
    image_id: str,
    encoded: EncodedImage,
    labels: Sequence[int] | None,
    model: Mapping[str, Any],
    *,
    keep_features: bool = False,
) -> dict[str, NDArray[Any]]:
    """What one image adds to each dataset, checked, in the order and types of `LAYOUT`.

    Args:
        image_id: for the dataset of ids, and for messages.
        encoded: what the model gave.
        labels: distinct class indices known to be true of the image.
        model: "classes", "n_bits" and "n_region_bits" of the model.
        keep_features: also store the features of the regions, see `pack_directions`.

    Raises:
        ValueError: a code has not the promised number of bits, a label is no class, a number is
            not finite, or there are no features to keep.
    """
    n_classes = len(model["classes"])
    given: dict[str, NDArray[Any]] = {
        "id_bytes": np.frombuffer(encode_id(image_id), np.uint8),
        "sizes": np.array([encoded.size]),
    }
    widths = {}
    if encoded.image_code is not None:
        given["image_codes"] = encoded.image_code[None]
        widths["image_codes"] = model["n_bits"] // 8
    if encoded.class_probs is not None:
        given["class_probs"] = encoded.class_probs[None]
        widths["class_probs"] = n_classes
    if labels is not None:
        if len(set(labels)) != len(labels) or not set(labels) <= set(range(n_classes)):
            raise ValueError(
                f"{image_id}: labels must be distinct indices of {n_classes} classes, "
                f"got {list(labels)}"
            )
        given["image_labels"] = np.isin(np.arange(n_classes), labels)[None]
    if (regions := encoded.regions) is not None:
        given["boxes"] = regions.boxes
        given["scores"] = regions.scores
        given["labels"] = regions.labels
        given["region_codes"] = regions.codes
        widths["region_codes"] = model["n_region_bits"] // 8
    if keep_features:
        features = None if regions is None else regions.features
        if features is None:
            raise ValueError(f"{image_id}: has codes alone, and no features to keep beside them")
        kept = features if features.dtype == np.int8 else pack_directions(features)
        given["region_features"] = kept
    if (categories := encoded.categories) is not None:
        given["categories"] = categories.categories
        given["category_probs"] = categories.probs
        given["category_codes"] = categories.codes
    for name, width in widths.items():
        if given[name].shape[1] != width:
            raise ValueError(
                f"{image_id}: {name} must have {width} columns, got {given[name].shape[1]}"
            )
    try:
        check_ranges(given, n_classes)
    except ValueError as error:
        raise ValueError(f"{image_id}: {error}") from error
    return {name: given[name].astype(dtype_of(name)) for name in LAYOUT if name in given}


def checked_row_shapes(header: dict[str, Any], model: Mapping[str, Any]) -> Shapes:
    """The field "rows" of a journal. Raises ValueError unless a model can have such rows."""
    given = strict_json.field(header, "rows", dict)
    wanted = row_shapes_of(model)
    for name, shape in given.items():
        if (
            name not in wanted
            or not isinstance(shape, list)
            or not all(type(n) is int and n >= 0 for n in shape)
            or not fits(shape, wanted[name])
        ):
            raise ValueError(f"rows: {shown({name: shape})}")
    if [name for name in LAYOUT if name in given] != list(given) or "sizes" not in given:
        raise ValueError(f"rows: {shown(list(given))}")
    return {name: tuple(shape) for name, shape in given.items()}


def described(row_shapes: Shapes | None) -> str:
    """The parts of a picture with their shapes, for a message."""
    return ", ".join(
        " x ".join((name, *map(str, shape))) for name, shape in (row_shapes or {}).items()
    )
