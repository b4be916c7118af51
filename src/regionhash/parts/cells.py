"""Cells of a feature map: cutting the part of each picture out of a padded batch, and back.

A batch is as high and wide as its largest picture; smaller ones are at the top left (see
`stack_images`), and so are their cells.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from regionhash.parts.proposals import pad_regions


def crop_maps(
    maps: Tensor, sizes: list[tuple[int, int]], rounding: Callable[[float], int] = round
) -> list[Tensor]:
    """B maps (D, h, w) without the batch's padding, at least one cell each.

    Args:
        maps: (B, D, H, W).
        sizes: (height, width) of the pictures in the batch, in input pixels.
        rounding: makes a number of cells whole. Inputs are multiples of 32 pixels, so it matters
            only for a backbone whose stride is not a whole number (squeezenet1_0).
    """
    stride = max(width for _, width in sizes) / maps.shape[3]
    return [
        one[:, : max(rounding(height / stride), 1), : max(rounding(width / stride), 1)]
        for one, (height, width) in zip(maps, sizes, strict=True)
    ]


def pack_cells(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cells (B, max h * w, D) of B maps (D, h, w), row by row, and their shapes (B, 2) int64.

    Zeros follow the cells of the smaller maps.
    """
    cells = pad_regions([one.flatten(1).T for one in maps])
    return cells, torch.tensor([one.shape[1:] for one in maps], device=cells.device)


def unpack_cells(cells: Tensor, shapes: Tensor) -> Tensor:
    """Maps (B, D, H, W) of `pack_cells`, zero beyond the h x w cells of each picture."""
    height, width = shapes.amax(0).tolist()
    maps = [
        F.pad(one[: h * w].T.unflatten(1, (h, w)), (0, width - w, 0, height - h))
        for one, (h, w) in zip(cells, shapes.tolist(), strict=True)
    ]
    return torch.stack(maps)


def mask_cells(shapes: Tensor, height: int, width: int) -> Tensor:
    """Which cells (B, 1, height, width) of maps belong to pictures of `shapes` (B, 2), as bool."""
    rows = torch.arange(height, device=shapes.device) < shapes[:, :1]
    columns = torch.arange(width, device=shapes.device) < shapes[:, 1:]
    return rows[:, None, :, None] & columns[:, None, None, :]
