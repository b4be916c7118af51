"""DMIH: Deep Multiple Instance Hashing, objects learned from image labels alone.

Zhao, Guan, Luo, Peng, Fan, "Deep Multiple Instance Hashing for Object-based Image Retrieval",
IJCAI 2017. docs/dmih.md describes it and lists the deviations.

    image -> backbone -> maps of several scales -> 3 x 3 windows: the proposals
                              -> MIL layer: probability of each class -> image classes
                              -> hash layer: code of each proposal

No box is ever read: training knows only the labels of pictures.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from regionhash.parts.backbones import build_backbone, stack_images
from regionhash.parts.cells import crop_maps, pack_cells, unpack_cells
from regionhash.parts.heads import LatentLayer
from regionhash.parts.losses import BagPooling, bag_log_probs, mil_loss, pair_hash_loss
from regionhash.parts.multiscale import MultiScaleWindows, window_boxes
from regionhash.parts.proposals import Targets
from regionhash.parts.regions import codes_of, regions_of
from regionhash.structures import EncodedImage, Regions

Part = Literal["joint", "mil", "hash"]
"""What is trained: everything (eq. 7); the proposals and their classes alone (eq. 3); or, on these,
the hash layer alone (eqs. 4 and 5). The last two in sequence are DMIH-ind."""

MARGIN, MIL_WEIGHT, THETA = 1.25, 1.0, 0.7  # beta, lambda ("Training"), theta (Sec. 4.2)
_FIRST_LOGIT = -4.0  # initial class probability of 2 %: the best of 200 proposals is no object yet


class Bags(NamedTuple):
    """Output of the network for the proposals of B images.

    Attributes:
        x: (B, M, D), features.
        logits: (B, M, C), of the classes.
        present: (B, M) bool, False for padding.
    """

    x: Tensor
    logits: Tensor
    present: Tensor


class DMIH(nn.Module):
    """DMIH: objects learned from image labels alone, searched by one object or several.

    The network of the paper (Fig. 2) and its losses (eqs. 3 to 7).

    The paper's base network is `backbone="vgg16"` with `trained_stages=3`. The windows of three
    scales are 3, 7 and 15 cells wide: 96, 224 and 480 input pixels at a stride of 32.

    Args:
        n_bits: k, bits of a proposal's code.
        n_classes: C.
        backbone: a key of `regionhash.parts.backbones.BACKBONES`; its last stage is read.
        weights, trained_stages: of the backbone, see `build_backbone`.
        n_channels: channels of the multi-scale maps.
        n_features: D, features of a proposal.
        n_scales: number of maps.
        pooling: g of eq. 2, see `bag_log_probs`.
        margin: beta of eq. 5.
        mil_weight: lambda of eq. 7.
        part: see `Part`.
        theta: probability above which a proposal is in the picture's hash bag.
        merge: of proposals of a class that overlap by more than this IoU, only the most probable is
            in the bag; None keeps them all, as the paper does.
        dropout: on channels of the base map.

    Raises:
        ValueError: an unknown value, or weights that cannot be used.
    """

    ramped_terms = ("pair",)
    held_out_term = None
    shared_code_space = False
    learns_boxes = False
    weakly_supervised = True
    needs_trained_rpn = False

    def __init__(
        self,
        n_bits: int,
        n_classes: int,
        *,
        backbone: str = "mobilenet_v2_fpn",
        weights: str = "default",
        trained_stages: int = 0,
        n_channels: int = 256,
        n_features: int = 256,
        n_scales: int = 3,
        pooling: BagPooling = "max",
        margin: float = MARGIN,
        mil_weight: float = MIL_WEIGHT,
        part: Part = "joint",
        theta: float = THETA,
        merge: float | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if part not in get_args(Part):
            raise ValueError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")
        if pooling not in get_args(BagPooling):
            known = ", ".join(get_args(BagPooling))
            raise ValueError(f"pooling must be one of {known}, got {pooling!r}")
        for name, value in (("theta", theta), ("merge", 0.5 if merge is None else merge)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        self.backbone = build_backbone(
            backbone, weights=weights, trained_stages=trained_stages, fpn_channels=None
        )
        self.dropout = nn.Dropout2d(dropout)
        self.maps = MultiScaleWindows(self.backbone.top_channels, n_channels, n_features, n_scales)
        self.mil = nn.Linear(n_features, n_classes)
        nn.init.constant_(self.mil.bias, _FIRST_LOGIT)
        self.hash = LatentLayer(n_features, n_bits)
        self.n_bits = 0  # no code of the whole picture
        self.n_region_bits = n_bits
        self.pooling: BagPooling = pooling
        self.margin = margin
        self.mil_weight = mil_weight
        self.part = part
        self.theta = theta
        self.merge = merge

    # -- training ---------------------------------------------------------------------------------

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """The terms of eq. 7, weighted, by name: "mil" and "pair", or one of them (`Part`).

        Args:
            images: B times (3, h, w) uint8.
            targets: B times "image_labels" (C,) float32, 0 or 1; nothing else is read.
        """
        image_labels = torch.stack([t["image_labels"] for t in targets])
        return self.head_losses(self._base(images), image_labels)

    @torch.no_grad()
    def frozen_features(
        self, images: list[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """The base network's map: "cells" (B, h * w, D), row after row, and "shape" (B, 2).

        Cells are float16, because those of thousands of pictures are kept. Targets are not read.
        """
        features = self._base(images)
        return features | {"cells": features["cells"].half()}

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """The losses of `frozen_features` with image labels (B, C) float32, 0 or 1.

        An image without a label is a negative bag of every class, and takes part in no pair.
        """
        with torch.set_grad_enabled(self.part != "hash" and torch.is_grad_enabled()):
            bags = self.describe(features)
        losses = {}
        if self.part != "hash":
            log_p, log_not_p = bag_log_probs(bags.logits, bags.present, self.pooling)
            losses["mil"] = self.mil_weight * mil_loss(log_p, log_not_p, image_labels)
        if self.part != "mil":
            images, classes = image_labels.nonzero(as_tuple=True)  # (P,) each: owned labels
            best = bags.logits.detach().masked_fill(~bags.present[..., None], -torch.inf)
            rows = best.argmax(1)[images, classes]  # Idx of eq. 5
            activations = self.hash(bags.x[images, rows])
            n_images = len(image_labels)
            losses["pair"] = pair_hash_loss(activations, images, classes, n_images, self.margin)
        return losses

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `head_losses` trains."""
        layers: dict[Part, tuple[nn.Module, ...]] = {
            "joint": (self.maps, self.mil, self.hash),
            "mil": (self.maps, self.mil),
            "hash": (self.hash,),
        }
        return [weight for layer in layers[self.part] for weight in layer.parameters()]

    # -- shared -----------------------------------------------------------------------------------

    def _base(self, images: list[Tensor]) -> dict[str, Tensor]:
        """As `frozen_features`, in full precision and with gradients."""
        batch, sizes = stack_images(images)
        cells, shapes = pack_cells(crop_maps(self.backbone.top(batch), sizes, math.ceil))
        return {"cells": cells, "shape": shapes}

    def describe(self, features: dict[str, Tensor]) -> Bags:
        """Features and class logits of the proposals of what `frozen_features` gives."""
        cells, shapes = features["cells"].to(self.mil.weight.dtype), features["shape"]
        x, present = self.maps(self.dropout(unpack_cells(cells, shapes)), shapes)
        return Bags(x, self.mil(x).float(), present)

    # -- use --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Hash bags and class probabilities of B images (3, h, w) uint8.

        Boxes are in pixels of the images given. There is no code of the whole picture.
        """
        features = self._base(images)
        bags = self.describe(features)
        log_p, _ = bag_log_probs(bags.logits, bags.present, self.pooling)
        encoded = []
        for n, (image, boxes) in enumerate(zip(images, self._boxes(images, features), strict=True)):
            x, logits = bags.x[n, bags.present[n]], bags.logits[n, bags.present[n]]
            rows = self.select(logits, boxes)
            encoded.append(
                EncodedImage(
                    size=(image.shape[1], image.shape[2]),
                    class_probs=log_p[n].exp().cpu().numpy(),
                    regions=self._regions(boxes[rows], x[rows], logits[rows]),
                )
            )
        return encoded

    @torch.no_grad()
    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes of given boxes: B times (R, 4), xyxy in input pixels; see `match_boxes`."""
        features = self._base(images)
        bags = self.describe(features)
        regions = []
        for n, (asked, proposals) in enumerate(
            zip(boxes, self._boxes(images, features), strict=True)
        ):
            x, logits = bags.x[n, bags.present[n]], bags.logits[n, bags.present[n]]
            rows = self.match_boxes(asked, proposals, logits)
            regions.append(self._regions(asked, x[rows], logits[rows]))
        return regions

    def match_boxes(self, asked: Tensor, boxes: Tensor, logits: Tensor) -> Tensor:
        """The proposal (R,) that represents each of the boxes (R, 4).

        That is the most probable one, of any class, of those with their centre in the box, since
        what a user marks is an object; if there is none, the one with the largest IoU.

        Args:
            asked: (R, 4), xyxy in input pixels.
            boxes: (M, 4), of the proposals.
            logits: (M, C), of the proposals.
        """
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # (M, 2)
        inside = ((centres >= asked[:, None, :2]) & (centres <= asked[:, None, 2:])).all(2)
        probs = torch.where(inside, logits.amax(1).sigmoid(), -1.0)  # (R, M)
        nearest = box_iou(asked, boxes).argmax(1)
        return torch.where(inside.any(1), probs.argmax(1), nearest)

    def select(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Which of the M proposals of one image are its hash bag (Sec. 3.3), most probable first.

        If no proposal is above theta, the most probable one is taken: no picture is lost.

        Args:
            logits: (M, C), of the classes.
            boxes: (M, 4).
        """
        scores, labels = logits.sigmoid().max(1)
        order = scores.argsort(descending=True, stable=True)
        rows = order[: max(1, int((scores > self.theta).sum()))]
        if self.merge is not None:
            rows = rows[batched_nms(boxes[rows], scores[rows], labels[rows], self.merge)]
        return rows

    def _boxes(self, images: list[Tensor], features: dict[str, Tensor]) -> list[Tensor]:
        """The proposals' boxes in pixels of each image."""
        boxes = []
        for image, (h, w) in zip(images, features["shape"].tolist(), strict=True):
            size = image.shape[2], image.shape[1]
            pixels = torch.tensor([size[0] / w, size[1] / h] * 2, device=image.device)
            boxes.append(window_boxes(h, w, self.maps.n_scales).to(pixels) * pixels)
        return boxes

    def _regions(self, boxes: Tensor, x: Tensor, logits: Tensor) -> Regions:
        scores, labels = logits.sigmoid().max(1)
        return regions_of(boxes, scores, labels, codes_of(self.hash(x)))
