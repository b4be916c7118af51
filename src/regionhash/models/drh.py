"""DRH: Deep Region Hashing for generic instance search, without labels.

Song, He, Gao, Xu, Shen, "Deep Region Hashing for Generic Instance Search from Images", AAAI 2018.

    image -> backbone -> last map -> windows, RPN proposals or given boxes
                                       -> maximum in each region
                                       -> L2, whitening -> hash layer -> code of each region

The whole map is a region too; its code is the picture's. The backbone is never trained, and
whitening and hash are fitted on features of the collection itself (`fit_drh`). docs/drh.md states
how the paper is read where it is ambiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from regionhash.codes import check_n_bits
from regionhash.parts.backbones import BACKBONES, build_backbone, stack_images
from regionhash.parts.cells import crop_maps
from regionhash.parts.choosing import Proposals, RegionChoice, thinned
from regionhash.parts.hashes import N_STEPS, FitReport, fit_drh_hash, fit_hash
from regionhash.parts.proposals import ScoredRPN, build_rpn
from regionhash.parts.regions import codes_of, regions_of
from regionhash.parts.whitening import Whitening
from regionhash.parts.windows import max_pool_windows, snap_boxes
from regionhash.reporter import SILENT, Reporter
from regionhash.structures import Detections, EncodedImage, Regions


@dataclass(frozen=True, slots=True, eq=False)
class RegionFeatures:
    """The regions of one image before hashing, the whole image first.

    Attributes:
        boxes: (R, 4), xyxy in input pixels.
        scores: (R,), objectness of proposals, 1 for windows and for the whole image.
        labels: (R,), class indices of given boxes, otherwise -1.
        features: (R, D), the maximum of each channel in the region, of unit length.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    features: Tensor


class DRH(nn.Module):
    """DRH: codes of windows or proposals, fitted by `regionhash index` without labels.

    The whole picture is one of the regions, and all codes can be compared with each other.

    The paper's form is `backbone="vgg16", n_dims=512, whitening=1.0`. `fit_drh` fits it without
    labels.

    Args:
        n_bits: K, bits of every code, a multiple of 8.
        n_classes: not read; every model takes it.
        backbone: a key of `regionhash.parts.backbones.BACKBONES`; its last stage is read.
        weights: of the backbone, see `build_backbone`.
        n_dims: P, features after whitening; cut to the channels of the last stage.
        whitening: how much of the whitening is done, in [0, 1]; see `Whitening`.
        overlap: lambda, overlap of the sliding windows.
        proposals: what the regions are. "windows" are sliding windows, "pyramid" windows of more
            scales, see `pyramid_windows`. "boxes" are given with the pictures; a picture for which
            none are given has sliding windows. "boxes+windows" and "boxes+pyramid" are given boxes
            and windows. "rpn" takes the best proposals of an RPN. It needs the feature pyramid and
            the RPN of a trained Region-DH, which `weights` does not bring:
            `regionhash.collection.fitting_drh.take_detector` does.
        n_proposals: greatest number of boxes, and of windows of a pyramid, beside the whole
            picture.
        fpn_channels: channels of the feature pyramid, which the RPN reads.
        max_iou: a region that overlaps a better one by more than this is dropped, see `thinned`;
            1 keeps all.

    Raises:
        ValueError: a value out of range, or weights that cannot be used.
    """

    shared_code_space = True

    def __init__(
        self,
        n_bits: int = 1024,
        n_classes: int = 0,
        *,
        backbone: str = "mobilenet_v2_fpn",
        weights: str = "default",
        n_dims: int = 128,
        whitening: float = 0.5,
        overlap: float = 0.6,
        proposals: Proposals = "windows",
        n_proposals: int = 300,
        fpn_channels: int = 256,
        max_iou: float = 1.0,
    ) -> None:
        super().__init__()
        check_n_bits(n_bits)
        choice = RegionChoice(proposals, overlap, n_proposals, max_iou)
        body = build_backbone(
            backbone,
            weights=weights,
            trained_stages=0,
            fpn_channels=fpn_channels if proposals == "rpn" else None,
        )
        n_dims = min(n_dims, body.top_channels)
        self.backbone = body
        self.rpn: ScoredRPN | None = None
        if proposals == "rpn":
            sizes = BACKBONES[backbone].anchor_sizes
            self.rpn = build_rpn(body.out_channels, sizes, n_proposals=n_proposals)
        self.whitening = Whitening(body.top_channels, n_dims, power=whitening)
        self.hash = nn.Linear(n_dims, n_bits)
        with torch.no_grad():
            nn.init.orthogonal_(self.hash.weight)
            self.hash.bias.zero_()
        self.n_bits = n_bits
        self.n_region_bits = n_bits
        self.choice = choice

    @torch.no_grad()
    def region_features(
        self, images: list[Tensor], given: Sequence[Detections] | None = None
    ) -> list[RegionFeatures]:
        """The regions of B images (3, h, w) uint8 with their features, which the hash reads.

        Args:
            images: the pictures.
            given: their boxes in input pixels, for a `proposals` that takes boxes.
        """
        batch, sizes = stack_images(images)
        if self.rpn is None:
            tops = crop_maps(self.backbone.top(batch), sizes, math.ceil)
            if given is None or not self.takes_boxes:
                return [self._windows(one, size) for one, size in zip(tops, sizes, strict=True)]
            return [
                self._given(one, size, found)
                for one, size, found in zip(tops, sizes, given, strict=True)
            ]
        maps, top = self.backbone(batch)
        proposals, objectness, _ = self.rpn(ImageList(batch, sizes), maps)
        found = []
        for one, size, boxes, scores in zip(
            crop_maps(top, sizes, math.ceil), sizes, proposals, objectness, strict=True
        ):
            whole = boxes.new_tensor([[0, 0, size[1], size[0]]])
            boxes, scores = torch.cat([whole, boxes]), torch.cat([scores.new_ones(1), scores])
            kept = thinned(boxes.float().cpu().numpy(), self.choice.max_iou)
            boxes, scores = boxes[kept], scores[kept]
            features = self._pool(one, boxes, size)
            found.append(RegionFeatures(boxes, scores, _unknown(boxes), features))
        return found

    @property
    def takes_boxes(self) -> bool:
        """Whether boxes that are given with the pictures are regions."""
        return self.choice.takes_boxes

    def forward(self, features: Tensor) -> Tensor:
        """Activations (N, K) in [-1, 1] of whitened features (N, P)."""
        return torch.tanh(self.hash(features).float())

    @torch.no_grad()
    def activations_of(self, whitened: Tensor) -> Tensor:
        """What the bits of whitened features (N, P) are the signs of, (N, K), without tanh."""
        return self.hash(whitened.to(self.hash.weight)).float()

    @torch.no_grad()
    def encode(
        self, images: list[Tensor], given: Sequence[Detections] | None = None
    ) -> list[EncodedImage]:
        """Codes of B images (3, h, w) uint8 and of their regions, the whole image first.

        For `given` see `region_features`.
        """
        encoded = []
        for image, found in zip(images, self.region_features(images, given), strict=True):
            regions = self._hashed(found.boxes, found.scores, found.labels, found.features)
            size = (image.shape[1], image.shape[2])
            encoded.append(EncodedImage(size, image_code=regions.codes[0], regions=regions))
        return encoded

    @torch.no_grad()
    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes of given boxes: B times (R, 4), xyxy in input pixels."""
        batch, sizes = stack_images(images)
        tops = crop_maps(self.backbone.top(batch), sizes, math.ceil)
        return [
            self._hashed(
                asked, asked.new_ones(len(asked)), _unknown(asked), self._pool(top, asked, size)
            )
            for asked, top, size in zip(boxes, tops, sizes, strict=True)
        ]

    def _windows(self, top: Tensor, size: tuple[int, int]) -> RegionFeatures:
        """The windows on the map (D, h, w) of an image of `size`."""
        chosen, windows = self.choice.of_map(top.shape[1], top.shape[2], size)
        return _on_map(top, chosen, _maxima(top, windows))

    def _given(self, top: Tensor, size: tuple[int, int], found: Detections) -> RegionFeatures:
        """The given boxes on the map (D, h, w) of an image of `size`, best first, then windows."""
        chosen = self.choice.of_boxes(found, size, (top.shape[1], top.shape[2]))
        return _on_map(top, chosen, self._pool(top, torch.from_numpy(chosen.boxes), size))

    def _pool(self, top: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (R, D) of boxes on the map (D, h, w) of an image of `size`."""
        height, width = top.shape[1:]
        return _maxima(top, snap_boxes(boxes, size[1] / width, height, width))

    def _hashed(self, boxes: Tensor, scores: Tensor, labels: Tensor, features: Tensor) -> Regions:
        whitened = self.whitening(features)
        codes = codes_of(self(whitened), threshold=0.0)
        return regions_of(boxes, scores, labels, codes, whitened)


def _on_map(top: Tensor, chosen: Detections, features: Tensor) -> RegionFeatures:
    """Chosen regions with their features, on the device of the map."""
    boxes, scores, labels = (
        torch.from_numpy(part).to(top.device)
        for part in (chosen.boxes, chosen.scores, chosen.labels)
    )
    return RegionFeatures(boxes, scores, labels, features)


def _unknown(boxes: Tensor) -> Tensor:
    """Labels (R,) of boxes (R, 4) of no known class."""
    return boxes.new_full((len(boxes),), -1, dtype=torch.int64)


def _maxima(top: Tensor, windows: np.ndarray) -> Tensor:
    """Max-pooled features (R, D) of unit length of windows on one map (D, h, w)."""
    return F.normalize(max_pool_windows(top[None].float(), windows)[0], dim=1)


# -- fitting --------------------------------------------------------------------------------------


def fit_drh(
    model: DRH,
    features: Tensor,
    *,
    n_steps: int = N_STEPS,
    learning_rate: float = 0.01,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fits the whitening on features of regions, then trains the hash layer on them (eqs. 1 to 3).

    Args:
        model: a `DRH`, changed in place.
        features: (N, D), N at least 1, as `DRH.region_features` gives them.
        n_steps: see `fit_drh_hash`, as for `learning_rate`.
        learning_rate: of SGD.
        seed: random seed of the first directions and of the order.
        reporter: is told the steps done and the total.

    Raises:
        ValueError: see `fit_whitening`.
    """
    chunks = features.split(8192)
    model.whitening.fit(chunks)
    device = model.hash.weight.device
    x = torch.cat([model.whitening(chunk.to(device)).cpu() for chunk in chunks]).numpy()  # (N, P)
    fitted, report = fit_hash(
        fit_drh_hash,
        x,
        model.n_bits,
        seed=seed,
        reporter=reporter,
        n_steps=n_steps,
        learning_rate=learning_rate,
    )
    with torch.no_grad():
        model.hash.weight.copy_(torch.from_numpy(fitted.weight))
        model.hash.bias.copy_(torch.from_numpy(fitted.bias))
    return report
