"""From a picture to what an encoder reads: the filter of its resizing, scale, mean and deviation.

An encoder brings this as a file of transformers (preprocessor_config.json) or as a configuration of
timm; `Preprocessing` is what remains of either.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image as PillowImage

from regionhash.data.frames import Frame, Pixels, fit_size
from regionhash.data.image_set import Image
from regionhash.encoders.errors import EncoderError
from regionhash.files.text import shown
from regionhash.structures import Floats

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FILTERS = {
    "nearest": PillowImage.Resampling.NEAREST,
    "lanczos": PillowImage.Resampling.LANCZOS,
    "bilinear": PillowImage.Resampling.BILINEAR,
    "bicubic": PillowImage.Resampling.BICUBIC,
    "box": PillowImage.Resampling.BOX,
    "hamming": PillowImage.Resampling.HAMMING,
}
"""Pillow's filters by name; files of transformers number them as Pillow does."""

MAX_SIDE = 4096
"""Largest side of an input, in pixels."""


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become an encoder's input: (pixels * rescale - mean) / std.

    Attributes:
        mean: of each channel (RGB), after rescaling.
        std: likewise.
        rescale: factor of the pixels, which are 0 to 255.
        resample: a key of FILTERS.
        size: (height, width) of the pictures the encoder was trained on; None if unknown.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rescale: float = 1 / 255
    resample: str = "bilinear"
    size: tuple[int, int] | None = None

    _FIELDS: ClassVar = ("mean", "std", "rescale", "resample", "size")

    def to_record(self) -> dict[str, Any]:
        """As JSON stores it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_record`. Raises EncoderError, without a file, for anything else."""
        if set(record) != set(cls._FIELDS):
            raise EncoderError(f"preprocessing must have {', '.join(cls._FIELDS)}")
        size = record["size"]
        if record["resample"] not in FILTERS:
            raise EncoderError(f"unknown resample {shown(record['resample'])}")
        return cls(
            _three(record["mean"], "mean"),
            _positive(_three(record["std"], "std"), "std"),
            _number(record["rescale"], "rescale"),
            record["resample"],
            None if size is None else side_pair(size, "size"),
        )

    @classmethod
    def of_transformers(cls, config: dict[str, Any]) -> Preprocessing:
        """That of a preprocessor_config.json.

        Args:
            config: the content of the file; fields that say nothing of the input are ignored.

        Raises:
            EncoderError: a field that has another type or value, or asks for what is not done here.
                The message does not name the file.
        """
        if config.get("do_flip_channel_order"):
            raise EncoderError("do_flip_channel_order: channels other than RGB are not supported")
        number = config.get("resample", PillowImage.Resampling.BILINEAR)
        name = next((key for key, value in FILTERS.items() if value == number), None)
        if name is None or type(number) is bool:
            raise EncoderError(f"resample must be one of Pillow's filters, got {shown(number)}")
        cropped = config.get("do_center_crop") and "crop_size" in config
        size = config.get("crop_size" if cropped else "size")
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if config.get("do_normalize", True):
            for key in ("image_mean", "image_std"):
                if key not in config:
                    raise EncoderError(f"{key!r} is missing")
            mean = _three(config["image_mean"], "image_mean")
            std = _positive(_three(config["image_std"], "image_std"), "image_std")
        scaled = config.get("do_rescale", True)
        rescale = _number(config.get("rescale_factor", 1 / 255), "rescale_factor")
        return cls(
            mean, std, rescale if scaled else 1.0, name, None if size is None else _size_of(size)
        )

    @classmethod
    def of_timm(cls, config: dict[str, Any]) -> Preprocessing:
        """That of a data configuration of timm: mean, std, interpolation, input_size (3, h, w).

        Raises:
            EncoderError: see `of_transformers`.
        """
        name = config.get("interpolation", "bicubic")
        if name not in FILTERS:
            raise EncoderError(f"unknown interpolation {shown(name)}")
        size = config.get("input_size")
        if size is not None and (not isinstance(size, list | tuple) or len(size) != 3):
            raise EncoderError(f"input_size must be 3 numbers, got {shown(size)}")
        return cls(
            _three(config.get("mean", IMAGENET_MEAN), "mean"),
            _positive(_three(config.get("std", IMAGENET_STD), "std"), "std"),
            resample=name,
            size=None if size is None else side_pair(size[1:], "input_size"),
        )

    def prepare(
        self, image: Image, short: int, stride: int, fixed_size: tuple[int, int] | None = None
    ) -> tuple[Pixels, Frame]:
        """A picture resized as Pillow resizes it, (3, h, w) uint8, and the frame of its boxes.

        Args:
            image: (H, W, 3) uint8.
            short: short side of the input in pixels, rounded to the stride; see `fit_size`.
            stride: sides of the input are multiples of this many pixels.
            fixed_size: (height, width) of the input instead, whatever the picture's aspect.
        """
        size = (image.shape[0], image.shape[1])
        height, width = fixed_size or fit_size(*size, short, stride)
        resized = PillowImage.fromarray(np.ascontiguousarray(image)).resize(
            (width, height), FILTERS[self.resample]
        )
        pixels = np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
        return pixels, Frame(size, (height, width))

    def scaled(self, pixels: Pixels) -> Floats:
        """Pixels (..., 3, h, w) uint8 as the encoder reads them, float32."""
        mean, std = (np.array(x, np.float32).reshape(3, 1, 1) for x in (self.mean, self.std))
        scaled = pixels.astype(np.float32)
        scaled *= np.float32(self.rescale)
        scaled -= mean
        scaled /= std
        return scaled


def _three(value: Any, name: str) -> tuple[float, float, float]:
    if isinstance(value, list | tuple) and len(value) == 3:
        red, green, blue = (_number(x, name) for x in value)
        return red, green, blue
    if type(value) in (int, float):
        return (_number(value, name),) * 3
    raise EncoderError(f"{name} must be three numbers, got {shown(value)}")


def _positive(values: tuple[float, float, float], name: str) -> tuple[float, float, float]:
    if min(values) <= 0:
        raise EncoderError(f"{name} must be positive, got {shown(values)}")
    return values


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise EncoderError(f"{name} must be a number, got {shown(value)}")
    return float(value)


def _size_of(value: Any) -> tuple[int, int] | None:
    """The (height, width) of a size of transformers: a number, or an object of one of its forms."""
    if isinstance(value, dict):
        if "height" in value or "width" in value:
            value = [value.get("height"), value.get("width")]
        elif "shortest_edge" in value:
            value = value["shortest_edge"]
        else:  # the longest side, a number of patches: no size of its own
            return None
    return side_pair(value, "size")


def side_pair(value: Any, name: str) -> tuple[int, int]:
    """The (height, width) that a number or two numbers stand for. Raises EncoderError."""
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or any(type(x) is not int or not 1 <= x <= MAX_SIDE for x in sides):
        raise EncoderError(f"{name} must be sides in [1, {MAX_SIDE}], got {shown(value)}")
    return sides[0], sides[1]
