"""PCA whitening of region features as a layer; `regionhash.parts.hashes` fits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from regionhash.parts import hashes
from regionhash.structures import Floats


class Whitening(nn.Module):
    """The layer of `regionhash.parts.hashes.Whitening`.

    Until it is fitted, it returns the first P features, normalised.

    Args:
        n_in: D, features in.
        n_out: P, features out, at most D: the directions of most variance.
        power: see `regionhash.parts.hashes.fit_whitening`.

    Raises:
        ValueError: `n_out` is not in [1, n_in], or `power` not in [0, 1].
    """

    mean: Tensor
    projection: Tensor
    post_mean: Tensor

    def __init__(self, n_in: int, n_out: int, *, power: float = 1.0) -> None:
        super().__init__()
        hashes.check_whitening(n_in, n_out, power)
        self.power = power
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("projection", torch.eye(n_in, n_out))
        self.register_buffer("post_mean", torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., P) float32 of features (..., D); the mean of the collection becomes -c."""
        return F.normalize((x.float() - self.mean) @ self.projection, dim=-1) - self.post_mean

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Whitening:
        """Learns all buffers from features, and returns itself.

        Args:
            batches: (N, D) each, see `regionhash.parts.hashes.fit_whitening`.

        Raises:
            ValueError: see there.
        """
        arrays = batches if isinstance(batches, Iterator) else _Arrays(batches)
        n_in, n_out = self.projection.shape
        fitted = hashes.fit_whitening(arrays, n_in, n_out, power=self.power)
        self.mean.copy_(torch.from_numpy(fitted.mean))
        self.projection.copy_(torch.from_numpy(fitted.projection))
        self.post_mean.copy_(torch.from_numpy(fitted.post_mean))
        return self


class _Arrays:
    """Batches as arrays, made when they are read."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Floats]:
        for batch in self._batches:
            yield batch.cpu().numpy()
