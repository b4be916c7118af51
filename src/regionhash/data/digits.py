"""Built-in scenes: handwritten digits among clutter, drawn on the fly. Needs no files.

The digits are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin
and Kaynak, 1998, CC BY 4.0), as scikit-learn has them: 1797 pictures of 8 x 8 pixels in 17 greys.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

from regionhash.data.image_set import Image, ImageSet
from regionhash.structures import Target

_FILE = Path(__file__).with_name("digits.npz")

SIZE = 160
"""Height and width of a scene in pixels."""

SPLITS = ("train", "test")

_MAX_DIGITS = 5
_HEIGHTS = (22, 56)  # of an upright digit, in pixels
_MAX_TURN = 20  # degrees either way, so that 6 and 9 stay apart
_MAX_IOU = 0.05  # of the boxes of two digits
_CONTRAST = 90  # least difference of a digit's grey value from the mean below it
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

# Letters unlike any digit, each a polyline in the unit square: distractors for a detector.
_LETTERS = (
    ((0, 1), (0.5, 0), (1, 1), (0.8, 0.6), (0.2, 0.6)),  # A
    ((1, 0), (0, 0), (0, 0.5), (0.8, 0.5), (0, 0.5), (0, 1), (1, 1)),  # E
    ((1, 0), (0, 0), (0, 0.5), (0.8, 0.5), (0, 0.5), (0, 1)),  # F
    ((0, 0), (0, 1), (0, 0.5), (1, 0.5), (1, 0), (1, 1)),  # H
    ((0, 0), (0, 1), (0, 0.5), (1, 0), (0, 0.5), (1, 1)),  # K
    ((0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)),  # M
    ((0, 1), (0, 0), (1, 1), (1, 0)),  # N
    ((0, 0), (1, 0), (0.5, 0), (0.5, 1)),  # T
    ((0, 0), (0.25, 1), (0.5, 0.4), (0.75, 1), (1, 0)),  # W
    ((0, 0), (1, 1), (0.5, 0.5), (1, 0), (0, 1)),  # X
)


class _Placed(NamedTuple):
    """A digit in a scene; `cover` (h, w) in [0, 1] is its opacity at each pixel of its box."""

    label: int
    box: tuple[int, int, int, int]  # xyxy; the last edges are exclusive
    cover: NDArray[np.float32]


def digit_scenes(split: str, n: int, *, seed: int = 0) -> ImageSet:
    """`n` scenes of 1 to 5 digits on a cluttered background, (160, 160, 3), with tight boxes.

    Scene i does not depend on `n`. The handwriting of the two splits is disjoint. Digits vary in
    size and colour, are rotated by up to 20 degrees and hardly overlap; a mirrored digit is not a
    digit, so training must not flip.

    Args:
        split: "train" or "test".
        n: number of scenes.
        seed: random seed.

    Raises:
        ValueError: unknown split, or `n` is not positive.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    scenes = _Scenes(split, n, seed)
    return ImageSet(
        name=f"digits:{split}",
        classes=tuple("0123456789"),
        ids=tuple(f"{split}-{seed}-{index:05d}" for index in range(n)),
        images=scenes,
        targets=tuple(scenes.target(index) for index in range(n)),
    )


@cache
def handwriting(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digits of one split: (N, 8, 8) uint8 grey on black, and their labels (N,).

    Every third digit of each class belongs to "test", the others to "train".
    """
    with np.load(_FILE, allow_pickle=False) as data:
        images, labels = data["images"], data["labels"].astype(np.int64)
    occurrence = np.zeros(len(labels), np.int64)  # index within its class
    for label in range(10):
        occurrence[labels == label] = np.arange((labels == label).sum())
    kept = (occurrence % 3 == 2) == (split == "test")
    return np.round(images[kept] * (255 / 16)).astype(np.uint8), labels[kept]


class _Scenes(Sequence[Image]):
    """Scenes of one split, drawn when asked for.

    Each scene has its own generator, which first places the digits and then paints, so targets
    can be computed without painting.
    """

    def __init__(self, split: str, length: int, seed: int) -> None:
        self._split = split
        self._length = length
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        index = range(self._length)[index]  # counts from the end, and raises IndexError
        generator = self._generator(index)
        placed = _place_digits(self._split, generator)
        return _paint(placed, generator)

    def target(self, index: int) -> Target:
        placed = _place_digits(self._split, self._generator(index))
        return Target(
            boxes=np.array([digit.box for digit in placed], np.float32),
            labels=np.array([digit.label for digit in placed], np.int64),
            difficult=np.zeros(len(placed), np.bool_),
        )

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, SPLITS.index(self._split), index])


def _place_digits(split: str, generator: np.random.Generator) -> list[_Placed]:
    images, labels = handwriting(split)
    placed: list[_Placed] = []
    for _ in range(generator.integers(1, _MAX_DIGITS + 1)):
        row = generator.integers(len(labels))
        cover = _draw_digit(images[row], generator)
        height, width = cover.shape
        for _ in range(20):  # tries; a full scene does without the digit
            x0, y0 = (int(generator.integers(SIZE - side + 1)) for side in (width, height))
            box = (x0, y0, x0 + width, y0 + height)
            if all(_iou(box, other.box) <= _MAX_IOU for other in placed):
                placed.append(_Placed(int(labels[row]), box, cover))
                break
    return placed


def _draw_digit(digit: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.float32]:
    """An (8, 8) digit enlarged, rotated and cropped to its ink."""
    side = int(generator.integers(_HEIGHTS[0], _HEIGHTS[1] + 1))
    framed = PILImage.fromarray(np.pad(digit, 1))  # ink at the edge needs room to fade
    enlarged = framed.resize((side * 10 // 8,) * 2, PILImage.Resampling.BICUBIC)
    angle = generator.uniform(-_MAX_TURN, _MAX_TURN)
    turned = enlarged.rotate(angle, PILImage.Resampling.BICUBIC, expand=True)
    # Eight enlarged pixels are blurred; a steep ramp around the middle grey makes strokes of them.
    grey = np.asarray(turned, np.float32) / 255
    cover = np.clip((grey - 0.45) * 5 + 0.5, 0, 1).astype(np.float32)
    rows, columns = (np.flatnonzero((cover >= 0.5).any(axis=axis)) for axis in (1, 0))
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paint(placed: list[_Placed], generator: np.random.Generator) -> Image:
    scene = _paint_ground(generator)
    _paint_letters(scene, placed, generator)
    pixels = np.array(scene, np.float32)  # (H, W, 3)
    for digit in placed:
        x0, y0, x1, y1 = digit.box
        below = pixels[y0:y1, x0:x1]
        colour = _contrasting(below.mean(axis=(0, 1)), generator)
        below += digit.cover[:, :, None] * (colour - below)
    noise = generator.standard_normal(pixels.shape, np.float32)
    pixels += np.float32(generator.uniform(2, 10)) * noise
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _paint_ground(generator: np.random.Generator) -> PILImage.Image:
    """Soft random colours with long strokes and ellipses of low contrast."""
    cells = int(generator.integers(2, 9))
    tone = generator.uniform(40, 215)
    soft = np.clip(tone + generator.normal(0, 30, (cells, cells, 3)), 0, 255).astype(np.uint8)
    ground = PILImage.fromarray(soft).resize((SIZE, SIZE), PILImage.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(generator.integers(8, 25)):
        colour = _tuple(np.clip(tone + generator.normal(0, 35, 3), 0, 255))
        x0, x1, y0, y1 = generator.integers(-20, SIZE + 20, 4).tolist()
        if generator.random() < 0.6:
            draw.line((x0, y0, x1, y1), fill=colour, width=int(generator.integers(1, 6)))
        else:
            draw.ellipse((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=colour)
    return ground


def _paint_letters(
    scene: PILImage.Image, placed: list[_Placed], generator: np.random.Generator
) -> None:
    """Letters as large and as bright as digits, not overlapping them."""
    pixels = np.asarray(scene)
    draw = ImageDraw.Draw(scene)
    for _ in range(generator.integers(3, 9)):
        side = int(generator.integers(_HEIGHTS[0] // 2, _HEIGHTS[1]))
        x0, y0 = generator.integers(SIZE - side, size=2).tolist()
        letter = np.array(_LETTERS[generator.integers(len(_LETTERS))]) * side
        if any(_iou((x0, y0, x0 + side, y0 + side), digit.box) > 0 for digit in placed):
            continue
        below = pixels[y0 : y0 + side, x0 : x0 + side].mean(axis=(0, 1))
        colour = _tuple(_contrasting(below, generator))
        points = [(x0 + x, y0 + y) for x, y in letter.tolist()]
        draw.line(points, fill=colour, width=max(2, side // 8), joint="curve")


def _contrasting(
    below: NDArray[np.floating[Any]], generator: np.random.Generator
) -> NDArray[np.float64]:
    """A random colour (3,) whose grey value is far from that of the colour `below`."""
    grey = float(below @ _GREY)
    while True:
        colour = generator.uniform(0, 255, 3)
        if abs(float(colour @ _GREY) - grey) >= _CONTRAST:
            return colour


def _tuple(colour: NDArray[np.floating[Any]]) -> tuple[int, int, int]:
    red, green, blue = colour.astype(int).tolist()
    return red, green, blue


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (sum(areas) - width * height)
