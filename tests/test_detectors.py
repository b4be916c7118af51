"""Detectors as graphs: each form of outputs, sizes, names, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper, save

import tiny_detectors
from regionhash.data.detections import detect
from regionhash.data.frames import fit_size, resize
from regionhash.detectors import (
    OnnxDetector,
    check_detector,
    is_detector,
    onnx_detector,
    read_detector,
    write_detector,
)
from regionhash.structures import Detections
from tiny_detectors import FRACTIONS, NAMES, ULTRALYTICS

IMAGE = np.random.default_rng(5).integers(0, 256, (90, 60, 3), np.uint8)
SIDES = np.array([60, 90, 60, 90], np.float32)


def found_by(path, image=IMAGE, **options):
    detector = OnnxDetector(path, **options)
    found = detector(image)
    names = [detector.classes[label] if label >= 0 else None for label in found.labels]
    return found, names


def assert_the_two(found, names, mean=0.5):
    """The first two boxes, in pixels of the picture; the third has a score of .1."""
    np.testing.assert_allclose(found.boxes, FRACTIONS[:2] * SIDES, atol=1e-3)
    np.testing.assert_allclose(found.scores, [mean, 0.9], atol=0.03)
    assert names == ["elk", "cat"]


@pytest.mark.parametrize(
    ("form", "beside"),
    [
        ("boxes", {}),
        ("batch", {}),
        ("table", {}),
        ("batches", {}),
        ("dets", {}),
        ("counted", {"format": "yxyx", "relative": True}),
    ],
)
@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 3, "h", "w"), TensorProto.FLOAT),
        (("batch", 3, 64, 96), TensorProto.FLOAT),
        ((3, "h", "w"), TensorProto.FLOAT),
        ((1, "h", "w", 3), TensorProto.UINT8),
    ],
)
def test_each_form_of_outputs_is_read(form, beside, shape, kind, tmp_path):
    mean_scale = 1 if kind == TensorProto.FLOAT else 1 / 255
    path = tiny_detectors.write_detector(
        tmp_path,
        form,
        shape=shape,
        kind=kind,
        mean_scale=mean_scale,
        beside=beside | {"names": NAMES},
    )
    found, names = found_by(path)
    assert isinstance(found, Detections)
    assert_the_two(found, names)
    assert_the_two(detect(OnnxDetector(path), IMAGE), names)


@pytest.mark.parametrize(
    ("form", "numbers"),
    [
        ("xywh", lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0)),
        ("cxcywh", lambda x0, y0, x1, y1: ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)),
    ],
)
def test_boxes_are_corners_whatever_their_format(form, numbers, tmp_path, monkeypatch):
    written = np.array([numbers(*box) for box in FRACTIONS.tolist()], np.float32)
    monkeypatch.setattr(tiny_detectors, "FRACTIONS", written)
    beside = {"format": form, "names": NAMES}
    assert_the_two(*found_by(tiny_detectors.write_detector(tmp_path, beside=beside)))


def test_an_export_of_ultralytics_says_what_it_is(tmp_path):
    path = tiny_detectors.write_detector(tmp_path, "table", metadata=ULTRALYTICS)
    detector = OnnxDetector(path)
    assert detector.classes == tuple(NAMES)
    assert detector.settings.size == (96, 96)
    assert_the_two(*found_by(path))
    segment = ULTRALYTICS | {"task": "segment"}
    path = tiny_detectors.write_detector(tmp_path, "masks", metadata=segment)
    assert_the_two(*found_by(path))
    # The file beside it counts before the metadata.
    beside = {"names": ["CAT", *NAMES[1:]], "min_score": 0.05}
    path = tiny_detectors.write_detector(tmp_path, "table", metadata=ULTRALYTICS, beside=beside)
    assert found_by(path)[1] == ["elk", "CAT", "dog"]


def test_pixels_are_scaled_as_the_file_beside_it_says(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    image[:] = 51, 102, 153  # the mean is .4 of 255

    def mean_of(**beside):
        path = tiny_detectors.write_detector(
            tmp_path, shape=(1, 3, 64, 64), beside=beside | {"min_score": 0}
        )
        return OnnxDetector(path)(image).scores[0]

    assert mean_of() == pytest.approx(0.4, abs=1e-4)
    assert mean_of(scale=1 / 510) == pytest.approx(0.2, abs=1e-4)
    assert mean_of(mean=[0.1, 0.2, 0.3]) == pytest.approx(0.2, abs=1e-4)
    assert mean_of(std=[2, 2, 2]) == pytest.approx(0.2, abs=1e-4)
    # Channels turned round: (.2 - .3), (.4 - .2), (.6 - .1) would be another mean.
    assert mean_of(mean=[0.1, 0.2, 0.3], std=[1, 1, 2]) == pytest.approx(0.15, abs=1e-4)


def test_blue_may_be_first(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 255
    pixels = np.full((1, 3, 4, 4), np.nan)

    class Session:
        def get_outputs(self):
            return []

        def run(self, names, feed):
            pixels[:] = feed["x"]
            return []

    from regionhash.detectors.layout import DetectorLayout, run_detector
    from regionhash.detectors.settings import DetectorSettings

    layout = DetectorLayout("x", "float32", batched=True, channels_last=False)
    for bgr, red in ((False, 0), (True, 2)):
        settings = DetectorSettings(bgr=bgr, mean=(0.5, 0.25, 0.125), std=(2.0, 1.0, 1.0))
        run_detector(Session(), layout, settings, image)
        assert pixels[0, red, 0, 0] == 0.25
        assert pixels[0, 1, 0, 0] == -0.25 and pixels[0, 2 - red, 0, 0] == -0.125


@pytest.mark.parametrize(
    ("shape", "beside", "size"),
    [
        ((1, 3, "h", "w"), {}, fit_size(90, 60, 640)),
        ((1, 3, "h", "w"), {"size": 96, "stride": 16}, fit_size(90, 60, 96, 16)),
        ((1, 3, "h", "w"), {"size": [64, 128]}, fit_size(90, 60, 64)),
        ((1, 3, 64, "w"), {}, (64, 64)),
        ((1, 3, 64, 128), {"size": 96}, (64, 128)),
    ],
)
def test_the_input_is_of_the_size_that_the_graph_takes(shape, beside, size, tmp_path, monkeypatch):
    detector = OnnxDetector(tiny_detectors.write_detector(tmp_path, shape=shape, beside=beside))
    given = []
    run = onnx_detector.run_detector

    def noted(session, layout, settings, pixels):
        given.append(pixels)
        return run(session, layout, settings, pixels)

    monkeypatch.setattr(onnx_detector, "run_detector", noted)
    detector(IMAGE)
    np.testing.assert_array_equal(given, [resize(IMAGE, size)])


def test_a_graph_that_finds_nothing_at_first_is_read_all_the_same(tmp_path):
    for form in ("boxes", "batch", "table", "dets"):
        path = tiny_detectors.write_detector(tmp_path, form, least=0.95, beside={"names": NAMES})
        detector = OnnxDetector(path)
        assert len(detector(IMAGE)) == 0
        found = detector(np.full((8, 8, 3), 255, np.uint8))
        assert found.scores.tolist() == [1] and detector.classes[found.labels[0]] == "elk"


def test_the_least_score_is_a_quarter_unless_it_is_said(tmp_path):
    path = tiny_detectors.write_detector(tmp_path)
    assert len(found_by(path)[0]) == 2
    assert len(found_by(path, min_score=0.05)[0]) == 3
    path = tiny_detectors.write_detector(tmp_path, beside={"min_score": 0.8})
    assert len(found_by(path)[0]) == 1
    assert len(found_by(path, min_score=0.05)[0]) == 3
    with pytest.raises(ValueError, match=r"min_score must be in \[0, 1\], got 2"):
        OnnxDetector(path, min_score=2)


def test_classes_have_the_names_that_are_given_or_their_numbers(tmp_path):
    path = tiny_detectors.write_detector(tmp_path)
    assert found_by(path)[1] == ["7", "0"]
    names = {"7": "N/A", "1": "N/A", "3": "cup"}
    path = tiny_detectors.write_detector(tmp_path, beside={"names": names, "min_score": 0})
    assert OnnxDetector(path).classes == ("N/A", "cup")
    assert found_by(path)[1] == ["N/A", None, "N/A"]


def test_weights_in_files_beside_the_graph_are_taken_in(tmp_path):
    import onnx

    whole = tiny_detectors.write_detector(tmp_path, beside={"names": NAMES})
    save(
        onnx.load(whole),
        tmp_path / "parts.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="parts.bin",
    )
    shutil.copy(f"{whole}.json", tmp_path / "parts.onnx.json")
    assert_the_two(*found_by(tmp_path / "parts.onnx"))
    write_detector(tmp_path / "..", OnnxDetector(tmp_path / "parts.onnx"))
    (tmp_path / "parts.bin").unlink()
    assert len(read_detector(tmp_path / "..")(IMAGE)) == 2


# Refusing


def refusal(path):
    with pytest.raises(ValueError, match=r"(?s).+") as error:
        OnnxDetector(path)(IMAGE)
    said = str(error.value)
    assert "\n" not in said and said.startswith(str(path)), said
    return said


def graph_of(folder, nodes, inputs, outputs):
    """Writes any graph."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.acme", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "bad.onnx")
    return folder / "bad.onnx"


PICTURE = ("x", TensorProto.FLOAT, [1, 3, 32, 32])


@pytest.mark.parametrize(
    ("nodes", "inputs", "reason"),
    [
        ([("Identity", "x")], [("x", TensorProto.FLOAT, [1, 3, 32, 32])], "gives no boxes after"),
        (
            [("Add", "x", "s")],
            [PICTURE, ("s", TensorProto.FLOAT, [1])],
            "must have one input, a picture; it has 2: x, s",
        ),
        (
            [("Identity", "x")],
            [("x", TensorProto.FLOAT, [1, 32])],
            "must be (1, 3, h, w), got (1, 32)",
        ),
        ([("Identity", "x")], [("x", TensorProto.FLOAT, [2, 3, 8, 8])], "got (2, 3, 8, 8)"),
        ([("Identity", "x")], [("x", TensorProto.FLOAT, [1, 1, 8, 8])], "got (1, 1, 8, 8)"),
        ([("Identity", "x")], [("x", TensorProto.FLOAT, [1, 3, 8, 8, 8])], "got (1, 3, 8, 8, 8)"),
        ([("Identity", "x")], [("x", TensorProto.FLOAT, [1, 3, 9000, 8])], "1 to 4096 pixels"),
        (
            [("Cast", "x")],
            [("x", TensorProto.FLOAT16, [1, 3, 8, 8])],
            "must be tensor(float) or tensor(uint8), got tensor(float16)",
        ),
    ],
)
def test_graphs_of_another_kind_are_refused(nodes, inputs, reason, tmp_path):
    made = [
        helper.make_node(
            kind, names, ["y"], **({"to": TensorProto.FLOAT} if kind == "Cast" else {})
        )
        for kind, *names in nodes
    ]
    assert reason in refusal(graph_of(tmp_path, made, inputs, ["y"]))


def test_what_cannot_be_run_is_refused(tmp_path):
    node = helper.make_node("Suppress", ["x"], ["y"], domain="com.acme")
    said = refusal(graph_of(tmp_path, [node], [PICTURE], ["y"]))
    assert "not a readable graph" in said and "Suppress" in said
    constant = helper.make_node("Constant", [], ["w"], value_floats=[1.0] * 5)
    nodes = [constant, helper.make_node("Add", ["x", "w"], ["y"])]
    free = ("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    assert "cannot be run on a picture of 640 x 640 pixels" in refusal(
        graph_of(tmp_path, nodes, [free], ["y"])
    )
    for content in (b"", b"no graph", b"\x08\x09" * 50):
        (tmp_path / "bad.onnx").write_bytes(content)
        refusal(tmp_path / "bad.onnx")
    refusal(tmp_path / "none.onnx")
    refusal(tmp_path)


def test_boxes_before_suppression_and_boxes_alone_are_refused(tmp_path, monkeypatch):
    write = tiny_detectors.write_detector
    said = refusal(write(tmp_path, "raw"))
    assert "gives no boxes after non-maximum suppression" in said and "nms=True" in said
    assert "(1, 5, 3)" in said
    assert "no output is their scores" in refusal(write(tmp_path, "one vector"))
    many = np.tile(FRACTIONS[:1], (5_001, 1))
    monkeypatch.setattr(tiny_detectors, "FRACTIONS", many)
    monkeypatch.setattr(tiny_detectors, "SCORES", (0.5,) * 5_000)
    monkeypatch.setattr(tiny_detectors, "NUMBERS", (0,) * 5_001)
    assert "gives 5,001 boxes of a picture, more than 5,000" in refusal(write(tmp_path, "table"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("SCORES", (1.5, 0.1), "scores must be in [0, 1], got 1.5"),
        ("SCORES", (float("nan"), 0.1), "has values that are no numbers"),
        ("FRACTIONS", np.full((3, 4), np.inf, np.float32), "has values that are no numbers"),
        ("FRACTIONS", FRACTIONS / 640, '"relative": true'),
    ],
)
@pytest.mark.parametrize("form", ["boxes", "table"])
def test_values_that_mean_nothing_are_refused(name, value, reason, form, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_detectors, name, value)
    assert reason in refusal(tiny_detectors.write_detector(tmp_path, form))


def test_a_class_in_parts_is_refused(tmp_path):
    beside = {"columns": ["x0", "y0", "x1", "y1", "class", "score"], "min_score": 0}
    said = refusal(tiny_detectors.write_detector(tmp_path, "table", beside=beside))
    assert "scores must be in [0, 1], got 7" in said
    beside["columns"] = ["x0", "y0", "x1", "y1", "score", "number", "class"]  # which is .5
    said = refusal(tiny_detectors.write_detector(tmp_path, "masks", beside=beside))
    assert "numbers of classes must be whole" in said


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ("[", "Expecting"),
        ("[]", "must be an object"),
        ({"nmaes": []}, "unknown field 'nmaes'; known: names, size"),
        ({"names": []}, "names must be a list of names, or an object"),
        ({"names": [1]}, "names must be texts that are not blank, got 1"),
        ({"names": [" "]}, "names must be texts"),
        ({"names": {"a": "b"}}, "names must have numbers of classes, got 'a'"),
        ({"names": {"-1": "b"}}, "names must have numbers of classes, got '-1'"),
        ({"names": {"9999999": "b"}}, "numbers must be below 1,000,000"),
        ({"size": 0}, "size must be a side or [height, width] in [1, 4096], got 0"),
        ({"size": [64]}, "size must be"),
        ({"stride": 1.5}, "stride must be a whole number in [1, 512], got 1.5"),
        ({"scale": 0}, "scale must be greater than 0"),
        ({"scale": float("nan")}, "scale must be a number, got nan"),
        ({"mean": [1, 2]}, "mean must be three numbers"),
        ({"std": [1, 0, 1]}, "std must be greater than 0"),
        ({"bgr": 1}, "bgr must be true or false, got 1"),
        ({"format": "yx"}, "format must be one of xyxy, yxyx, xywh, cxcywh, got 'yx'"),
        ({"relative": "yes"}, "relative must be true or false"),
        ({"columns": ["x0"]}, "columns must name x0, y0, x1, y1, score once each"),
        ({"min_score": 2}, "min_score must be in [0, 1], got 2"),
    ],
)
def test_a_wrong_file_beside_it_is_named_with_the_field(beside, reason, tmp_path):
    path = tiny_detectors.write_detector(tmp_path)
    text = beside if isinstance(beside, str) else json.dumps(beside)
    (tmp_path / "detector.onnx.json").write_text(text)
    said = refusal(path)
    assert said.startswith(f"{path}.json: ") and reason in said


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"task": "obb"}, "metadata: task must be detect or segment or pose, got 'obb'"),
        ({"names": "{0: "}, "metadata: names: "),
        ({"names": "(" * 5000}, "metadata: names: "),
        ({"names": "['a', 3]"}, "metadata: names must be texts that are not blank, got 3"),
        ({"imgsz": "[1, 2, 3]"}, "metadata: size must be"),
        ({"stride": "__import__('os')"}, "metadata: stride: "),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused(metadata, reason, tmp_path):
    said = refusal(tiny_detectors.write_detector(tmp_path, "table", metadata=metadata))
    assert reason in said


def test_metadata_does_not_matter_where_the_file_beside_it_speaks(tmp_path):
    path = tiny_detectors.write_detector(
        tmp_path, "table", metadata={"names": "{0: "}, beside={"names": NAMES}
    )
    assert_the_two(*found_by(path))


# Stored


def test_a_stored_detector_is_the_same_and_damage_is_named(tmp_path):
    beside = {"names": {"7": "elk", "0": "cat"}, "columns": None, "mean": [0.1, 0.1, 0.1]}
    path = tiny_detectors.write_detector(
        tmp_path, "counted", name="d.onnx", beside=beside | {"format": "yxyx", "relative": True}
    )
    made = OnnxDetector(path, min_score=0.05)
    folder = tmp_path / "stored"
    folder.mkdir()
    assert not is_detector(folder)
    write_detector(folder, made)
    assert is_detector(folder) and check_detector(folder) is None
    stored = read_detector(folder)
    assert (stored.settings, stored.layout) == (made.settings, made.layout)
    assert stored.sha256 == made.sha256
    one, other = made(IMAGE), stored(IMAGE)
    assert len(one) == 3
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))

    record = json.loads((folder / "detector.json").read_text())

    def damaged(**changes):
        (folder / "detector.json").write_text(json.dumps(record | changes))
        said = check_detector(folder)
        (folder / "detector.json").write_text(json.dumps(record))
        assert "\n" not in said and said.startswith(f"{folder / 'detector.'}")
        return said

    assert "detector format 2, this version of regionhash reads 1" in damaged(format=2)
    assert "'graph' must be" in damaged(graph=[]) or "graph must be" in damaged(graph=[])
    assert "unknown field 'x'" in damaged(settings={"x": 1})
    layout = record["layout"]
    assert "layout must have input, kind" in damaged(layout={})
    assert "layout: kind must be float32 or uint8" in damaged(layout=layout | {"kind": "int8"})
    assert "layout: batched must be bool" in damaged(layout=layout | {"batched": 1})
    assert "layout: size must be sides" in damaged(layout=layout | {"size": [0, 1]})
    assert "neither a table nor boxes" in damaged(layout=layout | {"boxes": ""})
    graph = folder / "detector.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "not the file that detector.json describes: another sha256" in check_detector(folder)
    graph.write_bytes(content + b"x")
    assert "bytes, but detector.json says" in check_detector(folder)
    graph.unlink()
    assert "No such file" in check_detector(folder)
