"""Hashing without a network."""

import numpy as np
import pytest

from regionhash.classical import RandomHyperplanes
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
