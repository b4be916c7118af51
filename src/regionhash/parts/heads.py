"""Heads on region features: FC6 and FC7, and the latent layers that become codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class RegionHead(nn.Module):
    """FC6 and FC7, each with a ReLU; FC6 has a second part for the semantic features."""

    def __init__(self, n_spatial: int, n_semantic: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(n_spatial, n_hidden)
        self.fc6_semantic = nn.Linear(n_semantic, n_hidden) if n_semantic else None
        self.fc7 = nn.Linear(n_hidden * (2 if n_semantic else 1), n_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, spatial: Tensor, semantic: Tensor | None) -> Tensor:
        """FC7's activations (M, n_hidden) of features (M, n_spatial) and (M, n_semantic)."""
        x = F.relu(self.fc6(spatial))
        if self.fc6_semantic is not None and semantic is not None:
            x = torch.cat([x, F.relu(self.fc6_semantic(self.dropout(semantic)))], dim=1)
        return F.relu(self.fc7(self.dropout(x)))


class LatentLayer(nn.Module):
    """A layer whose sigmoid activations become the bits of a code: H1, H2, or SSDH's.

    Args:
        n_in: features in.
        n_bits: bits of the code, a multiple of 8.
        std: standard deviation of the initial weights. The paper's 0.005 leaves all activations
            near 0.5, where the layers behind learn slowly; None is 1 / sqrt(n_in).
    """

    def __init__(self, n_in: int, n_bits: int, std: float | None = None) -> None:
        super().__init__()
        if n_bits < 8 or n_bits % 8:
            raise ValueError(f"the number of bits must be a positive multiple of 8, got {n_bits}")
        self.linear = nn.Linear(n_in, n_bits)
        nn.init.normal_(self.linear.weight, std=n_in**-0.5 if std is None else std)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (..., n_bits) in [0, 1] of features (..., n_in), in float32."""
        return self.linear(x).float().sigmoid()


def centre(activations: Tensor, centred: bool) -> Tensor:
    """What the layer behind a latent layer reads: 2a - 1 in [-1, 1], or a itself as printed."""
    return 2 * activations - 1 if centred else activations
