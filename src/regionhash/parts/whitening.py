"""PCA whitening of region features, fitted on the collection that will be searched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_LEAST_SHRINKAGE = 1e-3
"""Shrinkage of the covariance for any number of features: directions in which a collection hardly
varies are stretched at most some 30 times as much as an average one."""


class Whitening(nn.Module):
    """PCA whitening, L2 normalisation, then subtraction of the mean of the normalised features.

        y = normalise(P^T (x - m)) - c,   P = V diag(l)^(-power/2)

    m and (l, V) are the mean and the eigenvalues and -vectors of the covariance of the features
    that `fit` saw, c the mean of the normalised ones (without the last step, the bits of a hash of
    the result are unbalanced). Until it is fitted, it returns the first P features, normalised.

    The covariance S is shrunk towards (trace(S) / D) I by the share that Chen et al. derive for
    Gaussian features ("Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Trans. Signal
    Processing 2010, eq. 23: OAS), which depends on the number of features alone and falls with it.
    So no eigenvalue is zero, even for features that never change, fewer features than dimensions,
    or a single one. If nothing varies at all, P is orthonormal.

    Args:
        n_in: D, features in.
        n_out: P, features out, at most D: the directions of most variance.
        power: 1 is full whitening, 0 PCA alone. In between, directions of little variance, which
            are noisier than the others, keep a smaller part; docs/drh.md has figures.

    Raises:
        ValueError: `n_out` is not in [1, n_in], or `power` not in [0, 1].
    """

    mean: Tensor
    projection: Tensor
    post_mean: Tensor

    def __init__(self, n_in: int, n_out: int, *, power: float = 1.0) -> None:
        super().__init__()
        if not 1 <= n_out <= n_in:
            raise ValueError(f"n_out must be in [1, {n_in}], the number of features, got {n_out}")
        if not 0 <= power <= 1:
            raise ValueError(f"power must be in [0, 1], got {power}")
        self.power = power
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("projection", torch.eye(n_in, n_out))
        self.register_buffer("post_mean", torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., P) float32 of features (..., D); the mean of the collection becomes -c."""
        return self._normalised(x) - self.post_mean

    def _normalised(self, x: Tensor) -> Tensor:
        return F.normalize((x.float() - self.mean) @ self.projection, dim=-1)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Whitening:
        """Learns all buffers from features, and returns itself.

        Args:
            batches: (N, D) each, N may differ. Read twice, with one batch in memory at a time;
                sums are float64.

        Raises:
            ValueError: no features, another D, values that are not finite, or an iterable that can
                be read only once.
        """
        if isinstance(batches, Iterator):
            raise ValueError("batches must allow two passes (a list, say), got an iterator")
        n = 0
        shift = total = torch.zeros_like(self.mean, dtype=torch.float64)
        products = shift.outer(shift)
        for batch in batches:
            x = self._checked(batch)
            if not n and len(x):
                shift = x.mean(0)  # near the mean, so that the products lose no digits
            x = x - shift
            n, total, products = n + len(x), total + x.sum(0), products + x.T @ x
        if not n:
            raise ValueError("whitening needs at least one feature, got none")
        offset = total / n
        values, vectors = torch.linalg.eigh(_shrunk(products / n - offset.outer(offset), n))
        n_out = len(self.post_mean)
        values, vectors = values.flip(0)[:n_out], vectors.flip(1)[:, :n_out]  # largest first
        self.mean.copy_(shift + offset)
        self.projection.copy_(vectors * values.pow(-self.power / 2))
        after = torch.zeros_like(self.post_mean, dtype=torch.float64)
        for batch in batches:
            after += self._normalised(batch.to(self.mean.device)).double().sum(0)
        self.post_mean.copy_(after / n)
        return self

    def _checked(self, batch: Tensor) -> Tensor:
        """The batch in float64."""
        if batch.ndim != 2 or batch.shape[1] != len(self.mean):
            raise ValueError(f"features must be (N, {len(self.mean)}), got {tuple(batch.shape)}")
        if not torch.isfinite(batch).all():
            raise ValueError("features must be finite")
        return batch.to(self.mean.device).double()


def _shrunk(covariance: Tensor, n: int) -> Tensor:
    """The covariance (D, D) of `n` features, shrunk as `Whitening` describes; positive definite."""
    d = len(covariance)
    trace = covariance.trace()
    if trace <= torch.finfo(torch.float32).eps ** 2 * d:  # only rounding
        return torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    squares = (covariance**2).sum()
    share = ((1 - 2 / d) * squares + trace**2) / (
        (n + 1 - 2 / d) * (squares - trace**2 / d).clamp(min=1e-300)
    )
    share = share.clamp(_LEAST_SHRINKAGE, 1)
    target = trace / d * torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    return (1 - share) * covariance + share * target
