"""From feature maps and boxes to one feature per region."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align

SPATIAL = 7  # RoI bins per side, as in the paper's VGG16
SEMANTIC = 4  # bins per side whose average and maximum describe the content of a box


def pool_top(top: Tensor, boxes: list[Tensor], stride: float) -> Tensor:
    """Average and maximum of the last stage's map over each box, (M, 2 * D).

    Args:
        top: (B, D, h, w).
        boxes: B times (R, 4), xyxy in input pixels; M is their total number.
        stride: input pixels per cell of the map.
    """
    bins = roi_align(top, boxes, SEMANTIC, 1 / stride, sampling_ratio=2, aligned=True)
    return torch.cat([bins.mean((2, 3)), bins.amax((2, 3))], dim=1)


class RegionPooling(nn.Module):
    """RoIAlign on the feature maps and, besides, averages and maxima of the last stage's map.

    The second part is there because a feature pyramid is trained from nothing: on few pictures it
    has not learned what the pretrained last stage knows about classes.

    Args:
        map_names: names of the maps to pool from; an FPN's extra "pool" map is for the RPN alone.
        channels: of these maps.
        top_channels: of the last stage's map; 0 leaves it out (Region-DH as printed).
    """

    def __init__(self, map_names: list[str], channels: int, top_channels: int) -> None:
        super().__init__()
        self.align = MultiScaleRoIAlign(map_names, SPATIAL, sampling_ratio=2)
        self.n_spatial = channels * SPATIAL * SPATIAL
        self.n_semantic = 2 * top_channels

    def forward(
        self,
        maps: dict[str, Tensor],
        top: Tensor,
        boxes: list[Tensor],
        sizes: list[tuple[int, int]],
        batch_width: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Features (M, n_spatial) and (M, n_semantic) of all boxes, image after image.

        Args:
            maps: by name, (B, channels, h, w).
            top: (B, top_channels, h, w).
            boxes: B times (R, 4), xyxy in input pixels.
            sizes: (height, width) of the images in the batch.
            batch_width: the width that the maps stand for, padding included.
        """
        spatial = self.align(maps, boxes, sizes).flatten(1)
        if not self.n_semantic:
            return spatial, None
        return spatial, pool_top(top, boxes, batch_width / top.shape[3])
