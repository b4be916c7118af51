import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionhash.data.image_set import ImageSet
from regionhash.data.splits import split_off
from regionhash.structures import Target


def image_set(image_labels, n_classes=3):
    n = len(image_labels)
    return ImageSet(
        name="some",
        classes=tuple(map(str, range(n_classes))),
        ids=tuple(f"{i:04d}" for i in range(n)),
        images=[np.zeros((1, 1, 3), np.uint8)] * n,
        targets=tuple(Target.empty(labels) for labels in image_labels),
    )


@given(
    st.lists(st.sets(st.integers(0, 2)), min_size=2, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_the_parts_are_disjoint_ordered_and_of_the_sizes_asked_for(labels, fraction, seed):
    n_held = round(fraction * len(labels))
    whole = image_set(labels)
    if not 0 < n_held < len(labels):
        with pytest.raises(ValueError, match="both must be positive"):
            split_off(whole, fraction, seed=seed)
        return
    rest, held = split_off(whole, fraction, seed=seed)
    assert len(held) == n_held
    assert sorted(rest.ids + held.ids) == list(whole.ids)
    assert list(held.ids) == sorted(held.ids)
    assert list(rest.ids) == sorted(rest.ids)


@pytest.mark.parametrize("seed", range(5))
def test_each_stratum_gives_its_share(seed):
    labels = [{0}] * 500 + [{0, 1}] * 100 + [{0, 1, 2}] * 20 + [set()] * 40
    _, held = split_off(image_set(labels), 0.2, seed=seed)
    assert len(held) == 132
    counts = [target.image_labels for target in held.targets]
    for kind, expected in [((0,), 100), ((0, 1), 20), ((0, 1, 2), 4), ((), 8)]:
        assert abs(counts.count(kind) - expected) <= 1


def test_the_seed_decides_which_pictures_are_held_out():
    whole = image_set([{0}] * 50)
    held = [split_off(whole, 0.2, seed=seed)[1].ids for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_a_set_without_classes_is_split():
    rest, held = split_off(image_set([()] * 10, n_classes=0), 0.3, seed=0)
    assert (len(rest), len(held)) == (7, 3)


def test_pictures_keep_their_targets():
    labels = [{n % 3} for n in range(30)]
    for part in split_off(image_set(labels), 0.5, seed=0):
        for image_id, target in zip(part.ids, part.targets, strict=True):
            assert set(target.image_labels) == labels[int(image_id)]
