"""Hashing without a network: features in, packed codes out.

A hasher has `fit(features, labels=None)`, which returns itself, and `encode(features)`.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, solve_triangular, svd
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import randomized_svd

from regionhash.codes import check_n_bits, pack_bits
from regionhash.structures import Codes, Floats, Ints

Features = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


class Hasher(Protocol):
    """What all hashers have."""

    n_bits: int

    def fit(self, features: Features, labels: Labels | None = None) -> Self:
        """Learns from features (N, D) and, if it is supervised, labels (N, C) of 0 and 1."""

    def encode(self, features: Features) -> Codes:
        """Packed codes (N, K/8) of features (N, D). Raises ValueError before `fit`."""


class RandomHyperplanes:
    """LSH: a bit is the side of a random hyperplane through the mean on which a feature lies.

    Two features differ in a bit with probability angle / pi (Charikar, "Similarity Estimation
    Techniques from Rounding Algorithms", STOC 2002). Only the mean is learned.

    Args:
        n_bits: K, a multiple of 8.
        seed: random seed of the hyperplanes.

    Raises:
        ValueError: `n_bits` is not a positive multiple of 8.
    """

    def __init__(self, n_bits: int, *, seed: int = 0) -> None:
        self.n_bits = _whole_bytes(n_bits)
        self.seed = seed
        self._mean: NDArray[np.float32] | None = None
        self._normals = np.zeros((0, n_bits), np.float32)

    def fit(self, features: Features, labels: Labels | None = None) -> Self:
        """Takes the mean of features (N, D), N >= 1, and draws D x K numbers; no label is read."""
        _check_features(features)
        rng = np.random.default_rng(self.seed)
        self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._normals = rng.standard_normal((features.shape[1], self.n_bits), np.float32)
        return self

    def encode(self, features: Features) -> Codes:
        """Packed codes (N, K/8) of features (N, D). Raises ValueError before `fit`."""
        if self._mean is None:
            raise ValueError("fit comes before encode")
        return pack_bits((features - self._mean) @ self._normals >= 0)


class ITQ:
    """Iterative quantisation: the rotation of the first K principal components nearest to signs.

    Gong, Lazebnik, Gordo, Perronnin, "Iterative Quantization: A Procrustean Approach to Learning
    Binary Codes for Large-Scale Image Retrieval", TPAMI 2013. With more bits than dimensions or
    pictures, the missing components are zeros, which the rotation mixes with the others.

    Args:
        n_bits: K, a multiple of 8.
    """

    def __init__(self, n_bits: int) -> None:
        self.n_bits = _whole_bytes(n_bits)
        self._projection: NDArray[np.float32] | None = None
        self._mean = np.zeros(0, np.float32)

    def fit(self, features: Features, labels: Labels | None = None) -> Self:
        """Learns from features (N, D), N >= 1; no label is read."""
        _check_features(features)
        centred, self._mean = _centred(features)
        directions = _principal_components(centred, self.n_bits)
        self._projection = _rotated(centred, directions.T, self.n_bits)
        return self

    def encode(self, features: Features) -> Codes:
        """Packed codes (N, K/8) of features (N, D). Raises ValueError before `fit`."""
        if self._projection is None:
            raise ValueError("fit comes before encode")
        return pack_bits((features - self._mean) @ self._projection >= 0)


class ITQCCA:
    """ITQ on the directions in which features and labels correlate most (Gong et al., 2013).

    Canonical correlation analysis, each direction times its correlation. There are at most as many
    as classes; beyond that the rotation spreads them over the bits.

    Args:
        n_bits: K, a multiple of 8.
        ridge: added to the covariance of the features, as a share of its mean variance.
    """

    def __init__(self, n_bits: int, *, ridge: float = 0.1) -> None:
        self.n_bits = _whole_bytes(n_bits)
        self.ridge = ridge
        self._projection: NDArray[np.float32] | None = None
        self._mean = np.zeros(0, np.float32)

    def fit(self, features: Features, labels: Labels | None = None) -> Self:
        """Learns from features (N, D), N >= 1, and labels (N, C) of 0 and 1."""
        _check_features(features)
        known = _checked_labels(features, labels)
        x, self._mean = _centred(features)
        y = known - known.mean(0)
        n, d = x.shape
        covariance = x.T @ x / n
        covariance += (self.ridge * np.trace(covariance) / d + 1e-6) * np.eye(d, dtype=np.float32)
        factor, _ = cho_factor(covariance, lower=True)
        of_labels, _ = cho_factor(y.T @ y / n + 1e-4 * np.eye(y.shape[1]), lower=True)
        cross = solve_triangular(factor, x.T @ y / n, lower=True)  # (D, C)
        cross = solve_triangular(of_labels, cross.T, lower=True).T
        directions, correlations, _ = svd(cross, full_matrices=False)
        directions = solve_triangular(factor, directions, lower=True, trans="T") * correlations
        self._projection = _rotated(x, directions[:, : self.n_bits], self.n_bits)
        return self

    def encode(self, features: Features) -> Codes:
        """Packed codes (N, K/8) of features (N, D). Raises ValueError before `fit`."""
        if self._projection is None:
            raise ValueError("fit comes before encode")
        return pack_bits((features - self._mean) @ self._projection >= 0)


class SpectralHashing:
    """Signs of the slowest waves along the principal components.

    Weiss, Torralba, Fergus, "Spectral Hashing", NIPS 2008: of a uniform distribution in a box, the
    eigenfunctions sin(pi/2 + m pi (x - a) / (b - a)) of lowest frequency m / (b - a).

    Args:
        n_bits: K, a multiple of 8.
    """

    def __init__(self, n_bits: int) -> None:
        self.n_bits = _whole_bytes(n_bits)
        self._mean: NDArray[np.float32] | None = None
        self._directions = np.zeros((0, n_bits), np.float32)
        self._low = np.zeros(n_bits, np.float32)
        self._frequencies = np.zeros(n_bits, np.float32)

    def fit(self, features: Features, labels: Labels | None = None) -> Self:
        """Learns from features (N, D), N >= 1; no label is read."""
        _check_features(features)
        centred, self._mean = _centred(features)
        components = _principal_components(centred, self.n_bits)  # (P, D)
        projected = centred @ components.T  # (N, P)
        low, high = projected.min(0), projected.max(0)
        modes = np.arange(1, self.n_bits + 1)
        frequencies = np.pi * modes / np.maximum(high - low, 1e-6)[:, None]  # (P, K)
        slowest = np.argsort(frequencies, axis=None, kind="stable")[: self.n_bits]
        component, _ = np.unravel_index(slowest, frequencies.shape)
        self._directions = components[component].T
        self._low = low[component]
        self._frequencies = frequencies.ravel()[slowest].astype(np.float32)
        return self

    def encode(self, features: Features) -> Codes:
        """Packed codes (N, K/8) of features (N, D). Raises ValueError before `fit`."""
        if self._mean is None:
            raise ValueError("fit comes before encode")
        along = (features - self._mean) @ self._directions - self._low
        return pack_bits(np.cos(self._frequencies * along) >= 0)  # sin(pi/2 + x) = cos(x)


class ThresholdedClasses:
    """The control that a supervised hash has to beat: thresholded probabilities of a classifier.

    Sablayrolles, Douze, Usunier, Jegou, "How Should We Evaluate Supervised Hashing?", ICASSP 2017.
    One logistic regression per class; with m = K // C of at least 1, the m bits of a class say
    which of the thresholds 1/(m+1), ..., m/(m+1) its probability reaches. The remaining bits are 0;
    if there are more classes than bits, the K most frequent ones have one each.

    Args:
        n_bits: K, a multiple of 8.
        regularisation: scikit-learn's C of the logistic regressions.
    """

    def __init__(self, n_bits: int, *, regularisation: float = 0.01) -> None:
        self.n_bits = _whole_bytes(n_bits)
        self.regularisation = regularisation
        self._mean: NDArray[np.float32] | None = None
        self._std = np.zeros(0, np.float32)
        self._weights = np.zeros((0, 0))
        self._biases = np.zeros(0)

    def fit(self, features: Features, labels: Labels | None = None) -> Self:
        """Learns from features (N, D), N >= 1, and labels (N, C) of 0 and 1.

        A class that all pictures have, or none, is constant.
        """
        _check_features(features)
        known = _checked_labels(features, labels)
        centred, self._mean = _centred(features)
        self._std = centred.std(0) + 1e-6
        scaled = centred / self._std
        shares = known.mean(0)
        classes = np.sort(np.argsort(-shares, kind="stable")[: self.n_bits])
        self._weights = np.zeros((scaled.shape[1], len(classes)))
        self._biases = np.where(shares[classes] > 0.5, 30.0, -30.0)  # of what is constant
        for n, label in enumerate(classes):
            if 0 < shares[label] < 1:
                model = LogisticRegression(C=self.regularisation, max_iter=200)
                model.fit(scaled, known[:, label])
                self._weights[:, n], self._biases[n] = model.coef_[0], model.intercept_[0]
        return self

    def encode(self, features: Features) -> Codes:
        """Packed codes (N, K/8) of features (N, D). Raises ValueError before `fit`."""
        if self._mean is None:
            raise ValueError("fit comes before encode")
        logits = (features - self._mean) / self._std @ self._weights + self._biases  # (N, C)
        n_levels = self.n_bits // logits.shape[1]
        shares = np.arange(1, n_levels + 1) / (n_levels + 1)
        cuts = np.log(shares / (1 - shares))
        bits = (logits[:, :, None] >= cuts).reshape(len(logits), -1)
        return pack_bits(np.pad(bits, ((0, 0), (0, self.n_bits - bits.shape[1]))))


class VisualWords:
    """A vocabulary of descriptors: k-means on their first principal components.

    Args:
        n_words: size of the vocabulary, at most the number of descriptors.
        n_dims: principal components, at most the dimensions of the descriptors.
    """

    def __init__(self, n_words: int = 500, *, n_dims: int = 64) -> None:
        self.n_words = n_words
        self.n_dims = n_dims
        self._project: Any = None
        self._index: Any = None

    def fit(self, descriptors: Features) -> Self:
        """Learns from descriptors (N, D), N >= 1."""
        _check_features(descriptors)
        x = np.ascontiguousarray(descriptors, np.float32)
        n_dims = min(self.n_dims, *x.shape)
        self._project = faiss.PCAMatrix(x.shape[1], n_dims)
        self._project.train(x)
        x = self._project.apply_py(x)
        self.n_words = min(self.n_words, len(x))
        means = faiss.Kmeans(n_dims, self.n_words, niter=10, seed=0, min_points_per_centroid=1)
        means.train(x)
        self._index = faiss.IndexFlatL2(n_dims)
        self._index.add(means.centroids)
        return self

    def assign(self, descriptors: Features) -> Ints:
        """The word (N,) of each of N descriptors (N, D). Raises ValueError before `fit`."""
        if self._index is None:
            raise ValueError("fit comes before assign")
        if not len(descriptors):
            return np.zeros(0, np.int64)
        x = self._project.apply_py(np.ascontiguousarray(descriptors, np.float32))
        return np.asarray(self._index.search(x, 1)[1][:, 0], np.int64)


class PartitionMinHash:
    """PmH: codes of the partitions of a picture, each from the set of the visual words in it.

    Lee, Ke, Isard, "Partition Min-Hash for Partial Duplicate Image Discovery", ECCV 2010. Two sets
    have the same least value under a random order of the words with the probability of their
    Jaccard similarity J. Of each least value one bit is kept (Li and Koenig, "b-Bit Minwise
    Hashing", WWW 2010), so that codes differ in (1 - J) / 2 of their bits, on average.

    Args:
        n_bits: K, bits of a partition's code, a multiple of 8.
        n_words: size of the vocabulary.
        seed: random seed of the orders.
    """

    def __init__(self, n_bits: int, n_words: int, *, seed: int = 0) -> None:
        self.n_bits = _whole_bytes(n_bits)
        rng = np.random.default_rng(seed)
        self._orders = np.argsort(rng.random((n_words, n_bits)), axis=0)  # ranks of the words
        self._bits = rng.random((n_words, n_bits)) < 0.5  # of each rank, its one bit

    def encode(self, words: Ints, places: Floats, boxes: Floats) -> Codes:
        """Codes (R', K/8) of those of R partitions that contain a word.

        Args:
            words: (P,) int64.
            places: (P, 2), x and y of each word.
            boxes: (R, 4), xyxy, last edges exclusive.
        """
        inside = (
            (places[:, 0] >= boxes[:, None, 0])
            & (places[:, 1] >= boxes[:, None, 1])
            & (places[:, 0] < boxes[:, None, 2])
            & (places[:, 1] < boxes[:, None, 3])
        )  # (R, P)
        columns = np.arange(self.n_bits)
        bits = [
            self._bits[self._orders[np.unique(words[partition])].min(axis=0), columns]
            for partition in inside
            if partition.any()
        ]
        return pack_bits(np.array(bits, np.bool_).reshape(-1, self.n_bits))


def _whole_bytes(n_bits: int) -> int:
    check_n_bits(n_bits)
    return n_bits


def _check_features(features: Features) -> None:
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features must be (N, D) with N of at least 1, got {features.shape}")


def _checked_labels(features: Features, labels: Labels | None) -> NDArray[np.float64]:
    if labels is None:
        raise ValueError("this hash is supervised: it needs labels")
    if labels.ndim != 2 or len(labels) != len(features) or not labels.shape[1]:
        raise ValueError(f"labels must be ({len(features)}, C), got {labels.shape}")
    return labels.astype(np.float64)


def _centred(features: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features without their mean, and the mean."""
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    return features.astype(np.float32) - mean, mean


def _principal_components(centred: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """The first n (or fewer) directions (P, D) of largest variance."""
    directions: NDArray[np.float32]
    _, _, directions = randomized_svd(centred, min(n, *centred.shape), random_state=0)
    return directions


def _rotated(
    centred: NDArray[np.float32], directions: NDArray[Any], n_bits: int
) -> NDArray[np.float32]:
    """Directions (D, P) as the K directions whose signs are the bits, P at most K."""
    missing = n_bits - directions.shape[1]
    directions = np.pad(directions, ((0, 0), (0, missing))).astype(np.float32)
    rotation = faiss.ITQMatrix(n_bits)
    rotation.train(np.ascontiguousarray(centred @ directions))
    matrix = faiss.vector_to_array(rotation.A).reshape(n_bits, n_bits)
    turned: NDArray[np.float32] = directions @ matrix.T
    return turned
