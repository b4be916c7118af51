"""Heads on region features: FC6 and FC7, and the latent layers that become codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from regionhash.codes import check_n_bits


class RegionHead(nn.Module):
    """FC6 and FC7, each with a ReLU."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(n_in, n_hidden)
        self.fc7 = nn.Linear(n_hidden, n_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """FC7's activations (M, n_hidden) of features (M, n_in)."""
        return F.relu(self.fc7(F.relu(self.fc6(x))))


class RunningScale(nn.Module):
    """Scales each feature to mean 0 and variance 1 with statistics of earlier training steps.

    Unlike in batch normalisation, the result for a region does not depend on the other regions:
    labelled objects of a training batch must not affect what the fusion reads.
    """

    mean: Tensor
    var: Tensor
    steps: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("var", torch.ones(n_features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) scaled features of (M, D) features."""
        if self.training and len(x) and not self.steps:
            self._update(x)
        scaled = (x - self.mean) / (self.var + 1e-5).sqrt()
        if self.training and len(x):
            self._update(x)
        return scaled

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        self.steps += 1
        rate = 1 / self.steps.clamp(max=100)  # the plain average at first, then a running one
        self.mean += rate * (x.mean(0) - self.mean)
        self.var += rate * (x.var(0, correction=0) - self.var)


class SemanticHead(nn.Module):
    """One hidden layer on semantic features, scaled by `RunningScale` first.

    Averages and maxima of different channels differ in scale by orders of magnitude.
    """

    def __init__(self, n_in: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.scale = RunningScale(n_in)
        self.dropout_in = nn.Dropout(min(dropout, 0.2))
        self.linear = nn.Linear(n_in, n_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(M, n_hidden) of features (M, n_in)."""
        x = self.dropout_in(self.scale(x.float()))
        return self.dropout(F.relu(self.linear(x)))


class LatentLayer(nn.Module):
    """A layer whose sigmoid activations become the bits of a code: H1, H2, or SSDH's.

    Args:
        n_in: features in.
        n_bits: bits of the code, a multiple of 8.
        std: standard deviation of the initial weights. The paper's 0.005 leaves all activations
            near 0.5, from which the next layers learn slowly; None is 1 / sqrt(n_in).
    """

    def __init__(self, n_in: int, n_bits: int, std: float | None = None) -> None:
        super().__init__()
        check_n_bits(n_bits)
        self.linear = nn.Linear(n_in, n_bits)
        nn.init.normal_(self.linear.weight, std=n_in**-0.5 if std is None else std)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (..., n_bits) in [0, 1] of features (..., n_in), in float32."""
        return self.linear(x).float().sigmoid()


class SignLayer(nn.Module):
    """Centres features around 0, so that their signs become bits.

    A triplet loss on plain features does not fix 0: a common shift keeps all distances but changes
    the signs. So each feature is scaled to mean 0 and variance 1 with training statistics, given a
    learned gain and offset, and squashed by tanh. Divided by the square root of their number,
    activations of codes of any length suit the same margin.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.scale = RunningScale(n_features)
        self.gain = nn.Parameter(torch.ones(n_features))
        self.offset = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Activations (M, n_features) in [-1, 1] of features (M, n_features), in float32."""
        return torch.tanh(self.scale(x.float()) * self.gain + self.offset)


def centre(activations: Tensor, centred: bool) -> Tensor:
    """The input of the layer after a latent layer: 2a - 1 in [-1, 1], or a itself as printed."""
    return 2 * activations - 1 if centred else activations
