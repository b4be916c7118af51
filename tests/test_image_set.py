import numpy as np
import pytest

from regionhash.data.image_set import ImageSet
from regionhash.structures import Target


def image_set(**changes):
    """Three pictures: a dog and a difficult cat; nothing; a cat known without a box."""
    objects = Target(
        np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32),
        np.array([1, 0]),
        np.array([False, True]),
    )
    fields = {
        "name": "pets",
        "classes": ("cat", "dog"),
        "ids": ("a", "b", "c"),
        "images": [np.full((4, 4, 3), n, np.uint8) for n in range(3)],
        "targets": (objects, Target.empty(), Target.empty([0])),
    }
    return ImageSet(**(fields | changes))


def test_labels_hold_the_classes_with_an_object_that_is_not_difficult():
    assert image_set().labels().tolist() == [[0, 1], [0, 0], [1, 0]]
    assert image_set().labels(with_difficult=True).tolist() == [[1, 1], [0, 0], [1, 0]]


def test_a_subset_keeps_pictures_ids_and_targets_together_in_the_order_asked_for():
    subset = image_set().subset(np.array([2, 0]), "two")
    assert (subset.name, subset.ids) == ("two", ("c", "a"))
    assert [int(subset.images[n][0, 0, 0]) for n in range(2)] == [2, 0]
    assert subset.labels().tolist() == [[1, 0], [0, 1]]
    again = subset.subset([1])
    assert (again.name, again.ids, len(again)) == ("two", ("a",), 1)
    assert int(again.images[0][0, 0, 0]) == 0
    assert len(image_set().subset([])) == 0


def test_a_subset_reads_only_the_pictures_asked_for():
    class Counting(list):
        reads = 0

        def __getitem__(self, n):
            Counting.reads += 1
            return super().__getitem__(n)

    subset = image_set(images=Counting(image_set().images)).subset([1, 2])
    assert Counting.reads == 0
    assert int(subset.images[1][0, 0, 0]) == 2
    assert Counting.reads == 1


def test_ids_images_and_targets_must_be_equally_many():
    with pytest.raises(ValueError, match="pets: 2 ids, 3 images and 3 targets"):
        image_set(ids=("a", "b"))


def test_ids_must_be_unique():
    with pytest.raises(ValueError, match="pets: image ids must be unique"):
        image_set(ids=("a", "b", "a"))


def test_the_fingerprint_tells_the_data_and_not_its_name_or_pixels():
    same = image_set(name="other", images=[np.zeros((4, 4, 3), np.uint8)] * 3)
    assert image_set().fingerprint() == same.fingerprint()
    objects, nothing, cat = image_set().targets
    moved = Target(objects.boxes + 1, objects.labels, objects.difficult)
    easy = Target(objects.boxes, objects.labels, np.array([False, False]))
    others = [
        image_set(classes=("dog", "cat")),
        image_set(ids=("a", "b", "d")),
        image_set(targets=(moved, nothing, cat)),
        image_set(targets=(easy, nothing, cat)),
        image_set(targets=(objects, nothing, Target.empty([1]))),
        image_set().subset([1, 0, 2]),
    ]
    assert len({image_set().fingerprint(), *(other.fingerprint() for other in others)}) == 7
