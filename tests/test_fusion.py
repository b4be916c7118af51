import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from regionhash.parts.fusion import FUSION_FORMS, fuse_proposals


def _batch():
    generator = torch.Generator().manual_seed(0)
    objectness = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    probs = torch.rand(2, 5, 4, generator=generator, dtype=torch.float64).softmax(2)[:, :, 1:]
    activations = torch.rand(2, 5, 8, generator=generator, dtype=torch.float64)
    objectness[1, 3:] = 0  # padding: the second picture has three regions
    return objectness, probs, activations


def _oracle(objectness, probs, activations, form):
    """The published sums, region by region, with Kronecker products (IAH, eq. 6)."""
    fused = []
    for o, p, a in zip(objectness.numpy(), probs.numpy(), activations.numpy(), strict=True):
        regions = [r for r in range(len(o)) if o[r] > 0]
        weight = {r: 1.0 if form == "plain" else o[r] for r in regions}
        total = sum(weight[r] * np.outer(p[r], a[r]) for r in regions)
        mass = sum(weight[r] * p[r].sum() for r in regions)
        fused.append(total / (mass if form == "normalised" else len(regions)))
    return np.stack(fused)


@pytest.mark.parametrize("form", FUSION_FORMS)
def test_fusion_equals_the_sum_of_outer_products(form):
    batch = _batch()
    fused = fuse_proposals(*batch, form)
    assert fused.shape == (2, 3, 8)
    np.testing.assert_allclose(fused.numpy(), _oracle(*batch, form), rtol=1e-12)


@pytest.mark.parametrize("form", FUSION_FORMS)
def test_padding_regions_change_nothing(form):
    objectness, probs, activations = _batch()
    padded = fuse_proposals(objectness, probs, activations, form)[1]
    alone = fuse_proposals(objectness[1:, :3], probs[1:, :3], activations[1:, :3], form)[0]
    torch.testing.assert_close(padded, alone)


@pytest.mark.parametrize("form", FUSION_FORMS)
def test_a_picture_without_regions_gives_zeros(form):
    empty = fuse_proposals(torch.zeros(1, 0), torch.zeros(1, 0, 3), torch.zeros(1, 0, 8), form)
    assert torch.equal(empty, torch.zeros(1, 3, 8))


def test_background_and_low_objectness_lower_a_regions_weight():
    sure = torch.tensor([[1.0, 0.1]])
    probs = torch.tensor([[[0.9, 0.0], [0.0, 0.9]]])
    ones = torch.ones(1, 2, 8)
    fused = fuse_proposals(sure, probs, ones)
    assert fused[0, 0, 0] == pytest.approx(10 * fused[0, 1, 0].item())
    assert fuse_proposals(sure, probs / 9, ones)[0, 0, 0] < fused[0, 0, 0]
    plain = fuse_proposals(sure, probs, ones, "plain")
    assert plain[0, 0, 0] == plain[0, 1, 0]


def test_gradients_reach_probabilities_and_activations():
    objectness, probs, activations = _batch()
    probs.requires_grad_()
    activations.requires_grad_()
    for form in FUSION_FORMS:
        assert gradcheck(
            lambda p, a, f=form: fuse_proposals(objectness, p, a, f), (probs, activations)
        )


def test_unknown_form_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="objectness, plain, normalised"):
        fuse_proposals(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 8), "sum")  # type: ignore[arg-type]
