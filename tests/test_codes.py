"""Bit order and Hamming distances, against unpackbits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regionhash.codes import (
    angles,
    asymmetric_distances,
    binarize,
    hamming_distances,
    pack_bits,
    pack_directions,
    pack_signs,
    unpack_bits,
    weighted_distances,
    weights_of,
)


def slow_distances(queries, database):
    bits_q, bits_n = np.unpackbits(queries, axis=1), np.unpackbits(database, axis=1)
    return (bits_q[:, None] != bits_n[None]).sum(axis=2)


def codes(max_rows, n_bytes):
    return st.integers(0, max_rows).flatmap(lambda n: arrays(np.uint8, (n, n_bytes)))


def test_a_value_at_the_threshold_is_a_one():
    assert binarize(np.array([[0.49, 0.5, 0.51]])).tolist() == [[False, True, True]]
    assert binarize(np.array([-0.1, 0.0]), threshold=0.0).tolist() == [False, True]


def test_the_first_bit_is_the_most_significant_of_the_first_byte():
    bits = np.zeros((1, 16), bool)
    bits[0, [0, 9]] = True
    assert pack_bits(bits).tolist() == [[128, 64]]


@given(arrays(np.bool_, st.tuples(st.integers(0, 5), st.sampled_from([0, 8, 16, 48]))))
def test_unpacking_inverts_packing(bits):
    np.testing.assert_array_equal(unpack_bits(pack_bits(bits)), bits)


def test_signs_are_packed_with_zeros_behind_the_last():
    activations = np.full((2, 3, 12), -0.5, np.float32)
    activations[1, 2, [0, 11]] = 0.0, 0.5
    codes = pack_signs(activations)
    assert codes.shape == (2, 3, 2) and codes.dtype == np.uint8
    assert codes[1, 2].tolist() == [128, 16]
    assert codes.sum() == 144


@pytest.mark.parametrize("shape", [(8,), (2, 7), (1, 2, 8)])
def test_bits_that_do_not_fill_bytes_are_refused(shape):
    with pytest.raises(ValueError, match=r"bits must be \(N, K\) with K a multiple of 8, got"):
        pack_bits(np.zeros(shape, bool))


def test_known_distances():
    queries = np.array([[0b00000000], [0b11110000]], np.uint8)
    database = np.array([[0b00000001], [0b11111111], [0b11110000]], np.uint8)
    distances = hamming_distances(queries, database)
    assert distances.tolist() == [[1, 8, 4], [5, 4, 0]]
    assert distances.dtype == np.int32


@given(st.data(), st.integers(0, 40))
def test_distances_equal_those_of_unpacked_bits_for_any_length(data, n_bytes):
    queries = data.draw(codes(4, n_bytes))
    database = data.draw(codes(6, n_bytes))
    distances = hamming_distances(queries, database)
    assert distances.shape == (len(queries), len(database))
    np.testing.assert_array_equal(distances, slow_distances(queries, database))


@pytest.mark.parametrize("n_bytes", [4, 6, 8, 512])
def test_distances_of_many_random_codes_are_exact(n_bytes):
    rng = np.random.default_rng(n_bytes)
    queries = rng.integers(0, 256, (3, n_bytes), dtype=np.uint8)
    database = rng.integers(0, 256, (1001, n_bytes), dtype=np.uint8)
    np.testing.assert_array_equal(
        hamming_distances(queries, database), slow_distances(queries, database)
    )


def test_slices_and_reversed_codes_are_read_as_they_are():
    codes = np.random.default_rng(0).integers(0, 256, (20, 16), dtype=np.uint8)
    parts = codes[::-2, 1:14:2]
    np.testing.assert_array_equal(hamming_distances(parts, parts), slow_distances(parts, parts))


def test_codes_of_other_shapes_types_or_lengths_are_refused():
    good = np.zeros((2, 8), np.uint8)
    with pytest.raises(ValueError, match=r"queries must be \(N, B\) uint8, got \(8,\) uint8"):
        hamming_distances(good[0], good)
    with pytest.raises(ValueError, match=r"database must be \(N, B\) uint8, got \(2, 8\) int64"):
        hamming_distances(good, good.astype(np.int64))
    with pytest.raises(ValueError, match="one length, got 8 and 6 bytes"):
        hamming_distances(good, good[:, :6])
    with pytest.raises(ValueError, match=r"codes must be \(N, B\) uint8, got \(2, 8\) bool"):
        unpack_bits(good.astype(bool))


# More than bits of the query, and features beside codes


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_a_weighted_distance_sums_the_weights_of_the_bits_that_differ(seed, n_bytes):
    rng = np.random.default_rng(seed)
    (query, *database) = rng.integers(0, 256, (6, n_bytes), np.uint8)
    weights = weights_of(rng.normal(size=8 * n_bytes))
    differ = np.unpackbits(query ^ np.array(database), axis=1)
    found = weighted_distances(query, weights, np.array(database))
    np.testing.assert_allclose(found, differ @ weights.astype(np.float64), rtol=1e-5, atol=1e-5)
    whole = asymmetric_distances(query[None], [weights], np.array(database))
    assert (whole[0] == np.rint(found)).all()


def test_weights_have_mean_1_and_are_those_of_the_sure_bits():
    assert weights_of(np.array([-3.0, 1.0])).tolist() == [1.5, 0.5]
    assert weights_of(np.zeros(2)).tolist() == [0, 0]


def test_a_direction_has_127_as_its_greatest_part():
    features = np.array([[0.5, -0.25], [-3, 1], [0, 0]], np.float32)
    packed = pack_directions(features)
    assert packed.dtype == np.int8
    assert packed.tolist() == [[127, -64], [-127, 42], [0, 0]]  # -63.5 is rounded to even
    assert pack_directions(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_angles_are_shares_of_a_half_turn_whatever_the_lengths():
    query = np.array([1, 0], np.float32)
    others = np.array([[7, 0], [0, 2], [-1, 0], [1, 1], [0, 0]], np.float32)
    np.testing.assert_allclose(angles(query, others), [0, 0.5, 1, 0.25, 0.5], atol=1e-6)
    np.testing.assert_allclose(
        angles(query, pack_directions(others)), [0, 0.5, 1, 0.25, 0.5], atol=1e-6
    )
    assert angles(np.zeros(2, np.float32), others).tolist() == [0.5] * 5


@given(st.integers(0, 10_000))
def test_packed_directions_keep_angles_within_half_a_per_cent(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(20, 64)).astype(np.float32)
    query = rng.normal(size=64).astype(np.float32)
    kept = angles(query, pack_directions(features))
    np.testing.assert_allclose(kept, angles(query, features), atol=0.005)
