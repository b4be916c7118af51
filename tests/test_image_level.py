import numpy as np
import pytest
import torch

from conftest import build_tiny, noise
from regionhash.models import MODELS
from regionhash.models.parameters import types_of
from regionhash.parts.backbones import stack_images
from regionhash.parts.losses import (
    balance_bits,
    category_triplet_loss,
    multi_label_loss,
    push_from_half,
    triplet_loss,
)

ARGUMENTS = {"n_bits": 16, "n_classes": 4}


def _model(name="ssdh", **changes):
    return build_tiny(name, **ARGUMENTS | {"dropout": 0.0} | changes)


def _targets(n):
    labels = torch.eye(4)[torch.arange(n) % 4]
    return [{"image_labels": row} for row in labels]


@pytest.mark.parametrize(
    ("name", "terms"),
    [("dlbhc", {"cls3"}), ("ssdh", {"cls3", "e1", "e2"}), ("control", {"cls3", "e1", "e2"})],
)
def test_each_method_has_its_terms(name, terms):
    losses = _model(name).train().losses(noise((64, 64), (64, 96)), _targets(2))
    assert set(losses) == terms


def test_ssdh_terms_are_the_published_formulas():
    model = _model().eval()
    images, targets = noise((64, 64), (64, 64)), _targets(2)
    a = model.hash_features(model.frozen_features(images))
    losses = model.losses(images, targets)
    torch.testing.assert_close(losses["e1"], push_from_half(a).mean())
    torch.testing.assert_close(losses["e2"], balance_bits(a).mean())
    logits = model.classify_image(2 * a - 1)
    labels = torch.stack([t["image_labels"] for t in targets])
    torch.testing.assert_close(losses["cls3"], multi_label_loss(logits, labels, "softmax"))


def test_the_control_trains_no_backbone_and_the_others_do():
    for name, frozen in (("control", True), ("ssdh", False), ("dlbhc", False)):
        model = _model(name).train()
        sum(model.losses(noise((64, 64), (64, 64)), _targets(2)).values()).backward()
        assert all(p.grad is None for p in model.backbone.parameters()) == frozen
        assert all(p.grad is not None for p in model.head_parameters())


def test_features_are_average_and_maximum_over_the_picture_without_padding():
    model = _model().eval()
    small, large = noise((64, 64), (96, 128))
    alone = model.frozen_features([small])["pooled"][0]
    top = model.backbone.top(small[None].float() / 255)[0]
    torch.testing.assert_close(alone, torch.cat([top.mean((1, 2)), top.amax((1, 2))]))
    padded = model.frozen_features([small, large])["pooled"][0]
    cells = model.backbone.top(stack_images([small, large])[0])[0][:, :4, :4]  # stride 16
    torch.testing.assert_close(padded, torch.cat([cells.mean((1, 2)), cells.amax((1, 2))]))


def test_the_one_region_is_the_whole_picture():
    model = _model().eval()
    encoded = model.encode(noise((64, 96)))[0]
    assert encoded.regions.boxes.tolist() == [[0, 0, 96, 64]]
    np.testing.assert_array_equal(encoded.regions.codes[0], encoded.image_code)
    assert encoded.class_probs.sum() == pytest.approx(1)


def test_the_code_of_a_box_depends_on_the_box():
    model = _model().eval()
    model.scale.var.fill_(1e-3)  # spreads the activations of an untrained network
    boxes = [torch.tensor([[0.0, 0.0, 32.0, 32.0], [32.0, 32.0, 64.0, 64.0]]), torch.zeros(0, 4)]
    first, second = model.encode_boxes(noise((64, 64), (64, 64)), boxes)
    assert first.codes.shape == (2, 2) and second.codes.shape == (0, 2)
    assert (first.codes[0] != first.codes[1]).any()


def test_a_batch_of_one_gives_what_a_batch_of_three_gives():
    model = _model().eval()
    images = noise(*[(64, 96)] * 3)
    for image, expected in zip(images, model.encode(images), strict=True):
        np.testing.assert_array_equal(model.encode([image])[0].image_code, expected.image_code)


@pytest.mark.parametrize("name", ["one-stage", "dsrh"])
def test_triplet_hashes_have_the_weighted_triplet_loss_of_their_activations(name):
    model = _model(name).eval()
    images, targets = noise(*[(64, 64)] * 4), _targets(4)
    targets[1]["image_labels"] = targets[0]["image_labels"]
    labels = torch.stack([t["image_labels"] for t in targets])
    losses = model.losses(images, targets)
    a = model.hash_features(model.frozen_features(images)) - 0.5
    torch.testing.assert_close(losses["triplet"], triplet_loss(a / 4, labels @ labels.T))
    assert set(losses) == ({"triplet"} if name == "one-stage" else {"triplet", "balance"})
    if name == "dsrh":  # half the squared length of the mean, for each bit, times 0.1
        balance = sum(bit.mean().item() ** 2 for bit in a.T) / 16 / 2
        assert losses["balance"].item() == pytest.approx(0.1 * balance)
    encoded = model.encode(images)
    expected = np.packbits((a >= 0).numpy(), axis=1)
    np.testing.assert_array_equal([image.image_code for image in encoded], expected)
    assert encoded[0].regions.boxes.tolist() == [[0, 0, 64, 64]]


def test_each_bit_of_one_stage_reads_its_own_slice():
    model = _model("one-stage", n_hidden_per_bit=5)
    hidden = torch.zeros(1, 80, requires_grad=True)
    model.encode_bits(hidden[:, :, None])[0, 3].backward()
    assert hidden.grad[0].nonzero().flatten().tolist() == [15, 16, 17, 18, 19]


def test_the_category_baseline_has_a_code_of_every_category():
    model = _model("category-baseline", n_bits=4).eval()
    images, targets = noise(*[(64, 64)] * 4), _targets(4)
    a = model.category_features(model.frozen_features(images))
    assert a.shape == (4, 4, 4)
    labels = torch.stack([t["image_labels"] for t in targets])
    losses = model.losses(images, targets)
    torch.testing.assert_close(losses["category"], category_triplet_loss(a / 2, labels))
    (encoded,) = model.encode(images[:1])
    assert encoded.image_code is None and encoded.categories.probs.tolist() == [1] * 4
    bits = np.unpackbits(encoded.categories.codes, axis=1)
    np.testing.assert_array_equal(bits[:, :4], (a[0] >= 0).numpy())
    assert not bits[:, 4:].any()
    with pytest.raises(ValueError, match="categories of whole pictures alone"):
        model.encode_boxes(images, [])


def test_bad_numbers_of_bits_are_refused():
    for name, n_bits in (("one-stage", 12), ("dsrh", 0), ("category-baseline", 0)):
        with pytest.raises(ValueError, match="the number of bits must be"):
            _model(name, n_bits=n_bits)


@pytest.mark.parametrize("name", ["ssdh", "one-stage"])
def test_the_frame_of_a_large_picture_is_all_of_it(name):
    small, large = _model(name).eval().encode(noise((64, 96), (288, 320)))
    assert small.regions.boxes.tolist() == [[0, 0, 96, 64]]
    assert large.regions.boxes.tolist() == [[0, 0, 320, 288]]


def test_what_an_older_model_could_not_be_given_is_no_argument():
    shared = {"n_bits", "n_classes", "backbone", "weights", "trained_stages", "centred"}
    shared |= {"multi_label", "dropout"}
    assert set(types_of(MODELS["ssdh"])) == set(types_of(MODELS["dlbhc"])) == shared
    assert set(types_of(MODELS["control"])) == shared - {"trained_stages"} | {"n_hidden"}
