"""Convolutional maps of several scales on one map, and the windows on them as proposals.

As in SSD (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016): each map is a 3 x 3
convolution with stride 2 on the one before, and the prediction at a cell is made from the 3 x 3
cells around it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from regionhash.parts.cells import mask_cells
from regionhash.parts.windows import windows_of_scales

MAX_SCALES = 12
"""The map of a picture of 2,048 pixels shrinks to one cell long before that."""


class MultiScaleWindows(nn.Module):
    """Features of the 3 x 3 windows, stride 1, on `n_scales` maps.

    Cells beyond the border of an image count as zeros on every map, so the features of a window
    depend neither on the other images of a batch nor on the padding.

    Args:
        n_in: channels of the first map.
        n_channels: channels of the maps made from it.
        n_features: D, features of a window.
        n_scales: number of maps; each has half the side of the one before.
    """

    def __init__(self, n_in: int, n_channels: int, n_features: int, n_scales: int) -> None:
        super().__init__()
        if not 1 <= n_scales <= MAX_SCALES:
            raise ValueError(f"n_scales must be in [1, {MAX_SCALES}], got {n_scales}")
        self.n_scales = n_scales
        self.reduce = nn.Conv2d(n_in, n_channels, 1)
        self.down = nn.ModuleList(
            nn.Conv2d(n_channels, n_channels, 3, stride=2, padding=1) for _ in range(n_scales - 1)
        )
        self.windows = nn.ModuleList(
            nn.Conv2d(n_channels, n_features, 3, padding=1) for _ in range(n_scales)
        )

    def forward(self, base: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, M, D) of all windows, scale after scale and row after row, and (B, M) bool.

        Args:
            base: (B, n_in, h, w), zero beyond the part of each image at the top left.
            shapes: (B, 2) int64, height and width of that part in cells.

        Returns:
            The features, and which of the windows lie within their image.
        """
        inside = mask_cells(shapes, base.shape[2], base.shape[3])  # (B, 1, h, w)
        x = F.relu(self.reduce(base)) * inside
        features, present = [], []
        for scale, window in enumerate(self.windows):
            if scale:
                inside = inside[:, :, ::2, ::2]
                x = F.relu(self.down[scale - 1](x)) * inside
            features.append(F.relu(window(x)).flatten(2).transpose(1, 2))
            present.append(inside.flatten(1))
        return torch.cat(features, dim=1), torch.cat(present, dim=1)


def window_boxes(height: int, width: int, n_scales: int) -> Tensor:
    """`windows_of_scales` as a tensor (M, 4) float32."""
    return torch.from_numpy(windows_of_scales(height, width, n_scales))
