"""From feature maps and boxes to one feature per region."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_pool

from regionhash.parts.cells import crop_maps

SPATIAL = 7  # RoI bins per side, as in the paper's VGG16
SEMANTIC = 4  # bins per side whose average and maximum describe the content of a box
SAMPLES = 2  # per side of a bin
PYRAMID = (4, 3, 2, 1)  # bins per side of IAH's four levels


def pool_top(top: Tensor, boxes: list[Tensor], stride: float) -> Tensor:
    """Average and maximum of the last stage's map over each box, (M, 2 * D), at least in float32.

    These are RoIAlign's bins (He et al., "Mask R-CNN", ICCV 2017), aligned, with two by two samples
    each. A bilinear sample is a weighted sum of four cells, so a bin is one of sixteen. For a map
    of many channels and few cells, `embedding_bag` computes such sums several times faster than
    torchvision's kernel or a product with a matrix that is nearly all zeros.

    Args:
        top: (B, D, h, w).
        boxes: B times (R, 4), xyxy in input pixels; M is their total number.
        stride: input pixels per cell of the map.
    """
    height, width = top.shape[2:]
    top = top.to(torch.promote_types(top.dtype, torch.float32))
    pooled = []
    for one, boxes_of_image in zip(top, boxes, strict=True):
        x0, y0, x1, y1 = (boxes_of_image / stride - 0.5).unbind(1)
        columns, across = _cells_of_bins(x0, x1, width)
        rows, down = _cells_of_bins(y0, y1, height)
        cells = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
        weights = down[:, :, None, :, None] * across[:, None, :, None, :]
        bins = F.embedding_bag(
            cells.reshape(-1, (2 * SAMPLES) ** 2),
            one.flatten(1).T.contiguous(),
            per_sample_weights=weights.reshape(-1, (2 * SAMPLES) ** 2).to(top.dtype),
            mode="sum",
        )  # (R * 16, D)
        bins = bins.view(len(boxes_of_image), SEMANTIC**2, top.shape[1])
        pooled.append(torch.cat([bins.mean(1), bins.amax(1)], dim=1))
    return torch.cat(pooled)


def _cells_of_bins(low: Tensor, high: Tensor, n_cells: int) -> tuple[Tensor, Tensor]:
    """The cells of one axis that the bins of R intervals read, and their weights.

    A sample between two cells takes its share of both, one up to a cell beyond the border takes the
    border's value, and one farther out takes nothing.

    Returns:
        (R, SEMANTIC, 2 * SAMPLES) int64 and float32.
    """
    sample = torch.arange(0.5, SEMANTIC * SAMPLES, device=low.device) / (SEMANTIC * SAMPLES)
    places = low[:, None] + (high - low)[:, None] * sample  # (R, SEMANTIC * SAMPLES)
    inside = (places >= -1) & (places <= n_cells)
    places = places.clamp(0, n_cells - 1)
    before = places.floor()
    share = places - before
    cells = torch.stack([before, (before + 1).clamp(max=n_cells - 1)], dim=2).long()
    weights = torch.stack([1 - share, share], dim=2) * inside[:, :, None] / SAMPLES
    shape = (len(low), SEMANTIC, 2 * SAMPLES)
    return cells.view(shape), weights.view(shape)


def pool_whole(top: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Average and maximum of the last stage's map over each picture, (B, 2 * D), in float32.

    Args:
        top: (B, D, h, w).
        sizes: (height, width) of the pictures in the batch, in input pixels.
    """
    maps = crop_maps(top.float(), sizes)
    return torch.stack([torch.cat([one.mean((1, 2)), one.amax((1, 2))]) for one in maps])


class RegionPooling(nn.Module):
    """RoIAlign on the feature maps and, besides, averages and maxima of the last stage's map.

    The second part exists because a feature pyramid is trained from scratch: on few pictures it
    does not learn what the pretrained last stage knows about classes.

    Args:
        map_names: names of the maps to pool from; an FPN's extra "pool" map is for the RPN alone.
        channels: channels of these maps.
        top_channels: channels of the last stage's map; 0 leaves it out (Region-DH as printed).
    """

    def __init__(self, map_names: list[str], channels: int, top_channels: int) -> None:
        super().__init__()
        self.align = MultiScaleRoIAlign(map_names, SPATIAL, sampling_ratio=SAMPLES)
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
            batch_width: width of the batch in input pixels, padding included.
        """
        spatial = self.align(maps, boxes, sizes).flatten(1)
        if not self.n_semantic:
            return spatial, None
        return spatial, pool_top(top, boxes, batch_width / top.shape[3])


def pool_pyramid(maps: Tensor, boxes: list[Tensor]) -> Tensor:
    """Spatial pyramid pooling of each box, (M, D * 30) (He et al., ECCV 2014; IAH, Sec. III-B).

    The maximum of each map in 4 x 4, 3 x 3, 2 x 2 and 1 x 1 bins.

    Args:
        maps: (B, D, h, w).
        boxes: B times (R, 4), xyxy in cells of the map; M is their total number.
    """
    # torchvision's last cell is inclusive.
    inclusive = [torch.cat([x[:, :2], (x[:, 2:] - 1).maximum(x[:, :2])], dim=1) for x in boxes]
    return torch.cat([roi_pool(maps, inclusive, n, 1.0).flatten(1) for n in PYRAMID], dim=1)
