"""Region-DH: one network that detects objects, hashes each, and hashes the picture.

Fotso Mtope and Wei, "Region-DH: Region-based Deep Hashing for Multi-Instance Aware Image
Retrieval". docs/region-dh.md describes it and lists the deviations.

    image -> backbone -> RPN -> RoI pooling -> FC6, FC7 -> box regression
                                                        -> H1 -> instance classes
             H1, instance classes, objectness -> fusion -> H2 -> image classes
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from regionhash.parts.backbones import BACKBONES, build_backbone, stack_images
from regionhash.parts.coco_weights import load_coco_detector
from regionhash.parts.fusion import FusionForm, fuse_proposals
from regionhash.parts.heads import LatentLayer, RegionHead, SemanticHead, centre
from regionhash.parts.losses import (
    MultiLabelForm,
    Reduction,
    balance_bits,
    box_loss,
    multi_label_loss,
    multi_label_probs,
    push_from_half,
    reduce_per_image,
    region_class_loss,
)
from regionhash.parts.pooling import RegionPooling, pool_whole
from regionhash.parts.proposals import Targets, build_rpn, pad_regions
from regionhash.parts.regions import codes_of, regions_of, regions_of_images
from regionhash.structures import EncodedImage, Regions


class Instances(NamedTuple):
    """Output of module 3 for the regions of B images.

    Attributes:
        activations: (B, R, K1) in [0, 1], of the instance hashing layer H1.
        logits: (B, R, C + 1), background first.
    """

    activations: Tensor
    logits: Tensor


class RegionDH(nn.Module):
    """Region-DH: detects objects, hashes each of them, and hashes the picture.

    The four modules of the paper (Fig. 2) and its losses (eqs. 3 to 9).

    The paper's own form is `backbone="vgg16", n_hidden=4096, semantic=False, context=False,
    normalise_fused=False, centred=False, latent_std=0.005`; docs/region-dh.md gives the reason for
    each default.

    Args:
        n_bits: K2, bits of the image code.
        n_classes: C, without background.
        backbone: a key of `regionhash.parts.backbones.BACKBONES`.
        weights: of the backbone, see `build_backbone`.
        init: "coco" starts from torchvision's detector without its classes, see
            `load_coco_detector`.
        trained_stages: stages of the backbone that are trained, counted from the last.
        n_region_bits: K1, bits of a region's code; None is `n_bits`.
        n_proposals: greatest number per image after NMS; they take most of the time.
        n_hidden: width of FC6 and FC7.
        fpn_channels: of the feature pyramid.
        semantic: whether instances are hashed and classified from the backbone's last stage (see
            `RegionPooling`) rather than, as printed, from FC7.
        context: whether H2 reads, besides the fused regions, the whole picture: the average and the
            maximum of the backbone's last stage, through a separate layer. As printed it does
            not.
        fusion: see `fuse_proposals`.
        normalise_fused: brings every fused matrix to mean 0 and variance 1 before H2.
        centred: whether the layers after H1 and H2 read 2a - 1 or, as printed, a.
        multi_label: L_cls3, see `multi_label_loss`.
        gamma_h1, gamma_h2: weights of E1 and E2 of H1 and of H2 (eq. 6; the values of Sec. IV-C).
        reduction: of E1 and E2, see `reduce_per_image`.
        latent_std: see `LatentLayer`.
        dropout: before H1.
        max_regions: greatest number of instances kept per picture.
        min_score: the least probability of a kept instance.

    Raises:
        ValueError: an unknown value, or weights that cannot be used.
    """

    ramped_terms = ("cls3", "h1_e1", "h1_e2", "h2_e1", "h2_e2")
    """Terms that training may bring in slowly, after the region classifier has learned."""

    held_out_term = "cls3"
    shared_code_space = False
    learns_boxes = True
    weakly_supervised = False
    needs_trained_rpn = False

    def __init__(
        self,
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
        context: bool = True,
        fusion: FusionForm = "objectness",
        normalise_fused: bool = True,
        centred: bool = True,
        multi_label: MultiLabelForm = "softmax",
        gamma_h1: float = 0.05,
        gamma_h2: float = 10.0,
        reduction: Reduction = "sum",
        latent_std: float | None = None,
        dropout: float = 0.5,
        max_regions: int = 40,
        min_score: float = 0.05,
    ) -> None:
        super().__init__()
        if init not in ("imagenet", "coco"):
            raise ValueError(f"init must be imagenet or coco, got {init!r}")
        n_region_bits = n_region_bits or n_bits
        body = build_backbone(
            backbone, weights=weights if init == "imagenet" else "none", fpn_channels=fpn_channels
        )
        self.backbone = body
        self.rpn = build_rpn(
            body.out_channels, BACKBONES[backbone].anchor_sizes, n_proposals=n_proposals
        )
        names = [str(n) for n in range(body.n_levels)]
        self.pooling = RegionPooling(names, body.out_channels, body.top_channels if semantic else 0)
        self.head = RegionHead(self.pooling.n_spatial, n_hidden)
        self.regress = nn.Linear(n_hidden, 4)
        self.instance: nn.Module = nn.Dropout(dropout)
        if semantic:
            self.instance = SemanticHead(self.pooling.n_semantic, n_hidden, dropout)
        self.h1 = LatentLayer(n_hidden, n_region_bits, latent_std)
        self.classify = nn.Linear(n_region_bits, n_classes + 1)
        self.normalise: nn.Module = nn.Identity()
        if normalise_fused:
            self.normalise = nn.LayerNorm(
                n_classes * n_region_bits, eps=1e-6, elementwise_affine=False
            )
        self.context: SemanticHead | None = None
        if context:
            self.context = SemanticHead(2 * body.top_channels, n_hidden, dropout)
        n_fused = n_classes * n_region_bits + (n_hidden if context else 0)
        self.h2 = LatentLayer(n_fused, n_bits, latent_std)
        self.classify_image = nn.Linear(n_bits, n_classes)
        self.n_classes = n_classes
        self.n_bits = n_bits
        self.n_region_bits = n_region_bits
        self.fusion: FusionForm = fusion
        self.centred = centred
        self.multi_label: MultiLabelForm = multi_label
        self.gamma_h1 = gamma_h1
        self.gamma_h2 = gamma_h2
        self.reduction: Reduction = reduction
        self.max_regions = max_regions
        self.min_score = min_score
        # As in Faster R-CNN; boxes are coded with its weights.
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=False)
        self.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        if init == "coco" and weights != "none":  # "none": a checkpoint's weights follow
            load_coco_detector(self, weights)
        body.freeze_all_but(trained_stages)

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
        boxes = [torch.cat([x, t["boxes"]]) for x, t in zip(proposals, targets, strict=True)]
        labels, wanted = self._match(boxes, targets)
        x, deltas, whole = self._pool(maps, top, boxes, sizes, batch.shape[3])
        losses["reg2"] = box_loss(deltas, torch.cat(wanted), torch.cat(labels) > 0)
        features = _pack(x, whole, objectness, labels, [len(group) for group in boxes])
        image_labels = torch.stack([t["image_labels"] for t in targets])
        return losses | self.head_losses(features, image_labels)

    @torch.no_grad()
    def frozen_features(
        self, images: list[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """What modules 3 and 4 read, for training them alone on proposals that stay.

        Returns:
            "regions" (B, R, D), "objectness" (B, R), "present" (B, R) bool, "whole" (B, E), what
            `context` reads, and, with targets, "region_labels" (B, R): 0 background, 1 to C, or -1
            for what is neither. With targets, labelled objects follow the proposals. Their
            objectness is 0, so that the fusion does not see them: otherwise labels would leak into
            the image code.
        """
        batch, sizes = stack_images(images)
        maps, top = self.backbone(batch)
        boxes, objectness, _ = self.rpn(ImageList(batch, sizes), maps)
        labels = None
        if targets is not None:
            boxes = [torch.cat([x, t["boxes"]]) for x, t in zip(boxes, targets, strict=True)]
            labels, _ = self._match(boxes, targets)
        x, _, whole = self._pool(maps, top, boxes, sizes, batch.shape[3])
        return _pack(x, whole, objectness, labels, [len(group) for group in boxes])

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """The terms of modules 3 and 4: L_cls2, L_cls3, and E1 and E2 of H1 and H2 (eqs. 5 to 9).

        Args:
            features: as `frozen_features` gives them with targets.
            image_labels: (B, C) float32, 0 or 1.
        """
        found = self._describe(features)
        proposed = found.activations[features["objectness"] > 0]  # labelled objects left out
        image_activations = self._fuse(features, found)
        logits = self.classify_image(centre(image_activations, self.centred)).float()
        n_images = len(image_labels)
        h1, h2 = self.gamma_h1, self.gamma_h2
        present = features["present"]
        return {
            "cls2": region_class_loss(found.logits[present], features["region_labels"][present]),
            "h1_e1": h1 * self._reduce(push_from_half(proposed), n_images),
            "h1_e2": h1 * self._reduce(balance_bits(proposed), n_images),
            "cls3": multi_label_loss(logits, image_labels, self.multi_label),
            "h2_e1": h2 * self._reduce(push_from_half(image_activations), n_images),
            "h2_e2": h2 * self._reduce(balance_bits(image_activations), n_images),
        }

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `head_losses` trains."""
        modules = [self.instance, self.h1, self.classify, self.h2, self.classify_image]
        modules += [self.context] if self.context else []
        return [weight for module in modules for weight in module.parameters()]

    def _match(self, boxes: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (R,) of each image's boxes and the deltas (R, 4) to their objects."""
        labels, wanted = [], []
        for boxes_of_image, target in zip(boxes, targets, strict=True):
            n_boxes = len(boxes_of_image)
            if not len(target["boxes"]):
                labels.append(boxes_of_image.new_zeros(n_boxes, dtype=torch.int64))
                wanted.append(boxes_of_image.new_zeros(n_boxes, 4))
                continue
            match = self.matcher(
                box_iou(target["boxes"], boxes_of_image)
            )  # -1 below 0.4, -2 up to 0.5
            label = target["labels"][match.clamp(min=0)] + 1
            label[match == Matcher.BELOW_LOW_THRESHOLD] = 0
            label[match == Matcher.BETWEEN_THRESHOLDS] = -1
            labels.append(label)
            matched = target["boxes"][match.clamp(min=0)]
            wanted.append(self.box_coder.encode_single(matched, boxes_of_image))
        return labels, wanted

    def _reduce(self, values: Tensor, n_images: int) -> Tensor:
        return reduce_per_image(values, n_images, self.reduction)

    # -- shared -----------------------------------------------------------------------------------

    def _pool(
        self,
        maps: dict[str, Tensor],
        top: Tensor,
        boxes: list[Tensor],
        sizes: list[tuple[int, int]],
        batch_width: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the instance layers read of M boxes, (M, D), box deltas (M, 4), and `pool_whole`."""
        spatial, semantic = self.pooling(maps, top, boxes, sizes, batch_width)
        x = self.head(spatial)  # (M, n_hidden)
        whole = pool_whole(top, sizes)
        return x if semantic is None else semantic, self.regress(x).float(), whole

    def _describe(self, features: dict[str, Tensor]) -> Instances:
        present = features["present"]
        a = self.h1(self.instance(features["regions"][present]))  # (M, K1)
        logits = self.classify(centre(a, self.centred)).float()  # (M, C + 1)
        activations = a.new_zeros(*present.shape, a.shape[1])
        all_logits = logits.new_zeros(*present.shape, logits.shape[1])
        activations[present], all_logits[present] = a, logits
        return Instances(activations, all_logits)

    def _fuse(self, features: dict[str, Tensor], found: Instances) -> Tensor:
        """Activations (B, K2) of H2."""
        fused = fuse_proposals(
            features["objectness"],
            found.logits.softmax(2)[:, :, 1:],
            centre(found.activations, self.centred),
            self.fusion,
        )
        fused = self.normalise(fused.flatten(1))
        if self.context is not None:
            fused = torch.cat([fused, self.context(features["whole"])], dim=1)
        return self.h2(fused)

    def hash_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, K2) of the image hash, of what `frozen_features` gives."""
        return self._fuse(features, self._describe(features))

    # -- use --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Codes, class probabilities and kept instances of B images (3, h, w) uint8.

        Boxes are in pixels of the images given. Everything comes from one forward pass.
        """
        batch, sizes = stack_images(images)
        maps, top = self.backbone(batch)
        boxes, objectness, _ = self.rpn(ImageList(batch, sizes), maps)
        x, deltas, whole = self._pool(maps, top, boxes, sizes, batch.shape[3])
        n_boxes = [len(group) for group in boxes]
        features = _pack(x, whole, objectness, None, n_boxes)
        found = self._describe(features)
        image_activations = self._fuse(features, found)
        logits = self.classify_image(centre(image_activations, self.centred)).float()
        image_probs = multi_label_probs(logits, self.multi_label).cpu().numpy()
        codes = codes_of(image_activations)
        decoded = self.box_coder.decode(deltas, boxes).reshape(-1, 4).split(n_boxes)
        return [
            EncodedImage(
                size=(image.shape[1], image.shape[2]),
                image_code=codes[n],
                class_probs=image_probs[n],
                regions=self._keep(
                    image,
                    decoded[n],
                    found.logits[n, : n_boxes[n]].softmax(1),
                    found.activations[n, : n_boxes[n]],
                ),
            )
            for n, image in enumerate(images)
        ]

    @torch.no_grad()
    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes, labels and scores of given boxes: B times (R, 4), xyxy in input pixels."""
        batch, sizes = stack_images(images)
        maps, top = self.backbone(batch)
        x, _, _ = self._pool(maps, top, boxes, sizes, batch.shape[3])
        a = self.h1(self.instance(x))
        scores, labels = self.classify(centre(a, self.centred)).float().softmax(1)[:, 1:].max(1)
        return regions_of_images(boxes, scores, labels, a)

    def _keep(self, image: Tensor, boxes: Tensor, probs: Tensor, activations: Tensor) -> Regions:
        """The confident instances of one image after NMS, best first."""
        scores, labels = probs[:, 1:].max(1)
        boxes = clip_boxes_to_image(boxes, (image.shape[1], image.shape[2]))
        sides = boxes[:, 2:] - boxes[:, :2]
        rows = ((scores >= self.min_score) & (sides >= 1).all(1)).nonzero()[:, 0]
        rows = rows[batched_nms(boxes[rows], scores[rows], labels[rows], 0.5)][: self.max_regions]
        codes = codes_of(activations[rows])
        return regions_of(boxes[rows], scores[rows], labels[rows], codes)


def _pack(
    x: Tensor,
    whole: Tensor,
    objectness: list[Tensor],
    labels: list[Tensor] | None,
    n_boxes: list[int],
) -> dict[str, Tensor]:
    """Features (M, D) of all boxes as one padded batch, and those of the whole pictures.

    See `RegionDH.frozen_features`.
    """
    padded = [F.pad(x, (0, n - len(x))) for x, n in zip(objectness, n_boxes, strict=True)]
    features = {
        "regions": pad_regions(list(x.split(n_boxes))),
        "whole": whole,
        "objectness": pad_regions(padded),
        "present": pad_regions([x.new_ones(n, dtype=torch.bool) for n in n_boxes]),
    }
    return features if labels is None else features | {"region_labels": pad_regions(labels)}
