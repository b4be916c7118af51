import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from regionhash.parts.losses import (
    bag_log_probs,
    balance_bits,
    box_loss,
    category_triplet_loss,
    mil_loss,
    multi_label_loss,
    multi_label_probs,
    nan_term,
    pair_hash_loss,
    push_from_half,
    reduce_per_image,
    region_class_loss,
    triplet_loss,
)


def test_e1_is_lowest_at_bits_and_highest_at_one_half():
    a = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5], [0.5, 1.0, 0.25, 0.5]])
    expected = [-0.25, 0.0, -(0.25 + 0.0625) / 4]
    assert push_from_half(a).tolist() == pytest.approx(expected)


def test_e2_measures_how_far_from_half_the_bits_are_set():
    a = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    assert balance_bits(a).tolist() == pytest.approx([0.0, 0.25, 0.0625])


def test_reduction_sums_regions_per_image_or_averages_them():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])  # say three regions of one image, one of another
    assert reduce_per_image(values, 2, "sum").item() == 6.0
    assert reduce_per_image(values, 2, "mean").item() == 3.0
    assert reduce_per_image(torch.zeros(0), 2, "mean").item() == 0.0
    with pytest.raises(ValueError, match="sum or mean"):
        reduce_per_image(values, 2, "median")  # type: ignore[arg-type]


def test_softmax_form_is_cross_entropy_against_the_uniform_distribution_over_labels():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [5.0, 1.0, 1.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    total = math.exp(2) + 1 + math.exp(-1)
    first = -0.5 * (math.log(math.exp(2) / total) + math.log(1 / total))
    # The third picture has no label and does not count.
    expected = (first + math.log(3)) / 2
    assert multi_label_loss(logits, labels, "softmax").item() == pytest.approx(expected)


def test_bce_form_sums_one_sigmoid_per_class():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    labels = torch.tensor([[1.0, 0.0]])
    expected = math.log(2) + math.log(4)  # sigmoids 1/2 and 3/4
    assert multi_label_loss(logits, labels, "bce").item() == pytest.approx(expected)
    assert multi_label_probs(logits, "bce").tolist()[0] == pytest.approx([0.5, 0.75])


def test_a_batch_without_any_label_has_no_softmax_loss():
    assert multi_label_loss(torch.randn(2, 3), torch.zeros(2, 3), "softmax").item() == 0.0


def test_unknown_form_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="softmax, bce"):
        multi_label_loss(torch.zeros(1, 2), torch.zeros(1, 2), "hinge")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [push_from_half, balance_bits])
def test_gradients_of_the_hashing_terms(loss):
    a = torch.rand(3, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(loss, a)


@pytest.mark.parametrize("form", ["softmax", "bce"])
def test_gradients_of_the_multi_label_loss(form):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert gradcheck(lambda x: multi_label_loss(x, labels, form), logits)


def test_nan_term_names_the_first_term_that_is_not_finite():
    fine = torch.tensor(1.0)
    assert nan_term({"a": fine, "b": fine}) is None
    assert nan_term({"a": fine, "b": fine / 0, "c": fine * torch.nan}) == "b"


def test_the_surplus_of_background_counts_as_three_times_foreground():
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2] + [0] * 9 + [-1])
    each = -logits.log_softmax(1)
    foreground = each[0, 1] + each[1, 2]
    background = each[2:11, 0].sum() * (6 / 9)
    expected = (foreground + background) / (2 + 6)
    assert region_class_loss(logits, labels).item() == pytest.approx(expected.item())


def test_little_background_counts_in_full():
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 0])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert region_class_loss(logits, labels).item() == pytest.approx(expected.item())


def test_regions_without_objects_have_a_class_loss_and_no_box_loss():
    logits = torch.zeros(4, 3)
    assert region_class_loss(logits, torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(
        math.log(3)
    )
    assert region_class_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).item() == 0.0
    nothing = torch.zeros(4, dtype=torch.bool)
    assert box_loss(torch.ones(4, 4), torch.zeros(4, 4), nothing).item() == 0.0


def test_boxes_have_fast_rcnns_smooth_l1():
    deltas = torch.tensor([[0.0, 0.05, 1.0, -2.0], [9.0, 9.0, 9.0, 9.0]])
    beta = 1 / 9
    expected = 0.5 * 0.05**2 / beta + (1 - beta / 2) + (2 - beta / 2)
    foreground = torch.tensor([True, False])
    loss = box_loss(deltas, torch.zeros(2, 4), foreground)
    assert loss.item() == pytest.approx(expected / 4)


def _bags(n_images=3, n_instances=4, n_classes=2):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(
        n_images, n_instances, n_classes, generator=generator, dtype=torch.float64
    )
    present = torch.ones(n_images, n_instances, dtype=torch.bool)
    present[1, 2:] = False
    return logits, present


def test_the_probability_of_a_bag_is_that_of_the_papers_pooling():
    logits, present = _bags()
    for n, c in ((0, 0), (1, 1), (2, 0)):
        of_class = logits[n, present[n], c]
        sharp = (5 * of_class).exp().mean().log() / 5
        expected = {
            "max": of_class.sigmoid().max(),
            "mean": of_class.sigmoid().mean(),
            "log-sum-exp": sharp.sigmoid(),
        }
        for pooling, p in expected.items():
            log_p, log_not_p = bag_log_probs(logits, present, pooling)
            assert log_p[n, c].exp().item() == pytest.approx(p.item())
            assert log_not_p[n, c].exp().item() == pytest.approx(1 - p.item())
    with pytest.raises(ValueError, match="max, mean, log-sum-exp"):
        bag_log_probs(logits, present, "min")


def test_the_smooth_maximum_lies_between_mean_and_maximum():
    logits = torch.tensor([[[-4.0], [0.0], [5.0]]])
    p = {
        pooling: bag_log_probs(logits, torch.ones(1, 3, dtype=torch.bool), pooling)[0].exp().item()
        for pooling in ("mean", "log-sum-exp", "max")
    }
    assert p["mean"] < p["log-sum-exp"] < p["max"]


@pytest.mark.parametrize("pooling", ["max", "mean", "log-sum-exp"])
def test_a_sure_bag_has_a_finite_loss(pooling):
    logits = torch.tensor([[[200.0], [-200.0]]])
    log_p, log_not_p = bag_log_probs(logits, torch.ones(1, 2, dtype=torch.bool), pooling)
    assert torch.isfinite(mil_loss(log_p, log_not_p, torch.tensor([[0.0]])))


def test_mil_loss_is_the_sum_over_classes_of_the_cross_entropies():
    p = torch.tensor([[0.9, 0.2], [0.5, 0.5]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # the second image has no label at all
    expected = -(math.log(0.9) + math.log(0.8) + 2 * math.log(0.5)) / 2
    assert mil_loss(p.log(), (1 - p).log(), labels).item() == pytest.approx(expected)


def _pairs_by_loops(activations, images, classes, n_images, margin):
    """Eqs. 4 and 5 for each pair of images, and the mean over the pairs."""
    total = 0.0
    for i in range(n_images):
        for j in range(i + 1, n_images):
            for m in range(len(images)):
                for n in range(len(images)):
                    if (images[m], images[n]) == (i, j):
                        distance = math.dist(activations[m], activations[n])
                        same = classes[m] == classes[n]
                        total += distance if same else max(0.0, margin - distance)
    return total / (n_images * (n_images - 1) / 2)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_pair_loss_is_that_of_loops_over_images_and_labels(seed, n_images):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n_images, 4), generator=generator)
    images, classes = labels.nonzero(as_tuple=True)
    a = torch.rand(len(images), 5, generator=generator, dtype=torch.float64)
    expected = _pairs_by_loops(a.tolist(), images.tolist(), classes.tolist(), n_images, 0.8)
    assert pair_hash_loss(a, images, classes, n_images, 0.8).item() == pytest.approx(expected)


def test_pair_loss_of_a_case_by_hand():
    a = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    images, classes = torch.tensor([0, 1, 1]), torch.tensor([2, 2, 0])
    # the same class at a distance of 1; another class at 1, with a margin of 1.25
    assert pair_hash_loss(a, images, classes, 2, 1.25).item() == pytest.approx(1 + 0.25)
    assert pair_hash_loss(a[:1], images[:1], classes[:1], 1, 1.25).item() == 0.0
    assert pair_hash_loss(a[:0], images[:0], classes[:0], 3, 1.25).item() == 0.0


def test_gradients_of_the_dmih_losses_are_right():
    logits, present = _bags()
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    for pooling in ("max", "mean", "log-sum-exp"):
        assert gradcheck(
            lambda x, form=pooling: mil_loss(*bag_log_probs(x, present, form), labels),
            logits.requires_grad_(),
        )
    images, classes = labels.nonzero(as_tuple=True)
    a = torch.rand(len(images), 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: pair_hash_loss(x, images, classes, 3, 0.9), a)
    same = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)  # distance 0: no slope
    pair_hash_loss(same, torch.tensor([0, 1]), torch.tensor([0, 0]), 2, 1.0).backward()
    assert same.grad.abs().sum() == 0


def _triplets_by_loops(activations, similarity, margin, weighted):
    """Eq. 9 as IAH's Sec. V-B makes its triplets, of three different pictures."""
    terms = []
    for i, j, k in permutations(range(len(activations)), 3):
        if similarity[i][j] > similarity[i][k]:
            near = (activations[i] - activations[j]).square().sum().item()
            far = (activations[i] - activations[k]).square().sum().item()
            weight = 2 ** similarity[i][j] - 2 ** similarity[i][k] if weighted else 1
            terms.append(weight * max(0, margin - far + near))
    return sum(terms) / max(len(terms), 1)


def _category_triplets_by_loops(activations, labels, margin):
    """Eq. 7 of each category, and the mean over the categories with triplets."""
    means = []
    for c in range(labels.shape[1]):
        terms = []
        for i, j, k in permutations(range(len(labels)), 3):
            if labels[i, c] and labels[j, c] and not labels[k, c]:
                near = (activations[i, c] - activations[j, c]).square().sum().item()
                far = (activations[i, c] - activations[k, c]).square().sum().item()
                terms.append(max(0, margin - far + near))
        if terms:
            means.append(sum(terms) / len(terms))
    return sum(means) / max(len(means), 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.booleans())
@settings(max_examples=30, deadline=None)
def test_triplet_losses_are_those_of_loops_over_all_triplets(seed, n_images, weighted):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n_images, 3), generator=generator).double()
    similarity = labels @ labels.T
    a = torch.randn(n_images, 4, generator=generator, dtype=torch.float64)
    expected = _triplets_by_loops(a, similarity.tolist(), 1.5, weighted)
    found = triplet_loss(a, similarity, margin=1.5, weighted=weighted)
    assert found.item() == pytest.approx(expected)
    f = torch.randn(n_images, 3, 2, generator=generator, dtype=torch.float64)
    expected = _category_triplets_by_loops(f, labels, 0.5)
    assert category_triplet_loss(f, labels, margin=0.5).item() == pytest.approx(expected)


def test_the_weight_of_a_triplet_grows_with_the_labels_shared():
    a = torch.tensor([[0.0], [1.0], [2.0]])
    shared = torch.tensor([[3.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    # (0, 1, 2): weight 4 - 1, hinge 1 - 4 + 1 < 0;  (1, 0, 2): weight 3, hinge 1 - 1 + 1
    assert triplet_loss(a, shared).item() == pytest.approx(3 / 2)
    assert triplet_loss(a, shared, weighted=False).item() == pytest.approx(1 / 2)


def test_gradients_of_the_triplet_losses():
    torch.manual_seed(0)
    labels = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    a = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: triplet_loss(x, labels @ labels.T), a)
    f = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: category_triplet_loss(x, labels), f)


@pytest.mark.parametrize(
    "labels", [[[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]] * 3, [[0.0, 0.0]] * 3]
)
def test_batches_without_a_triplet_have_no_loss_but_a_gradient(labels):
    """One picture; a category of one picture; one that all have; none at all."""
    labels = torch.tensor(labels)
    f = torch.randn(len(labels), 2, 4, requires_grad=True)
    loss = category_triplet_loss(f, labels) + triplet_loss(f[:, 0], labels @ labels.T)
    loss.backward()
    assert loss.item() == 0 and not f.grad.any()
