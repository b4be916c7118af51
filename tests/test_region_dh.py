import numpy as np
import pytest
import torch

from conftest import TINY, build_tiny
from regionhash.codes import binarize, pack_bits
from regionhash.data import open_dataset
from regionhash.data.transforms import to_input
from regionhash.models.checkpoints import load_checkpoint
from regionhash.models.region_dh import RegionDH
from regionhash.parts.backbones import stack_images
from regionhash.parts.fusion import fuse_proposals
from regionhash.parts.losses import balance_bits, multi_label_loss, push_from_half

SIZE = 96


def _model(**changes) -> RegionDH:
    arguments = {"n_bits": 16, "n_region_bits": 24, "n_proposals": 12, "max_regions": 40}
    return build_tiny("region-dh", **TINY | arguments | {"dropout": 0.0} | changes)


def _batch(n=3):
    scenes = open_dataset(f"digits:train:{n}")
    images, targets = [], []
    for image, target in zip(scenes.images, scenes.targets, strict=True):
        tensor, frame = to_input(image, SIZE)
        image_labels = torch.zeros(10)
        image_labels[list(target.all_labels())] = 1
        targets.append(
            {
                "boxes": frame.to_input(torch.from_numpy(target.boxes)),
                "labels": torch.from_numpy(target.labels),
                "image_labels": image_labels,
            }
        )
        images.append(tensor)
    return images, targets


TERMS = {"cls1", "reg1", "cls2", "reg2", "cls3", "h1_e1", "h1_e2", "h2_e1", "h2_e2"}


def test_all_terms_of_eqs_3_to_9_are_there_by_name_and_finite():
    losses = _model().train().losses(*_batch())
    assert set(losses) == TERMS
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert set(RegionDH.ramped_terms) < TERMS


def test_every_trained_weight_receives_a_gradient():
    model = _model().train()
    sum(model.losses(*_batch()).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_the_fusion_never_sees_known_objects():
    """The image's terms are the same whatever boxes are told, as long as its labels are."""
    model = _model().train()
    images, targets = _batch()
    model.losses(images, targets)  # the scale of features has seen something from now on
    model.instance.eval()
    told = model.losses(images, targets)
    for target in targets:
        target["boxes"] = target["boxes"] * 0 + torch.tensor([3.0, 3.0, 20.0, 20.0])
    other = model.losses(images, targets)
    for name in ("cls3", "h1_e1", "h1_e2", "h2_e1", "h2_e2"):
        torch.testing.assert_close(told[name], other[name])
    assert told["cls1"] != other["cls1"]


def test_the_hashing_terms_are_the_published_sums():
    model = _model().eval()
    images, targets = _batch(2)
    features = model.frozen_features(images, targets)
    labels = torch.stack([t["image_labels"] for t in targets])
    with torch.no_grad():
        losses = model.head_losses(features, labels)
        found = model._describe(features)
        h2 = model.hash_features(features)
    of_objects = [a[o > 0] for a, o in zip(found.activations, features["objectness"], strict=True)]
    e1 = sum(push_from_half(a).sum() for a in of_objects) / 2
    e2 = sum(balance_bits(a).sum() for a in of_objects) / 2
    torch.testing.assert_close(losses["h1_e1"], 0.05 * e1)
    torch.testing.assert_close(losses["h1_e2"], 0.05 * e2)
    torch.testing.assert_close(losses["h2_e1"], 10 * push_from_half(h2).sum() / 2)
    torch.testing.assert_close(losses["h2_e2"], 10 * balance_bits(h2).sum() / 2)


def test_known_objects_stand_behind_the_proposals_without_objectness():
    model = _model().eval()
    images, targets = _batch(2)
    features = model.frozen_features(images, targets)
    alone = model.frozen_features(images)
    for n, target in enumerate(targets):
        n_proposals = int((alone["objectness"][n] > 0).sum())
        of_objects = slice(n_proposals, n_proposals + len(target["labels"]))
        assert features["region_labels"][n, of_objects].tolist() == (target["labels"] + 1).tolist()
        assert (features["objectness"][n, of_objects] == 0).all()
        assert features["present"][n].sum() == of_objects.stop
    torch.testing.assert_close(model.hash_features(features), model.hash_features(alone))


def test_a_region_is_its_object_from_half_an_iou_on_and_background_below_two_fifths():
    target = {"boxes": torch.tensor([[0.0, 0, 100, 100]]), "labels": torch.tensor([6])}
    heights = (0, 39, 41, 49, 51, 100)  # and so many hundredths of IoU
    boxes = torch.tensor([[0.0, 0, 100, height] for height in heights])
    (labels,), _ = _model()._match([boxes], [target])
    assert labels.tolist() == [0, 0, -1, -1, 7, 7]


@pytest.mark.parametrize("context", [False, True])
def test_the_image_code_is_h2_on_the_fused_regions(context):
    model = _model(normalise_fused=False, centred=False, context=context).eval()
    images, _ = _batch(2)
    features = model.frozen_features(images)
    with torch.no_grad():
        found = model._describe(features)
        probs = found.logits.softmax(2)[:, :, 1:]
        read = [fuse_proposals(features["objectness"], probs, found.activations).flatten(1)]
        if context:
            top = model.backbone.top(stack_images(images)[0])
            whole = torch.cat([top.mean((2, 3)), top.amax((2, 3))], dim=1)
            scaled = model.context.scale(whole)
            read.append(torch.relu(model.context.linear(scaled)))
        bits = binarize(torch.sigmoid(model.h2.linear(torch.cat(read, dim=1))).numpy())
    encoded = model.encode(images)
    np.testing.assert_array_equal(pack_bits(bits), np.stack([e.image_code for e in encoded]))


def test_by_default_the_layers_behind_h1_and_h2_read_2a_minus_1():
    model = _model().eval()
    with torch.no_grad():  # untrained, all classes are equally probable
        model.classify.weight.mul_(20)
    images, targets = _batch(2)
    features = model.frozen_features(images, targets)
    labels = torch.stack([target["image_labels"] for target in targets])
    with torch.no_grad():
        a = model.h1(model.instance(features["regions"]))
        probs = model.classify(2 * a - 1).softmax(2)[:, :, 1:]
        fused = fuse_proposals(features["objectness"], probs, 2 * a - 1).flatten(1)
        fused -= fused.mean(1, keepdim=True)
        fused /= (fused.square().mean(1, keepdim=True) + 1e-6).sqrt()
        read = torch.cat([fused, model.context(features["whole"])], dim=1)
        b = torch.sigmoid(model.h2.linear(read))
        logits = model.classify_image(2 * b - 1)
        torch.testing.assert_close(model.hash_features(features), b)
        losses = model.head_losses(features, labels)
    torch.testing.assert_close(losses["cls3"], multi_label_loss(logits, labels, "softmax"))
    for n, (image, target) in enumerate(zip(images, targets, strict=True)):
        encoded = model.encode([image])[0]
        np.testing.assert_allclose(encoded.class_probs, logits[n].softmax(0), atol=1e-5)
        (regions,) = model.encode_boxes([image], [target["boxes"]])
        known = probs[n, features["present"][n]][-len(target["boxes"]) :]
        np.testing.assert_allclose(regions.scores, known.amax(1), atol=1e-5)


def test_a_batch_of_one_gives_what_a_batch_of_three_gives():
    model = _model(min_score=0.0).eval()
    images, _ = _batch(3)
    together = model.encode(images)
    for image, expected in zip(images, together, strict=True):
        alone = model.encode([image])[0]
        np.testing.assert_array_equal(alone.image_code, expected.image_code)
        np.testing.assert_allclose(alone.class_probs, expected.class_probs, atol=1e-5)
        np.testing.assert_allclose(alone.regions.boxes, expected.regions.boxes, atol=1e-2)
        np.testing.assert_array_equal(alone.regions.codes, expected.regions.codes)


def test_boxes_are_inside_the_picture_and_best_first():
    model = _model(min_score=0.0).eval()
    encoded = model.encode(_batch(1)[0])[0]
    regions = encoded.regions
    assert len(regions) > 0
    assert encoded.size == (SIZE, SIZE)
    assert (regions.boxes >= 0).all() and (regions.boxes <= SIZE).all()
    assert (np.diff(regions.scores) <= 0).all()
    assert regions.codes.shape == (len(regions), 3)
    assert set(regions.labels.tolist()) <= set(range(10))


def test_a_picture_without_a_confident_region_has_none_and_still_a_code():
    model = _model(min_score=1.0).eval()
    encoded = model.encode(_batch(1)[0])[0]
    assert len(encoded.regions) == 0
    assert encoded.image_code.shape == (2,)


def test_pictures_without_any_object_can_be_trained_on():
    model = _model().train()
    images, targets = _batch(2)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "image_labels": torch.zeros(10),
    }
    for chosen in ([targets[0], empty], [empty, empty]):
        losses = model.losses(images, chosen)
        assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_code_of_a_box_is_the_code_of_the_region_with_that_box():
    """`encode_boxes` reads the layers that `encode` reads, at the box that is asked for."""
    model = _model().eval()
    images, targets = _batch(1)
    boxes = targets[0]["boxes"]
    given = model.encode_boxes(images, [boxes])[0]
    again = model.encode_boxes(images * 2, [boxes[:1], boxes])
    np.testing.assert_array_equal(given.codes, again[1].codes)
    np.testing.assert_array_equal(given.codes[:1], again[0].codes)
    shifted = model.encode_boxes(images, [boxes * 0 + torch.tensor([0.0, 0.0, 30.0, 30.0])])[0]
    assert (shifted.scores != given.scores).any()


def test_cached_features_give_the_terms_of_a_whole_step():
    model = _model().train()
    images, targets = _batch(3)
    model.losses(images, targets)
    model.instance.eval()
    whole = model.losses(images, targets)
    features = model.eval().frozen_features(images, targets)
    head = model.head_losses(features, torch.stack([t["image_labels"] for t in targets]))
    for name, value in head.items():
        torch.testing.assert_close(whole[name], value)


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "plain"},
        {"fusion": "normalised"},
        {"multi_label": "bce"},
        {"reduction": "mean"},
        {"semantic": False},
        {"latent_std": 0.005, "centred": False, "normalise_fused": False},
        {"gamma_h1": 0.0, "gamma_h2": 0.0},
        {"trained_stages": 0},
    ],
    ids=str,
)
def test_every_option_changes_the_losses_and_trains(changes):
    images, targets = _batch(2)
    torch.manual_seed(1)
    usual = _model().train().losses(images, targets)
    torch.manual_seed(1)
    model = _model(**changes).train()
    losses = model.losses(images, targets)
    sum(losses.values()).backward()
    frozen = "trained_stages" in changes
    assert all(p.grad is None for p in model.backbone.stages.parameters()) == frozen
    if not frozen:
        assert any(not torch.allclose(losses[name], usual[name], atol=1e-7) for name in losses)


@pytest.mark.slow
def test_it_overfits_four_pictures():
    # E1 at full weight from the first step saturates the bits before they carry anything, which
    # is why training brings these terms in slowly; here they are off.
    model = _model(n_hidden=128, fpn_channels=64, n_proposals=30, gamma_h1=0.0, gamma_h2=0.0)
    images, targets = _batch(4)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for _ in range(220):
        torch.manual_seed(0)
        losses = model.losses(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    wanted = torch.stack([t["image_labels"] for t in targets])
    floor = sum(np.log(n) for n in wanted.sum(1).tolist()) / 4  # entropy of the uniform labels
    assert losses["cls3"].item() - floor < 0.3
    for encoded, target in zip(model.eval().encode(images), targets, strict=True):
        assert set(target["labels"].tolist()) <= set(encoded.regions.labels.tolist())
        assert encoded.regions.labels[0] in target["labels"]


def test_unusable_arguments_are_refused_with_words():
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        _model(n_bits=12)
    with pytest.raises(ValueError, match="unknown backbone 'resnet'"):
        _model(backbone="resnet")
    with pytest.raises(ValueError, match="unexpected keyword argument 'bits'"):
        _model(bits=12)
    with pytest.raises(ValueError, match="imagenet or coco"):
        _model(init="voc")


def test_a_picture_in_which_nothing_is_proposed_has_codes_and_no_region(saved):
    model, _ = load_checkpoint(saved.folder)
    with torch.no_grad():  # sides of e^-100 of an anchor's are dropped
        model.rpn.head.bbox_pred.bias.fill_(-100)
    (encoded,) = model.encode([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    assert encoded.image_code.shape == (4,) and len(encoded.regions) == 0
    assert encoded.regions.boxes.shape == (0, 4)
