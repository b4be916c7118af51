"""PCA whitening: against the published formula and NumPy, and where nothing varies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS

from regionhash.parts.whitening import Whitening


def features(n, d, seed=0):
    """Correlated features of unequal scale, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) * torch.logspace(0, 1, d)
    return torch.randn(n, d, generator=generator) @ mixing + 100


def test_the_covariance_is_shrunk_by_the_published_share():
    x, n, p = features(40, 12).double().numpy(), 40, 12
    whitening = Whitening(p, p).fit([torch.from_numpy(x)])
    covariance = torch.linalg.inv(whitening.projection.double() @ whitening.projection.double().T)
    s = np.cov(x.T, bias=True)
    # Chen et al. 2010, eq. 23
    tr_s2, tr2_s = np.trace(s @ s), np.trace(s) ** 2
    share = ((1 - 2 / p) * tr_s2 + tr2_s) / ((n + 1 - 2 / p) * (tr_s2 - tr2_s / p))
    assert 0 < share < 1
    wanted = (1 - share) * s + share * np.trace(s) / p * np.eye(p)
    np.testing.assert_allclose(covariance.numpy(), wanted, rtol=1e-3, atol=1e-2)
    # scikit-learn leaves out the terms in 2 / p
    np.testing.assert_allclose(covariance.numpy(), OAS().fit(x).covariance_, rtol=0.1, atol=6)


def test_many_features_come_out_uncorrelated_and_of_equal_variance():
    x = features(20_000, 8)
    whitening = Whitening(8, 5).fit([x])
    projected = ((x - whitening.mean) @ whitening.projection).double()
    covariance = projected.T @ projected / len(x)
    np.testing.assert_allclose(covariance.numpy(), np.eye(5), atol=0.02)


def test_directions_come_in_the_order_of_their_variance():
    x = features(5_000, 8)
    whitening = Whitening(8, 3).fit([x])
    centred = x.double().numpy() - x.double().numpy().mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    directions = torch.nn.functional.normalize(whitening.projection, dim=0).numpy()
    np.testing.assert_allclose(np.abs(axes[:3] @ directions), np.eye(3), atol=1e-3)


def test_the_result_is_of_unit_length_before_its_mean_is_taken_away():
    x = features(300, 8)
    whitening = Whitening(8, 6).fit([x])
    y = whitening(x)
    np.testing.assert_allclose(y.mean(0).numpy(), np.zeros(6), atol=1e-6)
    np.testing.assert_allclose((y + whitening.post_mean).norm(dim=1).numpy(), 1, rtol=1e-5)
    assert whitening(x.view(3, 100, 8)).shape == (3, 100, 6)


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), max_size=4), st.integers(0, 9))
def test_how_features_are_cut_into_batches_does_not_matter(cuts, seed):
    x = features(60, 4, seed)
    batches = torch.tensor_split(x, sorted(cuts))
    whole, parts = Whitening(4, 4).fit([x]), Whitening(4, 4).fit(batches)
    # A direction may come with either sign; similarities are the same.
    np.testing.assert_allclose(whole(x) @ whole(x).T, parts(x) @ parts(x).T, atol=1e-4)


@pytest.mark.parametrize(
    "x",
    [
        torch.full((1, 6), 3.0),
        torch.full((50, 6), 3.0),
        torch.zeros(50, 6),
        torch.cat([features(50, 5), torch.full((50, 1), 2.0)], dim=1),
        features(2, 6),
        torch.full((7, 6), 1e-30),
    ],
    ids=["one", "identical", "zero", "one dimension constant", "two", "tiny"],
)
def test_a_collection_without_variance_gives_finite_features(x):
    whitening = Whitening(6, 6).fit([x])
    for name, buffer in whitening.named_buffers():
        assert torch.isfinite(buffer).all(), name
    assert torch.isfinite(whitening(x)).all()
    # Another picture than the collection's is told from it, and from the opposite of itself.
    other = whitening.mean + torch.arange(6.0)
    opposite = whitening.mean - torch.arange(6.0)
    assert (whitening(other) - whitening(opposite)).norm() > 1


def test_a_direction_that_hardly_varies_does_not_drown_the_others():
    x = torch.cat([features(100_000, 5), torch.full((100_000, 1), 2.0)], dim=1)
    whitening = Whitening(6, 6).fit([x])
    lengths = whitening.projection.norm(dim=0)
    spread = (x - x.mean(0)).square().mean().sqrt()
    assert (lengths * spread).max() < 33


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "whitening needs at least one feature, got none"),
        ([torch.zeros(0, 4)], "whitening needs at least one feature, got none"),
        ([torch.zeros(3, 5)], r"features must be \(N, 4\), got \(3, 5\)"),
        ([torch.zeros(4)], r"features must be \(N, 4\), got \(4,\)"),
        ([torch.full((2, 4), torch.nan)], "features must be finite"),
        (iter([torch.zeros(3, 4)]), "must allow two passes"),
    ],
)
def test_what_cannot_be_fitted_is_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        Whitening(4, 2).fit(batches)


def test_more_dimensions_out_than_in_are_refused():
    with pytest.raises(ValueError, match=r"n_out must be in \[1, 4\]"):
        Whitening(4, 5)


def test_half_the_power_leaves_the_square_root_of_each_variance():
    x = features(20_000, 6)
    variances = []
    for power in (0.0, 0.5):
        whitening = Whitening(6, 6, power=power).fit([x])
        variances.append(((x - whitening.mean) @ whitening.projection).double().var(0).numpy())
    # The shrinkage shows in the least of them.
    np.testing.assert_allclose(variances[1][:4], np.sqrt(variances[0][:4]), rtol=0.02)
    with pytest.raises(ValueError, match=r"power must be in \[0, 1\], got 2"):
        Whitening(6, 6, power=2)
