"""The records refuse what does not fit together, and need no torch."""

import subprocess
import sys

import numpy as np
import pytest

from regionhash.structures import (
    CategoryCodes,
    CodeTable,
    EncodedImage,
    Regions,
    Target,
)


def regions(n=2, n_bytes=8):
    return Regions(
        boxes=np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        scores=np.linspace(1, 0, n, dtype=np.float32),
        labels=np.arange(n, dtype=np.int64),
        codes=np.zeros((n, n_bytes), np.uint8),
    )


def table(**changes):
    """Three pictures with two, no and one region."""
    own = regions(3)
    fields = {
        "ids": ["a", "b", "c"],
        "sizes": np.ones((3, 2), np.int32),
        "offsets": np.array([0, 2, 2, 3]),
        "boxes": own.boxes,
        "scores": own.scores,
        "labels": own.labels,
        "region_codes": own.codes,
    }
    return CodeTable(**(fields | changes))


def test_what_needs_no_model_imports_no_torch():
    names = "structures codes classical store search reranking evaluation collection"
    code = (
        "import importlib, sys\n"
        f"for name in {names.split()}:\n"
        "    importlib.import_module(f'regionhash.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_of_a_picture_are_sorted_and_leave_out_difficult_objects():
    target = Target(
        boxes=np.zeros((3, 4), np.float32),
        labels=np.array([7, 3, 5]),
        difficult=np.array([False, True, False]),
        image_labels=(1, 7),
    )
    assert target.all_labels() == (1, 5, 7)
    assert target.all_labels(with_difficult=True) == (1, 3, 5, 7)
    assert Target.empty([4]).all_labels() == (4,)


def test_boxes_of_another_shape_or_type_are_refused():
    empty = Target.empty()
    with pytest.raises(ValueError, match=r"boxes must be \(\*, 4\), got \(4,\)"):
        Target(np.zeros(4, np.float32), empty.labels, empty.difficult)
    with pytest.raises(ValueError, match="boxes must be float32, got float64"):
        Target(np.zeros((0, 4)), empty.labels, empty.difficult)
    with pytest.raises(ValueError, match=r"labels must be \(0\), got \(1,\)"):
        Target(empty.boxes, np.zeros(1, np.int64), empty.difficult)


def test_regions_and_categories_must_have_one_row_each():
    good = regions(2)
    with pytest.raises(ValueError, match=r"scores must be \(2\), got \(1,\)"):
        Regions(good.boxes, good.scores[:1], good.labels, good.codes)
    with pytest.raises(ValueError, match="codes must be uint8, got bool"):
        Regions(good.boxes, good.scores, good.labels, good.codes.astype(bool))
    with pytest.raises(ValueError, match=r"probs must be \(2\), got \(1,\)"):
        CategoryCodes(good.labels, good.scores[:1], good.codes)
    assert len(good) == 2
    assert len(regions(0)) == 0


def test_an_image_code_is_flat_and_packed():
    with pytest.raises(ValueError, match=r"image_code must be \(\*\), got \(1, 8\)"):
        EncodedImage((10, 20), image_code=np.zeros((1, 8), np.uint8))
    with pytest.raises(ValueError, match="class_probs must be float32, got float64"):
        EncodedImage((10, 20), class_probs=np.zeros(3))


def test_a_table_gives_the_regions_of_each_picture():
    codes = table()
    assert len(codes) == 3
    assert [codes.regions(n).labels.tolist() for n in range(3)] == [[0, 1], [], [2]]
    assert codes.regions(2).boxes.tolist() == [[8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a"]}, r"sizes must be \(1, 2\), got \(3, 2\)"),
        ({"image_codes": np.zeros((2, 8), np.uint8)}, r"image_codes must be \(3, \*\)"),
        ({"image_codes": np.zeros((3, 8), bool)}, "image_codes must be uint8, got bool"),
        ({"offsets": None}, "boxes needs offsets"),
        ({"scores": None}, "offsets needs scores"),
        ({"offsets": np.array([0, 3])}, r"offsets must be \(4\)"),
        ({"offsets": np.array([0, 2, 1, 3])}, "offsets must start at 0 and never fall"),
        ({"offsets": np.array([1, 2, 2, 3])}, "offsets must start at 0 and never fall"),
        ({"offsets": np.array([0, 2, 2, 4])}, "boxes must have 4 rows, got 3"),
        ({"category_offsets": np.zeros(4, np.int64)}, "category_offsets needs categories"),
    ],
)
def test_a_table_whose_parts_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_a_table_without_regions_says_so():
    with pytest.raises(ValueError, match="these codes have no regions"):
        CodeTable(ids=["a"], sizes=np.ones((1, 2), np.int32)).regions(0)
