"""The immutable records passed between the stages: NumPy only, checked when made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

_LABELS = 1 << 16  # read at a time

P = ParamSpec("P")
T = TypeVar("T")

Codes = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""
Floats = NDArray[np.float32]
Floats64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[np.signedinteger[Any]]
Scores = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def _shaped(name: str, array: NDArray[Any], *shape: int | None) -> None:
    """Raises ValueError unless `array` has `shape`; None is any length."""
    fits = array.ndim == len(shape) and all(
        want is None or got == want for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("*" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must be ({wanted}), got {array.shape}")


def _typed(name: str, array: NDArray[Any], dtype: type[np.generic]) -> None:
    if array.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype).name}, got {array.dtype}")


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Also accepts older names of keyword arguments: old="new"."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> T:
            for old in names.keys() & options.keys():
                if names[old] in options:
                    raise TypeError(f"{function.__name__}: {old} is an older name of {names[old]}")
                options[names[old]] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The labels of one picture: its objects, possibly none.

    Attributes:
        boxes: (R, 4) float32, xyxy in pixels of the picture as shown (after EXIF orientation).
        labels: (R,) int64, class indices from 0, no background class.
        difficult: (R,) bool: VOC's mark, COCO's crowd regions.
        image_labels: class indices of the picture as a whole, with or without boxes (a CSV table
            without boxes has only these). `all_labels` adds those of the objects.
    """

    boxes: Floats
    labels: Ints
    difficult: NDArray[np.bool_]
    image_labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _shaped("boxes", self.boxes, None, 4)
        _shaped("labels", self.labels, len(self.boxes))
        _shaped("difficult", self.difficult, len(self.boxes))
        _typed("boxes", self.boxes, np.float32)
        _typed("labels", self.labels, np.int64)
        _typed("difficult", self.difficult, np.bool_)

    @classmethod
    def empty(cls, image_labels: Sequence[int] = ()) -> Target:
        """A picture without labelled objects."""
        none = np.zeros(0, np.int64)
        return cls(np.zeros((0, 4), np.float32), none, none.astype(bool), tuple(image_labels))

    def all_labels(self, *, with_difficult: bool = False) -> tuple[int, ...]:
        """Sorted class indices of the picture: of its objects and of the picture as a whole."""
        kept = self.labels if with_difficult else self.labels[~self.difficult]
        return tuple(sorted({*kept.tolist(), *self.image_labels}))


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The boxes that a detector found in one picture, possibly none.

    Attributes:
        boxes: (R, 4) float32, xyxy in pixels of the picture as shown, each with an area.
        scores: (R,) float32 in [0, 1]; 1 if the detector gives none.
        labels: (R,) int64, class indices from 0; -1 if unknown.
    """

    boxes: Floats
    scores: Floats
    labels: Ints

    def __post_init__(self) -> None:
        _shaped("boxes", self.boxes, None, 4)
        _shaped("scores", self.scores, len(self.boxes))
        _shaped("labels", self.labels, len(self.boxes))
        _typed("boxes", self.boxes, np.float32)
        _typed("scores", self.scores, np.float32)
        _typed("labels", self.labels, np.int64)

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def none(cls) -> Detections:
        """Those of a picture in which nothing was found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """The kept instances of one picture, best first. Zero regions is valid.

    Attributes:
        boxes: (R, 4) float32, xyxy in pixels.
        scores: (R,) float32 in [0, 1].
        labels: (R,) int64, class indices from 0; -1 if the model knows no classes.
        codes: (R, K1/8) uint8, packed.
        features: (R, P) float32, what the codes are made from, if the model gives it; int8 if they
            were kept, see `regionhash.codes.pack_directions`.
    """

    boxes: Floats
    scores: Floats
    labels: Ints
    codes: Codes
    features: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        _shaped("boxes", self.boxes, None, 4)
        _shaped("scores", self.scores, len(self.boxes))
        _shaped("labels", self.labels, len(self.boxes))
        _shaped("codes", self.codes, len(self.boxes), None)
        _typed("boxes", self.boxes, np.float32)
        _typed("scores", self.scores, np.float32)
        _typed("labels", self.labels, np.int64)
        _typed("codes", self.codes, np.uint8)
        if self.features is not None:
            _shaped("features", self.features, len(self.boxes), None)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> Regions:
        """Some of the regions; `rows` indexes an array: a slice, numbers, a mask."""
        features = None if self.features is None else self.features[rows]
        return Regions(
            self.boxes[rows], self.scores[rows], self.labels[rows], self.codes[rows], features
        )

    def as_tuples(self) -> tuple[Box, ...]:
        """The boxes as Python numbers."""
        return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in self.boxes.tolist())

    def match(self, row: int, distance: int) -> Match:
        """A region as the match of a query object."""
        x0, y0, x1, y1 = self.boxes[row].tolist()
        label, score = int(self.labels[row]), float(self.scores[row])
        return Match((x0, y0, x1, y1), distance, label, meaningful_score(label, score))


@dataclass(frozen=True, slots=True, eq=False)
class CategoryCodes:
    """Codes of one picture, one per category found in it (IAH, Sec. IV).

    Attributes:
        categories: (G,) int64, class indices, ascending.
        probs: (G,) float32, the probability of each category.
        codes: (G, B/8) uint8, packed.
    """

    categories: Ints
    probs: Floats
    codes: Codes

    def __post_init__(self) -> None:
        _shaped("categories", self.categories, None)
        _shaped("probs", self.probs, len(self.categories))
        _shaped("codes", self.codes, len(self.categories), None)
        _typed("categories", self.categories, np.int64)
        _typed("probs", self.probs, np.float32)
        _typed("codes", self.codes, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """The output of a model for one picture. What it does not give is None, never zeros.

    Attributes:
        size: (height, width) in pixels, which the boxes refer to.
        image_code: (K2/8,) uint8, packed.
        class_probs: (C,) float32, the probability that the picture shows each class.
        regions: the kept instances.
        categories: codes per category.
    """

    size: tuple[int, int]
    image_code: Codes | None = None
    class_probs: Floats | None = None
    regions: Regions | None = None
    categories: CategoryCodes | None = None

    def __post_init__(self) -> None:
        if self.image_code is not None:
            _shaped("image_code", self.image_code, None)
            _typed("image_code", self.image_code, np.uint8)
        if self.class_probs is not None:
            _shaped("class_probs", self.class_probs, None)
            _typed("class_probs", self.class_probs, np.float32)


class BoxRows(Protocol):
    """(M, 4) boxes in whatever form; those that are asked for are float32, xyxy in pixels."""

    def __len__(self) -> int: ...
    def __getitem__(self, items: Any, /) -> Floats: ...


_BAGS = {
    "offsets": ("boxes", "scores", "labels", "region_codes"),
    "category_offsets": ("categories", "category_probs", "category_codes"),
}
"""Arrays with several rows per picture, by the array of their bounds."""


@dataclass(frozen=True, slots=True, eq=False)
class CodeTable:
    """The codes of N pictures as flat arrays, as they are stored and searched.

    Picture n has the regions `offsets[n]:offsets[n + 1]` of the M regions of all pictures. Arrays
    may be memory-mapped. A part that the model does not give is None.

    Attributes:
        ids: N image ids, unique.
        sizes: (N, 2) int32, height and width in pixels.
        classes: names of the C classes; empty if the model knows none.
        image_codes: (N, K2/8) uint8.
        class_probs: (N, C) float32; float16 in a collection.
        offsets: (N + 1,) int64, starts at 0, ends at M, never falls.
        boxes: (M, 4) float32, in a collection only of the rows that are asked for; scores: (M,)
            float32, in a collection float16; labels: (M,) of any signed type, int64 in a code file.
        region_codes: (M, K1/8) uint8.
        region_features: (M, P) int8, if they were kept beside the codes, see
            `regionhash.codes.pack_directions`.
        category_offsets: (N + 1,) int64; categories, category_probs, category_codes: as in
            `CategoryCodes`, one row per category of each picture.
    """

    ids: Sequence[str]
    sizes: NDArray[np.int32]
    classes: tuple[str, ...] = ()
    image_codes: Codes | None = None
    class_probs: Scores | None = None
    offsets: Ints | None = None
    boxes: Floats | BoxRows | None = None
    scores: Scores | None = None
    labels: Labels | None = None
    region_codes: Codes | None = None
    category_offsets: Ints | None = None
    categories: Labels | None = None
    category_probs: Floats | None = None
    category_codes: Codes | None = None
    region_features: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        n_images = len(self.ids)
        _shaped("sizes", self.sizes, n_images, 2)
        if self.image_codes is not None:
            _shaped("image_codes", self.image_codes, n_images, None)
            _typed("image_codes", self.image_codes, np.uint8)
        if self.class_probs is not None:
            _shaped("class_probs", self.class_probs, n_images, None)
        for offsets_name, names in _BAGS.items():
            self._check_bag(offsets_name, names)
        if self.region_features is not None:
            n_regions = 0 if self.offsets is None else int(self.offsets[-1])
            _shaped("region_features", self.region_features, n_regions, None)
            _typed("region_features", self.region_features, np.int8)

    def _check_bag(self, offsets_name: str, names: tuple[str, ...]) -> None:
        offsets = getattr(self, offsets_name)
        given = [name for name in names if getattr(self, name) is not None]
        if offsets is None:
            if given:
                raise ValueError(f"{given[0]} needs {offsets_name}")
            return
        _shaped(offsets_name, offsets, len(self.ids) + 1)
        if len(given) != len(names):
            missing = next(name for name in names if name not in given)
            raise ValueError(f"{offsets_name} needs {missing}")
        if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():  # a difference could overflow
            raise ValueError(f"{offsets_name} must start at 0 and never fall")
        for name in names:
            array = getattr(self, name)
            if len(array) != offsets[-1]:
                raise ValueError(f"{name} must have {offsets[-1]} rows, got {len(array)}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_scores(self) -> bool:
        """Whether regions have scores of classes, by which pictures can be selected.

        False if there are regions but none has a class; reads labels up to the first class.
        """
        if self.labels is None:
            return False
        starts = range(0, len(self.labels), _LABELS)
        known = (bool((self.labels[n : n + _LABELS] >= 0).any()) for n in starts)
        return not len(self.labels) or any(known)

    def category_table(self, category: int, min_prob: float = 0.0) -> tuple[Ints, Codes]:
        """Pictures (T,) with a code of a category, ascending, and those codes (T, B/8) uint8.

        Args:
            category: class index.
            min_prob: lowest probability of the category in a picture.

        Raises:
            ValueError: the table has no codes of categories.
        """
        if (
            self.category_offsets is None
            or self.categories is None
            or self.category_probs is None
            or self.category_codes is None
        ):
            raise ValueError("these codes have no codes of categories")
        rows = np.flatnonzero(
            (self.categories == category) & (self.category_probs >= np.float32(min_prob))
        )
        pictures = np.searchsorted(self.category_offsets, rows, side="right") - 1
        return pictures.astype(np.int64), np.asarray(self.category_codes[rows])

    def take(self, rows: Ints) -> CodeTable:
        """A copy of the table with the pictures of `rows` (M,), in that order."""
        taken: dict[str, Any] = {
            "ids": [self.ids[row] for row in rows.tolist()],
            "sizes": self.sizes[rows],
            "classes": self.classes,
        }
        for name in ("image_codes", "class_probs"):
            if (array := getattr(self, name)) is not None:
                taken[name] = array[rows]
        for offsets_name, names in _BAGS.items():
            if (offsets := getattr(self, offsets_name)) is not None:
                items, bounds = items_of(offsets, rows)
                taken |= {offsets_name: bounds}
                taken |= {name: getattr(self, name)[items] for name in names}
                if offsets_name == "offsets" and self.region_features is not None:
                    taken["region_features"] = self.region_features[items]
        return CodeTable(**taken)

    def picture(self, row: int) -> EncodedImage:
        """The picture of a row, as the model gave it."""
        categories = None
        if self.category_offsets is not None:
            found, probs, codes = self._bag("category_offsets", row)
            categories = CategoryCodes(found.astype(np.int64, copy=False), probs, codes)
        height, width = self.sizes[row].tolist()
        return EncodedImage(
            (height, width),
            None if self.image_codes is None else np.asarray(self.image_codes[row]),
            None if self.class_probs is None else np.asarray(self.class_probs[row], np.float32),
            None if self.offsets is None else self.regions(row),
            categories,
        )

    def regions(self, row: int) -> Regions:
        """The regions of a picture. Raises ValueError if the table has no regions."""
        if self.offsets is None:
            raise ValueError("these codes have no regions")
        boxes, scores, labels, codes = self._bag("offsets", row)
        features = None
        if self.region_features is not None:
            items = slice(*self.offsets[row : row + 2].tolist())
            features = np.asarray(self.region_features[items])
        return Regions(
            boxes,
            scores.astype(np.float32, copy=False),
            labels.astype(np.int64, copy=False),
            codes,
            features,
        )

    def matches(self, items: Ints, distances: Ints) -> list[Match]:
        """Regions (K,) of the table, by their numbers, as matches at these distances (K,)."""
        if self.boxes is None or self.scores is None or self.labels is None:
            raise ValueError("these codes have no regions")
        return [
            Match((x0, y0, x1, y1), distance, label, meaningful_score(label, score))
            for (x0, y0, x1, y1), distance, label, score in zip(
                self.boxes[items].tolist(),
                distances.tolist(),
                self.labels[items].tolist(),
                self.scores[items].tolist(),
                strict=True,
            )
        ]

    def _bag(self, offsets_name: str, row: int) -> tuple[NDArray[Any], ...]:
        """The rows of each part in a bag of `_BAGS` that belong to a picture."""
        items = slice(*getattr(self, offsets_name)[row : row + 2].tolist())
        return tuple(np.asarray(getattr(self, name)[items]) for name in _BAGS[offsets_name])


def items_of(offsets: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """The items (M,) int64 of some bags, one bag after the other, and the new offsets (K + 1,).

    Args:
        offsets: (N + 1,), the items of bag n are `offsets[n]` to `offsets[n + 1]`.
        rows: (K,), the bags.
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    bounds = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return np.repeat(starts - bounds[:-1], lengths) + np.arange(bounds[-1]), bounds


def meaningful_score(label: int, score: float) -> float | None:
    """The score of a region; None if the model gives none.

    Windows of a grid and whole pictures, which DRH takes as regions, have no class and the score 1.
    """
    return None if label < 0 and score == 1 else score


@dataclass(frozen=True, slots=True)
class Match:
    """The region of a found picture that matches one query object.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the found picture; None if no region is left for the
            object.
        distance: Hamming distance in bits; without a region, all bits of the code.
        label: class index, -1 if unknown.
        score: the detector's confidence; None without a region, or if it means nothing, see
            `meaningful_score`.
    """

    box: Box | None
    distance: int
    label: int
    score: float | None


class Hit(NamedTuple):
    """One found picture.

    A tuple, because a search makes hundreds: a frozen dataclass takes three times as long.

    Attributes:
        index: its row in the table; image_id: its id.
        distance: Hamming distance; for several objects, their sum; and with it, `context`.
        matches: one per query object, in their order; empty for whole-picture search.
        duplicates: near-duplicates that rank below, if grouping was asked for.
        context: the part of `distance` that the whole pictures add, see `Search.context`; None if
            they do not take part.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing needs
    image_id: str
    distance: int
    matches: tuple[Match, ...] = ()
    duplicates: tuple[Hit, ...] = ()
    context: int | None = None


@dataclass(frozen=True, slots=True)
class CategoryHits:
    """The pictures found for one category of the query (IAH, Sec. IV).

    Attributes:
        category: class index.
        prob: the probability that the query shows it; None if the model gives none.
        hits: pictures that show it, most similar first, by the distance of its codes.
    """

    category: int
    prob: float | None
    hits: tuple[Hit, ...]
