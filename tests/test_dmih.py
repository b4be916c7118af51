import numpy as np
import pytest
import torch

from conftest import TINY_BACKBONE, build_tiny, noise
from regionhash.data import open_dataset
from regionhash.data.image_set import ImageSet
from regionhash.parts.losses import bag_log_probs, mil_loss
from regionhash.parts.multiscale import window_boxes
from regionhash.structures import Target
from regionhash.training import TrainingConfig, cache_features, train

ARGUMENTS = TINY_BACKBONE | {
    "n_bits": 16,
    "n_classes": 4,
    "n_channels": 8,
    "n_features": 12,
    "dropout": 0.0,
}
QUICK = {"epochs": 1, "batch_size": 4, "short": 64, "workers": 0, "flip": False}


def _model(**changes):
    model = build_tiny("dmih", **ARGUMENTS | changes).eval()
    with torch.no_grad():  # spread, so that proposals of untrained weights differ
        model.mil.weight.mul_(30)
        model.hash.linear.weight.mul_(30)
    return model


def _labels(n):
    labels = torch.eye(4)[torch.arange(n) % 4]
    labels[0, 1] = 1
    return labels


def test_the_losses_are_those_of_the_most_probable_proposals():
    model, labels = _model(), _labels(3)
    images = noise((64, 96), (64, 96), (96, 64))
    losses = model.losses(images, [{"image_labels": row} for row in labels])
    bags = model.describe(model._base(images))
    expected = mil_loss(*bag_log_probs(bags.logits, bags.present, "max"), labels)
    torch.testing.assert_close(losses["mil"], expected)
    objects = [
        (n, c, model.hash(bags.x[n, present][bags.logits[n, present, c].argmax()]))
        for n, present in enumerate(bags.present)
        for c in labels[n].nonzero()[:, 0].tolist()
    ]
    total = 0.0
    for n, c, a in objects:
        for m, other, b in objects:
            if n < m:
                d = (a - b).norm()
                total += d if c == other else (1.25 - d).clamp(min=0)
    torch.testing.assert_close(losses["pair"], total / 3, atol=1e-5, rtol=1e-5)


def test_a_picture_without_a_label_is_a_negative_bag_and_in_no_pair():
    model = _model()
    images = noise((64, 64), (64, 64))
    losses = model.losses(images, [{"image_labels": torch.zeros(4)}] * 2)
    assert losses["pair"].item() == 0
    bags = model.describe(model._base(images))
    _, log_not_p = bag_log_probs(bags.logits, bags.present, "max")
    torch.testing.assert_close(losses["mil"], -log_not_p.sum(1).mean())


class _Guarded(Target):
    """A target whose boxes must not be read."""

    def __getattribute__(self, name):
        if name == "boxes":
            raise AssertionError("the boxes were read")
        return super().__getattribute__(name)


def _guarded(n):
    """Scenes of digits in whose targets nobody may look for boxes."""
    scenes = open_dataset(f"digits:train:{n}")
    targets = []
    for target in scenes.targets:
        guarded = object.__new__(_Guarded)
        for name in ("boxes", "labels", "difficult", "image_labels"):
            object.__setattr__(guarded, name, getattr(target, name))
        targets.append(guarded)
    return ImageSet(scenes.name, scenes.classes, scenes.ids, scenes.images, tuple(targets))


def test_training_never_reads_a_box(tmp_path):
    guarded = _guarded(6)
    with pytest.raises(AssertionError, match="the boxes were read"):
        guarded.fingerprint()
    arguments = {k: v for k, v in ARGUMENTS.items() if k != "n_classes"}
    config = TrainingConfig(**QUICK)
    train("dmih", arguments, guarded, tmp_path / "fresh", config)
    cached = TrainingConfig(**QUICK | {"held_out": 0.0, "cached_views": 2})
    cache_features(_model(n_classes=10), guarded, cached, 2)


def test_a_crop_is_never_made_since_boxes_alone_would_tell_what_it_cuts_off():
    (target,) = open_dataset("digits:train:1").without_boxes().targets
    assert not len(target.boxes) and not len(target.labels) and target.image_labels


def test_only_the_layers_of_a_part_are_trained():
    images, targets = noise((64, 64), (64, 64)), [{"image_labels": row} for row in _labels(2)]
    terms = {"joint": {"mil", "pair"}, "mil": {"mil"}, "hash": {"pair"}}
    for part, names in terms.items():
        model = _model(part=part, margin=50.0).train()
        losses = model.losses(images, targets)
        assert set(losses) == names
        sum(losses.values()).backward()
        trained = {id(weight) for weight in model.head_parameters()}
        for name, weight in model.named_parameters():
            if name != "maps.windows.0.weight" and not name.startswith("maps"):
                assert (weight.grad is not None) == (id(weight) in trained), (part, name)
            elif id(weight) not in trained:
                assert weight.grad is None


def test_the_hash_bag_holds_the_proposals_above_theta_best_first():
    model = _model(theta=0.95)
    (image,) = noise((64, 96))
    regions = model.encode([image])[0].regions
    bags = model.describe(model._base([image]))
    scores = bags.logits[0].sigmoid().max(1).values
    assert 1 < (scores > 0.95).sum() < len(scores)
    assert len(regions) == (scores > 0.95).sum()
    np.testing.assert_allclose(regions.scores, np.sort(regions.scores)[::-1])
    best = int(scores.argmax())
    pixels = window_boxes(4, 6, 3) * 16
    assert regions.boxes[0].tolist() == pixels[best].tolist()
    assert regions.labels[0] == bags.logits[0, best].argmax()


def test_a_picture_with_nothing_above_theta_keeps_its_best_proposal():
    model = _model(theta=1.0)
    regions = model.encode(noise((64, 96)))[0].regions
    every = _model(theta=0.0).encode(noise((64, 96)))[0].regions
    assert len(regions) == 1 and len(every) == 24 + 6 + 2
    assert regions.boxes[0].tolist() == every.boxes[0].tolist()


def test_proposals_that_overlap_are_merged_where_that_is_asked_for():
    (image,) = noise((64, 96))
    every = _model(theta=0.0).encode([image])[0].regions
    merged = _model(theta=0.0, merge=0.3).encode([image])[0].regions
    assert 1 < len(merged) < len(every)
    assert merged.scores[0] == every.scores[0]


def test_what_the_model_does_not_give_is_none():
    encoded = _model().encode(noise((64, 64)))[0]
    assert encoded.image_code is None and encoded.categories is None
    assert encoded.class_probs.shape == (4,)
    assert _model().n_bits == 0 and _model().n_region_bits == 16


def test_a_box_stands_for_the_proposal_that_fits_it():
    model = _model()
    boxes = [torch.tensor([[0.0, 0.0, 24.0, 24.0], [40.0, 30.0, 96.0, 64.0]]), torch.zeros(0, 4)]
    first, second = model.encode_boxes(noise((64, 96), (64, 96)), boxes)
    assert first.codes.shape == (2, 2) and second.codes.shape == (0, 2)
    assert (first.codes[0] != first.codes[1]).any()
    windows = window_boxes(4, 6, 3) * 16
    centres = (windows[:, :2] + windows[:, 2:]) / 2
    logits = torch.zeros(len(windows), 4)
    logits[9, 2], logits[20, 1] = 1, 9
    around = torch.cat([centres[9] - 10, centres[9] + 10])[None]
    assert not ((centres[20] > around[0, :2]) & (centres[20] < around[0, 2:])).all()
    assert model.match_boxes(around, windows, logits).tolist() == [9]  # 20 is outside
    everything = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    assert model.match_boxes(everything, windows, logits).tolist() == [20]
    corner = torch.tensor([[0.0, 0.0, 2.0, 2.0]])  # of no centre
    best = int(
        (((windows[:, 2:] - windows[:, :2]).prod(1)) + 1e6 * (windows[:, :2] > 0).any(1)).argmin()
    )
    assert model.match_boxes(corner, windows, logits).tolist() == [best]
    assert model.match_boxes(windows[:0], windows, logits).shape == (0,)


def test_a_batch_of_one_gives_what_a_batch_of_three_gives():
    model = _model()
    images = noise(*[(64, 96)] * 3)
    for image, expected in zip(images, model.encode(images), strict=True):
        alone = model.encode([image])[0]
        np.testing.assert_array_equal(alone.regions.boxes, expected.regions.boxes)
        np.testing.assert_array_equal(alone.regions.codes, expected.regions.codes)
        np.testing.assert_allclose(alone.class_probs, expected.class_probs, rtol=1e-4)


def test_it_learns_the_labels_of_four_pictures():
    model = build_tiny("dmih", **ARGUMENTS | {"n_channels": 32, "n_features": 32}).train()
    images = noise(*[(64, 64)] * 4)
    features, labels = model.frozen_features(images), _labels(4)
    optimizer = torch.optim.Adam(model.head_parameters(), lr=1e-2)
    for _ in range(60):
        losses = model.head_losses(features, labels)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["mil"].item() < 0.05
    probs = np.stack([encoded.class_probs for encoded in model.eval().encode(images)])
    np.testing.assert_array_equal(probs > 0.5, labels.numpy() == 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "both"}, "part must be one of joint, mil, hash"),
        ({"pooling": "min"}, "pooling must be one of max, mean, log-sum-exp"),
        ({"theta": 1.5}, r"theta must be in \[0, 1\], got 1.5"),
        ({"merge": -1.0}, r"merge must be in \[0, 1\]"),
        ({"n_bits": 12}, "multiple of 8"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_tiny("dmih", **ARGUMENTS | changes)
