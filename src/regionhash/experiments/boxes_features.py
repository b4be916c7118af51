"""Regions of pictures in several ways, and their features in several views, kept on disk.

A region is a box in pixels of its picture. A view turns it into a vector: from its cells on the map
of the whole picture, or by encoding it as a picture of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from regionhash.data.detections import Boxes
from regionhash.data.frames import fit_size
from regionhash.data.image_set import Image, ImageSet
from regionhash.data.transforms import to_input
from regionhash.experiments.common import hash_ids
from regionhash.experiments.drh_features import Bags, BagWriter, open_bags
from regionhash.models.drh import DRH
from regionhash.parts.backbones import Backbone, stack_images
from regionhash.parts.choosing import RegionChoice, overlaps
from regionhash.parts.windows import max_pool_windows, snap_boxes
from regionhash.reporter import Reporter
from regionhash.structures import Detections, Floats, Ints

POOLS = ("max", "mean", "gem")
"""GeM has the exponent 3 (Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human
Annotation", TPAMI 2019)."""

POOLS_OF = {"windows": ("max", "mean"), "pyramid": ("max",)}
"""Of kinds of which there are too many for all."""

_LEAST = 1e-6  # of what GeM raises to a power
_SAME = 0.5  # IoU from which on a detector's box is the query's


class View(NamedTuple):
    """How a region becomes a vector.

    Attributes:
        side: short side of the picture, or side of the square input of a crop, in pixels.
        margin: None takes the region's cells on the map of the picture. Otherwise the region is
            enlarged by this part of its sides on every side, and encoded as a picture of its own.
        stage: of the backbone, which gives the map.
        square: the crop is as wide as high before it is cut off at the picture's borders;
            otherwise it is squeezed into a square.
    """

    side: int
    margin: float | None = None
    stage: int = -1
    square: bool = False

    @property
    def name(self) -> str:
        """A name for folders and tables."""
        words = [f"{self.side}"]
        if self.margin is not None:
            words = [f"crop {self.side}, margin {self.margin:g}", *["square"] * self.square]
        return ", ".join([*words, *[f"stage {self.stage}"] * (self.stage != -1)])


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of N pictures, in their pixels.

    Attributes:
        ids: of the pictures.
        images: the pictures, read when asked for.
        sizes: (N, 2) int64, height and width.
        boxes: by kind, N times (R, 4) float32: "whole", the picture; "boxes", a detector's, best
            first; "windows" and "pyramid", without the whole picture; "objects", the labelled ones
            that are not difficult.
        labels: N times (R,) int64, the detector's classes of "boxes", -1 for none.
        asked: N times (R,) int64, the class of the detector's box that fits each of "objects".
    """

    ids: tuple[str, ...]
    images: tuple[tuple[ImageSet, int], ...]
    sizes: Ints
    boxes: dict[str, list[Floats]]
    labels: list[Ints]
    asked: list[Ints]

    def image(self, n: int) -> Image:
        """A picture."""
        image_set, row = self.images[n]
        return image_set.images[row]

    def fingerprint(self) -> str:
        """A short hash of all boxes."""
        parts = [group.tobytes().hex() for kind in self.boxes.values() for group in kind]
        return hash_ids([*self.ids, *parts])


def regions_of(
    model: DRH, image_sets: Sequence[ImageSet], boxes: Boxes | None, *, short: int
) -> Regions:
    """All regions of the pictures of several sets.

    Args:
        model: of it the backbone is used, whose map the windows are laid on.
        image_sets: the pictures.
        boxes: what a detector found, if one was asked.
        short: short side of the map's input, in pixels.

    Raises:
        ImageError: a picture cannot be read.
    """
    kinds: dict[str, list[Floats]] = {
        kind: [] for kind in ("whole", "boxes", "windows", "pyramid", "objects")
    }
    ids, images, sizes, labels, asked = [], [], [], [], []
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for image_set in image_sets:
        every = range(len(image_set))
        found = {} if boxes is None else boxes.of(image_set, every, boxes.classes)
        for row, image_id in enumerate(image_set.ids):
            height, width = image_set.images[row].shape[:2]
            size = fit_size(height, width, short)
            if size not in cells:
                top = map_of(model.backbone, torch.zeros(1, 3, *size), -1)
                cells[size] = (top.shape[2], top.shape[3])
            given = found.get(row, Detections.none())
            given = RegionChoice("boxes").of_boxes(given, (height, width), cells[size])
            windows, pyramid = (
                RegionChoice(kind).of_map(*cells[size], (height, width))[0].boxes
                for kind in ("windows", "pyramid")
            )
            target = image_set.targets[row]
            objects = target.boxes[~target.difficult]
            kinds["whole"].append(given.boxes[:1])
            kinds["boxes"].append(given.boxes[1:])
            kinds["windows"].append(windows[1:])
            kinds["pyramid"].append(pyramid[1:])
            kinds["objects"].append(objects)
            labels.append(given.labels[1:])
            asked.append(_fitting(objects, given.boxes[1:], given.labels[1:]))
            ids.append(image_id)
            images.append((image_set, row))
            sizes.append((height, width))
    return Regions(tuple(ids), tuple(images), np.array(sizes, np.int64), kinds, labels, asked)


def _fitting(objects: Floats, boxes: Floats, labels: Ints) -> Ints:
    """The class (R,) of the box that fits each object best, -1 if none has an IoU of .5."""
    if not len(boxes) or not len(objects):
        return np.full(len(objects), -1, np.int64)
    shared = overlaps(objects, boxes)
    return np.where(shared.max(1) >= _SAME, labels[shared.argmax(1)], -1)


# -- features -------------------------------------------------------------------------------------


def features_of(
    model: DRH,
    regions: Regions,
    view: View,
    kinds: dict[str, int | None],
    folder: Path,
    reporter: Reporter,
    *,
    n_pictures: int | None = None,
) -> dict[str, Bags]:
    """Features of unit length, by kind and way of pooling, such as "boxes max".

    Args:
        model: of it the backbone is used.
        regions: of all pictures.
        view: see `View`.
        kinds: which regions, and how many of a picture at most.
        folder: where they are kept; what is there is not computed again.
        reporter: is told the pictures done.
        n_pictures: how many of the pictures are described, the first ones; None takes all.
    """
    n_pictures = len(regions.ids) if n_pictures is None else n_pictures
    path = folder / view.name.replace(" ", "-").replace(",", "")
    if not path.exists():
        fresh = path.with_name(f"{path.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        writer = BagWriter(fresh)
        for n in range(n_pictures):
            groups = {kind: regions.boxes[kind][n][:most] for kind, most in kinds.items()}
            writer.add(_described(model.backbone, regions.image(n), view, groups))
            if (n + 1) % 200 == 0:
                reporter.note(f"{view.name}: {n + 1} of {n_pictures} pictures")
        writer.finish()
        fresh.replace(path)
    return open_bags(path)


@torch.no_grad()
def _described(
    backbone: Backbone, image: Image, view: View, groups: dict[str, Floats]
) -> dict[str, Tensor]:
    described: dict[str, Tensor] = {}
    if view.margin is None:
        tensor, frame = to_input(image, view.side)
        top = map_of(backbone, stack_images([tensor])[0], view.stage)  # (1, D, h, w)
        stride = frame.input_size[1] / top.shape[3]
    else:
        crops = [crop(image, box, view) for group in groups.values() for box in group]
        maps = map_of(backbone, stack_images(crops)[0], view.stage)  # (R, D, h, w)
    for pool in POOLS:
        own = {kind: group for kind, group in groups.items() if pool in POOLS_OF.get(kind, POOLS)}
        if view.margin is None:
            boxes = frame.to_input(torch.from_numpy(np.concatenate([*own.values()])))
            rows = pooled(top, snap_boxes(boxes, stride, *top.shape[2:]), pool)
        else:
            rows = pooled_whole(maps, pool)
        ends = np.cumsum([len(group) for group in own.values()])[:-1].tolist()
        parts = F.normalize(rows, dim=1).tensor_split(ends)
        described |= {f"{kind} {pool}": part for kind, part in zip(own, parts, strict=True)}
    return described


def map_of(backbone: Backbone, images: Tensor, stage: int) -> Tensor:
    """The map (B, D, h, w) of a stage, of images (B, 3, H, W) in [0, 1]."""
    x = (images - backbone.mean) / backbone.std
    for part in [*backbone.stages][: len(backbone.stages) + 1 + stage]:
        x = part(x)
    return x.float()


def pooled(top: Tensor, cells: Ints, pool: str) -> Tensor:
    """What regions (R, 4) in cells have on a map (1, D, h, w): (R, D).

    A mean is made from sums over rectangles from the first cell on, of which each region needs
    four.
    """
    if pool == "max":
        return max_pool_windows(top, cells)[0]
    x = top[0].permute(1, 2, 0).double()  # (h, w, D)
    if pool == "gem":
        x = x.clamp(min=_LEAST).pow(3)
    sums = F.pad(x.cumsum(0).cumsum(1), (0, 0, 1, 0, 1, 0))  # (h + 1, w + 1, D)
    x0, y0, x1, y1 = cells.T
    totals = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]  # (R, D)
    means = totals / torch.from_numpy((x1 - x0) * (y1 - y0))[:, None]
    return (means.clamp(min=0).pow(1 / 3) if pool == "gem" else means).float()


def pooled_whole(maps: Tensor, pool: str) -> Tensor:
    """What whole maps (R, D, h, w) have: (R, D)."""
    if pool == "max":
        return maps.amax((2, 3))
    if pool == "mean":
        return maps.mean((2, 3))
    return maps.clamp(min=_LEAST).pow(3).mean((2, 3)).pow(1 / 3)


def crop(image: Image, box: Floats, view: View) -> Tensor:
    """The part of a picture (H, W, 3) that a view sees of a box, (3, side, side) uint8."""
    x0, y0, x1, y1 = enlarged(box, view.margin or 0.0, square=view.square).tolist()
    height, width = image.shape[:2]
    x0, y0 = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
    x1, y1 = min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height)
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    part = image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    tensor = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)
    made: Tensor = resize(tensor, [view.side, view.side], antialias=True)
    return made


def enlarged(box: Floats, margin: float, *, square: bool) -> Floats:
    """A box (4,) with a margin on every side, as a part of that side."""
    centre, sides = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * (1 + 2 * margin)
    if square:
        sides = np.full(2, sides.max(), np.float32)
    made: Floats = np.concatenate([centre - sides / 2, centre + sides / 2]).astype(np.float32)
    return made
