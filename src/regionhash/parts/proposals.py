"""Object location: a region proposal network that also returns the objectness of each proposal."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)

from regionhash.parts.choosing import check_n_proposals

Targets = list[dict[str, Tensor]]


class ScoredRPN(RegionProposalNetwork):
    """torchvision's RPN, which computes the objectness of its proposals and then drops it.

    `forward` differs from the parent's only in what it returns.
    """

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Targets | None = None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Proposals of B images, best first.

        Returns:
            B boxes (R, 4), xyxy in input pixels; B objectness (R,) in [0, 1]; and, in training, the
            losses "cls1" (objectness) and "reg1" (boxes) of Region-DH, eqs. 4 and 5.
        """
        maps = list(features.values())
        logits, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        n_anchors = [x.shape[1] * x.shape[2] * x.shape[3] for x in logits]
        logits, deltas = concat_box_prediction_layers(logits, deltas)
        logits, deltas = logits.float(), deltas.float()
        # As in Faster R-CNN, no gradient passes through the proposals' positions.
        boxes = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        proposals, objectness = self.filter_proposals(boxes, logits, images.image_sizes, n_anchors)
        if not self.training:
            return proposals, objectness, {}
        if targets is None:
            raise ValueError("training needs targets")
        labels, matched_boxes = self.assign_targets_to_anchors(anchors, targets)
        wanted = self.box_coder.encode(matched_boxes, anchors)
        cls1, reg1 = self.compute_loss(logits, deltas, labels, wanted)
        return proposals, objectness, {"cls1": cls1, "reg1": reg1}


def build_rpn(
    channels: int, anchor_sizes: tuple[tuple[int, ...], ...], *, n_proposals: int
) -> ScoredRPN:
    """An RPN with the thresholds of Faster R-CNN.

    Args:
        channels: channels of the feature maps.
        anchor_sizes: sides of the anchors on each map, in input pixels; each with three aspects.
        n_proposals: greatest number of proposals per image after NMS.

    Raises:
        ValueError: `n_proposals` is out of range.
    """
    check_n_proposals(n_proposals)
    ratios = ((0.5, 1.0, 2.0),) * len(anchor_sizes)
    anchors = AnchorGenerator(anchor_sizes, ratios)
    before_nms = max(4 * n_proposals, 400)
    return ScoredRPN(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": before_nms, "testing": before_nms},
        post_nms_top_n={"training": n_proposals, "testing": n_proposals},
        nms_thresh=0.7,
    )


def pad_regions(values: list[Tensor]) -> Tensor:
    """Stacks B tensors (R_b, ...) into (B, max R, ...), zeros where an image has fewer regions."""
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
