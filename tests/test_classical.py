"""Hashing without a network."""

import numpy as np
import pytest
from scipy.linalg import eigh

from regionhash.codes import hamming_distances
from regionhash.models.classical import (
    ITQ,
    ITQCCA,
    PartitionMinHash,
    RandomHyperplanes,
    SpectralHashing,
    ThresholdedClasses,
    VisualWords,
)


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


def _clusters(n_classes=4, n=60, dims=16, seed=0):
    """Features around one centre per class, and labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_classes, dims)) * 3
    classes = np.arange(n) % n_classes
    x = (centres[classes] + rng.standard_normal((n, dims)) * 0.3 + 5).astype(np.float32)
    return x, np.eye(n_classes, dtype=np.uint8)[classes]


HASHERS = [ITQ, ITQCCA, SpectralHashing, ThresholdedClasses, RandomHyperplanes]


@pytest.mark.parametrize("hasher", HASHERS)
def test_codes_of_one_class_are_nearer_than_of_two(hasher):
    x, labels = _clusters()
    codes = hasher(16).fit(x, labels).encode(x)
    assert codes.shape == (60, 2) and codes.dtype == np.uint8
    distances = hamming_distances(codes, codes)
    same = (labels @ labels.T).astype(bool)
    assert distances[same].mean() + 1 < distances[~same].mean()


@pytest.mark.parametrize("hasher", HASHERS)
def test_more_bits_than_dimensions_classes_or_pictures_and_constant_features_are_no_error(hasher):
    x, labels = _clusters(n=3, dims=5)
    assert hasher(32).fit(x, labels).encode(x).shape == (3, 4)
    same = np.ones((4, 5), np.float32)
    assert len(np.unique(hasher(8).fit(same, labels[[0, 0, 0, 0]]).encode(same), axis=0)) == 1


@pytest.mark.parametrize("hasher", HASHERS[:-1])
def test_every_hasher_refuses_the_same_bad_input(hasher):
    with pytest.raises(ValueError, match="positive multiple of 8, got 12"):
        hasher(12)
    with pytest.raises(ValueError, match=r"features must be \(N, D\)"):
        hasher(8).fit(np.zeros((0, 4), np.float32), np.zeros((0, 2), np.uint8))
    with pytest.raises(ValueError, match="fit comes before encode"):
        hasher(8).encode(np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("hasher", [ITQCCA, ThresholdedClasses])
def test_supervised_hashers_need_labels(hasher):
    x, labels = _clusters()
    with pytest.raises(ValueError, match="needs labels"):
        hasher(8).fit(x)
    with pytest.raises(ValueError, match=r"labels must be \(60, C\), got \(59, 4\)"):
        hasher(8).fit(x, labels[1:])


def test_itq_quantises_better_than_the_principal_components():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((400, 12)) @ rng.standard_normal((12, 12))).astype(np.float32)
    centred = x - x.mean(0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:8].T
    hasher = ITQ(8).fit(x)

    def loss(projected):
        return np.square(
            np.where(projected >= 0, 1, -1) * np.abs(projected).mean() - projected
        ).sum()

    turned = centred @ hasher._projection
    assert loss(turned) < loss(centred @ components)
    np.testing.assert_allclose(
        np.linalg.norm(turned), np.linalg.norm(centred @ components), rtol=1e-3
    )


@pytest.mark.parametrize("n_classes", [5, 12])  # fewer than bits, and more
def test_itq_cca_has_the_canonical_directions_each_as_long_as_its_correlation(n_classes):
    """Of lengths 1 in the covariance of the features; a rotation leaves P P^T as it is."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 16)).astype(np.float32)
    shown = x @ rng.standard_normal((16, n_classes)) + 4 * rng.standard_normal((500, n_classes))
    labels = (shown > 2).astype(np.uint8)
    hasher = ITQCCA(8, ridge=0.0).fit(x, labels)
    both = np.cov(x.T, labels.T, ddof=0)
    xx, xy, yy = both[:16, :16], both[:16, 16:], both[16:, 16:]
    squares, directions = eigh(xy @ np.linalg.solve(yy, xy.T), xx)
    assert 0 < squares[-n_classes] < squares[-1] / 2
    largest = slice(-min(8, n_classes), None)
    expected = (directions[:, largest] * squares[largest]) @ directions[:, largest].T
    turned = hasher._projection @ hasher._projection.T
    np.testing.assert_allclose(turned, expected, atol=1e-2 * np.abs(expected).max())


def test_spectral_hashing_cuts_a_line_in_waves_of_rising_frequency():
    """On one dimension the bits are the signs of cos(m pi x / length), m = 1, 2, ..."""
    x = np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    hasher = SpectralHashing(8).fit(x)
    bits = np.unpackbits(hasher.encode(x), axis=1)
    for m in range(1, 9):
        assert np.count_nonzero(np.diff(bits[:, m - 1])) == m


def test_thresholded_classes_are_the_classes_and_levels_of_their_probability():
    x, labels = _clusters(n_classes=4)
    bits = np.unpackbits(ThresholdedClasses(8, regularisation=10).fit(x, labels).encode(x), axis=1)
    np.testing.assert_array_equal(bits.reshape(60, 4, 2)[:, :, 0], labels)  # 1/3 is reached
    np.testing.assert_array_equal(bits.reshape(60, 4, 2)[:, :, 1], labels)  # and 2/3
    never = np.concatenate([labels, np.zeros((60, 1), np.uint8), np.ones((60, 1), np.uint8)], 1)
    bits = np.unpackbits(ThresholdedClasses(8).fit(x, never).encode(x), axis=1)
    assert not bits[:, 4].any() and bits[:, 5].all() and not bits[:, 6:].any()


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
    clusters = rng.integers(2, size=100)
    words = VisualWords(2, n_dims=8).fit(centres[clusters] + 0.1 * rng.standard_normal((100, 12)))
    assert sorted(words.assign(centres).tolist()) == [0, 1]
    assert words.assign(np.zeros((0, 12))).shape == (0,)
    few = VisualWords(50).fit(centres)
    assert few.n_words == 2
    with pytest.raises(ValueError, match="fit comes before assign"):
        VisualWords().assign(centres)
