"""Pictures with their labels: the one form into which every data set layout is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.data.notices import Notices, merged
from regionhash.structures import Target

Image = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB, as shown (after EXIF orientation)."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N pictures, read when asked for, with their targets.

    Attributes:
        name: shown in reports.
        classes: names of the C classes.
        ids: N unique image ids.
        images: N pictures; `images[n]` reads or draws the n-th, or raises
            `regionhash.data.images.ImageError`.
        targets: N targets, in pixels of the pictures.
        notices: what the reader put right or left out.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    images: Sequence[Image]
    targets: tuple[Target, ...]
    notices: Notices = field(default_factory=Notices)

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.images) == len(self.targets):
            raise ValueError(
                f"{self.name}: {len(self.ids)} ids, {len(self.images)} images and "
                f"{len(self.targets)} targets must be equal in number"
            )
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"{self.name}: image ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, *, with_difficult: bool = False) -> NDArray[np.uint8]:
        """Image labels as (N, C) 0/1: classes with at least one object (Region-DH, Sec. IV-A)."""
        table = np.zeros((len(self), len(self.classes)), np.uint8)
        for row, target in zip(table, self.targets, strict=True):
            row[list(target.all_labels(with_difficult=with_difficult))] = 1
        return table

    def subset(self, rows: Sequence[int] | NDArray[Any], name: str | None = None) -> ImageSet:
        """The pictures of `rows`, in that order."""
        rows = [int(row) for row in rows]
        return replace(
            self,
            name=name or self.name,
            ids=tuple(self.ids[row] for row in rows),
            images=_Picked(self.images, rows),
            targets=tuple(self.targets[row] for row in rows),
        )

    def without_boxes(self) -> ImageSet:
        """The same pictures with their labels only; no box is read."""
        return replace(
            self, targets=tuple(Target.empty(target.all_labels()) for target in self.targets)
        )

    def fingerprint(self) -> str:
        """A hash of classes, ids and targets: the same for the same data, wherever it is stored."""
        digest = hashlib.sha256(repr((self.classes, self.ids)).encode())
        for target in self.targets:
            digest.update(target.boxes.tobytes() + target.labels.tobytes())
            digest.update(target.difficult.tobytes() + repr(target.image_labels).encode())
        return digest.hexdigest()[:16]


class _Picked(Sequence[Image]):
    """Some rows of a sequence of pictures, read when asked for."""

    def __init__(self, images: Sequence[Image], rows: list[int]) -> None:
        self._images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._images[self._rows[index]]


def joined(name: str, image_sets: Sequence[ImageSet]) -> ImageSet:
    """The pictures of several sets of the same classes, one set after the other.

    Raises:
        ValueError: the classes differ, an id occurs twice, or there is no set.
    """
    classes = {image_set.classes for image_set in image_sets}
    if len(classes) != 1:
        raise ValueError(f"{name}: the sets must have the same classes, got {len(classes)} lists")
    return ImageSet(
        name,
        classes.pop(),
        tuple(image_id for image_set in image_sets for image_id in image_set.ids),
        joined_images([image_set.images for image_set in image_sets]),
        tuple(target for image_set in image_sets for target in image_set.targets),
        merged(image_set.notices for image_set in image_sets),
    )


def joined_images(parts: Sequence[Sequence[Image]]) -> Sequence[Image]:
    """Sequences of pictures one after another, read when asked for."""
    return _Joined(parts)


class _Joined(Sequence[Image]):
    """Sequences of pictures one after another, read when asked for."""

    def __init__(self, parts: Sequence[Sequence[Image]]) -> None:
        self._rows = [(part, row) for part in parts for row in range(len(part))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        part, row = self._rows[index]
        return part[row]
