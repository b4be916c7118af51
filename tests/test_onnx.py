"""Models as graphs: made by `regionhash.models.graphs`, run by `regionhash.models.onnx`."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_runner import run
from conftest import TINY_BACKBONE, build_tiny, save_tiny
from plain import run_plain
from regionhash.collection import Collection
from regionhash.data import open_dataset
from regionhash.data.frames import to_pixels
from regionhash.data.images import read_image
from regionhash.models import ENCODED_REGIONS, MODELS, NAMES, graphs, runtime
from regionhash.models.checkpoints import (
    BOXES_GRAPH,
    ENCODE_GRAPH,
    GRAPH_FILES,
    Checkpoint,
    CheckpointError,
    copy_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from regionhash.models.drh import fit_drh
from regionhash.models.encoding import encode_boxes, encode_picture
from regionhash.models.graphs import ConversionError, convert
from regionhash.models.onnx import Graphs, OnnxRuntime, OnnxSession
from regionhash.models.openvino import OpenVinoSession
from regionhash.models.runtime import TorchRuntime, load_runtime, runtime_of
from regionhash.precision import bf16_of_cpu
from regionhash.sessions import n_threads
from regionhash.structures import Detections
from tiny_encoders import write_encoder

DATA = Path(os.environ.get("REGIONHASH_DATA", "../shared/data"))
CLASSES = tuple("0123456789")
SCENES = list(open_dataset("digits:test:12").images)
ENGINES = ("onnx", "openvino")


def saved_as(folder, name, *, classes=CLASSES, short=96, **arguments):
    """A checkpoint of an untrained model whose codes differ from picture to picture."""
    arguments = TINY_BACKBONE | arguments
    model = build_tiny(name, **arguments)
    with torch.no_grad():
        for part in ("h1", "h2", "latent", "encode_bits", "hash"):
            for weight in getattr(model, part, torch.nn.Identity()).parameters():
                weight.mul_(20)
    save_checkpoint(folder, model.eval(), Checkpoint(name, arguments, classes, short=short))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """An SSDH with its graphs, not to be changed, and what the command said that made them."""
    made = saved_as(tmp_path_factory.mktemp("ssdh"), "ssdh", n_bits=32, n_classes=10)
    return made, json.loads(run("convert", made, "--json").stdout)


@pytest.fixture(scope="module")
def folder(converted):
    """An SSDH with its graphs, not to be changed."""
    return converted[0]


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of it to change."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def differing(first, second):
    """Bits in which packed codes differ, and bits of the first."""
    return int(np.unpackbits(first ^ second).sum()), 8 * first.size


def compare(folder, images, engine="onnx"):
    """Bits that differ between the runtimes, and all bits; asserts that the rest is equal."""
    ours, checkpoint = load_runtime(folder, runtime="torch")
    graph, _ = load_runtime(folder, runtime=engine)
    assert isinstance(graph, OnnxRuntime) and isinstance(ours, TorchRuntime)
    for name in ("n_bits", "n_region_bits", "shared_code_space"):
        assert getattr(ours, name) == getattr(graph, name)
    different = total = n_regions = n_pairs = 0

    def count(first, second):
        nonlocal different, total
        wrong, n_bits = differing(first, second)
        different, total = different + wrong, total + n_bits

    for image in images:
        wanted, found = (encode_picture(x, checkpoint, image) for x in (ours, graph))
        assert wanted.size == found.size
        if wanted.image_code is not None:
            count(wanted.image_code, found.image_code)
        if wanted.class_probs is not None:
            np.testing.assert_allclose(found.class_probs, wanted.class_probs, atol=1e-3)
        if wanted.categories is not None:
            np.testing.assert_array_equal(found.categories.categories, wanted.categories.categories)
            count(wanted.categories.codes, found.categories.codes)
        if wanted.regions is not None:
            pairs = paired(wanted.regions, found.regions)
            n_regions, n_pairs = n_regions + len(wanted.regions), n_pairs + len(pairs)
            for first, second in pairs:
                count(wanted.regions.codes[first], found.regions.codes[second])
        if graph.n_region_bits:
            h, w = image.shape[:2]
            boxes = np.array([[0, 0, w, h], [3, 5, w / 2, h / 2], [w / 3, 9, w, h]], np.float32)
            pair = [encode_boxes(x, checkpoint, image, boxes) for x in (ours, graph)]
            np.testing.assert_array_equal(pair[0].boxes, pair[1].boxes)
            np.testing.assert_array_equal(pair[0].labels, pair[1].labels)
            np.testing.assert_allclose(pair[0].scores, pair[1].scores, atol=1e-3)
            count(pair[0].codes, pair[1].codes)
            none = encode_boxes(graph, checkpoint, image, np.zeros((0, 4), np.float32))
            assert none.codes.shape == (0, graph.n_region_bits // 8) and not len(none.boxes)
    assert n_pairs >= 0.9 * n_regions
    return different, total


def paired(wanted, found):
    """Rows of the same region in both; ties may change places, and at the cut they may be missing.

    A score of float32 that is a hair above a threshold, or above the next one, is below it in
    another runtime.
    """
    n_both = min(len(wanted), len(found))
    np.testing.assert_allclose(found.scores[:n_both], wanted.scores[:n_both], atol=1e-4)
    cut = min(part.scores.min(initial=1) for part in (wanted, found)) + 1e-4
    assert (wanted.scores[n_both:] < cut).all() and (found.scores[n_both:] < cut).all()
    pairs = []
    for row, (box, label) in enumerate(zip(wanted.boxes, wanted.labels, strict=True)):
        near = np.abs(found.boxes - box).max(axis=1) < 0.5
        rows = np.flatnonzero(near & (found.labels == label))
        tied = (np.abs(wanted.scores - wanted.scores[row]) < 1e-4).sum() > 1
        assert len(rows) or tied or wanted.scores[row] < cut
        pairs += [(row, int(rows[0]))] if len(rows) else []
    return pairs


def test_every_model_has_a_name_that_needs_no_torch():
    assert list(NAMES) == [*MODELS, ENCODED_REGIONS]


@pytest.mark.parametrize("engine", ENGINES)
def test_graphs_give_the_codes_of_their_model(folder, engine):
    different, total = compare(folder, SCENES[:4], engine)
    assert total == 4 * 5 * 32 and different <= total / 1000 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("region-dh", {"n_bits": 32, "n_classes": 10, "n_proposals": 24, "n_hidden": 32}),
        (
            "region-dh",
            {
                "n_bits": 32,
                "n_classes": 10,
                "n_proposals": 24,
                "n_hidden": 32,
                "semantic": False,
                "context": False,
                "normalise_fused": False,
                "centred": False,
                "multi_label": "bce",
                "fusion": "normalised",
            },
        ),
        ("drh", {"n_bits": 64}),
        ("drh", {"n_bits": 64, "proposals": "rpn", "n_proposals": 30}),
        ("drh", {"n_bits": 64, "proposals": "rpn", "n_proposals": 60, "max_iou": 0.4}),
        ("drh", {"n_bits": 64, "proposals": "pyramid", "n_proposals": 40, "max_iou": 0.7}),
        ("dlbhc", {"n_bits": 16, "n_classes": 10, "multi_label": "bce"}),
        ("control", {"n_bits": 16, "n_classes": 10, "n_hidden": 16}),
        ("one-stage", {"n_bits": 16, "n_classes": 10, "n_hidden_per_bit": 4}),
        ("dsrh", {"n_bits": 16, "n_classes": 10}),
        ("category-baseline", {"n_bits": 12, "n_classes": 10}),
        ("iah", {"n_bits": 32, "n_classes": 10, "n_category_bits": 12, "threshold": 0.1}),
        ("iah", {"n_bits": 32, "n_classes": 10, "multi_label": "bce", "threshold": 0.99}),
        ("dmih", {"n_bits": 32, "n_classes": 10, "theta": 0.02}),
        ("dmih", {"n_bits": 32, "n_classes": 10, "theta": 0.02, "merge": 0.3}),
    ],
)
def test_graphs_of_every_family_give_the_codes_of_their_model(tmp_path, name, arguments):
    saved_as(tmp_path, name, classes=() if name == "drh" else CLASSES, **arguments)
    convert(tmp_path)
    for engine in ENGINES:
        different, total = compare(tmp_path, SCENES, engine)
        assert total and different <= total / 1000 + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boxes", "boxes+windows", "boxes+pyramid"])
def test_given_boxes_and_windows_are_the_same_regions_in_graphs(tmp_path, kind):
    saved_as(tmp_path, "drh", classes=(), n_bits=64, proposals=kind, n_proposals=30, max_iou=0.8)
    convert(tmp_path)
    boxes = np.array([[3.5, 5, 60, 40], [10, 20, 18, 28]], np.float32)
    given = Detections(boxes, np.array([0.2, 0.9], np.float32), np.array([1, 0], np.int64))
    pixels, _ = to_pixels(SCENES[0], 96)
    different = total = 0
    for found in (given, Detections.none(), None):
        (wanted,), (other,) = (
            load_runtime(tmp_path, runtime=name)[0].encode(
                [pixels], None if found is None else [found]
            )
            for name in ("torch", "onnx")
        )
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_allclose(
                getattr(other.regions, name), getattr(wanted.regions, name), atol=1e-4
            )
        wrong, n_bits = differing(wanted.regions.codes, other.regions.codes)
        different, total = different + wrong, total + n_bits
    assert total and different <= total / 1000 + 1


@pytest.mark.slow
@pytest.mark.data
def test_the_codes_of_photographs_are_equal(tmp_path):
    files = sorted((DATA / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[:2400:8]
    weights = DATA.parent / "weights/mobilenet_v2-torchvision.pth"
    if len(files) < 300 or not weights.exists():
        pytest.skip(f"no photographs below {DATA}")
    arguments = {"n_bits": 256, "backbone": "mobilenet_v2_fpn", "weights": str(weights)}
    model = build_tiny("drh", **arguments).eval()
    images = [read_image(file) for file in files]
    runtime = TorchRuntime(model)
    pixels = [torch.from_numpy(runtime.prepare(image, 256)[0]) for image in images[:40]]
    fit_drh(model, torch.cat([model.region_features([x])[0].features for x in pixels]))
    bare = Checkpoint("drh", arguments | {"weights": "none"}, (), short=256)
    save_checkpoint(tmp_path, model, bare)
    convert(tmp_path)
    different, total = compare(tmp_path, images)
    assert different <= total / 1000


# -- without torch --------------------------------------------------------------------------------


def test_pictures_are_encoded_searched_and_kept_run_plain(folder, photos, tmp_path):
    code = """
        from regionhash.cli import app
        def run(*words):
            app([str(word) for word in words], standalone_mode=False)
        query = photos + "/0.png"
        run("encode", folder, photos, "-o", out + "/codes.h5", "--workers", "2")
        run("search", out + "/codes.h5", "--query", query, "--json")
        run("search", out + "/codes.h5", "--query", query, "--box", "10,10,90,90", "--top", "1")
        run("index", photos + "/0.png", "-o", out + "/c", "--model", folder, "--json")
        run("add", out + "/c", photos, "--json")
        run("refresh", out + "/c")
        run("search", out + "/c", "--query", query, "--box", "10,10,90,90", "--json")
        run("info", out + "/c", "--json")
        run("info", folder)
        run("import", out + "/d", out + "/codes.h5")
        run("check", out + "/c")
    """
    printed = run_plain(code, folder=folder, photos=photos, out=tmp_path)
    assert '"encoded": 5' in printed and "6 pictures, 0 problems" in printed
    with Collection.open(tmp_path / "c", runtime="torch") as collection:
        model, checkpoint = collection.model
        for image_id in ("0.png", "1.png", "5.png"):
            wanted = encode_picture(model, checkpoint, read_image(photos / image_id))
            (stored,) = [x.id for x in collection.images() if x.id.endswith(image_id)]
            found = collection.encoded(stored)
            assert differing(wanted.image_code, found.image_code)[0] <= 1


def test_the_service_answers_run_plain(folder, photos, tmp_path):
    code = """
        from pathlib import Path
        from fastapi.testclient import TestClient
        from regionhash.collection.indexing import IndexSettings, build_index
        from regionhash.service import create_app
        out = Path(out)
        build_index([photos], out, IndexSettings({}, model=Path(folder)))
        with TestClient(create_app(out), base_url="http://localhost") as client:
            content = (Path(photos) / "0.png").read_bytes()
            sent = client.post("/api/uploads", files={"file": content}).json()
            queries = [{"upload": sent["upload"], "boxes": [[10, 10, 90, 90]]}]
            answer = client.post("/api/search", json={"queries": queries})
            print(answer.status_code, client.get("/health").status_code, sorted(sent))
    """
    printed = run_plain(code, folder=folder, photos=photos, out=tmp_path / "c")
    assert printed.startswith("200 200"), printed


def test_a_model_without_graphs_says_what_it_needs(saved):
    code = """
        from pathlib import Path
        from regionhash.models.runtime import load_runtime
        try:
            load_runtime(Path(folder))
        except ValueError as error:
            print(error)
    """
    printed = run_plain(code, folder=saved.folder)
    assert printed.endswith('without: pip install "regionhash[train]"\n')


# -- which runtime --------------------------------------------------------------------------------


def test_graphs_run_if_they_are_there_and_can_do_what_is_asked(folder, saved):
    assert isinstance(load_runtime(folder)[0], OnnxRuntime)
    assert isinstance(load_runtime(folder, device="cpu")[0], OnnxRuntime)
    assert isinstance(load_runtime(folder, runtime="torch")[0], TorchRuntime)
    assert isinstance(load_runtime(folder, precision="bf16-mixed")[0], TorchRuntime)
    assert isinstance(load_runtime(saved.folder)[0], TorchRuntime)
    with pytest.raises(ValueError, match=r"has no graphs; `regionhash convert` writes them"):
        load_runtime(saved.folder, runtime="onnx")
    with pytest.raises(ValueError, match="device cuda: needs the runtime torch"):
        load_runtime(folder, runtime="onnx", device="cuda")
    with pytest.raises(ValueError, match="bf16-mixed: needs the runtime torch or openvino"):
        load_runtime(folder, runtime="onnx", precision="bf16-mixed")
    with pytest.raises(ValueError, match="bf16-mixed: this CPU has no bfloat16, which OpenVINO"):
        load_runtime(folder, runtime="openvino", precision="bf16-mixed")
    with pytest.raises(ValueError, match="must be one of auto, onnx, openvino, torch, got 'tvm'"):
        load_runtime(folder, runtime="tvm")
    with pytest.raises(ValueError, match="must be one of auto, 32-true, bf16-mixed, got '16'"):
        load_runtime(folder, precision="16")


def machine(monkeypatch, *, bf16="none", absent=()):
    """A machine whose CPU multiplies bfloat16 like this, and without some packages."""
    monkeypatch.setattr(runtime, "bf16_of_cpu", lambda: bf16)
    monkeypatch.setattr(runtime, "find_spec", lambda name: None if name in absent else name)


def session_of(model):
    """The class of what runs a model."""
    if isinstance(model, TorchRuntime):
        return TorchRuntime
    return type(model._graphs.session(ENCODE_GRAPH))


@pytest.mark.parametrize(
    ("graphs", "bf16", "absent", "expected", "precision"),
    [
        (True, "fast", (), OpenVinoSession, "bf16-mixed"),
        (True, "slow", (), OnnxSession, "32-true"),
        (True, "none", (), OnnxSession, "32-true"),
        (True, "fast", ("openvino",), OnnxSession, "32-true"),
        (True, "none", ("onnxruntime",), OpenVinoSession, "32-true"),
        (False, "fast", (), TorchRuntime, "bf16-mixed"),
        (False, "slow", (), TorchRuntime, "32-true"),
        (False, "none", (), TorchRuntime, "32-true"),
    ],
)
def test_the_fastest_way_of_a_machine_is_chosen(
    folder, saved, monkeypatch, graphs, bf16, absent, expected, precision
):
    machine(monkeypatch, bf16=bf16, absent=absent)
    model, _ = load_runtime(folder if graphs else saved.folder, precision="auto")
    assert (session_of(model), model.precision) == (expected, precision)


def test_a_runtime_that_is_named_chooses_its_fastest_precision(folder, monkeypatch):
    expected = {"onnx": "32-true", "openvino": "bf16-mixed", "torch": "bf16-mixed"}
    machine(monkeypatch, bf16="fast")
    for name, precision in expected.items():
        assert load_runtime(folder, runtime=name, precision="auto")[0].precision == precision
    machine(monkeypatch, bf16="slow")
    for name in expected:
        assert load_runtime(folder, runtime=name, precision="auto")[0].precision == "32-true"


def test_a_gpu_is_not_taken_for_a_cpu_with_bfloat16(folder, monkeypatch):
    machine(monkeypatch, bf16="fast")
    monkeypatch.setattr(runtime, "pick_device", lambda _: torch.device("meta"))
    model, _ = load_runtime(folder, runtime="torch", precision="auto")
    assert model.precision == "32-true"


def test_bfloat16_is_computed_by_what_can(folder, saved, monkeypatch):
    machine(monkeypatch, bf16="slow")
    assert session_of(load_runtime(folder, precision="bf16-mixed")[0]) is OpenVinoSession
    assert session_of(load_runtime(saved.folder, precision="bf16-mixed")[0]) is TorchRuntime
    machine(monkeypatch, bf16="none")
    assert session_of(load_runtime(folder, precision="bf16-mixed")[0]) is TorchRuntime
    machine(monkeypatch, bf16="none", absent=("torch",))
    with pytest.raises(CheckpointError, match="precision bf16-mixed needs torch: pip install"):
        load_runtime(folder, precision="bf16-mixed")
    machine(monkeypatch, bf16="fast", absent=("openvino",))
    with pytest.raises(CheckpointError, match=r"install \"regionhash\[openvino\]"):
        load_runtime(folder, runtime="openvino")


# Only oneDNN's reference kernels compute it without these instructions: minutes for large networks.
@pytest.mark.skipif(bf16_of_cpu() == "none", reason="this CPU has no bfloat16")
def test_openvino_computes_in_the_precision_that_is_asked_for(folder, monkeypatch):
    machine(monkeypatch, bf16="fast")
    full, half = (
        load_runtime(folder, runtime="openvino", precision=name)[0]
        for name in ("32-true", "bf16-mixed")
    )
    pixels, _ = full.prepare(SCENES[0], 96)
    (wanted,), (found,) = full.encode([pixels]), half.encode([pixels])
    assert not np.array_equal(wanted.class_probs, found.class_probs)
    np.testing.assert_allclose(found.class_probs, wanted.class_probs, atol=0.05)


def test_openvino_says_in_one_line_what_it_cannot_run(copied):
    (copied / ENCODE_GRAPH).write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"encode\.onnx: OpenVINO cannot run it \(.+\)$"):
        load_runtime(copied, runtime="openvino")


def test_openvino_refuses_the_graph_of_another_program(copied, tmp_path):
    write_encoder(tmp_path).rename(copied / ENCODE_GRAPH)
    with pytest.raises(CheckpointError, match="not a graph that `regionhash convert` wrote"):
        load_runtime(copied, runtime="openvino")


def test_a_signal_is_handled_after_another_thread_has_dropped_openvino(folder):
    code = """
    import os, signal, sys, threading
    from pathlib import Path
    from regionhash.models.openvino import OpenVinoSession

    sessions = [OpenVinoSession(Path(sys.argv[1]), "graph", precision="32-true")]
    dropper = threading.Thread(target=sessions.clear)
    dropper.start()
    dropper.join()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)
    except KeyboardInterrupt:
        print("interrupted")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder / ENCODE_GRAPH)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted\n"


def test_a_runtime_of_another_precision_is_refused(folder, saved):
    graph, checkpoint = load_runtime(folder)
    with pytest.raises(ValueError, match="need precision bf16-mixed, the model has 32-true"):
        encode_picture(graph, checkpoint, SCENES[0], precision="bf16-mixed")
    assert runtime_of(graph) is graph
    assert isinstance(runtime_of(saved.model), TorchRuntime)


def test_threads_are_those_that_torch_would_take(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert n_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert n_threads() >= 1


def test_a_session_is_opened_once(folder):
    graphs = Graphs.in_folder(folder)
    assert graphs.session(ENCODE_GRAPH) is graphs.session(ENCODE_GRAPH)


# -- graphs and their model -----------------------------------------------------------------------


def refusal(folder, image=SCENES[0]):
    """Why a model cannot be run with its graphs, in one line."""
    with pytest.raises(CheckpointError) as caught:
        graph, checkpoint = load_runtime(folder, runtime="onnx")
        encode_boxes(graph, checkpoint, image, np.array([[1, 1, 50, 50]], np.float32))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", GRAPH_FILES)
@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 50])
def test_a_damaged_graph_is_one_line(copied, name, content):
    (copied / name).write_bytes(content)
    assert name in refusal(copied)
    code = 2 if name == ENCODE_GRAPH else 0
    run("encode", copied, "digits:test:1", "-o", copied / "codes.h5", code=code)


def test_a_graph_that_is_cut_off_is_one_line(copied):
    whole = (copied / ENCODE_GRAPH).read_bytes()
    (copied / ENCODE_GRAPH).write_bytes(whole[: len(whole) // 2])
    assert "encode.onnx: not a readable graph (" in refusal(copied)


def test_a_graph_of_another_program_is_one_line(copied):
    onnx = pytest.importorskip("onnx")
    kind = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    made = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [kind], [])
    made.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(made, opset_imports=opset, ir_version=9), copied / ENCODE_GRAPH
    )
    assert refusal(copied).endswith("not a graph that `regionhash convert` wrote")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_hash": "0" * 16}, "made from model '0000000000000000', but model.json describes"),
        ({"format": 2}, "graph format 2, this version of regionhash reads 1"),
        ({"n_bits": "many"}, "its metadata is damaged"),
        ({"n_region_bits": True}, "its metadata is damaged"),
        ({"stride": 0}, "its metadata is damaged"),
        ({"graph": BOXES_GRAPH}, "not the graph of a ssdh"),
        (None, "not a graph that `regionhash convert` wrote"),
    ],
)
def test_a_graph_that_says_something_else_is_refused(copied, change, message):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(copied / ENCODE_GRAPH)
    (entry,) = [x for x in model.metadata_props if x.key == "regionhash"]
    entry.value = "[1]" if change is None else json.dumps(json.loads(entry.value) | change)
    onnx.save(model, copied / ENCODE_GRAPH)
    assert message in refusal(copied)


def test_a_graph_that_is_missing_is_named(copied):
    (copied / BOXES_GRAPH).unlink()
    assert refusal(copied).endswith("has no encode_boxes.onnx; run `regionhash convert` again")


def test_graphs_of_the_former_model_are_removed_with_it(copied):
    model, checkpoint = load_checkpoint(copied)
    save_checkpoint(copied, model, checkpoint)
    assert not any((copied / name).exists() for name in GRAPH_FILES)


def test_graphs_are_copied_with_their_model(folder, tmp_path):
    copy_checkpoint(folder, tmp_path)
    for name in GRAPH_FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    save_tiny(tmp_path / "other")
    copy_checkpoint(tmp_path / "other", tmp_path)
    assert not any((tmp_path / name).exists() for name in GRAPH_FILES)


def test_a_graph_that_gives_other_codes_is_not_written(folder, copied, monkeypatch):
    for name in GRAPH_FILES:
        (copied / name).unlink()
    encode = TorchRuntime.encode

    def inverted(self, images, given=None):
        return [
            type(x)(x.size, ~x.image_code, x.class_probs, x.regions) for x in encode(self, images)
        ]

    # Its graphs are there already; to make them takes seconds.
    monkeypatch.setattr(
        graphs, "_exported", lambda _, facts: (folder / facts["graph"]).read_bytes()
    )
    monkeypatch.setattr(TorchRuntime, "encode", inverted)
    with pytest.raises(ConversionError, match=r"differs from the model in 96 of \d+ bits"):
        convert(copied)
    assert not any((copied / name).exists() for name in GRAPH_FILES)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "iah",
            {"n_bits": 16, "n_classes": 10, "proposals": "selective-search"},
            "selective search, which proposes its regions, is not part of a graph",
        ),
        (
            "ssdh",
            {"n_bits": 16, "n_classes": 10, "backbone": "squeezenet1_0_fpn"},
            "no whole number of input pixels per cell",
        ),
    ],
)
def test_what_cannot_be_converted_says_why_in_one_line(tmp_path, name, arguments, message):
    saved_as(tmp_path, name, **arguments)
    done = run("convert", tmp_path, code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_the_command_names_its_files(converted):
    folder, said = converted
    assert set(said["graphs"]) == {str(folder / name) for name in GRAPH_FILES}
