"""Measures of code files, on codes whose measures are known."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from regionhash.data import open_dataset
from regionhash.evaluation import HammingMatrix, SharedLabels, ranking_curves
from regionhash.evaluation.code_files import detections_of_file, labelled_codes, write_curves
from regionhash.store import CodeFile, CodeFileWriter
from regionhash.structures import EncodedImage, Regions, Target

SCENES = open_dataset("digits:test:4")


def write(path, *, model_hash="a", image_codes=True, labels=True, rows=range(4)):
    """A code file whose regions are the objects themselves, with the classes turned round."""
    with CodeFileWriter(
        path,
        model_hash=model_hash,
        model_name="perfect",
        classes=SCENES.classes[::-1],
        n_bits=8,
        n_region_bits=8,
    ) as writer:
        for row in rows:
            target = SCENES.targets[row]
            n = len(target.boxes)
            regions = Regions(
                target.boxes,
                np.ones(n, np.float32),
                9 - target.labels,
                np.zeros((n, 1), np.uint8),
            )
            code = np.array([row], np.uint8) if image_codes else None
            encoded = EncodedImage((160, 160), image_code=code, regions=regions)
            known = [9 - label for label in target.all_labels()]
            writer.add(SCENES.ids[row], encoded, known if labels else None)
        writer.finish()
    return CodeFile.open(path)


def test_the_objects_themselves_are_perfect_detections_whatever_the_order_of_classes(tmp_path):
    measured, missing = detections_of_file(write(tmp_path / "a.h5"), SCENES)
    assert measured["map"] == 1
    assert missing == ()


def test_a_picture_that_the_file_lacks_has_no_detections(tmp_path):
    measured, missing = detections_of_file(write(tmp_path / "a.h5", rows=[0, 2]), SCENES)
    assert missing == (SCENES.ids[1], SCENES.ids[3])
    n_objects, n_found = np.zeros(10), np.zeros(10)
    for row, target in enumerate(SCENES.targets):
        np.add.at(n_objects, 9 - target.labels, 1)
        np.add.at(n_found, 9 - target.labels, row in (0, 2))
    present = n_objects > 0
    np.testing.assert_allclose(
        measured["per_class"][present], n_found[present] / n_objects[present]
    )


def test_a_set_without_boxes_or_pictures_in_common_is_refused(tmp_path):
    file = write(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="digits:test: has no boxes"):
        detections_of_file(file, replace(SCENES, targets=(Target.empty([1]),) * 4))
    with pytest.raises(ValueError, match="holds no picture of digits:train"):
        detections_of_file(file, open_dataset("digits:train:2"))


def test_codes_and_labels_come_in_the_order_of_the_measures(tmp_path):
    codes = labelled_codes(write(tmp_path / "q.h5", rows=[1]), write(tmp_path / "d.h5"))
    assert codes.query_codes.tolist() == [[1]]
    assert codes.database_codes.tolist() == [[0], [1], [2], [3]]
    np.testing.assert_array_equal(codes.query_labels, SCENES.labels()[1:2, ::-1])
    np.testing.assert_array_equal(codes.database_labels, SCENES.labels()[:, ::-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_hash": "b"}, "codes of different models, a and b"),
        ({"image_codes": False}, "b.h5: has no codes of whole pictures"),
        ({"labels": False}, "b.h5: has no labels; encode a labelled data set"),
    ],
)
def test_files_that_cannot_be_ranked_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        labelled_codes(write(tmp_path / "a.h5"), write(tmp_path / "b.h5", **changes))


def test_queries_that_share_no_label_with_the_database_are_refused(tmp_path):
    labels = [set(target.all_labels()) for target in SCENES.targets]
    pairs = [(a, b) for a in range(4) for b in range(4) if not labels[a] & labels[b]]
    assert pairs
    for a, b in pairs:
        files = [write(tmp_path / f"{a}{b}{row}.h5", rows=[row]) for row in (a, b)]
        with pytest.raises(ValueError, match="no query shares a label with a picture of the dat"):
            labelled_codes(*files)


def test_a_set_whose_every_object_is_difficult_has_nothing_to_detect(tmp_path):
    targets = tuple(
        replace(target, difficult=np.ones(len(target.boxes), bool)) for target in SCENES.targets
    )
    with pytest.raises(ValueError, match="digits:test: has no boxes"):
        detections_of_file(write(tmp_path / "a.h5"), replace(SCENES, targets=targets))


def test_curves_are_written_as_a_table(tmp_path):
    codes = labelled_codes(*[write(tmp_path / "a.h5")] * 2)
    curves = ranking_curves(HammingMatrix(*codes[:2]), SharedLabels(*codes[2:]))
    write_curves(tmp_path / "new" / "curves", "perfect", curves)
    with (tmp_path / "new" / "curves" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["k"]) for row in rows] == curves.ks.tolist()
    assert [float(row["recall"]) for row in rows] == curves.recall.tolist()


def test_curves_are_replaced_whole_or_not_at_all(tmp_path):
    codes = labelled_codes(*[write(tmp_path / "a.h5")] * 2)
    curves = ranking_curves(HammingMatrix(*codes[:2]), SharedLabels(*codes[2:]))
    write_curves(tmp_path / "curves", "perfect", curves)
    before = {path.name: path.read_bytes() for path in (tmp_path / "curves").iterdir()}
    with pytest.raises(ValueError, match="shorter"):
        write_curves(tmp_path / "curves", "perfect", replace(curves, acg=curves.acg[:1]))
    assert {path.name: path.read_bytes() for path in (tmp_path / "curves").iterdir()} == before
