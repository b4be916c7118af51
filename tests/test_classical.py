"""Hashing without a network."""

import numpy as np
import pytest

from regionhash.classical import PartitionMinHash, RandomHyperplanes, VisualWords
from regionhash.codes import hamming_distances


def test_the_share_of_differing_bits_is_the_angle():
    angles = np.array([0.0, 0.3, 1.0, np.pi / 2, 3.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    hasher = RandomHyperplanes(8192, seed=3).fit(np.concatenate([x, -x]))  # of mean zero
    shares = hamming_distances(hasher.encode(x[:1]), hasher.encode(x))[0] / 8192
    np.testing.assert_allclose(shares, angles / np.pi, atol=0.025)


def test_the_planes_go_through_the_mean():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6), np.float32)
    near, far = RandomHyperplanes(64).fit(x), RandomHyperplanes(64).fit(x + 1000)
    assert (hamming_distances(near.encode(x), far.encode(x + 1000)).diagonal() <= 2).all()
    bits = np.unpackbits(far.encode(x + 1000), axis=1)
    assert 0.4 < bits.mean() < 0.6


def test_a_seed_gives_the_same_codes_and_another_seed_others():
    x = np.random.default_rng(0).standard_normal((9, 4), np.float32)
    first, again, other = (RandomHyperplanes(32, seed=s).fit(x).encode(x) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.shape == (9, 4)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="positive multiple of 8, got 12"):
        RandomHyperplanes(12)
    with pytest.raises(ValueError, match=r"features must be \(N, D\) with N of at least 1"):
        RandomHyperplanes(8).fit(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="fit comes before encode"):
        RandomHyperplanes(8).encode(np.zeros((1, 4)))


def _sketch(words, n_bits=2048, **changes):
    hasher = PartitionMinHash(n_bits, 1000, **changes)
    places = np.full((len(words), 2), 0.5, np.float32)
    return hasher.encode(np.array(words), places, np.array([[0, 0, 1, 1]], np.float32))


def test_min_hash_codes_differ_by_half_of_what_two_sets_do_not_share():
    a, b = np.arange(60), np.arange(20, 80)  # 40 of 80 words in common
    distance = hamming_distances(_sketch(a), _sketch(b))[0, 0] / 2048
    assert distance == pytest.approx((1 - 40 / 80) / 2, abs=0.03)
    assert hamming_distances(_sketch(a), _sketch(a[::-1].repeat(2)))[0, 0] == 0
    apart = hamming_distances(_sketch(a), _sketch(a + 100))[0, 0] / 2048
    assert apart == pytest.approx(0.5, abs=0.03)
    assert (_sketch(a) != _sketch(a, seed=1)).any()


def test_each_partition_is_hashed_by_the_words_in_it_and_an_empty_one_not_at_all():
    hasher = PartitionMinHash(64, 10)
    words, places = np.array([1, 2, 3]), np.array([[0, 0], [5, 5], [9, 9]], np.float32)
    boxes = np.array([[0, 0, 9, 9], [6, 6, 8, 8], [5, 5, 10, 10], [0, 0, 10, 10]], np.float32)
    codes = hasher.encode(words, places, boxes)
    assert codes.shape == (3, 8)
    np.testing.assert_array_equal(codes[0], hasher.encode(words[:2], places[:2], boxes[3:])[0])
    np.testing.assert_array_equal(codes[1], hasher.encode(words[1:], places[1:], boxes[3:])[0])
    assert hasher.encode(words[:0], places[:0], boxes).shape == (0, 8)


def test_words_are_the_clusters_of_descriptors():
    rng = np.random.default_rng(0)
    centres = np.eye(2, 12) * 10
    own = rng.integers(2, size=100)
    words = VisualWords(2, n_dims=8).fit(centres[own] + 0.1 * rng.standard_normal((100, 12)))
    assert sorted(words.assign(centres).tolist()) == [0, 1]
    assert words.assign(np.zeros((0, 12))).shape == (0,)
    few = VisualWords(50).fit(centres)
    assert few.n_words == 2
    with pytest.raises(ValueError, match="fit comes before assign"):
        VisualWords().assign(centres)
