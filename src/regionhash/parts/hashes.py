"""Whitening and hashing of region features, fitted on the collection that will be searched.

With NumPy alone. What is fitted are weights, so that a network can take them over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.reporter import SILENT, Reporter
from regionhash.structures import Floats, Ints

ALPHA, BETA, ETA = 100.0, 0.001, 0.001  # DRH, "Network Training"
N_STEPS = 200
"""Training steps of DRH's hash, independent of the size of the collection."""

_LEAST_SHRINKAGE = 1e-3
"""Shrinkage of the covariance for any number of features: directions in which a collection hardly
varies are stretched at most some 30 times as much as an average one."""

_GAIN = 0.3  # initial spread of activations, where tanh is nearly linear: bits can still change
_BATCH = 512  # regions of a step of the hash's training
_STATISTICS = 4096  # regions from which the statistics of the bits are computed
_ITQ_STEPS = 50  # ITQ, Sec. 3.2
_ITQ_FEATURES = 10_000  # more change the rotation of ITQ little


# -- whitening ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Whitening:
    """PCA whitening, L2 normalisation, then subtraction of the mean of the normalised features.

        y = normalise(P^T (x - m)) - c,   P = V diag(l)^(-power/2)

    m and (l, V) are the mean and the eigenvalues and -vectors of the covariance of the features
    that `fit_whitening` saw, c the mean of the normalised ones (without the last step, the bits of
    a hash of the result are unbalanced).

    Attributes:
        mean: m (D,), float32, as the others.
        projection: P (D, P).
        post_mean: c (P,).
    """

    mean: Floats
    projection: Floats
    post_mean: Floats

    def __call__(self, x: Floats) -> Floats:
        """(N, P) float32 of features (N, D); the mean of the collection becomes -c."""
        return self.normalised(x) - self.post_mean

    def normalised(self, x: Floats) -> Floats:
        """The same before c is subtracted."""
        return unit_length((x - self.mean) @ self.projection)


def unit_length(x: NDArray[Any]) -> Floats:
    """Rows (N, D) of length 1, zeros left as they are."""
    scaled: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12))
    return scaled


def check_whitening(n_in: int, n_out: int, power: float) -> None:
    """Raises ValueError unless `n_out` is in [1, n_in] and `power` in [0, 1]."""
    if not 1 <= n_out <= n_in:
        raise ValueError(f"n_out must be in [1, {n_in}], the number of features, got {n_out}")
    if not 0 <= power <= 1:
        raise ValueError(f"power must be in [0, 1], got {power}")


def fit_whitening(
    batches: Iterable[Floats], n_in: int, n_out: int, *, power: float = 1.0
) -> Whitening:
    """Learns a whitening from features.

    The covariance S is shrunk towards (trace(S) / D) I by the share that Chen et al. derive for
    Gaussian features ("Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Trans. Signal
    Processing 2010, eq. 23: OAS), which depends on the number of features alone and falls with it.
    So no eigenvalue is zero, even for features that never change, fewer features than dimensions,
    or a single one. If nothing varies at all, P is orthonormal.

    Args:
        batches: (N, D) each, N may differ. Read twice, with one batch in memory at a time; sums
            are float64.
        n_in: D.
        n_out: P, features out, at most D: the directions of most variance.
        power: 1 is full whitening, 0 PCA alone. In between, directions of little variance, which
            are noisier than the others, keep a smaller part; docs/drh.md has figures.

    Raises:
        ValueError: a value out of range; no features, another D, values that are not finite, or an
            iterable that can be read only once.
    """
    check_whitening(n_in, n_out, power)
    if isinstance(batches, Iterator):
        raise ValueError("batches must allow two passes (a list, say), got an iterator")
    n = 0
    shift = total = np.zeros(n_in)
    products = np.zeros((n_in, n_in))
    for batch in batches:
        x = _checked(batch, n_in)
        if not n and len(x):
            shift = x.mean(0)  # near the mean, so that the products lose no digits
        x = x - shift
        n, total, products = n + len(x), total + x.sum(0), products + x.T @ x
    if not n:
        raise ValueError("whitening needs at least one feature, got none")
    offset = total / n
    values, vectors = np.linalg.eigh(_shrunk(products / n - np.outer(offset, offset), n))
    values, vectors = values[::-1][:n_out], vectors[:, ::-1][:, :n_out]  # largest first
    fitted = Whitening(
        (shift + offset).astype(np.float32),
        (vectors * values ** (-power / 2)).astype(np.float32),
        np.zeros(n_out, np.float32),
    )
    after = np.zeros(n_out)
    for batch in batches:
        after += fitted.normalised(batch.astype(np.float32)).sum(0, dtype=np.float64)
    return Whitening(fitted.mean, fitted.projection, (after / n).astype(np.float32))


def _checked(batch: Floats, n_in: int) -> NDArray[np.float64]:
    if batch.ndim != 2 or batch.shape[1] != n_in:
        raise ValueError(f"features must be (N, {n_in}), got {batch.shape}")
    if not np.isfinite(batch).all():
        raise ValueError("features must be finite")
    return batch.astype(np.float64)


def _shrunk(covariance: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The covariance (D, D) of `n` features, shrunk as said above; positive definite."""
    d = len(covariance)
    trace = covariance.trace()
    if trace <= np.finfo(np.float32).eps ** 2 * d:  # only rounding
        return np.eye(d)
    squares = (covariance**2).sum()
    share = ((1 - 2 / d) * squares + trace**2) / (
        (n + 1 - 2 / d) * max(squares - trace**2 / d, 1e-300)
    )
    share = min(max(share, _LEAST_SHRINKAGE), 1.0)
    shrunk: NDArray[np.float64] = (1 - share) * covariance + share * trace / d * np.eye(d)
    return shrunk


# -- hashes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BitStatistics:
    """How evenly bits are used.

    Attributes:
        balance: mean over the bits of |share of ones - 1/2|: 0 is best, 1/2 a bit that never
            changes.
        correlation: mean over the pairs of bits of |correlation|; a bit that never changes counts
            as uncorrelated.
    """

    balance: float
    correlation: float


def bit_statistics(activations: Floats) -> BitStatistics:
    """Balance and correlation of the bits [a >= 0] of activations (N, K), N and K at least 1."""
    bits = (activations >= 0).astype(np.float32)
    centred = bits - bits.mean(0)
    scaled = unit_length(centred.T)  # (K, N); a constant bit stays zero
    correlations = np.abs(scaled @ scaled.T)
    n_bits = len(scaled)
    pairs = max(n_bits * (n_bits - 1), 1)
    return BitStatistics(
        balance=float(np.abs(bits.mean(0) - 0.5).mean()),
        correlation=float((correlations.sum() - correlations.trace()) / pairs),
    )


@dataclass(frozen=True, eq=False)
class LinearHash:
    """A hash whose bits are the signs of linear functions.

    Attributes:
        weight: (K, P) float32.
        bias: (K,) float32.
        losses: the mean loss per bit in each tenth of the training; empty if nothing was trained.
    """

    weight: Floats
    bias: Floats
    losses: tuple[float, ...] = ()

    def __call__(self, x: Floats) -> Floats:
        """Activations (N, K) of whitened features (N, P); a bit is 1 from 0 on."""
        activations: Floats = x @ self.weight.T + self.bias
        return activations


Fit = Callable[..., LinearHash]
"""Fits a hash of `n_bits` bits: `fit(x, n_bits, generator, reporter)` of whitened features x (N, P)
float32."""


def fit_drh_hash(
    x: Floats,
    n_bits: int,
    generator: np.random.Generator,
    reporter: Reporter = SILENT,
    *,
    n_steps: int = N_STEPS,
    learning_rate: float = 0.01,
) -> LinearHash:
    """DRH's hash layer, trained without labels (DRH, eqs. 1 to 3).

    It starts from orthogonal directions rather than from N(0, 0.01), and with activations of a
    spread of 0.3: from there, the printed loss moves each cut to where fewer regions are, without
    making the cuts alike. The loss is divided by 1 + alpha, so that the paper's rate suits any
    alpha.

    Args:
        x: (N, P) float32, N at least 1.
        n_bits: K.
        generator: of the first directions and of the order.
        reporter: is told the steps done and the total.
        n_steps: training steps.
        learning_rate: of SGD with momentum 0.9 (the paper's rate).
    """
    spread = float(
        np.sqrt(np.square(x).mean())
    )  # of the projections: the frame's rows have length 1
    frame = orthogonal_frame(n_bits, x.shape[1], generator) * np.float32(_GAIN / max(spread, 1e-3))
    weight, bias = frame, np.zeros(n_bits, np.float32)
    momentum = [np.zeros_like(weight), np.zeros_like(bias)]
    losses = []
    for step, rows in enumerate(islice(_batches(len(x), generator), n_steps), 1):
        loss, *gradients = drh_loss(x[rows], weight, bias)
        for parameter, past, gradient in zip((weight, bias), momentum, gradients, strict=True):
            past *= np.float32(0.9)
            past += gradient / np.float32(1 + ALPHA)
            parameter -= np.float32(learning_rate) * past
        losses.append(loss / n_bits)
        reporter.progress(step, n_steps)
    tenths = np.array_split(losses, min(10, n_steps))
    return LinearHash(weight, bias, tuple(float(tenth.mean()) for tenth in tenths))


def drh_loss(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any],
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
    eta: float = ETA,
) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """DRH's loss (eqs. 1 to 3), averaged over the regions, and its gradients.

        h = tanh(W x + b)
        quantisation   1/2 ||y - h||^2,  y = sign(h)
        variance       -alpha/2 tr((h - m)(h - m)^T),  m the mean of the batch
        decay          beta/2 ||W||_F^2 and eta/2 ||b||^2

    The second term is printed as -alpha/2 tr(h h^T), which is least when all bits of all regions
    are 1. It "aims to maximize the variance of learned binary vectors to ensure balanced bits",
    which it does after the mean is subtracted.

    Args:
        x: (N, P), whitened features.
        weight: (K, P), W.
        bias: (K,), b.
        alpha: weight of the variance.
        beta: weight of the decay of W.
        eta: weight of the decay of b.

    Returns:
        The loss, and its gradients of W and b.
    """
    h = np.tanh(x @ weight.T + bias)  # (N, K)
    missing = h - np.where(h >= 0, 1.0, -1.0).astype(h.dtype)
    spread = h - h.mean(0)
    loss = (np.square(missing).sum() - alpha * np.square(spread).sum()) / (2 * len(x))
    loss += beta / 2 * np.square(weight).sum() + eta / 2 * np.square(bias).sum()
    inner = (missing - h.dtype.type(alpha) * spread) * (1 - np.square(h)) / h.dtype.type(len(x))
    return (
        float(loss),
        inner.T @ x + h.dtype.type(beta) * weight,
        inner.sum(0) + h.dtype.type(eta) * bias,
    )


def _batches(n: int, generator: np.random.Generator) -> Iterator[Ints]:
    """Batches of row numbers below `n` in random order, endlessly."""
    while True:
        order = generator.permutation(n)
        yield from (order[start : start + _BATCH] for start in range(0, n, _BATCH))


def fit_itq(
    x: Floats, n_bits: int, generator: np.random.Generator, reporter: Reporter = SILENT
) -> LinearHash:
    """Iterative quantisation (Gong and Lazebnik, CVPR 2011): the rotation nearest to its own signs.

    With more bits than dimensions, the rotation goes into a space of `n_bits` dimensions. Features
    are whitened before, so all of their directions count, not those of most variance first.
    """
    x = x[generator.permutation(len(x))[:_ITQ_FEATURES]]
    n_dims = x.shape[1]
    if n_bits < n_dims:  # the first directions have most variance; see `Whitening`
        x = x[:, :n_bits]
    used = x.shape[1]
    rotation = orthogonal_frame(n_bits, used, generator).T  # (used, K)
    for step in range(_ITQ_STEPS):
        signs = np.where(x @ rotation >= 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(x.T @ signs, full_matrices=False)
        rotation = left @ right
        reporter.progress(step + 1, _ITQ_STEPS)
    weight = np.zeros((n_bits, n_dims), np.float32)
    weight[:, :used] = rotation.T
    return LinearHash(weight, np.zeros(n_bits, np.float32))


def fit_sign(
    x: Floats, n_bits: int, generator: np.random.Generator, reporter: Reporter = SILENT
) -> LinearHash:
    """The signs of the first `n_bits` whitened features.

    Raises:
        ValueError: there are fewer features than bits.
    """
    n_dims = x.shape[1]
    if n_bits > n_dims:
        raise ValueError(f"sign has a bit for each of {n_dims} features at most, got {n_bits} bits")
    return LinearHash(np.eye(n_bits, n_dims, dtype=np.float32), np.zeros(n_bits, np.float32))


def fit_hyperplanes(
    x: Floats, n_bits: int, generator: np.random.Generator, reporter: Reporter = SILENT
) -> LinearHash:
    """Random hyperplanes, orthogonal in blocks; see `orthogonal_frame`."""
    return LinearHash(orthogonal_frame(n_bits, x.shape[1], generator), np.zeros(n_bits, np.float32))


HASHES: dict[str, Fit] = {
    "drh": fit_drh_hash,
    "itq": fit_itq,
    "sign": fit_sign,
    "hyperplanes": fit_hyperplanes,
}
"""The hashes by name."""


def orthogonal_frame(n: int, d: int, generator: np.random.Generator) -> Floats:
    """Random directions (n, d) in blocks of d that are orthonormal.

    Orthogonal directions carry more information than independent ones (Ji et al., "Super-Bit
    Locality-Sensitive Hashing", NIPS 2012). With more bits than dimensions the blocks are
    independent of each other, so each bit is still a different cut through the features.
    """
    blocks = [np.linalg.qr(generator.standard_normal((d, d)))[0] for _ in range(-(-n // d))]
    return np.concatenate(blocks)[:n].astype(np.float32)


@dataclass(frozen=True)
class FitReport:
    """How a hash was fitted.

    Attributes:
        losses: see `LinearHash`.
        before: the bits of random directions.
        after: the bits of the hash.
    """

    losses: tuple[float, ...]
    before: BitStatistics
    after: BitStatistics


def fit_hash(
    fit: Fit, x: Floats, n_bits: int, *, seed: int, reporter: Reporter = SILENT, **options: Any
) -> tuple[LinearHash, FitReport]:
    """Fits a hash on whitened features (N, P) float32, and compares its bits with random ones.

    Args:
        fit: of `HASHES`.
        x: the features, N at least 1.
        n_bits: K.
        seed: of all that is random.
        reporter: is told the steps done and the total.
        options: of `fit`.

    Raises:
        ValueError: see `fit`.
    """
    shown = x[np.random.default_rng(seed).permutation(len(x))[:_STATISTICS]]
    random = fit_hyperplanes(x, n_bits, np.random.default_rng(seed))
    found = fit(x, n_bits, np.random.default_rng(seed), reporter, **options)
    if not isinstance(found, LinearHash):
        raise ValueError(f"a hash must give a LinearHash, got {type(found).__name__}")
    shapes = {"weight": (n_bits, x.shape[1]), "bias": (n_bits,)}
    for name, shape in shapes.items():
        values = np.asarray(getattr(found, name))
        if values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"{name} of a hash must be finite, {shape}, got {values.shape}")
    weight, bias = (np.asarray(x, np.float32) for x in (found.weight, found.bias))
    found = LinearHash(weight, bias, found.losses)
    report = FitReport(found.losses, bit_statistics(random(shown)), bit_statistics(found(shown)))
    return found, report
