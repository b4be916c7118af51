"""Hashing without a network."""

import numpy as np
import pytest

from regionhash.classical import (
    ITQ,
    ITQCCA,
    RandomHyperplanes,
    SpectralHashing,
    ThresholdedClasses,
)
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


def _clusters(n_classes=4, n=60, dims=16, seed=0):
    """Features around one centre per class, and labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_classes, dims)) * 3
    own = np.arange(n) % n_classes
    x = (centres[own] + rng.standard_normal((n, dims)) * 0.3 + 5).astype(np.float32)
    return x, np.eye(n_classes, dtype=np.uint8)[own]


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
