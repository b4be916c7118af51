"""Bits and packed codes: the only place where bit order lives.

Bit i of a code is in byte i // 8, most significant bit first (`numpy.packbits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from regionhash.structures import Codes, Floats


def check_n_bits(n_bits: int) -> None:
    """Raises ValueError unless codes of `n_bits` bits fill whole bytes."""
    if n_bits < 8 or n_bits % 8:
        raise ValueError(f"the number of bits must be a positive multiple of 8, got {n_bits}")


def binarize(activations: NDArray[np.floating[Any]], threshold: float = 0.5) -> NDArray[np.bool_]:
    """Bits of activations of any shape: a >= threshold (Region-DH, eqs. 1 and 2)."""
    return np.asarray(activations) >= threshold


def pack_bits(bits: NDArray[np.bool_]) -> Codes:
    """Packs bits (N, K) bool into codes (N, K/8) uint8.

    Raises:
        ValueError: `bits` is not (N, K), or K is not a multiple of 8.
    """
    bits = np.asarray(bits)
    if bits.ndim != 2 or bits.shape[1] % 8:
        raise ValueError(f"bits must be (N, K) with K a multiple of 8, got {bits.shape}")
    return np.packbits(bits.astype(bool, copy=False), axis=1)


def pack_signs(activations: NDArray[np.floating[Any]]) -> Codes:
    """Packed codes (..., ceil(K/8)) uint8 of activations (..., K), cut at 0 (IAH, Sec. III-D).

    A bit is 1 if the activation is 0 or more; bits beyond K are 0.
    """
    return np.packbits(binarize(activations, 0.0), axis=-1)


def unpack_bits(codes: Codes) -> NDArray[np.bool_]:
    """Unpacks codes (N, B) uint8 into bits (N, 8 * B) bool: the inverse of `pack_bits`."""
    return np.unpackbits(_packed("codes", codes), axis=1).astype(bool)


def hamming_distances(queries: Codes, database: Codes) -> NDArray[np.int32]:
    """Number of bits in which each query differs from each code of the database.

    Args:
        queries: (Q, B) uint8, packed; any B.
        database: (N, B) uint8, packed; may be memory-mapped.

    Returns:
        (Q, N) int32, in bits.

    Raises:
        ValueError: a wrong shape or type, or codes of different lengths.
    """
    queries = _packed("queries", queries)
    database = _packed("database", database)
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"queries and database must have codes of one length, "
            f"got {queries.shape[1]} and {database.shape[1]} bytes"
        )
    distances = np.zeros((len(queries), len(database)), np.int32)
    if distances.size and queries.shape[1]:
        faiss.hammings(  # type: ignore[attr-defined]  # missing in FAISS's type stubs
            faiss.swig_ptr(queries),
            faiss.swig_ptr(database),
            *distances.shape,
            queries.shape[1],
            faiss.swig_ptr(distances),
        )
    return distances


Weights = Sequence[NDArray[np.float32] | None]
"""For each query the weight (8 * B,) of each bit, or None if all bits weigh 1."""


def asymmetric_distances(
    queries: Codes, weights: Weights | None, database: Codes
) -> NDArray[np.int32]:
    """The Hamming distance in which some queries weigh their bits, rounded to whole bits.

    A query that is known before it was cut to bits says more of the bits that it is sure of: with
    the absolute values of its activations as weights, this is the asymmetric distance of Gordo et
    al. ("Asymmetric Distances for Binary Embeddings", TPAMI 2014, the expectation-based form for
    signs), up to scale.

    Args:
        queries: (Q, B) uint8, packed.
        weights: see `Weights`, of mean 1, so that they can be added to other distances; None is
            the Hamming distance.
        database: (N, B) uint8, packed; may be memory-mapped.

    Returns:
        (Q, N) int32, in bits.

    Raises:
        ValueError: see `hamming_distances`.
    """
    if weights is None:
        return hamming_distances(queries, database)
    distances = np.empty((len(queries), len(database)), np.int32)
    for query, weight, row in zip(queries, weights, distances, strict=True):
        if weight is None:
            row[:] = hamming_distances(query[None], database)[0]
        else:
            row[:] = np.rint(weighted_distances(query, weight, database))
    return distances


def weighted_distances(
    query: Codes, weight: NDArray[np.float32], database: Codes
) -> NDArray[np.float32]:
    """The asymmetric distances (N,) of one query (B,), not rounded; see `asymmetric_distances`."""
    hamming_distances(query[None], database[:0])  # checks shapes and types
    by_byte = weight.reshape(-1, 8) @ _BITS.T  # (B, 256): what each difference of a byte costs
    sums = np.zeros(len(database), np.float32)
    for column, byte in enumerate(query):
        costs = by_byte[column, np.arange(256, dtype=np.uint8) ^ byte]
        sums += costs[database[:, column]]
    return sums


def weights_of(activations: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The weights (K,) of the bits of activations (K,): their absolute values, with mean 1."""
    sure = np.abs(activations)
    return np.asarray(sure / max(float(sure.mean()), 1e-12), np.float32)


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
"""The bits (256, 8) of each byte."""


def _packed(name: str, codes: Codes) -> Codes:
    """`codes` as a contiguous array for FAISS. Raises ValueError unless (N, B) uint8."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype != np.uint8:
        raise ValueError(f"{name} must be (N, B) uint8, got {codes.shape} {codes.dtype}")
    return np.ascontiguousarray(codes)


# -- features kept beside codes -------------------------------------------------------------------


def pack_directions(features: Floats) -> NDArray[np.int8]:
    """Features (M, P) as int8: their directions, scaled so that 127 is the greatest part of each.

    Lengths are lost, which `angles` does not read. Zeros stay zeros.
    """
    greatest = np.abs(features).max(axis=1, keepdims=True, initial=0)
    packed: NDArray[np.int8] = np.rint(features * (127 / np.maximum(greatest, 1e-30))).astype("i1")
    return packed


def angles(query: Floats, directions: NDArray[Any]) -> Floats:
    """The angles between a feature and others, as shares of a half turn.

    This is the share of bits that differ on average between codes of random hyperplanes (Charikar,
    "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002), so it can be shown as a
    number of bits.

    Args:
        query: (P,) float32.
        directions: (M, P), int8 of `pack_directions`, or floats.

    Returns:
        (M,) float32 in [0, 1]; one half where either is zero.
    """
    others = directions.astype(np.float32)
    lengths = np.sqrt(np.einsum("mp,mp->m", others, others)) * np.linalg.norm(query)
    cosines = (others @ query) / np.maximum(lengths, np.float32(1e-12))
    shares: Floats = np.arccos(np.clip(cosines, -1, 1)) / np.float32(np.pi)
    return shares
