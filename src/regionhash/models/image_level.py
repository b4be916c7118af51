"""Whole-image hashing: DLBHC, SSDH, a control with a hidden layer; One-Stage and DSRH.

    image -> backbone -> average and maximum over the picture -> [hidden layer] -> latent layer
                                                                    -> image classes

DLBHC (Lin et al., "Deep Learning of Binary Hash Codes for Fast Image Retrieval", CVPRW 2015) trains
the latent layer by classification alone. SSDH (Yang et al., "Supervised Learning of
Semantics-Preserving Hash via Deep Convolutional Neural Networks", TPAMI 2018) adds E1 and E2 with
weights 1. The control is SSDH with a hidden layer on features that are never trained: a method
that does not beat it has learned nothing from regions.

One-Stage (Lai et al., "Simultaneous Feature Learning and Hash Coding with Deep Neural Networks",
CVPR 2015) and DSRH (Zhao et al., "Deep Semantic Ranking Based Hashing for Multi-Label Image
Retrieval", CVPR 2015) learn from triplets of pictures instead of from classification, and so does
the baseline of category-aware hashing (IAH, Fig. 9).

All are region methods with one box, the whole picture: codes of other boxes come from the same
layers, with the average and the maximum over the box.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from regionhash.codes import check_n_bits, pack_signs
from regionhash.parts.backbones import Backbone, build_backbone, stack_images
from regionhash.parts.heads import LatentLayer, RunningScale, SignLayer, centre
from regionhash.parts.losses import (
    MultiLabelForm,
    balance_bits,
    category_triplet_loss,
    multi_label_loss,
    multi_label_probs,
    push_from_half,
    triplet_loss,
)
from regionhash.parts.pooling import pool_top, pool_whole
from regionhash.parts.proposals import Targets
from regionhash.parts.regions import regions_of_images
from regionhash.structures import CategoryCodes, EncodedImage, Regions


class _PooledHash(nn.Module):
    """The common part of all models here: they read pooled features of one backbone.

    Args:
        backbone: a key of `regionhash.parts.backbones.BACKBONES`; its last stage is read, and it
            has no pyramid.
        weights, trained_stages: see `build_backbone`.
    """

    learns_boxes = False
    weakly_supervised = False
    needs_trained_rpn = False

    def __init__(self, backbone: str, weights: str, trained_stages: int) -> None:
        super().__init__()
        self.backbone = build_backbone(
            backbone, weights=weights, trained_stages=trained_stages, fpn_channels=None
        )

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Weighted terms by name, see `head_losses`.

        Args:
            images: B times (3, h, w) uint8.
            targets: B times "image_labels" (C,) float32, 0 or 1; boxes are not read.
        """
        image_labels = torch.stack([t["image_labels"] for t in targets])
        return self.head_losses({"pooled": pool_images(self.backbone, images)}, image_labels)

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, of `frozen_features` and image labels (B, C) float32, 0 or 1."""
        raise NotImplementedError

    @torch.no_grad()
    def frozen_features(
        self, images: list[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """What the head reads of B images: "pooled" (B, 2 * D); targets are not read."""
        return {"pooled": pool_images(self.backbone, images)}

    def pool_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """The features of given boxes, (M, 2 * D): B times (R, 4), xyxy in input pixels."""
        batch, _ = stack_images(images)
        top = self.backbone.top(batch)
        return pool_top(top, boxes, batch.shape[3] / top.shape[3])


class LatentHash(_PooledHash):
    """A latent layer on the pooled features of a backbone.

    Args:
        n_bits: bits of the code.
        n_classes: C.
        backbone, weights, trained_stages: see `build_backbone`.
        centred: whether the classifier reads 2a - 1 or, as printed, a.
        multi_label: see `multi_label_loss`.
        dropout: before the latent layer.

    Attributes:
        hash_weight: weight of E1 and of E2.
    """

    hash_weight: float
    ramped_terms = ("e1", "e2")
    held_out_term = "cls3"
    shared_code_space = True

    def __init__(
        self,
        n_bits: int,
        n_classes: int,
        *,
        backbone: str = "resnet50_fpn",
        weights: str = "default",
        trained_stages: int = 3,
        centred: bool = True,
        multi_label: MultiLabelForm = "softmax",
        dropout: float = 0.2,
    ) -> None:
        super().__init__(backbone, weights, trained_stages)
        self._add_layers(n_bits, n_classes, centred, multi_label, dropout)

    def _add_layers(
        self,
        n_bits: int,
        n_classes: int,
        centred: bool,
        multi_label: MultiLabelForm,
        dropout: float,
        n_hidden: int = 0,
    ) -> None:
        """The layers after the backbone, with a hidden one of `n_hidden` units if any."""
        n_in = 2 * self.backbone.top_channels
        # Averages and maxima of different channels differ in scale by orders of magnitude.
        self.scale = RunningScale(n_in)
        self.dropout = nn.Dropout(dropout)
        self.hidden: nn.Module = nn.Identity()
        if n_hidden:
            self.hidden = nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.latent = LatentLayer(n_hidden or n_in, n_bits)
        self.classify_image = nn.Linear(n_bits, n_classes)
        self.n_bits = n_bits
        self.n_region_bits = n_bits
        self.centred = centred
        self.multi_label: MultiLabelForm = multi_label

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """Terms "cls3" and, with a weight, "e1" and "e2", as `_PooledHash.head_losses`."""
        activations = self.hash_features(features)
        logits = self.classify_image(centre(activations, self.centred))
        losses = {"cls3": multi_label_loss(logits, image_labels, self.multi_label)}
        if self.hash_weight:
            losses["e1"] = self.hash_weight * push_from_half(activations).mean()
            losses["e2"] = self.hash_weight * balance_bits(activations).mean()
        return losses

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `head_losses` trains."""
        modules = (self.hidden, self.latent, self.classify_image)
        return [weight for module in modules for weight in module.parameters()]

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Codes of B images (3, h, w) uint8, each with its one region: the whole picture."""
        activations = self.hash_features(self.frozen_features(images))
        probs = self._probs(activations)
        regions = self._regions(_frames(images), activations, probs)
        return [
            EncodedImage(
                size=(image.shape[1], image.shape[2]),
                image_code=whole.codes[0],
                class_probs=probs[n].cpu().numpy(),
                regions=whole,
            )
            for n, (image, whole) in enumerate(zip(images, regions, strict=True))
        ]

    @torch.no_grad()
    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes of given boxes: B times (R, 4), xyxy in input pixels."""
        pooled = self.pool_boxes(images, boxes)
        activations = self.hash_features({"pooled": pooled})
        return self._regions(boxes, activations, self._probs(activations))

    def hash_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, n_bits) of what `frozen_features` gives."""
        return self.latent(self.hidden(self.dropout(self.scale(features["pooled"].float()))))

    def _probs(self, activations: Tensor) -> Tensor:
        logits = self.classify_image(centre(activations, self.centred)).float()
        return multi_label_probs(logits, self.multi_label)

    def _regions(self, boxes: list[Tensor], activations: Tensor, probs: Tensor) -> list[Regions]:
        scores, labels = probs.max(1)
        return regions_of_images(boxes, scores, labels, activations)


class DLBHC(LatentHash):
    """DLBHC: the latent layer learns from classification alone."""

    hash_weight = 0.0


class SSDH(LatentHash):
    """SSDH: DLBHC with E1 and E2, weights 1."""

    hash_weight = 1.0


class Control(LatentHash):
    """The control: SSDH's losses, a hidden layer, and a backbone that is never trained.

    Args:
        n_bits, n_classes, backbone, weights, centred, multi_label: see `LatentHash`.
        dropout: before the latent layer, and before and after the hidden one.
        n_hidden: width of the hidden layer before the latent layer.
    """

    hash_weight = 1.0

    def __init__(
        self,
        n_bits: int,
        n_classes: int,
        *,
        backbone: str = "resnet50_fpn",
        weights: str = "default",
        centred: bool = True,
        multi_label: MultiLabelForm = "softmax",
        dropout: float = 0.3,
        n_hidden: int = 512,
    ) -> None:
        _PooledHash.__init__(self, backbone, weights, trained_stages=0)
        self._add_layers(n_bits, n_classes, centred, multi_label, dropout, n_hidden)


class TripletHash(_PooledHash):
    """A hash of the pooled features that learns to rank pictures by the labels they share.

    Features, dropout and hidden layer are as in `LatentHash`, the code's activations as in IAH's
    semantic head.

    Args:
        n_bits: bits of the code.
        backbone, weights, trained_stages: see `build_backbone`.
        n_hidden: width of the hidden layer.
        divided: whether each bit reads a separate slice of the hidden layer (One-Stage's
            divide-and-encode module) or all of it.
        balance: weight of ||mean of the batch's activations||^2 / 2, lowest if each bit is set in
            half of the pictures (DSRH).
        margin: margin of the triplet loss.
        dropout: before and after the hidden layer.
    """

    ramped_terms = ("balance",)
    held_out_term = None
    shared_code_space = True

    def __init__(
        self,
        n_bits: int,
        backbone: str,
        weights: str,
        trained_stages: int,
        *,
        n_hidden: int,
        divided: bool,
        balance: float,
        margin: float,
        dropout: float,
    ) -> None:
        super().__init__(backbone, weights, trained_stages)
        check_n_bits(n_bits)
        n_in = 2 * self.backbone.top_channels
        self.describe = _description(n_in, n_hidden, dropout)
        groups = n_bits if divided else 1
        # A grouped convolution over one cell: with `divided`, each bit sees one slice.
        self.encode_bits = nn.Conv1d(n_hidden, n_bits, 1, groups=groups)
        self.sign = SignLayer(n_bits)
        self.n_bits = n_bits
        self.n_region_bits = n_bits
        self.balance = balance
        self.margin = margin

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """Terms "triplet" (IAH, eq. 9) and, with a weight, "balance"."""
        a = self._activations(features)
        shared = image_labels @ image_labels.T
        losses = {"triplet": triplet_loss(a / self.n_bits**0.5, shared, margin=self.margin)}
        if self.balance:
            losses["balance"] = self.balance * a.mean(0).square().mean() / 2
        return losses

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `head_losses` trains."""
        modules = (self.describe, self.encode_bits, self.sign)
        return [weight for module in modules for weight in module.parameters()]

    def hash_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, n_bits) of what `frozen_features` gives; a bit is 1 from 1/2 on."""
        return self._activations(features) + 0.5

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Codes of B images (3, h, w) uint8, each with its one region: the whole picture."""
        activations = self.hash_features(self.frozen_features(images))
        regions = self._regions(_frames(images), activations)
        return [
            EncodedImage((image.shape[1], image.shape[2]), whole.codes[0], regions=whole)
            for image, whole in zip(images, regions, strict=True)
        ]

    @torch.no_grad()
    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes of given boxes: B times (R, 4), xyxy in input pixels."""
        pooled = self.pool_boxes(images, boxes)
        return self._regions(boxes, self.hash_features({"pooled": pooled}))

    def _activations(self, features: dict[str, Tensor]) -> Tensor:
        hidden = self.describe(features["pooled"].float())  # (B, n_hidden)
        return self.sign(self.encode_bits(hidden[:, :, None])[:, :, 0])

    def _regions(self, boxes: list[Tensor], activations: Tensor) -> list[Regions]:
        return regions_of_images(boxes, boxes[0].new_ones(len(activations)), None, activations)


class OneStage(TripletHash):
    """One-Stage: each bit from 50 separate features; weighted triplets as in IAH's tables."""

    def __init__(
        self,
        n_bits: int,
        n_classes: int,
        *,
        backbone: str = "resnet50_fpn",
        weights: str = "default",
        trained_stages: int = 3,
        n_hidden_per_bit: int = 50,
        margin: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(
            n_bits,
            backbone,
            weights,
            trained_stages,
            n_hidden=n_bits * n_hidden_per_bit,
            divided=True,
            balance=0.0,
            margin=margin,
            dropout=dropout,
        )


class DSRH(TripletHash):
    """DSRH: weighted triplets on semantic ranking, with balanced bits."""

    def __init__(
        self,
        n_bits: int,
        n_classes: int,
        *,
        backbone: str = "resnet50_fpn",
        weights: str = "default",
        trained_stages: int = 3,
        n_hidden: int = 512,
        balance: float = 0.1,
        margin: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(
            n_bits,
            backbone,
            weights,
            trained_stages,
            n_hidden=n_hidden,
            divided=False,
            balance=balance,
            margin=margin,
            dropout=dropout,
        )


class CategoryBaseline(_PooledHash):
    """Codes of n_bits per category, from whole pictures: the baseline of IAH's Fig. 9.

    There are no regions and no label probabilities.

    Args:
        n_bits: bits of each category's code; any number.
        n_classes: C.
        backbone, weights, trained_stages: see `build_backbone`.
        n_hidden: width of the hidden layer.
        margin: margin of the triplet losses.
        dropout: before and after the hidden layer.
    """

    ramped_terms = ()
    held_out_term = None
    shared_code_space = False
    n_bits = 0  # no codes of whole pictures, nor of regions
    n_region_bits = 0

    def __init__(
        self,
        n_bits: int,
        n_classes: int,
        *,
        backbone: str = "resnet50_fpn",
        weights: str = "default",
        trained_stages: int = 3,
        n_hidden: int = 512,
        margin: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(backbone, weights, trained_stages)
        if n_bits < 1:
            raise ValueError(f"the number of bits must be at least 1, got {n_bits}")
        self.describe = _description(2 * self.backbone.top_channels, n_hidden, dropout)
        self.slices = nn.Linear(n_hidden, n_classes * n_bits)
        self.sign = SignLayer(n_classes * n_bits)
        self.n_classes = n_classes
        self.margin = margin

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """The one term "category" (IAH, eq. 7)."""
        a = self.category_features(features)
        scaled = a / a.shape[2] ** 0.5
        return {"category": category_triplet_loss(scaled, image_labels, margin=self.margin)}

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `head_losses` trains."""
        modules = (self.describe, self.slices, self.sign)
        return [weight for module in modules for weight in module.parameters()]

    def category_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, C, b) of the categories' codes, cut at 0."""
        a = self.sign(self.slices(self.describe(features["pooled"].float())))
        return a.unflatten(1, (self.n_classes, -1))

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """A code of every category for each of B images; all have probability 1."""
        codes = pack_signs(self.category_features(self.frozen_features(images)).cpu().numpy())
        categories = np.arange(self.n_classes, dtype=np.int64)
        certain = np.ones(self.n_classes, np.float32)
        return [
            EncodedImage(
                (image.shape[1], image.shape[2]),
                categories=CategoryCodes(categories, certain, rows),
            )
            for image, rows in zip(images, codes, strict=True)
        ]

    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Raises ValueError: there are no codes of boxes."""
        raise ValueError("category-baseline has codes for the categories of whole pictures alone")


def _frames(images: list[Tensor]) -> list[Tensor]:
    """A box (1, 4) float32 around each picture."""
    return [
        image.new_tensor([[0, 0, image.shape[2], image.shape[1]]], dtype=torch.float32)
        for image in images
    ]


def pool_images(backbone: Backbone, images: list[Tensor]) -> Tensor:
    """Average and maximum (B, 2 * D) over each picture, without the batch's padding."""
    batch, sizes = stack_images(images)
    return pool_whole(backbone.top(batch), sizes)


def _description(n_in: int, n_hidden: int, dropout: float) -> nn.Module:
    """A hidden layer on features scaled by `RunningScale` first, as in `LatentHash`."""
    layers = [RunningScale(n_in), nn.Dropout(dropout), nn.Linear(n_in, n_hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout))
