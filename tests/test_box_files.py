"""What gives the boxes of a collection: a detector that it keeps, files, and both."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest

import tiny_detectors
from cli_runner import error_of, run
from conftest import write_picture
from killing import killed_in
from plain import run_plain
from regionhash.collection import Collection, adding, open_codes
from regionhash.collection.database import Database
from regionhash.collection.indexing import IndexSettings, build_index
from regionhash.data.images import read_image
from regionhash.detectors import OnnxDetector, write_detector
from regionhash.models.checkpoints import load_checkpoint, read_checkpoint
from regionhash.models.encoding import encode_boxes
from regionhash.service import create_app
from tiny_detectors import FRACTIONS, NAMES, ULTRALYTICS
from tiny_encoders import write_encoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

TINY = ("--bits", 64, "--short", 96, "--workers", 0)


def record_of(*words):
    return json.loads(run(*words, "--json").stdout)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """An encoder and a detector of 96 x 96 pixels."""
    folder = tmp_path_factory.mktemp("graphs")
    detector = tiny_detectors.write_detector(
        folder, "table", shape=(1, 3, 96, 96), metadata=ULTRALYTICS
    )
    return f"onnx:{write_encoder(folder)}", detector


@pytest.fixture(scope="module")
def made(graphs, photos, tmp_path_factory):
    """The collection of two photos, of what the detector finds."""
    folder = tmp_path_factory.mktemp("made")
    pictures = folder / "pictures"
    pictures.mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(photos / name, pictures)
    encoder, detector = graphs
    proposals = ("--proposals", f"onnx:{detector}")
    run("index", pictures, "-o", folder / "c", "--encoder", encoder, *proposals, *TINY)
    return folder / "c"


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copied")


def regions_of(folder, name):
    with Collection.open(folder) as opened:
        (image_id,) = [x.id for x in opened.images() if x.id.endswith(name)]
        found = opened.encoded(image_id)
        return found, [
            opened.classes[label] if label >= 0 else "" for label in found.regions.labels
        ]


def assert_detected(found, names, image):
    """The regions are the whole picture and the two boxes that the detector finds, best first."""
    height, width = image.shape[:2]
    sides = np.array([width, height] * 2)
    mean = image.mean() / 255
    wanted = [(1, "", np.array([0, 0, 1, 1])), (0.9, "cat", FRACTIONS[1])]
    if mean >= 0.25:
        wanted.append((mean, "elk", FRACTIONS[0]))
    wanted[1:] = sorted(wanted[1:], key=lambda x: -x[0])
    assert names == [name for _, name, _ in wanted]
    np.testing.assert_allclose(found.regions.scores, [x[0] for x in wanted], atol=0.01)
    np.testing.assert_allclose(found.regions.boxes, [x[2] * sides for x in wanted], atol=0.01)


def bright(folder, name="bright.png", level=200):
    """A picture whose mean is high enough for both boxes."""
    folder.mkdir(exist_ok=True)
    pixels = np.full((80, 120, 3), level, np.uint8)
    pixels[:20] = np.random.default_rng(level).integers(0, 256, (20, 120, 3))
    write_picture(folder / name, pixels)
    return folder / name


# A detector in the collection


def test_the_regions_are_what_the_detector_finds(made, graphs, photos):
    for name in ("0.png", "1.png"):
        assert_detected(*regions_of(made, name), read_image(photos / name))
    assert open_codes(made).table.classes == tuple(NAMES)
    assert (made / "detector.onnx").read_bytes() == graphs[1].read_bytes()
    record = json.loads((made / "detector.json").read_text())
    assert list(record) == ["format", "graph", "settings", "layout"]
    checkpoint = read_checkpoint(made)
    assert checkpoint.provenance["detector"] == {
        "file": str(graphs[1]),
        "sha256": record["graph"]["sha256"],
    }
    assert checkpoint.arguments["proposals"] == "boxes"
    assert record_of("check", made)["problems"] == []


def test_boxes_are_no_part_of_the_models_hash(made, graphs, tmp_path):
    found = tmp_path / "found.json"
    rows = []
    for name in ("0.png", "1.png"):
        detected, names = regions_of(made, name)
        for box, label, score in zip(
            detected.regions.boxes[1:].tolist(), names[1:], detected.regions.scores[1:].tolist(),
            strict=True,
        ):  # fmt: skip
            sides = [box[2] - box[0], box[3] - box[1]]
            row = {"bbox": [*box[:2], *sides], "category_name": label, "score": score}
            rows.append(row | {"file_name": name})
    found.write_text(json.dumps(rows))
    run("index", made.parent / "pictures", "-o", tmp_path / "c", "--encoder", graphs[0],
        "--proposals", f"boxes:{found}", *TINY)  # fmt: skip
    with Collection.open(made) as one, Collection.open(tmp_path / "c") as other:
        arrays = [x.model[0].arrays() for x in (one, other)]
        assert arrays[0].keys() == arrays[1].keys()
        for name in arrays[0]:
            np.testing.assert_allclose(arrays[0][name], arrays[1][name], atol=1e-4)


def test_new_and_changed_pictures_are_looked_at_by_the_stored_detector(copied, tmp_path):
    folder = tmp_path / "more"
    path = bright(folder)
    assert record_of("add", copied, folder, "--workers", 0)["encoded"] == 1
    assert_detected(*regions_of(copied, "bright.png"), read_image(path))
    bright(folder, level=220)
    bright(folder, "other.png", level=240)
    reports = record_of("refresh", copied, "--workers", 0)["added"]
    assert sum(report["encoded"] for report in reports) == 2
    for name in ("bright.png", "other.png"):
        found, names = regions_of(copied, name)
        assert len(names) == 3
        assert_detected(found, names, read_image(folder / name))


def test_everything_works_where_torch_and_onnx_cannot_be_imported(graphs, photos, tmp_path):
    path = bright(tmp_path / "more")
    code = """
        import json
        from pathlib import Path
        from fastapi.testclient import TestClient
        from regionhash.cli import app
        from regionhash.service import create_app
        def run(*words):
            app([str(word) for word in words], standalone_mode=False)
        small = ("--bits", "64", "--short", "96")
        run("index", photos + "/0.png", "-o", out, "--encoder", encoder, "--proposals",
            f"onnx:{detector}+windows", "--min-box-score", "0.05", *small)
        run("add", out, photos, "--json")
        run("refresh", out)
        run("search", out, "--query", bright, "--mode", "objects", "--json")
        run("check", out)
        served = create_app(Path(out), token="secret")
        with TestClient(served, base_url="http://localhost") as client:
            content = Path(bright).read_bytes()
            login = {"Authorization": "Bearer secret"}
            sent = client.post("/api/uploads", files={"file": content}, headers=login).json()
            print("upload", json.dumps(sent))
            sent = client.post("/api/images", files={"file": content}, headers=login)
            print("status", sent.status_code)
    """
    encoder, detector = graphs
    out = tmp_path / "c"
    printed = run_plain(
        code, photos=photos, encoder=encoder, detector=detector, out=out, bright=path
    )
    assert '"encoded": 5' in printed and "6 pictures, 0 problems" in printed
    assert "status 201" in printed
    table = open_codes(out).compact().table
    for n in range(7):
        labels = table.regions(n).labels.tolist()
        assert labels.count(0) == labels.count(1) == 1 and labels.count(-1) > 10


def test_a_query_and_an_upload_have_what_the_detector_finds(copied, tmp_path):
    path = bright(tmp_path / "more")
    with Collection.open(copied) as opened:
        found = opened.search(path, mode="objects")
    assert [len(hit.matches) for hit in found.hits] == [2, 2]  # cat and elk
    login = {"Authorization": "Bearer secret"}
    with TestClient(create_app(copied, token="secret"), base_url="http://localhost") as client:
        files = {"file": ("bright.png", path.read_bytes())}
        sent = client.post("/api/uploads", files=files, headers=login).json()
        assert len(sent["regions"]) == 3
        added = client.post("/api/images", files=files, headers=login)
        assert added.status_code == 201, added.text
    found, names = regions_of(copied, "bright.png")
    assert_detected(found, names, read_image(path))


def test_a_file_of_boxes_counts_before_the_detector(copied, tmp_path):
    folder = tmp_path / "more"
    for name, level in (("a.png", 200), ("b.png", 210)):
        bright(folder, name, level)
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps([{"file_name": "a.png", "bbox": [5, 6, 20, 30], "label": "cow"}]))
    result = run("add", copied, folder, "--boxes", file, "--workers", 0)
    assert "without" not in result.stderr
    found, names = regions_of(copied, "a.png")
    assert names == ["", "cow"]
    np.testing.assert_allclose(found.regions.boxes[1], [5, 6, 25, 36], atol=0.01)
    assert regions_of(copied, "b.png")[1] == ["", "cat", "elk"]


def test_the_model_of_a_collection_brings_its_detector_along(copied, photos, tmp_path):
    run("index", photos / "2.png", "-o", tmp_path / "two", "--model", copied, "--workers", 0)
    assert_detected(*regions_of(tmp_path / "two", "2.png"), read_image(photos / "2.png"))
    run("export", copied, "-o", tmp_path / "codes.h5")
    run("import", tmp_path / "three", tmp_path / "codes.h5")
    run("add", tmp_path / "three", photos / "2.png", "--workers", 0)
    assert_detected(*regions_of(tmp_path / "three", "2.png"), read_image(photos / "2.png"))


def test_given_again_the_same_detector_resumes_and_another_is_refused(
    copied, graphs, photos, tmp_path
):
    pictures = copied.parent / "pictures"
    shutil.copytree(photos, pictures)
    words = ("index", pictures, "-o", copied)
    assert record_of(*words, "--proposals", f"onnx:{graphs[1]}", *TINY)["encoded"] == 4
    other = tiny_detectors.write_detector(tmp_path, "boxes")
    said = error_of(*words, "--proposals", f"onnx:{other}")
    assert said == f"{copied}: is an index without the detector {other}; give another folder"
    said = error_of(*words, "--proposals", f"onnx:{graphs[1]}", "--min-box-score", 0.5)
    assert "is an index with min_box_score 0.25, got 0.5; give another folder" in said
    said = error_of(*words, "--proposals", f"onnx:{graphs[1]}+windows")
    assert "is an index with proposals boxes, got boxes+windows" in said


def test_a_damaged_or_foreign_detector_is_named_and_index_restores_it(copied, graphs, tmp_path):
    folder = tmp_path / "more"
    bright(folder)
    graph = copied / "detector.onnx"
    content = graph.read_bytes()

    def refused(reason):
        said = error_of("add", copied, folder, "--workers", 0)
        assert said.startswith(f"{copied / 'detector'}") and reason in said
        assert "\n" not in said
        problems = record_of_failed("check", copied)["problems"]
        assert len(problems) == 1 and reason in problems[0]
        assert "`regionhash index` with the same detector restores it" in problems[0]
        assert said in problems[0]
        assert said in error_of("serve", copied, "--port", 0)

    def record_of_failed(*words):
        return json.loads(run(*words, "--json", code=1).stdout)

    graph.write_bytes(content[:-3] + b"abc")
    refused("not the file that detector.json describes")
    graph.unlink()
    refused("No such file")
    (copied / "detector.json").unlink()
    refused("No such file")
    other = tmp_path / "other"
    other.mkdir()
    write_detector(copied, OnnxDetector(tiny_detectors.write_detector(other, "boxes")))
    refused("not the detector that the collection was made with")
    result = run("index", folder, "-o", copied, "--proposals", f"onnx:{graphs[1]}", *TINY)
    assert "restored from" in result.stderr
    assert graph.read_bytes() == content
    assert_detected(*regions_of(copied, "bright.png"), read_image(folder / "bright.png"))
    assert record_of("check", copied)["problems"] == []


def test_a_detector_works_with_a_network_of_torch_too(graphs, photos, tmp_path):
    network = ("--backbone", "tiny_fpn", "--weights", "none", "--bits", 64, "--short", 64)
    proposals = ("--proposals", f"onnx:{graphs[1]}")
    run("index", photos, "-o", tmp_path / "c", *network, *proposals, "--workers", 2)
    assert load_checkpoint(tmp_path / "c")[0].takes_boxes
    for n in range(6):
        assert_detected(*regions_of(tmp_path / "c", f"{n}.png"), read_image(photos / f"{n}.png"))


def test_in_python_a_detector_is_a_function_with_names(graphs, photos, tmp_path):
    detector = OnnxDetector(graphs[1], min_score=0.95)
    settings = IndexSettings({"n_bits": 64}, short=96, boxes=detector, encoder=graphs[0])
    build_index([str(photos)], tmp_path / "c", settings, workers=0)
    assert np.diff(open_codes(tmp_path / "c").table.offsets).tolist() == [1] * 6
    other = tiny_detectors.write_detector(tmp_path, beside={"names": ["dog"] * 8})
    bright(tmp_path / "more")
    with Collection.open(tmp_path / "c") as opened:
        assert opened.detector.settings.min_score == 0.95
        # Labels of another detector are matched by name.
        opened.add([str(tmp_path / "more")], boxes=OnnxDetector(other), workers=0)
    assert regions_of(tmp_path / "c", "bright.png")[1] == ["", "dog", "dog"]


def test_a_graph_that_is_none_is_refused_before_anything_is_made(photos, tmp_path):
    said = error_of("index", photos, "-o", tmp_path / "c", "--proposals", "onnx:no.onnx")
    assert said.startswith("no.onnx: ") and not (tmp_path / "c").exists()
    said = error_of("index", photos, "-o", tmp_path / "c", "--min-box-score", 0.5)
    assert said == "min_box_score needs the proposals onnx:FILE"


# Newer boxes


def written_boxes(path, *names, box=(5, 6, 20, 30), label="cow"):
    rows = [{"file_name": name, "bbox": box, "label": label, "score": 0.5} for name in names]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def boxed(graphs, photos, tmp_path):
    """A collection of the six photos with a box in the first four, and its pictures."""
    pictures = shutil.copytree(photos, tmp_path / "pictures")
    file = written_boxes(tmp_path / "old.json", *(f"{n}.png" for n in range(4)))
    run("index", pictures, "-o", tmp_path / "boxed", "--encoder", graphs[0],
        "--proposals", f"boxes:{file}", *TINY)  # fmt: skip
    return tmp_path / "boxed", pictures


def rows_and_boxes(folder):
    """Row and boxes, without the whole picture, of each picture."""
    with Collection.open(folder) as opened:
        return {
            image.id: (image.row, opened.encoded(image.id).regions.boxes[1:].round().tolist())
            for image in opened.images()
        }


OLD, NEW = [5, 6, 25, 36], [10, 10, 50, 60]


def test_newer_boxes_renew_the_pictures_that_the_file_has_and_no_others(boxed, tmp_path):
    folder, pictures = boxed
    before = rows_and_boxes(folder)
    assert [boxes for _, boxes in before.values()] == [[OLD]] * 4 + [[]] * 2
    newer = written_boxes(tmp_path / "new.json", "1.png", "4.png", "x.png", box=(10, 10, 40, 50))
    words = ("add", folder, pictures, "--boxes", newer, "--workers", 0)
    assert record_of(*words)["encoded"] == 0  # without being told to
    assert rows_and_boxes(folder) == before
    result = run(*words, "--renew-boxes")
    assert "2 encoded" in result.stdout and "2 of the encoded have newer boxes" in result.stdout
    assert result.stderr.count("x.png") == 1
    after = rows_and_boxes(folder)
    assert after.keys() == before.keys()
    for name, (row, boxes) in after.items():
        if name in ("1.png", "4.png"):
            assert row > 6 and boxes == [NEW]
        else:
            assert (row, boxes) == before[name]
    # The same boxes again change no row, and neither does a refresh.
    record = record_of(*words, "--renew-boxes")
    assert (record["encoded"], record["renewed"], record["stored_before"]) == (2, 2, 4)
    assert rows_and_boxes(folder) == after
    run("refresh", folder, "--workers", 0)
    assert rows_and_boxes(folder) == after
    assert record_of("check", folder)["problems"] == []
    with Collection.open(folder) as opened:
        model, checkpoint = opened.model
        found = opened.encoded("1.png").regions
        wanted = encode_boxes(model, checkpoint, read_image(pictures / "1.png"), found.boxes.copy())
    np.testing.assert_array_equal(found.codes, wanted.codes)


def test_removed_moved_and_unreadable_pictures_are_renewed_as_they_can_be(boxed, tmp_path):
    folder, pictures = boxed
    run("remove", folder, "0.png")
    (pictures / "1.png").rename(pictures / "moved.png")
    state = (pictures / "2.png").stat()  # broken, but not seen to have changed
    (pictures / "2.png").write_bytes(bytes(state.st_size))
    os.utime(pictures / "2.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    (pictures / "deeper").mkdir()
    shutil.copy(pictures / "3.png", pictures / "deeper/copy.png")
    names = ("0.png", "moved.png", "2.png", "deeper/copy.png")
    newer = written_boxes(tmp_path / "new.json", *names, box=(10, 10, 40, 50))
    words = ("add", folder, pictures, "--boxes", newer, "--renew-boxes", "--workers", 0)
    record = record_of(*words)
    assert (record["renewed"], record["moved"], record["copied"]) == (2, 1, 1)
    assert list(record["skipped"]) == ["2.png"]
    found = {name: boxes for name, (_, boxes) in rows_and_boxes(folder).items()}
    assert "0.png" not in found
    assert found["2.png"] == found["3.png"] == [OLD]
    assert found["deeper/copy.png"] == [NEW]
    assert list(found.values()).count([NEW]) == 2


def test_renewing_that_is_killed_is_finished_by_the_same_command(boxed, tmp_path, monkeypatch):
    folder, pictures = boxed
    before = rows_and_boxes(folder)
    newer = written_boxes(
        tmp_path / "new.json", *(f"{n}.png" for n in range(6)), box=(10, 10, 40, 50)
    )
    monkeypatch.setattr(adding, "_COMMIT_IMAGES", 2)
    words = ("add", folder, pictures, "--boxes", newer, "--renew-boxes", "--workers", 0)
    killed_in(Database, "store", lambda: run(*words))
    between = rows_and_boxes(folder)
    assert between.keys() == before.keys()
    renewed = [name for name in between if between[name] != before[name]]
    assert renewed == ["0.png", "1.png"]
    assert all(between[name][1] == [NEW] for name in renewed)
    assert record_of("check", folder)["problems"] == []
    assert record_of(*words)["renewed"] == 6
    after = rows_and_boxes(folder)
    assert [boxes for _, boxes in after.values()] == [[NEW]] * 6
    assert {name: after[name] for name in renewed} == {name: between[name] for name in renewed}
    assert len(after) == 6


def test_a_function_renews_all_pictures_that_are_given(boxed):
    folder, pictures = boxed
    with Collection.open(folder) as opened:
        inputs = [str(pictures / "4.png"), str(pictures / "5.png")]
        report = opened.add(inputs, boxes=lambda _: [[10, 10, 50, 60]], renew_boxes=True, workers=0)
        assert report.renewed == 2
    found = [boxes for _, boxes in rows_and_boxes(folder).values()]
    assert found == [[OLD]] * 4 + [[NEW]] * 2


def test_newer_boxes_must_be_given(boxed):
    folder, pictures = boxed
    said = error_of("add", folder, pictures, "--renew-boxes")
    assert said == "renew_boxes needs boxes: a file of them, or a function"
