"""Codes of regions by any image encoder, with ONNX Runtime and NumPy: no torch.

    picture -> encoder -> map -> windows or given boxes -> maximum or mean in each region
                                        (or: each region cut out and encoded; or both, joined)
                              -> L2, whitening -> hash -> code of each region

What follows the encoder is DRH (`regionhash.models.drh`) with a choice of hashes. The whole picture
is a region too; its code is the picture's. Whitening and hash are fitted without labels, on regions
of the collection that will be searched (`RegionHash.fitted`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from regionhash.codes import binarize, check_n_bits, pack_bits
from regionhash.data.frames import STRIDE, Frame, Pixels, to_pixels
from regionhash.data.image_set import Image
from regionhash.encoders import (
    Encoder,
    EncoderError,
    OnnxEncoder,
    Resolved,
    TextEncoder,
    check_encoder,
)
from regionhash.files.text import one_line, reason_of
from regionhash.models.checkpoints import (
    Checkpoint,
    CheckpointError,
    find_weights,
    read_arrays,
)
from regionhash.parts.choosing import Proposals, RegionChoice
from regionhash.parts.hashes import (
    HASHES,
    Fit,
    FitReport,
    LinearHash,
    Whitening,
    check_whitening,
    fit_hash,
    fit_whitening,
    unit_length,
)
from regionhash.parts.windows import pool_map, snap_boxes
from regionhash.precision import Precision
from regionhash.reporter import SILENT, Reporter
from regionhash.sessions import Result, at_once
from regionhash.structures import Codes, Detections, EncodedImage, Floats, Ints, Regions

HASH_ENTRY_POINTS = "regionhash.hashes"
"""Group of the entry points with which other packages offer hashes: functions of the form `Fit`."""

DEFAULT_BITS, DEFAULT_DIMS = 1024, 128
MAX_BITS = 4096

RegionSource = Literal["map", "crop", "both"]
"""What a region is described by, see `RegionHashSettings`."""

_MARGIN_OF_BOTH = 0.1  # docs/results/boxes-voc2012 compares others


@dataclass(frozen=True)
class RegionHashSettings:
    """The arguments of a `RegionHash`, as model.json has them.

    Attributes:
        encoder: what its features depend on, see `regionhash.encoders.Resolved.identity`.
        n_channels: D, length of a region's feature.
        pooling: how a region of the map becomes a feature: its "max" or its "mean".
        regions: "map" pools regions from the map of the whole picture, in one pass; "crop" cuts
            each region out and encodes it as a picture of its own, which sees small objects in
            more detail and takes as many passes as there are regions; "both" joins the two.
        crop: short side of the input that a cut-out region becomes, in pixels.
        margin: what is cut out around a region, as a part of its width or height on each side.
        map_short: with "both", short side of the input that the whole picture becomes, in pixels.
        n_bits: K, bits of every code.
        hash: a key of `HASHES`, or the name that another package gives its hash.
        n_dims: P, features after whitening.
        whitening: how much of the whitening is done, in [0, 1]; see `fit_whitening`.
        proposals: see `Proposals`; "rpn" is not possible.
        overlap: see `RegionChoice`, as the others.
        n_proposals: see there.
        max_iou: see there.

    Raises:
        ValueError: a value out of range.
    """

    encoder: dict[str, Any]
    n_channels: int
    pooling: Literal["max", "mean"] = "max"
    regions: RegionSource = "map"
    crop: int = 224
    margin: float = 0.0
    map_short: int = 384
    n_bits: int = DEFAULT_BITS
    hash: str = "drh"
    n_dims: int = DEFAULT_DIMS
    whitening: float = 0.5
    proposals: Proposals = "windows"
    overlap: float = 0.6
    n_proposals: int = 300
    max_iou: float = 1.0

    def __post_init__(self) -> None:
        check_n_bits(self.n_bits)
        if self.n_bits > MAX_BITS:
            raise ValueError(f"n_bits must be at most {MAX_BITS}, got {self.n_bits}")
        if self.regions not in get_args(RegionSource):
            known = ", ".join(get_args(RegionSource))
            raise ValueError(f"regions must be one of {known}, got {self.regions!r}")
        if self.pooling not in ("max", "mean"):
            raise ValueError(f"pooling must be max or mean, got {self.pooling!r}")
        if not 1 <= self.n_dims <= self.n_channels:
            raise ValueError(
                f"n_dims must be in [1, {self.n_channels}], the number of features, "
                f"got {self.n_dims}"
            )
        check_whitening(self.n_channels, self.n_dims, self.whitening)
        if self.choice.proposals == "rpn":
            raise ValueError("regions of an RPN need a model of torch; leave out the encoder")

    @property
    def choice(self) -> RegionChoice:
        """How the regions of a picture are chosen."""
        return RegionChoice(self.proposals, self.overlap, self.n_proposals, self.max_iou)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array that is fitted, by name."""
        d, p, k = self.n_channels, self.n_dims, self.n_bits
        return {
            "whitening.mean": (d,),
            "whitening.projection": (d, p),
            "whitening.post_mean": (p,),
            "hash.weight": (k, p),
            "hash.bias": (k,),
        }


class _Mapped(NamedTuple):
    """A map (D, h, w) of a picture, and the frame of the picture's boxes in the map's input."""

    features: Floats
    frame: Frame


class RegionHash:
    """Codes of regions by any encoder; a `regionhash.models.runtime.Runtime`. Threads may share it.

    Args:
        encoder: of pictures.
        settings: see `RegionHashSettings`.
        whitening: of the features; None until it is fitted.
        hash_of: of whitened features; None until it is fitted.
        text: encodes words into the space of the encoder's vectors, if it can.
    """

    shared_code_space = True
    precision: Precision = "32-true"
    threads_read = True

    def __init__(
        self,
        encoder: Encoder,
        settings: RegionHashSettings,
        whitening: Whitening | None = None,
        hash_of: LinearHash | None = None,
        text: TextEncoder | None = None,
    ) -> None:
        self.encoder, self.settings, self.text = encoder, settings, text
        self._whitening, self._hash = whitening, hash_of
        self._choice = settings.choice
        self.n_bits = self.n_region_bits = settings.n_bits
        self.takes_boxes = self._choice.takes_boxes

    @classmethod
    def of_encoder(cls, resolved: Resolved, arguments: dict[str, Any]) -> RegionHash:
        """One that is not fitted yet, of an encoder and some of the arguments.

        What is left out depends on the encoder: how it is pooled, the size of its crops, and the
        number of dimensions, which is at least that of the bits for hashes that need it. An encoder
        with words cuts regions out, since only vectors of pictures are in the space of words.

        Raises:
            ValueError: an argument is out of range, or not possible with this encoder.
        """
        _hash_named(arguments.get("hash", "drh"))  # before anything is computed
        encoder = resolved.encoder
        if arguments.get("regions", "map") != "crop" and not encoder.gives_map:
            if "regions" in arguments:
                raise ValueError(
                    f"encoder {resolved.spec}: gives no map of a picture, so each region must be "
                    "encoded on its own: regions must be crop"
                )
            arguments = arguments | {"regions": "crop"}
        if resolved.text is not None:
            arguments = {"regions": "crop"} | arguments
        source = arguments.get("regions", "map")
        n_channels = 0 if source == "crop" else encoder.n_channels
        if source != "map":
            n_channels += encoder.n_vector or encoder.n_channels
        if source == "crop" and encoder.n_vector and "pooling" in arguments:
            raise ValueError(
                f"encoder {resolved.spec}: gives one vector of each region that is cut out, so "
                "there is nothing to pool: leave out pooling, or pool regions of its map "
                "(regions map)"
            )
        n_dims = DEFAULT_DIMS
        if arguments.get("hash") in ("itq", "sign"):  # a bit of these is a direction
            n_dims = max(n_dims, arguments.get("n_bits", DEFAULT_BITS))
        built: dict[str, Any] = {
            "encoder": {"spec": resolved.spec} | resolved.identity,
            "n_channels": n_channels,
            "pooling": encoder.pooling,
            "crop": _crop_size(encoder),
            "margin": _MARGIN_OF_BOTH if source == "both" else 0.0,
            "n_dims": min(n_dims, n_channels),
        } | arguments
        return cls(encoder, RegionHashSettings(**built), text=resolved.text)

    @classmethod
    def load(cls, folder: Path) -> tuple[RegionHash, Checkpoint]:
        """The model in a folder, and its checkpoint.

        Raises:
            CheckpointError: it is missing or damaged, or its encoder is.
        """
        weights, checkpoint = find_weights(folder)
        settings = RegionHashSettings(**checkpoint.arguments)
        try:
            stored = check_encoder(weights.parent)
        except EncoderError as error:
            raise CheckpointError(str(error)) from error
        if json.loads(json.dumps({"spec": stored.spec} | stored.identity)) != settings.encoder:
            raise CheckpointError(
                f"{weights.parent}: its encoder, {stored.spec}, is not the one that model.json "
                f"describes, {settings.encoder.get('spec')}"
            )
        arrays = read_arrays(weights)
        whitening = Whitening(*(arrays[f"whitening.{x.name}"] for x in fields(Whitening)))
        hash_of = LinearHash(arrays["hash.weight"], arrays["hash.bias"])
        return cls(stored.encoder, settings, whitening, hash_of, stored.text), checkpoint

    def fitted(
        self, features: Floats, *, seed: int = 0, reporter: Reporter = SILENT
    ) -> tuple[RegionHash, FitReport]:
        """The same with whitening and hash fitted on features (N, D) of regions.

        Args:
            features: as `describe` gives them, N at least 1.
            seed: of what the hash draws at random.
            reporter: is told the steps of the hash's training.

        Raises:
            ValueError: the hash is unknown or cannot have as many bits; see `fit_whitening`.
        """
        settings = self.settings
        whitening = fit_whitening(
            [features], settings.n_channels, settings.n_dims, power=settings.whitening
        )
        hash_of, report = fit_hash(
            _hash_named(settings.hash),
            whitening(features),
            settings.n_bits,
            seed=seed,
            reporter=reporter,
        )
        return RegionHash(self.encoder, settings, whitening, hash_of, self.text), report

    @property
    def knows_words(self) -> bool:
        """Whether `text_activations` may be called."""
        return self.text is not None and self.settings.regions == "crop"

    @property
    def arguments(self) -> dict[str, Any]:
        """As model.json has them."""
        return asdict(self.settings)

    def arrays(self) -> dict[str, Floats]:
        """What was fitted, by name."""
        assert self._whitening is not None and self._hash is not None
        whitening = {
            f"whitening.{x.name}": getattr(self._whitening, x.name) for x in fields(Whitening)
        }
        return whitening | {"hash.weight": self._hash.weight, "hash.bias": self._hash.bias}

    # Pictures

    def prepare(self, image: Image, short: int) -> tuple[Pixels, Frame]:
        """The encoder's input of a picture, or the picture that regions are cut from; its frame."""
        if self.settings.regions == "map":
            return self.encoder.prepare(image, short)
        return to_pixels(image, min(short, *image.shape[:2]), stride=1)

    def describe(self, image: Pixels, given: Detections | None = None) -> tuple[Detections, Floats]:
        """The regions of a picture (3, h, w), whole picture first, and their features (R, D)."""
        size = (image.shape[1], image.shape[2])
        mapped = self._mapped(image)
        if mapped is None:  # windows to cut out are laid out as on a map of the usual stride
            cells = (max(1, round(size[0] / STRIDE)), max(1, round(size[1] / STRIDE)))
        else:
            cells = (mapped.features.shape[1], mapped.features.shape[2])
        if given is not None and self.takes_boxes:
            chosen = self._choice.of_boxes(given, size, cells)
        else:
            chosen, _ = self._choice.of_map(*cells, size)
        return chosen, self._features(image, mapped, chosen.boxes)

    def encode(
        self, images: Sequence[Pixels], given: Sequence[Detections] | None = None
    ) -> list[EncodedImage]:
        """Codes of pictures (3, h, w) uint8; boxes in their pixels."""
        return self._each(self._encode, images, [None] * len(images) if given is None else given)

    def encode_boxes(self, images: Sequence[Pixels], boxes: Sequence[Floats]) -> list[Regions]:
        """Codes of given boxes of pictures: (R, 4) float32 each, xyxy in their pixels."""
        return self._each(self._encode_boxes, images, boxes)

    def _each(self, work: Callable[..., Result], *arguments: Sequence[Any]) -> list[Result]:
        """`work` of each picture, several at once if the encoder is a graph."""
        if isinstance(self.encoder, OnnxEncoder):
            return at_once(work, *arguments)
        return [work(*call) for call in zip(*arguments, strict=True)]

    def _encode(self, image: Pixels, given: Detections | None) -> EncodedImage:
        chosen, features = self.describe(image, given)
        codes, whitened = self._hashed(features)
        regions = Regions(chosen.boxes, chosen.scores, chosen.labels, codes, whitened)
        return EncodedImage((image.shape[1], image.shape[2]), codes[0], regions=regions)

    def _encode_boxes(self, image: Pixels, boxes: Floats) -> Regions:
        n = len(boxes)
        features = np.zeros((0, self.settings.n_channels), np.float32)
        if n:
            features = self._features(image, self._mapped(image), boxes)
        codes, whitened = self._hashed(features)
        return Regions(boxes, np.ones(n, np.float32), np.full(n, -1, np.int64), codes, whitened)

    def codes_of(self, features: Floats) -> Codes:
        """Packed codes (R, K/8) of features (R, D)."""
        return self._hashed(features)[0]

    def _hashed(self, features: Floats) -> tuple[Codes, Floats]:
        """Packed codes (R, K/8) of features (R, D), and what they are made from, (R, P)."""
        whitened = self._whitened(features)
        return pack_bits(binarize(self.activations_of(whitened), 0.0)), whitened

    def activations(self, features: Floats) -> Floats:
        """What the bits of features (R, D) are the signs of, (R, K)."""
        return self.activations_of(self._whitened(features))

    def _whitened(self, features: Floats) -> Floats:
        if self._whitening is None:
            raise ValueError("the model is not fitted")
        return self._whitening(features)

    def activations_of(self, whitened: Floats) -> Floats:
        """What the bits of whitened features (R, P) are the signs of, (R, K)."""
        if self._hash is None:
            raise ValueError("the model is not fitted")
        return self._hash(whitened)

    def text_activations(self, texts: Sequence[str]) -> Floats:
        """The same (N, K) of words.

        Raises:
            ValueError: the encoder has no words, or its regions are not in the space of words.
        """
        spec = self.settings.encoder.get("spec")
        if self.text is None:
            raise ValueError(f"encoder {spec} has no words: it needs a text tower, as CLIP has")
        if self.settings.regions != "crop":
            raise ValueError(
                f"regions pooled from the map of {spec} are not in the space of its words; "
                "`regionhash index --regions crop` makes such a collection"
            )
        return self.activations(unit_length(self.text.vectors(texts)))

    # Features

    def _map(self, image: Pixels) -> Floats:
        """The encoder's map (D, h, w) of an input, checked if another package gives it."""
        if isinstance(self.encoder, OnnxEncoder):
            return self.encoder.map(image)
        place = f"encoder {one_line(str(self.settings.encoder.get('spec')))}"
        wanted = (self.encoder.n_channels, *(n // self.encoder.stride for n in image.shape[1:]))
        try:
            found = np.asarray(self.encoder.map(image), np.float32)
        except Exception as error:  # of another package
            raise ValueError(f"{place}: {reason_of(error)}") from error
        if found.shape != wanted or not np.isfinite(found).all():
            raise ValueError(f"{place}: its map must be finite, {wanted}, got {found.shape}")
        return found

    def _mapped(self, image: Pixels) -> _Mapped | None:
        """The map of an input, or of the picture that regions are cut from; None for crops."""
        size = (image.shape[1], image.shape[2])
        if self.settings.regions == "crop":
            return None
        if self.settings.regions == "map":
            return _Mapped(self._map(image), Frame(size, size))
        whole, frame = self.encoder.prepare(image.transpose(1, 2, 0), self.settings.map_short)
        return _Mapped(self._map(whole), frame)

    def _features(self, image: Pixels, mapped: _Mapped | None, boxes: Floats) -> Floats:
        """Features (R, D) of boxes (R, 4) in the pixels of a picture, given its `_mapped`."""
        parts = []
        if mapped is not None:
            h, w = mapped.features.shape[1:]
            stride = mapped.frame.input_size[1] / w
            cells = snap_boxes(mapped.frame.to_input(boxes), stride, h, w)
            parts.append(self._pooled(mapped.features, cells))
        if self.settings.regions != "map":
            parts.append(self._of_crops(image, boxes))
        return parts[0] if len(parts) == 1 else unit_length(np.concatenate(parts, axis=1))

    def _pooled(self, features: Floats, cells: Ints) -> Floats:
        return unit_length(pool_map(features, cells, self.settings.pooling))

    def _of_crops(self, image: Pixels, boxes: Floats) -> Floats:
        """Features (R, D) of boxes, each encoded as a picture of its own."""
        height, width = image.shape[1:]
        limits = np.array([width, height], np.int64)
        margins = self.settings.margin * (boxes[:, 2:] - boxes[:, :2])
        low = np.clip(np.floor(boxes[:, :2] - margins).astype(np.int64), 0, limits - 1)
        high = np.clip(np.ceil(boxes[:, 2:] + margins).astype(np.int64), low + 1, limits)
        crops = [
            self.encoder.prepare(image[:, y0:y1, x0:x1].transpose(1, 2, 0), self.settings.crop)[0]
            for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True)
        ]
        if self.encoder.n_vector:
            return unit_length(self.encoder.vectors(crops))
        whole = [self._map(crop) for crop in crops]
        cells = [np.array([[0, 0, x.shape[2], x.shape[1]]]) for x in whole]
        return np.concatenate([self._pooled(x, c) for x, c in zip(whole, cells, strict=True)])


def _crop_size(encoder: Encoder) -> int:
    """Short side of the pictures that an encoder was trained on, as far as it is known."""
    size = encoder.fixed_size or getattr(getattr(encoder, "preprocessing", None), "size", None)
    return min(size) if size else 224


def _hash_named(name: str) -> Fit:
    """A hash by its name. Raises ValueError if there is none."""
    if name in HASHES:
        return HASHES[name]
    found = {entry.name: entry for entry in entry_points(group=HASH_ENTRY_POINTS)}
    if name not in found:
        raise ValueError(f"unknown hash {name!r}; known: {', '.join([*HASHES, *sorted(found)])}")
    place = f"hash {name}: {one_line(found[name].value)}"
    try:
        fit: Fit = found[name].load()
    except Exception as error:  # of another package
        raise ValueError(f"{place}: {reason_of(error)}") from error

    def checked(*arguments: Any, **options: Any) -> LinearHash:
        try:
            return fit(*arguments, **options)
        except Exception as error:  # as above
            raise ValueError(f"{place}: {reason_of(error)}") from error

    return checked
