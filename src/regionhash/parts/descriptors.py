"""One float vector per picture from its feature map: the descriptors hashing is compared with.

All are pure functions of maps (B, D, h, w), float32 >= 0 as after a ReLU, and return vectors (B, D)
of length 1, or zero for a map of zeros. To search by a box, pass the cells of the box alone.
Whitening is left to the caller (`parts.whitening`).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from regionhash.parts.windows import max_pool_windows
from regionhash.structures import Ints

_EPS = 1e-6
_RMAC_OVERLAP = 0.4  # Tolias et al., Sec. 3.2
_RMAC_MOST = 7  # regions along the long side at the largest scale; their public code tries 2 to 7


def mac(maps: Tensor) -> Tensor:
    """MAC: the maximum of each channel.

    Tolias et al., "Particular object retrieval with integral max-pooling of CNN activations", ICLR
    2016, eq. 1. DRH's "max-pooled conv5 feature" is the same.
    """
    return F.normalize(maps.amax((2, 3)), dim=1)


def spoc(maps: Tensor) -> Tensor:
    """SPoC: the sum of each channel, in which cells near the centre of the map count more.

    Babenko and Lempitsky, "Aggregating Deep Convolutional Features for Image Retrieval", ICCV 2015,
    eqs. 2 and 3: weights exp(-d^2 / (2 s^2)) at a distance of d from the centre, s a third of the
    distance from the centre to the nearest edge.
    """
    height, width = maps.shape[2:]
    y = torch.arange(height, device=maps.device) + 0.5 - height / 2
    x = torch.arange(width, device=maps.device) + 0.5 - width / 2
    sigma = min(height, width) / 2 / 3
    weights = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * sigma**2))  # (h, w)
    return F.normalize((maps * weights).sum((2, 3)), dim=1)


def crow(maps: Tensor) -> Tensor:
    """CroW: the sum of each channel with weights of cells and of channels.

    Kalantidis, Mellina and Osindero, "Cross-dimensional Weighting for Aggregated Deep Convolutional
    Features", ECCV Workshops 2016. With S the sum over the channels, a cell counts
    (S / ||S||_2)^(1/2) (eq. 6 with a = b = 2: active cells count more); with Q_k the share of cells
    in which channel k is active, the channel counts log((D e + sum Q) / (e + Q_k)) (eq. 9: rare
    channels count more).
    """
    strength = maps.sum(1)  # (B, h, w)
    length = strength.flatten(1).norm(dim=1)[:, None, None]
    cells = (strength / length.clamp(min=_EPS)).clamp(min=0).sqrt()
    pooled = (maps * cells[:, None]).sum((2, 3))  # (B, D)
    active = (maps > 0).float().mean((2, 3))  # (B, D)
    everything = active.sum(1, keepdim=True) + maps.shape[1] * _EPS
    return F.normalize(pooled * torch.log(everything / (active + _EPS)), dim=1)


def gem(maps: Tensor, p: float = 3.0) -> Tensor:
    """GeM: the generalised mean of each channel, (mean x^p)^(1/p).

    Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI
    2019, eq. 3; p = 3 is where they start, 1 is the average, and with p -> infinity it becomes MAC.

    Args:
        maps: (B, D, h, w).
        p: the exponent.

    Raises:
        ValueError: `p` is not positive.
    """
    if p <= 0:
        raise ValueError(f"p must be positive, got {p}")
    # relative to the maximum, so that powers stay in the range of float32
    largest = maps.amax((2, 3)).clamp(min=0)  # (B, D)
    shares = maps.clamp(min=0) / largest.clamp(min=_EPS)[:, :, None, None]
    return F.normalize(largest * (shares**p).mean((2, 3)) ** (1 / p), dim=1)


def rmac(maps: Tensor) -> Tensor:
    """R-MAC without whitening: the sum of the vectors of `rmac_vectors`."""
    return aggregate(rmac_vectors(maps))


def rmac_vectors(maps: Tensor, levels: int = 3) -> Tensor:
    """The MAC (B, R, D) of each region of `rmac_regions`; whitened, they go to `aggregate`."""
    regions = rmac_regions(maps.shape[2], maps.shape[3], levels)
    return F.normalize(max_pool_windows(maps, regions), dim=2)


def aggregate(vectors: Tensor) -> Tensor:
    """The sum (B, D), normalised, of the normalised vectors (B, R, D)."""
    return F.normalize(F.normalize(vectors, dim=2).sum(1), dim=1)


def rmac_regions(height: int, width: int, levels: int = 3) -> Ints:
    """The regions (R, 4) of R-MAC on a map: x0, y0, x1, y1 in cells.

    Tolias et al. 2016, Sec. 3.2: at level l = 1, 2, ..., squares of side 2 min(H, W) / (l + 1), l
    along the short side and l + m - 1 along the long one, spaced evenly from edge to edge; m makes
    the overlap of neighbours at level 1 as near to 40 % as possible. Sides and positions are
    rounded down to cells. The public code adds the whole map as a region; the paper and this
    function do not.

    Raises:
        ValueError: a length or `levels` below 1.
    """
    if min(height, width, levels) < 1:
        raise ValueError(
            f"height, width and levels must be at least 1, got {height}, {width} and {levels}"
        )
    short_side, long_side = min(height, width), max(height, width)
    more = 0  # m - 1
    if long_side > short_side:
        steps = np.arange(1, _RMAC_MOST)
        overlaps = 1 - (long_side - short_side) / steps / short_side
        more = int(steps[np.abs(overlaps - _RMAC_OVERLAP).argmin()])
    regions = []
    for level in range(1, levels + 1):
        side = max(1, 2 * short_side // (level + 1))
        down = _starts(height, side, level + (more if height > width else 0))
        across = _starts(width, side, level + (more if width > height else 0))
        regions += [(x, y, x + side, y + side) for y in down for x in across]
    return np.array(regions, np.int64)


def _starts(length: int, side: int, n: int) -> list[int]:
    """First cells of `n` spans of `side` cells, spaced evenly from one end to the other."""
    return np.linspace(0, length - side, n).astype(int).tolist() if n > 1 else [0]
