"""Hashing without a network: features in, packed codes out. NumPy only.

A hasher has `fit(features, labels=None)`, which returns itself, and `encode(features)`.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import pack_bits
from regionhash.structures import Codes


class RandomHyperplanes:
    """LSH: a bit tells on which side of a random hyperplane through the mean a feature lies.

    Two features differ in a bit with probability angle / pi (Charikar, "Similarity Estimation
    Techniques from Rounding Algorithms", STOC 2002). Nothing is learned but the mean.

    Args:
        n_bits: K, a multiple of 8.
        seed: of the hyperplanes.

    Raises:
        ValueError: `n_bits` is not a positive multiple of 8.
    """

    def __init__(self, n_bits: int, *, seed: int = 0) -> None:
        if n_bits < 8 or n_bits % 8:
            raise ValueError(f"the number of bits must be a positive multiple of 8, got {n_bits}")
        self.n_bits = n_bits
        self.seed = seed
        self._mean: NDArray[np.float32] | None = None
        self._normals = np.zeros((0, n_bits), np.float32)

    def fit(self, features: NDArray[np.floating[Any]], labels: object = None) -> Self:
        """Takes the mean of features (N, D), N >= 1, and draws D x K numbers; no label is read."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features must be (N, D) with N of at least 1, got {features.shape}")
        rng = np.random.default_rng(self.seed)
        self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._normals = rng.standard_normal((features.shape[1], self.n_bits), np.float32)
        return self

    def encode(self, features: NDArray[np.floating[Any]]) -> Codes:
        """Packed codes (N, K/8) of features (N, D). Raises ValueError before `fit`."""
        if self._mean is None:
            raise ValueError("fit comes before encode")
        return pack_bits((features - self._mean) @ self._normals >= 0)
