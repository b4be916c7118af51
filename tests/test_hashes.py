"""Hashes of region features: known answers, the loss against autograd, and what they are for."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regionhash.codes import hamming_distances
from regionhash.parts.hashes import (
    ALPHA,
    BETA,
    ETA,
    HASHES,
    bit_statistics,
    drh_loss,
    fit_drh_hash,
    fit_hash,
    fit_itq,
    fit_sign,
    fit_whitening,
    orthogonal_frame,
    unit_length,
)


def clusters(n=600, d=24, seed=0):
    """Whitened features (n, d) of 30 kinds of objects; the kind of row i is i modulo 30."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((30, d))
    x = centres[np.arange(n) % 30] + 0.6 * rng.standard_normal((n, d))
    x = x.astype(np.float32)
    return fit_whitening([x], d, d)(x)


# The loss


def with_autograd(x, weight, bias, alpha, beta, eta):
    """The loss term by term as it is printed, with gradients by torch."""
    weight, bias = (torch.tensor(part, requires_grad=True) for part in (weight, bias))
    h = torch.tanh(torch.tensor(x) @ weight.T + bias)
    signs = torch.where(h >= 0, 1.0, -1.0)
    loss = 0
    for row, sign in zip(h, signs, strict=True):
        loss = loss + ((sign - row) ** 2).sum() / 2 / len(h)
        loss = loss - alpha / 2 * ((row - h.mean(0)) ** 2).sum() / len(h)
    loss = loss + beta / 2 * (weight**2).sum() + eta / 2 * (bias**2).sum()
    loss.backward()
    return loss.item(), weight.grad.numpy(), bias.grad.numpy()


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 7),
    k=st.integers(1, 5),
    p=st.integers(1, 4),
    weights=st.tuples(*[st.floats(0, 5)] * 3),
    seed=st.integers(0, 99),
)
def test_the_loss_and_its_gradients_are_those_of_autograd(n, k, p, weights, seed):
    rng = np.random.default_rng(seed)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((n, p), (k, p), k))
    alpha, beta, eta = weights
    found = drh_loss(x, weight, bias, alpha=alpha, beta=beta, eta=eta)
    for one, other in zip(found, with_autograd(x, weight, bias, *weights), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_the_weights_of_the_terms_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((9, 4), (6, 4), 6))
    wanted = with_autograd(x, weight, bias, ALPHA, BETA, ETA)
    assert (ALPHA, BETA, ETA) == (100, 0.001, 0.001)
    assert drh_loss(x, weight, bias)[0] == pytest.approx(wanted[0])


def test_bits_that_are_all_one_are_not_the_optimum():
    x = np.array([[1.0], [-1.0]] * 3)
    ones, half = (
        drh_loss(x, np.full((4, 1), w), np.full(4, b), beta=0, eta=0)[0]
        for w, b in ((0, 9), (9, 0))
    )
    assert half < ones


# Bits


def test_the_frame_is_orthonormal_in_blocks_and_the_blocks_differ():
    frame = orthogonal_frame(20, 8, np.random.default_rng(0))
    for block in (frame[:8], frame[8:16], frame[16:]):
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)
    assert np.abs(frame[:8] - frame[8:16]).max() > 0.1


def test_the_statistics_of_bits_are_those_of_a_loop():
    activations = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    activations[:, 3] = 1.0  # never changes
    activations[:, 5] = -activations[:, 4]
    bits = (activations >= 0).astype(float)
    correlations = []
    for i in range(6):
        for j in range(i):
            constant = bits[:, i].std() == 0 or bits[:, j].std() == 0
            correlations.append(0 if constant else np.corrcoef(bits[:, i], bits[:, j])[0, 1])
    found = bit_statistics(activations)
    assert found.balance == pytest.approx(np.abs(bits.mean(0) - 0.5).mean(), abs=1e-6)
    assert found.correlation == pytest.approx(np.abs(correlations).mean(), abs=1e-6)


# Hashes


def separation(activations):
    """How much farther codes of different kinds are apart than those of one kind, in bits."""
    codes = np.packbits(activations >= 0, axis=1)
    distances = hamming_distances(codes, codes)
    same = np.arange(len(codes))[:, None] % 30 == np.arange(len(codes)) % 30
    return (distances[~same].mean() - distances[same].mean()) / activations.shape[1]


@pytest.mark.parametrize("name", HASHES)
def test_every_hash_keeps_kinds_apart_and_is_the_same_for_the_same_seed(name):
    x = clusters()
    n_bits = 24 if name == "sign" else 64
    found, report = fit_hash(HASHES[name], x, n_bits, seed=3)
    assert found.weight.shape == (n_bits, 24) and found.bias.shape == (n_bits,)
    assert found.weight.dtype == found.bias.dtype == np.float32
    activations = found(x)
    assert separation(activations) > 0.2
    assert report.after == bit_statistics(activations[np.random.default_rng(3).permutation(600)])
    again, _ = fit_hash(HASHES[name], x, n_bits, seed=3)
    np.testing.assert_array_equal(found.weight, again.weight)
    other, _ = fit_hash(HASHES[name], x, n_bits, seed=4)
    assert (name == "sign") == np.array_equal(found.weight, other.weight)


def test_training_lowers_the_loss_and_finds_neighbours_better_than_its_start():
    x = clusters()
    trained = fit_drh_hash(x, 64, np.random.default_rng(0))
    start = fit_drh_hash(x, 64, np.random.default_rng(0), n_steps=1, learning_rate=0)
    assert all(later < earlier for earlier, later in pairwise(trained.losses))
    assert separation(trained(x)) > separation(start(x)) + 0.01


def itq_by_padding(x, n_bits, generator, steps=50):
    """ITQ as it is printed: a square rotation of features padded with zeros (slow)."""
    x = x[generator.permutation(len(x))[:10_000]]
    padded = np.pad(x, ((0, 0), (0, n_bits - x.shape[1])))
    start = orthogonal_frame(n_bits, x.shape[1], generator).T
    rotation = np.pad(start, ((0, n_bits - x.shape[1]), (0, 0)))
    for _ in range(steps):
        signs = np.where(padded @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(signs.T @ padded)
        rotation = (left @ right).T
    return rotation[: x.shape[1]].T


def quantisation_error(x, weight):
    activations = x @ weight.T
    return np.square(np.sign(activations) - activations).sum(1).mean()


@pytest.mark.parametrize("n_bits", [24, 40])
def test_itq_is_the_printed_one(n_bits):
    x = clusters()
    found = fit_itq(x, n_bits, np.random.default_rng(1)).weight
    slow = itq_by_padding(x, n_bits, np.random.default_rng(1))
    np.testing.assert_allclose(found @ x.T, slow @ x.T, atol=0.02)
    start = orthogonal_frame(n_bits, n_bits, np.random.default_rng(1))[:, :24]
    assert quantisation_error(x, found) < quantisation_error(x, start)


def test_itq_of_fewer_bits_takes_the_directions_of_most_variance():
    weight = fit_itq(clusters(), 16, np.random.default_rng(0)).weight
    assert not weight[:, 16:].any()
    np.testing.assert_allclose(weight[:, :16] @ weight[:, :16].T, np.eye(16), atol=1e-5)


def test_sign_is_the_features_themselves_and_has_no_more_bits():
    x = clusters()
    np.testing.assert_array_equal(fit_sign(x, 16, np.random.default_rng(0))(x), x[:, :16])
    with pytest.raises(ValueError, match="a bit for each of 24 features at most, got 32 bits"):
        fit_sign(x, 32, np.random.default_rng(0))


@pytest.mark.parametrize("name", HASHES)
@pytest.mark.parametrize("n", [1, 40])
def test_features_that_do_not_vary_give_finite_weights(name, n):
    x = np.zeros((n, 16), np.float32)
    found, report = fit_hash(HASHES[name], x, 16, seed=0)
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    assert np.isfinite(report.losses).all()


def test_rows_are_scaled_to_unit_length_and_zeros_stay():
    x = np.array([[3, 4], [0, 0]], np.float32)
    np.testing.assert_allclose(unit_length(x), [[0.6, 0.8], [0, 0]])
