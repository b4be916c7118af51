import numpy as np
import pytest
import torch

from conftest import build_tiny, noise
from regionhash.codes import unpack_bits
from regionhash.parts.losses import category_triplet_loss, multi_label_loss, triplet_loss
from regionhash.training import copy_weights

ARGUMENTS = {
    "n_bits": 16,
    "n_classes": 4,
    "fpn_channels": 16,
    "n_proposals": 8,
    "n_category_bits": 12,
    "dropout": 0.0,
}


def _model(**changes):
    return build_tiny("iah", **ARGUMENTS | changes)


def _targets(n):
    labels = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]])
    return [{"image_labels": labels[i % 4]} for i in range(n)]


def test_the_model_is_equations_1_to_6_spelled_out():
    """One picture, two proposals, all in loops over regions and categories."""
    model = _model(bounded=False).eval()
    features = model.frozen_features(noise((64, 96)))
    features = {
        name: x[:, :2] if name in ("boxes", "present") else x for name, x in features.items()
    }
    regions = model.pooled_features(features)["regions"][0]  # (2, 960)
    assert regions.shape == (2, 960)
    m = [model.label(d) for d in regions]
    probs = [row.exp() / row.exp().sum() for row in m]  # eq. 5
    h = [model.describe(d) for d in regions]
    f = [sum(p[c] * h_n for p, h_n in zip(probs, h, strict=True)) / 2 for c in range(4)]  # eq. 6
    largest = torch.stack(m).amax(0)  # eq. 1
    expected = model.semantic(torch.cat(f))
    torch.testing.assert_close(model.hash_features(features)[0], expected + 0.5)
    p, slices = model.category_features(features)
    torch.testing.assert_close(p[0], largest.softmax(0))  # eq. 2
    torch.testing.assert_close(slices[0], torch.stack(f))


def test_the_terms_are_the_published_formulas_on_the_model_s_activations():
    model = _model(bounded=False).eval()
    images, targets = noise(*[(64, 64)] * 4), _targets(4)
    labels = torch.stack([t["image_labels"] for t in targets])
    losses = model.losses(images, targets)
    features = model._read(images)
    p, f = model.category_features(features)
    s = model.hash_features(features) - 0.5
    torch.testing.assert_close(losses["semantic"], triplet_loss(s, labels @ labels.T))
    torch.testing.assert_close(losses["category"], category_triplet_loss(f, labels))
    expected = multi_label_loss(p.log(), labels, "softmax")  # log p is m but for a constant
    torch.testing.assert_close(losses["cls3"], expected)


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, {"cls3", "semantic", "category"}),
        ({"category_weight": 0.0}, {"cls3", "semantic"}),
        ({"semantic_weight": 0.0}, {"cls3", "category"}),
    ],
)
def test_a_weight_of_zero_leaves_a_triplet_loss_out(changes, terms):
    model = _model(**changes).train()
    assert set(model.losses(noise((64, 64)), _targets(1))) == terms


def test_training_fits_the_labels_and_leaves_the_proposals_alone():
    model = _model().train()
    images, targets = noise(*[(64, 64)] * 4), _targets(4)
    features = model.frozen_features(images)
    labels = torch.stack([t["image_labels"] for t in targets])
    rpn = [p.clone() for p in model.rpn.parameters()]
    optimizer = torch.optim.AdamW(model.head_parameters(), 1e-2)
    first = None
    for _ in range(60):
        loss = sum(model.head_losses(features, labels).values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * first
    assert not model.rpn.training
    for before, after in zip(rpn, model.rpn.parameters(), strict=True):
        assert torch.equal(before, after) and not after.requires_grad


def test_pooled_features_give_what_the_map_gives():
    model = _model().eval()
    features = model.frozen_features(noise((64, 96), (96, 64)))
    pooled = model.pooled_features(features)
    assert "cells" not in pooled
    torch.testing.assert_close(model.hash_features(pooled), model.hash_features(features))
    assert model.pooled_features(pooled) is pooled


def test_a_picture_without_proposals_has_the_whole_picture():
    model = _model().eval()
    model.rpn._post_nms_top_n = {"training": 0, "testing": 0}
    features = model.frozen_features(noise((64, 96)))
    assert features["boxes"].tolist() == [[[0, 0, 1, 1]]]
    (encoded,) = model.encode(noise((64, 96)))
    assert np.unique(encoded.regions.boxes, axis=0).tolist() == [[0, 0, 96, 64]]


def test_categories_are_those_above_the_threshold_and_their_regions_are_kept():
    images = noise((64, 96), (64, 96))
    model = _model(threshold=0.1, max_regions=3).eval()
    for encoded in model.encode(images):
        kept = np.flatnonzero(encoded.class_probs >= 0.1)
        np.testing.assert_array_equal(encoded.categories.categories, kept)
        np.testing.assert_array_equal(encoded.categories.probs, encoded.class_probs[kept])
        assert encoded.categories.codes.shape == (len(kept), 2)
        assert not unpack_bits(encoded.categories.codes)[:, 12:].any()  # bits beyond 12
        counts = np.bincount(encoded.regions.labels, minlength=4)
        assert set(counts[kept].tolist()) == {3} and counts.sum() == 3 * len(kept)
        assert (np.diff(encoded.regions.scores) <= 0).all()  # best first
    (nothing, _) = _model(threshold=1.0).eval().encode(images)
    assert len(nothing.categories.categories) == 0 and len(nothing.regions) == 1


def test_softmax_lets_five_categories_pass_at_most_and_sigmoids_any_number():
    softmax = _model(n_classes=12, threshold=0.2).eval()
    sigmoid = _model(n_classes=12, threshold=0.2, multi_label="bce").eval()
    for model in (softmax, sigmoid):
        torch.nn.init.zeros_(model.label.weight)
        torch.nn.init.zeros_(model.label.bias)  # all classes alike: 1/12 or 1/2
    assert len(softmax.encode(noise((64, 64)))[0].categories.categories) == 0
    assert len(sigmoid.encode(noise((64, 64)))[0].categories.categories) == 12


def test_a_batch_of_one_gives_what_a_batch_of_three_gives():
    model = _model(threshold=0.0).eval()
    images = noise(*[(64, 96)] * 3)
    for image, expected in zip(images, model.encode(images), strict=True):
        (alone,) = model.encode([image])
        np.testing.assert_array_equal(alone.image_code, expected.image_code)
        np.testing.assert_array_equal(alone.categories.codes, expected.categories.codes)


def test_boxes_have_codes_of_their_class():
    model = _model().eval()
    boxes = [torch.tensor([[0.0, 0.0, 40.0, 40.0], [20.0, 10.0, 64.0, 60.0]]), torch.zeros(0, 4)]
    first, second = model.encode_boxes(noise((64, 64), (64, 64)), boxes)
    assert first.codes.shape == (2, 2) and second.codes.shape == (0, 2)
    assert (first.scores > 0.25 - 1e-6).all()  # the largest of four
    (none,) = model.encode_boxes(noise((64, 64)), boxes[1:])
    assert len(none) == 0


def test_a_detector_gives_its_backbone_and_rpn():
    arguments = {k: v for k, v in ARGUMENTS.items() if k not in ("n_category_bits", "dropout")}
    detector = build_tiny("region-dh", **arguments, n_hidden=32, trained_stages=0)
    model = _model()
    left = copy_weights(model, detector)
    assert not any(name.startswith(("backbone.", "rpn.")) for name in left)
    for weight, theirs in zip(model.rpn.parameters(), detector.rpn.parameters(), strict=True):
        assert torch.equal(weight, theirs)


def test_a_longer_code_takes_over_what_is_not_of_the_hash():
    left = copy_weights(_model(n_bits=32), _model())
    assert set(left) == {
        "semantic.weight",
        "semantic.bias",
        "sign_image.gain",
        "sign_image.offset",
        "sign_image.scale.mean",
        "sign_image.scale.var",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_bits": 12}, "positive multiple of 8, got 12"),
        ({"n_category_bits": 0}, "n_category_bits must be at least 1"),
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\]"),
        ({"proposals": "gop"}, "selective-search, rpn, got 'gop'"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _model(**changes)
