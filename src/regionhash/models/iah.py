"""IAH: instance-aware hashing, with one code per picture and one per category in it.

Lai, Yan, Shu, Wei, Yan, "Instance-Aware Hashing for Multi-Label Image Retrieval", IEEE Transactions
on Image Processing 2016. docs/iah.md describes it and lists the deviations.

    image -> backbone -> 32 maps -> pyramid pooling of each proposal -> classes P, maximum -> p
                                                                     -> features H
    P, H -> fusion, a slice f of each category -> semantic head -> code of the picture
                                               -> code of each category whose p is 0.2 or more
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from regionhash.codes import check_n_bits, pack_signs
from regionhash.parts.backbones import BACKBONES, build_backbone, stack_images
from regionhash.parts.cells import crop_maps, pack_cells, unpack_cells
from regionhash.parts.fusion import fuse_proposals
from regionhash.parts.heads import SignLayer
from regionhash.parts.losses import (
    MultiLabelForm,
    category_triplet_loss,
    multi_label_loss,
    multi_label_probs,
    triplet_loss,
)
from regionhash.parts.pooling import PYRAMID, pool_pyramid
from regionhash.parts.proposals import ScoredRPN, Targets, build_rpn, pad_regions
from regionhash.parts.regions import regions_of
from regionhash.parts.selective_search import SelectiveSearch
from regionhash.structures import CategoryCodes, Codes, EncodedImage, Regions

ProposalSource = Literal["selective-search", "rpn"]

N_MAPS = 32  # of the last convolution (Sec. V-B)
CATEGORY_THRESHOLD = 0.2  # Sec. IV


class Described(NamedTuple):
    """Output of the two branches for B pictures and their regions.

    Attributes:
        logits: (B, C), m of eq. 1.
        probs: (B, R, C), P of eq. 5; 0 for the padding of pictures with fewer regions.
        features: (B, R, b), H.
    """

    logits: Tensor
    probs: Tensor
    features: Tensor


class IAH(nn.Module):
    """IAH: codes of pictures and of the categories in them, from labels of whole pictures.

    The architecture of Fig. 2 and its losses (eqs. 1 to 9).

    The paper's form is `proposals="selective-search", n_proposals=100, trained_stages=3,
    bounded=False, backbone="googlenet_fpn"`, with one of the two weights 0.

    Args:
        n_bits: q, bits of the picture's code.
        n_classes: C.
        backbone: a key of `regionhash.parts.backbones.BACKBONES`; its last stage is read.
        weights, trained_stages: of the backbone, see `build_backbone`.
        proposals: "rpn" takes the feature pyramid and the RPN of a trained Region-DH, which are not
            trained, and its stages: `regionhash train iah ... --init CHECKPOINT`.
        n_proposals: greatest number per picture.
        fpn_channels: channels of the feature pyramid, which the RPN reads.
        n_category_bits: b, bits of a category's code and width of H; any number.
        semantic_weight, category_weight: weights of the two triplet losses; 0 leaves one out.
        margin: margin of the triplet losses.
        bounded: whether the two heads end in a `SignLayer`; as printed they do not.
        multi_label: the label probabilities, see `multi_label_loss`; softmax lets at most five
            categories pass the threshold of 0.2, so data of many labels needs bce.
        dropout: on the pooled features.
        threshold: the least probability of a category that gets a code.
        max_regions: greatest number of regions kept for each such category.

    Raises:
        ValueError: a value out of range, or weights that cannot be used.
    """

    ramped_terms = ("semantic", "category")
    held_out_term = "cls3"
    shared_code_space = False
    learns_boxes = False
    weakly_supervised = False

    def __init__(
        self,
        n_bits: int,
        n_classes: int,
        *,
        backbone: str = "mobilenet_v2_fpn",
        weights: str = "default",
        trained_stages: int = 0,
        proposals: ProposalSource = "rpn",
        n_proposals: int = 48,
        fpn_channels: int = 128,
        n_category_bits: int = 16,
        semantic_weight: float = 1.0,
        category_weight: float = 1.0,
        margin: float = 1.0,
        bounded: bool = True,
        multi_label: MultiLabelForm = "softmax",
        dropout: float = 0.2,
        threshold: float = CATEGORY_THRESHOLD,
        max_regions: int = 10,
    ) -> None:
        super().__init__()
        check_n_bits(n_bits)
        if proposals not in get_args(ProposalSource):
            known = ", ".join(get_args(ProposalSource))
            raise ValueError(f"proposals must be one of {known}, got {proposals!r}")
        if n_category_bits < 1:
            raise ValueError(f"n_category_bits must be at least 1, got {n_category_bits}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        body = build_backbone(
            backbone,
            weights=weights,
            trained_stages=trained_stages,
            fpn_channels=fpn_channels if proposals == "rpn" else None,
        )
        self.backbone = body
        self.rpn: ScoredRPN | None = None
        self.search: SelectiveSearch | None = None
        if proposals == "rpn":
            sizes = BACKBONES[backbone].anchor_sizes
            self.rpn = build_rpn(body.out_channels, sizes, n_proposals=n_proposals)
        else:
            self.search = SelectiveSearch(n_proposals)
        self.needs_trained_rpn = self.rpn is not None
        self.reduce = nn.Linear(body.top_channels, N_MAPS)  # a convolution of 1 x 1
        n_pooled = N_MAPS * sum(n * n for n in PYRAMID)  # 960
        self.dropout = nn.Dropout(dropout)
        self.label = nn.Linear(n_pooled, n_classes)
        self.describe = nn.Linear(n_pooled, n_category_bits)
        n_fused = n_classes * n_category_bits
        self.semantic = nn.Linear(n_fused, n_bits)
        self.sign_image: nn.Module = SignLayer(n_bits) if bounded else nn.Identity()
        self.sign_category: nn.Module = SignLayer(n_fused) if bounded else nn.Identity()
        self.n_classes = n_classes
        self.n_bits = n_bits
        self.n_category_bits = n_category_bits
        self.n_region_bits = -(-n_category_bits // 8) * 8
        self.semantic_weight = semantic_weight
        self.category_weight = category_weight
        self.margin = margin
        self.bounded = bounded
        self.multi_label: MultiLabelForm = multi_label
        self.threshold = threshold
        self.max_regions = max_regions
        for frozen in (self.rpn, body.fpn):
            if frozen is not None:
                frozen.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> IAH:
        """Sets the training mode of everything except the proposals."""
        super().train(mode)
        if self.rpn is not None:
            self.rpn.eval()
        return self

    # -- training ---------------------------------------------------------------------------------

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Weighted terms by name: "cls3" (eq. 3), "semantic" (eq. 9), "category" (eq. 7).

        Args:
            images: B times (3, h, w) uint8.
            targets: B times "image_labels" (C,) float32, 0 or 1; boxes are not read.
        """
        image_labels = torch.stack([t["image_labels"] for t in targets])
        return self.head_losses(self._read(images), image_labels)

    @torch.no_grad()
    def frozen_features(
        self, images: list[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """What the layers after the backbone read; targets are not read.

        Returns:
            "cells" (B, h * w, D) float16, the last map of the backbone row by row, "grid" (B, 2)
            its h and w, "boxes" (B, R, 4) the proposals, xyxy in [0, 1] of the picture's sides, and
            "present" (B, R) bool. A picture without proposals gets one: the whole picture.
        """
        found = self._read(images)
        return found | {"cells": found["cells"].half()}

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """The losses of `frozen_features` with image labels (B, C) float32, 0 or 1."""
        found = self._describe(features)
        fused = self._fuse(features, found)  # (B, C, b)
        losses = {"cls3": multi_label_loss(found.logits, image_labels, self.multi_label)}
        if self.semantic_weight:
            a = self._of_image(fused)
            shared = image_labels @ image_labels.T
            loss = triplet_loss(self._of_length(a), shared, margin=self.margin)
            losses["semantic"] = self.semantic_weight * loss
        if self.category_weight:
            a = self._of_length(self._of_categories(fused))
            loss = category_triplet_loss(a, image_labels, margin=self.margin)
            losses["category"] = self.category_weight * loss
        return losses

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `head_losses` trains."""
        modules = (
            self.reduce,
            self.label,
            self.describe,
            self.semantic,
            self.sign_image,
            self.sign_category,
        )
        return [weight for module in modules for weight in module.parameters()]

    # -- shared -----------------------------------------------------------------------------------

    def _read(self, images: list[Tensor], boxes: list[Tensor] | None = None) -> dict[str, Tensor]:
        """As `frozen_features`, in float32; given boxes (input pixels) replace proposals."""
        batch, sizes = stack_images(images)
        maps: dict[str, Tensor] = {}
        if self.rpn is not None and boxes is None:
            maps, top = self.backbone(batch)
        else:
            top = self.backbone.top(batch)
        if boxes is None:
            boxes = self._propose(images, ImageList(batch, sizes), maps)
        cells, grid = pack_cells(crop_maps(top.float(), sizes))
        return {
            "cells": cells,
            "grid": grid,
            "boxes": pad_regions(
                [group.float() / _sides(image) for group, image in zip(boxes, images, strict=True)]
            ),
            "present": pad_regions([x.new_ones(len(x), dtype=torch.bool) for x in boxes]),
        }

    def _propose(
        self, images: list[Tensor], batch: ImageList, maps: dict[str, Tensor]
    ) -> list[Tensor]:
        """Boxes (R, 4) of each image in input pixels, at least one each."""
        if self.rpn is not None:
            boxes, _, _ = self.rpn(batch, maps)
        else:
            assert self.search is not None
            boxes = [self.search(image) for image in images]
        corner = boxes[0].new_zeros(1, 4)
        return [
            found if len(found) else corner + _sides(image) * corner.new_tensor([0, 0, 1, 1])
            for found, image in zip(boxes, images, strict=True)
        ]

    def pooled_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same features with "regions" (B, R, 960) in place of the map's cells.

        The following layers take either; on these they train in seconds, without `reduce`.
        """
        present = features["present"]
        if "regions" in features:
            return features
        reduced = F.relu(self.reduce(features["cells"].float())).float()  # (B, h * w, 32)
        maps = unpack_cells(reduced, features["grid"])
        boxes = [
            group[real] * grid.flip(0).repeat(2)  # in cells of the map
            for group, real, grid in zip(features["boxes"], present, features["grid"], strict=True)
        ]
        x = pool_pyramid(maps, boxes)  # (M, 960)
        regions = x.new_zeros(*present.shape, x.shape[1])
        regions[present] = x
        return {"regions": regions, "boxes": features["boxes"], "present": present}

    def _describe(self, features: dict[str, Tensor]) -> Described:
        present = features["present"]
        x = self.dropout(self.pooled_features(features)["regions"][present].float())  # (M, 960)
        logits, h = self.label(x).float(), self.describe(x).float()
        all_logits = logits.new_full((*present.shape, self.n_classes), -torch.inf)
        all_features = h.new_zeros(*present.shape, self.n_category_bits)
        all_logits[present], all_features[present] = logits, h
        probs = logits.new_zeros(*present.shape, self.n_classes)
        probs[present] = multi_label_probs(logits, self.multi_label)
        return Described(all_logits.amax(1), probs, all_features)

    def _fuse(self, features: dict[str, Tensor], found: Described) -> Tensor:
        """The slices f (B, C, b) of the categories, eq. 6."""
        return fuse_proposals(features["present"].float(), found.probs, found.features, "plain")

    def _of_image(self, fused: Tensor) -> Tensor:
        """Activations (B, q) of the semantic head."""
        return self.sign_image(self.semantic(fused.flatten(1)).float())

    def _of_categories(self, fused: Tensor) -> Tensor:
        """Activations (B, C, b) of the category-aware heads."""
        return self.sign_category(fused.flatten(1)).view_as(fused)

    def _of_length(self, activations: Tensor) -> Tensor:
        """Activations as the triplet losses read them; see `SignLayer`."""
        return activations / activations.shape[-1] ** 0.5 if self.bounded else activations

    def hash_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, q) of the picture's code, from what `frozen_features` gives.

        They are shifted by 1/2, so that bits are cut at 1/2 as in other models.
        """
        return self._of_image(self._fuse(features, self._describe(features))) + 0.5

    def category_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities p (B, C), eq. 2, and activations (B, C, b) of the codes, cut at 0."""
        found = self._describe(features)
        probs = multi_label_probs(found.logits, self.multi_label)
        return probs, self._of_categories(self._fuse(features, found))

    # -- use --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Codes of B images (3, h, w) uint8 and of the categories in them, with their regions.

        The `max_regions` proposals of highest P of each category are kept: its instances, and the
        boxes of its saliency map. If no category passes the threshold, the best proposal is kept.
        """
        features = self.frozen_features(images)
        found = self._describe(features)
        fused = self._fuse(features, found)
        image_codes = _packed(self._of_image(fused))
        category_activations = self._of_categories(fused)
        probs = multi_label_probs(found.logits, self.multi_label)  # (B, C)
        encoded = []
        for n, image in enumerate(images):
            categories = (probs[n] >= self.threshold).nonzero()[:, 0]
            present = features["present"][n]
            region_probs, region_features = found.probs[n, present], found.features[n, present]
            rows, labels = self._keep(region_probs, categories)
            boxes = features["boxes"][n, present][rows] * _sides(image)
            kept = Described(probs[n], region_probs[rows], region_features[rows])
            encoded.append(
                EncodedImage(
                    size=(image.shape[1], image.shape[2]),
                    image_code=image_codes[n],
                    class_probs=probs[n].cpu().numpy(),
                    regions=self._regions(boxes, kept, labels),
                    categories=CategoryCodes(
                        categories.cpu().numpy().astype(np.int64),
                        probs[n, categories].cpu().numpy(),
                        _packed(category_activations[n, categories]),
                    ),
                )
            )
        return encoded

    @torch.no_grad()
    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes, classes and P of given boxes: B times (R, 4), xyxy in input pixels."""
        features = self._read(images, boxes)
        if not features["present"].any():
            none = torch.zeros(0, dtype=torch.int64)
            empty = Described(none, none.view(0, self.n_classes).float(), none.view(0, 1).float())
            return [self._regions(group, empty, none) for group in boxes]
        found = self._describe(features)
        coded = []
        for n, group in enumerate(boxes):
            present = features["present"][n]
            probs, region_features = found.probs[n, present], found.features[n, present]
            described = Described(found.logits[n], probs, region_features)
            coded.append(self._regions(group, described, probs.argmax(1)))
        return coded

    def _keep(self, probs: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and categories of the regions to keep, best first, from P (R, C), R at least 1."""
        if not len(categories):
            categories = probs.amax(0).argmax()[None]
            scores, rows = probs[:, categories].topk(1, dim=0)
        else:
            scores, rows = probs[:, categories].topk(min(self.max_regions, len(probs)), dim=0)
        labels = categories.expand_as(rows)
        order = scores.flatten().argsort(descending=True, stable=True)
        return rows.flatten()[order], labels.flatten()[order]

    def _regions(self, boxes: Tensor, found: Described, labels: Tensor) -> Regions:
        """Regions of one picture, each coded as if it were the picture's only proposal."""
        fused = found.probs[:, :, None] * found.features[:, None]  # (R, C, b)
        rows = torch.arange(len(boxes), device=labels.device)
        codes = np.zeros((0, self.n_region_bits // 8), np.uint8)
        if len(boxes):
            codes = _packed(self._of_categories(fused)[rows, labels])
        return regions_of(boxes, found.probs[rows, labels], labels, codes)


def _sides(image: Tensor) -> Tensor:
    """Width, height, width, height of an image (3, h, w): the unit of boxes in [0, 1]."""
    height, width = image.shape[1:]
    return torch.tensor([width, height, width, height], device=image.device, dtype=torch.float32)


def _packed(activations: Tensor) -> Codes:
    """See `pack_signs`."""
    return pack_signs(activations.float().cpu().numpy())
