"""From a picture to a tensor for a network, and the changes made in training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # noqa: N812 (its common name)

from regionhash.data.frames import Frame, fit_size
from regionhash.data.image_set import Image
from regionhash.structures import Floats, Target


def to_input(image: Image, short: int) -> tuple[Tensor, Frame]:
    """The picture resized by `fit_size` as (3, h, w) uint8 tensor, and the frame of its boxes.

    Bilinear with antialiasing: each value is an average of all the pixels that it replaces. The
    same bytes as `regionhash.data.frames.to_pixels`, several times faster.
    """
    size = (image.shape[0], image.shape[1])
    input_size = fit_size(*size, short)
    pixels = image if image.flags.writeable else image.copy()  # torch warns about others
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W)
    return F.resize(tensor, list(input_size), antialias=True), Frame(size, input_size)


class TrainingSample(NamedTuple):
    """A picture and its objects as the network sees them in training.

    Attributes:
        image: (3, h, w) uint8.
        boxes: (R, 4) float32, xyxy in input pixels; zero boxes are valid.
        labels: (R,) int64.
        image_labels: sorted class indices of the picture, with or without a box.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_labels: tuple[int, ...]


class TrainingTransform:
    """Random changes of a picture that keep its labels true.

    Args:
        short: short side of the input before scaling, in pixels.
        scale: range of the random factor on `short`.
        crop: whether to cut off margins. A crop contains every object that is not difficult.
        flip: whether to mirror every other picture; wrong for digits and letters.
        colour: whether to change brightness, contrast and saturation.
    """

    def __init__(
        self,
        short: int,
        *,
        scale: tuple[float, float] = (0.8, 1.25),
        crop: bool = True,
        flip: bool = True,
        colour: bool = True,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range of positive factors, got {scale}")
        self.short = short
        self.scale = scale
        self.crop = crop
        self.flip = flip
        self.colour = colour

    def __call__(
        self, image: Image, target: Target, generator: np.random.Generator
    ) -> TrainingSample:
        """One random version of a picture; all randomness comes from `generator`.

        Difficult objects and boxes smaller than one input pixel are dropped; the labels of the
        picture stay. Boxes are clipped to the picture, as annotation files may have its size wrong.
        """
        height, width, _ = image.shape
        limits = np.array([width, height, width, height], np.float32)
        boxes = np.clip(target.boxes[~target.difficult], 0, limits)
        labels = target.labels[~target.difficult]
        if self.crop and set(target.image_labels) <= set(labels.tolist()):
            # Every labelled class has a box, so a crop can contain them all.
            x0, y0, x1, y1 = _draw_crop(height, width, boxes, generator)
            image = image[y0:y1, x0:x1]
            boxes = boxes - np.array([x0, y0, x0, y0], np.float32)
        tensor, frame = to_input(image, round(self.short * generator.uniform(*self.scale)))
        placed = frame.to_input(torch.from_numpy(boxes))
        if self.flip and generator.random() < 0.5:
            tensor = tensor.flip(-1)
            x0_x1 = frame.input_size[1] - placed[:, [2, 0]]
            placed = torch.stack([x0_x1[:, 0], placed[:, 1], x0_x1[:, 1], placed[:, 3]], dim=1)
        if self.colour:
            tensor = _change_colour(tensor, generator)
        kept = ((placed[:, 2:] - placed[:, :2]) >= 1).all(dim=1)
        return TrainingSample(
            tensor, placed[kept], torch.from_numpy(labels)[kept], target.all_labels()
        )


def _draw_crop(
    height: int,
    width: int,
    boxes: Floats,
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random rectangle (x0, y0, x1, y1) of 0.6 to 1 of each side, grown to hold all boxes."""
    lengths = generator.uniform(0.6, 1.0, 2) * (width, height)
    start = generator.uniform(size=2) * ((width, height) - lengths)
    low = np.vstack([start, boxes[:, :2]]).min(axis=0)
    high = np.vstack([start + lengths, boxes[:, 2:]]).max(axis=0)
    x0, y0 = np.floor(low).astype(int)
    x1, y1 = np.ceil(high).astype(int)
    return int(x0), int(y0), min(int(x1), width), min(int(y1), height)


def _change_colour(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation times a factor of 0.7 to 1.3 each."""
    brightness, contrast, saturation = generator.uniform(0.7, 1.3, 3).tolist()
    image = F.adjust_brightness(image, brightness)
    image = F.adjust_contrast(image, contrast)
    image = F.adjust_saturation(image, saturation)
    return image
