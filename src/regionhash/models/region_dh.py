"""Region-DH: one network that detects objects, hashes each, and hashes the picture.

Fotso Mtope and Wei, "Region-DH: Region-based Deep Hashing for Multi-Instance Aware Image
Retrieval". docs/region-dh.md tells how it works here and lists the deviations.

    image -> backbone -> RPN -> RoI pooling -> FC6, FC7 -> box regression
                                                        -> H1 -> instance classes
             H1, instance classes, objectness -> fusion -> H2 -> image classes
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import batched_nms, clip_boxes_to_image

from regionhash.codes import binarize, pack_bits
from regionhash.losses import (
    MultiLabelForm,
    Reduction,
    balance_bits,
    multi_label_loss,
    multi_label_probs,
    push_from_half,
    reduce_per_image,
)
from regionhash.parts.backbones import BACKBONES, Backbone, build_backbone, stack_images
from regionhash.parts.coco import load_coco_detector
from regionhash.parts.fusion import FusionForm, fuse_proposals
from regionhash.parts.heads import LatentLayer, RegionHead, centre
from regionhash.parts.pooling import RegionPooling
from regionhash.parts.proposals import ScoredRPN, Targets, build_rpn, pad_regions
from regionhash.structures import Codes, EncodedImage, Regions

GAMMA_H1 = 0.05  # Sec. IV-C
GAMMA_H2 = 10.0


class Instances(NamedTuple):
    """What the network says of M boxes, image after image.

    Attributes:
        activations: (M, K1) in [0, 1], of the instance hashing layer H1.
        logits: (M, C + 1), background first.
        deltas: (M, 4), class-agnostic box regression.
    """

    activations: Tensor
    logits: Tensor
    deltas: Tensor


class RegionDH(nn.Module):
    """The four modules of the paper (Fig. 2) and its losses (eqs. 3 to 9).

    Args:
        backbone: feature maps.
        rpn: proposals and their objectness.
        n_classes: C, without background.
        n_bits: K2, bits of the image code.
        n_region_bits: K1, bits of a region's code.
        n_hidden: width of FC6 and FC7.
        semantic: whether regions also read the backbone's last stage (see `RegionPooling`).
        fusion: see `fuse_proposals`.
        normalise_fused: brings every fused matrix to mean 0 and variance 1 before H2.
        centred: whether the layers behind H1 and H2 read 2a - 1 or, as printed, a.
        multi_label: L_cls3, see `multi_label_loss`.
        reduction: of E1 and E2, see `reduce_per_image`.
        latent_std: see `LatentLayer`.
        max_regions: how many instances of a picture are kept.
        min_score: the least probability of a kept instance.
    """

    ramped_terms = ("cls3", "h1_e1", "h1_e2", "h2_e1", "h2_e2")
    """Terms that training may bring in slowly, after the region classifier has learned."""

    def __init__(
        self,
        backbone: Backbone,
        rpn: ScoredRPN,
        *,
        n_classes: int,
        n_bits: int,
        n_region_bits: int,
        n_hidden: int,
        semantic: bool,
        fusion: FusionForm,
        normalise_fused: bool,
        centred: bool,
        multi_label: MultiLabelForm,
        reduction: Reduction,
        latent_std: float | None,
        dropout: float,
        max_regions: int,
        min_score: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        names = [str(n) for n in range(backbone.n_levels)]
        self.pooling = RegionPooling(
            names, backbone.out_channels, backbone.top_channels if semantic else 0
        )
        self.head = RegionHead(self.pooling.n_spatial, self.pooling.n_semantic, n_hidden, dropout)
        self.regress = nn.Linear(n_hidden, 4)
        self.h1 = LatentLayer(n_hidden, n_region_bits, latent_std)
        self.classify = nn.Linear(n_region_bits, n_classes + 1)
        self.normalise: nn.Module = nn.Identity()
        if normalise_fused:
            n_fused = n_classes * n_region_bits
            self.normalise = nn.LayerNorm(n_fused, eps=1e-6, elementwise_affine=False)
        self.h2 = LatentLayer(n_classes * n_region_bits, n_bits, latent_std)
        self.classify_image = nn.Linear(n_bits, n_classes)
        self.n_classes = n_classes
        self.n_bits = n_bits
        self.n_region_bits = n_region_bits
        self.fusion: FusionForm = fusion
        self.centred = centred
        self.multi_label: MultiLabelForm = multi_label
        self.reduction: Reduction = reduction
        self.max_regions = max_regions
        self.min_score = min_score
        # Matching and sampling of proposals with Faster R-CNN's numbers; it has no weights.
        self.sampler = RoIHeads(None, None, None, 0.5, 0.5, 64, 0.25, None, 0.05, 0.5, max_regions)

    # -- training ---------------------------------------------------------------------------------

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Every term of eq. 3, weighted, by name; their sum is L.

        Args:
            images: B times (3, h, w) uint8.
            targets: B times "boxes" (R, 4) float32, xyxy in input pixels, "labels" (R,) int64 from
                0, and "image_labels" (C,) float32, 0 or 1.
        """
        batch, sizes = stack_images(images)
        maps, top = self.backbone(batch)
        proposals, objectness, losses = self.rpn(ImageList(batch, sizes), maps, targets)
        # Known objects join the proposals for the losses of regions alone: they stand behind the
        # RPN's own, and the fusion sees only those, as it will when there is no one to tell.
        boxes = self.sampler.add_gt_proposals(proposals, [t["boxes"] for t in targets])
        found = self._describe(maps, top, boxes, sizes, batch.shape[3])
        losses |= self._region_losses(boxes, found, targets)
        n_boxes = [len(own) for own in boxes]
        of_rpn = [len(own) for own in proposals]
        split = zip(
            found.activations.split(n_boxes), found.logits.split(n_boxes), of_rpn, strict=True
        )
        own = [(a[:n], logits[:n].softmax(1)[:, 1:]) for a, logits, n in split]
        activations = torch.cat([a for a, _ in own])
        losses["h1_e1"] = GAMMA_H1 * self._reduce(push_from_half(activations), len(images))
        losses["h1_e2"] = GAMMA_H1 * self._reduce(balance_bits(activations), len(images))
        features = {
            "objectness": pad_regions(objectness),
            "probs": pad_regions([probs for _, probs in own]),
            "activations": pad_regions([a for a, _ in own]),
        }
        image_labels = torch.stack([t["image_labels"] for t in targets])
        return losses | self.head_losses(features, image_labels)

    @torch.no_grad()
    def frozen_features(self, images: list[Tensor]) -> dict[str, Tensor]:
        """What the fusion reads, for training the image hash alone on regions that stay.

        Returns:
            "objectness" (B, R), "probs" (B, R, C), "activations" (B, R, K1), padded with zeros to
            the RPN's number of proposals.
        """
        _, objectness, found = self._propose(images)
        n_boxes = [len(own) for own in objectness]
        features = {
            "objectness": pad_regions(objectness),
            "probs": pad_regions(list(found.logits.softmax(1)[:, 1:].split(n_boxes))),
            "activations": pad_regions(list(found.activations.split(n_boxes))),
        }
        missing = self.rpn.post_nms_top_n() - features["objectness"].shape[1]
        pad = (0, 0, 0, missing)
        return {name: F.pad(x, pad if x.ndim == 3 else pad[2:]) for name, x in features.items()}

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """The terms of the image hash: L_cls3, and E1 and E2 of H2 (eqs. 5 to 9).

        Args:
            features: as `frozen_features` gives them.
            image_labels: (B, C) float32, 0 or 1.
        """
        activations = self.hash_features(features)
        logits = self.classify_image(centre(activations, self.centred))
        n_images = len(image_labels)
        return {
            "cls3": multi_label_loss(logits, image_labels, self.multi_label),
            "h2_e1": GAMMA_H2 * self._reduce(push_from_half(activations), n_images),
            "h2_e2": GAMMA_H2 * self._reduce(balance_bits(activations), n_images),
        }

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `head_losses` trains."""
        return [*self.h2.parameters(), *self.classify_image.parameters()]

    def _region_losses(
        self, boxes: list[Tensor], found: Instances, targets: Targets
    ) -> dict[str, Tensor]:
        """L_cls2 and L_reg2 on sampled regions, foreground and background (eqs. 4 and 5)."""
        gt_boxes = [t["boxes"] for t in targets]
        gt_labels = [t["labels"] + 1 for t in targets]
        matched, labels = self.sampler.assign_targets_to_proposals(boxes, gt_boxes, gt_labels)
        chosen = self.sampler.subsample(labels)
        n_boxes = [len(own) for own in boxes]
        wanted = [
            own[index] if len(own) else box.new_zeros(len(index), 4)
            for own, index, box in zip(gt_boxes, matched, boxes, strict=True)
        ]
        deltas = self.sampler.box_coder.encode(wanted, boxes)
        rows = torch.cat(
            [pick + start for pick, start in zip(chosen, _starts(n_boxes), strict=True)]
        )
        # The same four numbers for every class: the paper's N x 4 (Sec. III-A, module 2).
        per_class = found.deltas[rows].repeat(1, self.n_classes + 1)
        picked = [own[pick] for own, pick in zip(labels, chosen, strict=True)]
        picked_deltas = [own[pick] for own, pick in zip(deltas, chosen, strict=True)]
        cls2, reg2 = fastrcnn_loss(found.logits[rows], per_class, picked, picked_deltas)
        return {"cls2": cls2, "reg2": reg2}

    def _reduce(self, values: Tensor, n_images: int) -> Tensor:
        return reduce_per_image(values, n_images, self.reduction)

    # -- shared -----------------------------------------------------------------------------------

    def _describe(
        self,
        maps: dict[str, Tensor],
        top: Tensor,
        boxes: list[Tensor],
        sizes: list[tuple[int, int]],
        batch_width: int,
    ) -> Instances:
        x = self.head(*self.pooling(maps, top, boxes, sizes, batch_width))  # (M, n_hidden)
        activations = self.h1(x)  # (M, K1)
        logits = self.classify(centre(activations, self.centred)).float()  # (M, C + 1)
        return Instances(activations, logits, self.regress(x).float())

    def _propose(self, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Instances]:
        """Proposals of the RPN, their objectness, and what the network says of them."""
        batch, sizes = stack_images(images)
        maps, top = self.backbone(batch)
        boxes, objectness, _ = self.rpn(ImageList(batch, sizes), maps)
        return boxes, objectness, self._describe(maps, top, boxes, sizes, batch.shape[3])

    def hash_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, K2) of H2, of what `frozen_features` gives."""
        fused = fuse_proposals(
            features["objectness"],
            features["probs"],
            centre(features["activations"], self.centred),
            self.fusion,
        )
        return self.h2(self.normalise(fused.flatten(1)))

    # -- use --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Codes, class probabilities and kept instances of B images (3, h, w) uint8.

        Boxes are in pixels of the images given. All comes from one forward pass.
        """
        boxes, objectness, found = self._propose(images)
        n_boxes = [len(own) for own in boxes]
        probs = found.logits.softmax(1).split(n_boxes)
        activations = found.activations.split(n_boxes)
        of_images = self.hash_features(
            {
                "objectness": pad_regions(objectness),
                "probs": pad_regions([own[:, 1:] for own in probs]),
                "activations": pad_regions(list(activations)),
            }
        )
        image_probs = multi_label_probs(
            self.classify_image(centre(of_images, self.centred)).float(), self.multi_label
        )
        decoded = self.sampler.box_coder.decode(found.deltas, boxes)[:, 0].split(n_boxes)
        codes = codes_of(of_images)
        return [
            EncodedImage(
                size=(image.shape[1], image.shape[2]),
                image_code=codes[n],
                class_probs=image_probs[n].cpu().numpy(),
                regions=self._keep(image, decoded[n], probs[n], activations[n]),
            )
            for n, image in enumerate(images)
        ]

    @torch.no_grad()
    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes, labels and scores of given boxes: B times (R, 4), xyxy in input pixels."""
        batch, sizes = stack_images(images)
        maps, top = self.backbone(batch)
        found = self._describe(maps, top, boxes, sizes, batch.shape[3])
        n_boxes = [len(own) for own in boxes]
        scores, labels = found.logits.softmax(1)[:, 1:].max(1)
        parts = (x.split(n_boxes) for x in (scores, labels, found.activations))
        return [_regions(*own) for own in zip(boxes, *parts, strict=True)]

    def _keep(self, image: Tensor, boxes: Tensor, probs: Tensor, activations: Tensor) -> Regions:
        """The instances of one image: confident, not twice, best first."""
        scores, labels = probs[:, 1:].max(1)
        boxes = clip_boxes_to_image(boxes, (image.shape[1], image.shape[2]))
        sides = boxes[:, 2:] - boxes[:, :2]
        rows = ((scores >= self.min_score) & (sides >= 1).all(1)).nonzero()[:, 0]
        rows = rows[batched_nms(boxes[rows], scores[rows], labels[rows], 0.5)][: self.max_regions]
        return _regions(boxes[rows], scores[rows], labels[rows], activations[rows])


def _starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:n]) for n in range(len(lengths))]


def codes_of(activations: Tensor) -> Codes:
    """Packed codes (N, K/8) of activations (N, K)."""
    return pack_bits(binarize(activations.float().cpu().numpy()))


def _regions(boxes: Tensor, scores: Tensor, labels: Tensor, activations: Tensor) -> Regions:
    return Regions(
        boxes.float().cpu().numpy(),
        scores.float().cpu().numpy(),
        labels.cpu().numpy().astype(np.int64),
        codes_of(activations),
    )


def region_dh(
    n_bits: int,
    n_classes: int,
    *,
    backbone: str = "resnet50_fpn",
    weights: str = "default",
    init: Literal["imagenet", "coco"] = "imagenet",
    trained_stages: int = 3,
    n_region_bits: int | None = None,
    n_proposals: int = 100,
    n_hidden: int = 1024,
    fpn_channels: int = 256,
    semantic: bool = True,
    fusion: FusionForm = "objectness",
    normalise_fused: bool = True,
    centred: bool = True,
    multi_label: MultiLabelForm = "softmax",
    reduction: Reduction = "sum",
    latent_std: float | None = None,
    dropout: float = 0.2,
    max_regions: int = 40,
    min_score: float = 0.05,
) -> RegionDH:
    """Region-DH on a backbone of `regionhash.parts.backbones.BACKBONES`.

    The paper's own form is `backbone="vgg16", n_hidden=4096, semantic=False, normalise_fused=False,
    centred=False, latent_std=0.005`; the defaults are what did best on held-out pictures.

    `n_region_bits` is K1, the same as `n_bits` where it is None. `n_proposals` is what the RPN
    leaves of an image after NMS, at most; the larger part of the time goes there. For `weights`
    see `build_backbone`. `init="coco"` starts from all of torchvision's detector but its classes:
    see `load_coco_detector`. For the others see `RegionDH`.
    """
    if init not in ("imagenet", "coco"):
        raise ValueError(f"init must be imagenet or coco, got {init!r}")
    body = build_backbone(
        backbone,
        weights=weights if init == "imagenet" else "none",
        trained_stages=trained_stages,
        fpn_channels=fpn_channels,
    )
    rpn = build_rpn(body.out_channels, BACKBONES[backbone].anchor_sizes, n_proposals=n_proposals)
    model = RegionDH(
        body,
        rpn,
        n_classes=n_classes,
        n_bits=n_bits,
        n_region_bits=n_region_bits or n_bits,
        n_hidden=n_hidden,
        semantic=semantic,
        fusion=fusion,
        normalise_fused=normalise_fused,
        centred=centred,
        multi_label=multi_label,
        reduction=reduction,
        latent_std=latent_std,
        dropout=dropout,
        max_regions=max_regions,
        min_score=min_score,
    )
    if init == "coco" and weights != "none":  # "none": a checkpoint's weights follow
        load_coco_detector(model, weights)
    return model
