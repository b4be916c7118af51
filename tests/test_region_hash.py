"""Collections whose codes come from any encoder: against a slow oracle, and as a user has them."""

import json
import shutil
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import error_of, run
from conftest import noise
from plain import run_plain
from regionhash.cli.collection import index as index_command
from regionhash.collection import Collection, open_codes
from regionhash.collection.indexing import IndexSettings, build_index
from regionhash.data.images import read_image
from regionhash.encoders import DEFAULT_ENCODER, resolve
from regionhash.models import region_hash
from regionhash.models.checkpoints import CheckpointError, load_checkpoint, read_checkpoint
from regionhash.models.encoding import encode_boxes, encode_picture
from regionhash.models.region_hash import RegionHash
from regionhash.models.runtime import load_runtime
from regionhash.parts.hashes import LinearHash
from regionhash.parts.windows import pool_map, sliding_windows, snap_boxes
from regionhash.structures import Detections
from tiny_encoders import CHANNELS, STRIDE, features, write_encoder, write_encoder_with_words

SMALL = ("--bits", 64, "--short", 96, "--workers", 0)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A function that gives the spec of a small encoder of a kind."""
    made = {}

    def spec(kind="map", **options):
        key = (kind, *options.items())
        if key not in made:
            folder = tmp_path_factory.mktemp(f"encoder-{kind}")
            made[key] = f"onnx:{write_encoder(folder, kind=kind, **options)}"
        return made[key]

    return spec


def index(photos, folder, encoder, *options):
    return run("index", photos, "-o", folder, "--encoder", encoder, *SMALL, *options)


@pytest.fixture(scope="module")
def made(photos, encoders, tmp_path_factory):
    """An index of the six photos by an encoder with a map; not to be changed."""
    folder = tmp_path_factory.mktemp("map") / "index"
    index(photos, folder, encoders())
    return folder


# -- regions --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=6),
    how=st.sampled_from(["max", "mean"]),
    seed=st.integers(0, 9),
)
def test_windows_are_pooled_as_in_a_loop(shape, corners, how, seed):
    cells = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    _, h, w = shape
    windows = []
    for a, b, c, d in corners:
        x0, y0 = int(a * (w - 1)), int(b * (h - 1))
        windows.append((x0, y0, x0 + 1 + int(c * (w - x0 - 1)), y0 + 1 + int(d * (h - y0 - 1))))
    found = pool_map(cells, np.array(windows), how)
    for row, (x0, y0, x1, y1) in zip(found, windows, strict=True):
        part = cells[:, y0:y1, x0:x1].reshape(shape[0], -1)
        wanted = part.max(1) if how == "max" else part.astype(float).mean(1)
        np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-5)


def oracle_codes(arrays, rows):
    """The bits of features (R, D), as the module's first lines say."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    y = (rows - arrays["whitening.mean"]) @ arrays["whitening.projection"]
    y = y / np.linalg.norm(y, axis=1, keepdims=True) - arrays["whitening.post_mean"]
    return np.packbits(y @ arrays["hash.weight"].T + arrays["hash.bias"] >= 0, axis=1)


def differing(one, other):
    return int(np.unpackbits(one ^ other).sum())


@pytest.mark.parametrize(("kind", "how"), [("map", "max"), ("tokens", "mean")])
def test_codes_are_those_of_the_regions_of_the_map(photos, encoders, tmp_path, kind, how):
    index(photos, tmp_path / "i", encoders(kind))
    model, checkpoint = load_runtime(tmp_path / "i")
    assert model.settings.pooling == how and model.settings.n_channels == CHANNELS
    arrays = model.arrays()
    assert arrays["hash.weight"].shape == (64, CHANNELS)
    table = open_codes(tmp_path / "i").compact().table
    total = different = 0
    for n, image_id in enumerate(table.ids):
        image = read_image(photos / image_id)
        pixels, frame = model.prepare(image, checkpoint.short)
        assert min(pixels.shape[1:]) == 96
        cells = features(pixels)
        windows = sliding_windows(*cells.shape[1:], 0.6)
        parts = [cells[:, y0:y1, x0:x1].reshape(CHANNELS, -1) for x0, y0, x1, y1 in windows]
        rows = np.array([part.max(1) if how == "max" else part.mean(1) for part in parts])
        stored = table.regions(n)
        scale = np.array([*frame.size[::-1]] * 2) / ([*frame.input_size[::-1]] * 2)
        np.testing.assert_allclose(stored.boxes, windows * STRIDE * scale, atol=1 / 32)
        different += differing(oracle_codes(arrays, rows), stored.codes)
        total += 8 * stored.codes.size
    assert total > 6 * 30 * 64 and different <= total / 1000 + 1


def test_the_codes_of_given_boxes_are_those_of_the_cells_they_touch(made, photos):
    model, checkpoint = load_runtime(made)
    image = read_image(photos / "0.png")
    pixels, frame = model.prepare(image, checkpoint.short)
    cells = features(pixels)
    h, w = cells.shape[1:]
    y, x = frame.size[0] / h, frame.size[1] / w  # pixels of the picture a cell
    boxes = np.array([[0.5 * x, 0.2 * y, 1.5 * x, 0.9 * y], [2 * x, y, 4 * x, 3 * y]], np.float32)
    found = encode_boxes(model, checkpoint, image, boxes)
    rows = np.array([cells[:, 0:1, 0:2].max((1, 2)), cells[:, 1:3, 2:4].max((1, 2))])
    assert differing(found.codes, oracle_codes(model.arrays(), rows)) <= 1
    none = encode_boxes(model, checkpoint, image, np.zeros((0, 4), np.float32))
    assert none.codes.shape == (0, 8)


@pytest.mark.parametrize("kind", ["vector", "map"])
def test_cropped_regions_are_encoded_one_by_one(photos, encoders, tmp_path, kind):
    options = ("--regions", "crop", "--proposals", "pyramid", "--max-regions", 9)
    index(photos, tmp_path / "i", encoders(kind), *options)
    model, checkpoint = load_runtime(tmp_path / "i")
    assert model.settings.regions == "crop" and model.settings.crop == 224
    table = open_codes(tmp_path / "i").compact().table
    image = read_image(photos / "2.png")
    pixels, _ = model.prepare(image, checkpoint.short)
    assert min(pixels.shape[1:]) == min(96, *image.shape[:2])
    stored = table.regions(list(table.ids).index("2.png"))
    assert 1 < len(stored) <= 10
    (encoded,) = model.encode([pixels])
    rows = []
    for x0, y0, x1, y1 in encoded.regions.boxes:
        part = pixels[:, int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
        crop, _ = model.encoder.prepare(part.transpose(1, 2, 0), 224)
        cells = features(crop).reshape(CHANNELS, -1)
        rows.append(cells.mean(1) if kind == "vector" else cells.max(1))
    wanted = oracle_codes(model.arrays(), np.array(rows))
    assert differing(wanted, stored.codes) <= 2
    np.testing.assert_array_equal(stored.codes, encoded.regions.codes)
    # A box of a search is cut out in the same way.
    box = stored.boxes[[3]]
    again = encode_boxes(model, checkpoint, image, box.copy())
    assert differing(again.codes, stored.codes[[3]]) <= 6  # its corners were rounded


@pytest.mark.parametrize("kind", ["map", "both"])
def test_the_features_of_map_and_crop_are_joined(photos, encoders, tmp_path, kind):
    options = ("--regions", "both", "--pooling", "mean", "--proposals", "pyramid")
    index(photos, tmp_path / "i", encoders(kind), *options, "--max-regions", 9)
    model, checkpoint = load_runtime(tmp_path / "i")
    settings = model.settings
    assert (settings.n_channels, settings.margin, model.knows_words) == (2 * CHANNELS, 0.1, False)
    image = read_image(photos / "1.png")
    pixels, _ = model.prepare(image, checkpoint.short)
    _, height, width = pixels.shape
    boxes = np.array([[0, 0, width, height], [10, 20, 30, 60]], np.float32)
    whole, frame = model.encoder.prepare(pixels.transpose(1, 2, 0), settings.map_short)
    cells = features(whole)
    places = snap_boxes(frame.to_input(boxes), STRIDE, *cells.shape[1:])
    rows = []
    cut = (0, 0, width, height), (8, 16, 32, 64)
    for (x0, y0, x1, y1), (left, upper, right, lower) in zip(places, cut, strict=True):
        crop, _ = model.encoder.prepare(
            pixels[:, upper:lower, left:right].transpose(1, 2, 0), settings.crop
        )
        parts = cells[:, y0:y1, x0:x1].mean((1, 2)), features(crop).mean((1, 2))
        rows.append(np.concatenate([part / np.linalg.norm(part) for part in parts]))
    (found,) = model.encode_boxes([pixels], [boxes])
    assert differing(found.codes, oracle_codes(model.arrays(), np.array(rows))) <= 1
    # The regions of the collection are described in the same way.
    stored = open_codes(tmp_path / "i").compact().table.regions(1)
    (again,) = model.encode_boxes([pixels], [model.encode([pixels])[0].regions.boxes])
    assert differing(stored.codes, again.codes) == 0


def test_an_encoder_of_one_size_takes_pictures_of_any(photos, encoders, tmp_path):
    index(photos, tmp_path / "i", encoders(size=64))
    model, checkpoint = load_runtime(tmp_path / "i")
    pixels, frame = model.prepare(read_image(photos / "1.png"), checkpoint.short)
    assert pixels.shape == (3, 64, 64) and frame.input_size == (64, 64)
    table = open_codes(tmp_path / "i").compact().table
    assert (np.diff(table.offsets) == len(sliding_windows(4, 4, 0.6))).all()
    height, width = table.sizes[0].tolist()
    np.testing.assert_allclose(table.regions(0).boxes[0], [0, 0, width, height], atol=1e-3)


def test_given_boxes_become_regions_with_their_classes(photos, encoders, tmp_path):
    results = [
        {"file_name": "0.png", "bbox": [1, 2, 30, 40], "score": 0.5, "category_name": "cat"},
        {"file_name": "0.png", "bbox": [9, 9, 20, 20], "score": 0.75, "category_name": "dog"},
    ]
    (tmp_path / "found.json").write_text(json.dumps(results))
    options = ("--proposals", f"boxes:{tmp_path / 'found.json'}")
    index(photos, tmp_path / "i", encoders(), *options)
    table = open_codes(tmp_path / "i").compact().table
    regions = table.regions(list(table.ids).index("0.png"))
    assert table.classes == ("cat", "dog") and regions.labels.tolist() == [-1, 1, 0]
    np.testing.assert_allclose(regions.boxes[1:], [[9, 9, 29, 29], [1, 2, 31, 42]], atol=1e-3)
    model, _ = load_runtime(tmp_path / "i")
    assert model.takes_boxes
    image = np.zeros((3, 96, 96), np.uint8)
    box = Detections(
        np.array([[0, 0, 40, 40]], np.float32), np.ones(1, np.float32), np.zeros(1, int)
    )
    assert len(model.encode([image], [box])[0].regions) == 2


# -- a collection as a user has it ----------------------------------------------------------------


def test_it_is_indexed_searched_and_kept_without_torch(photos, encoders, tmp_path):
    code = """
        from regionhash.cli import app
        def run(*words):
            app([str(word) for word in words], standalone_mode=False)
        query = photos + "/0.png"
        small = ("--bits", "64", "--short", "96")
        run("index", photos + "/0.png", "-o", out, "--encoder", encoder, *small)
        run("add", out, photos, "--json")
        run("refresh", out)
        run("search", out, "--query", query, "--box", "10,10,90,90", "--json")
        run("info", out, "--json")
        run("check", out)
        run("encode", out, photos, "-o", out + ".h5")
        run("index", photos, "-o", out + "2", "--model", out)
    """
    printed = run_plain(code, photos=photos, encoder=encoders(), out=tmp_path / "i")
    assert '"encoded": 5' in printed and "6 pictures, 0 problems" in printed
    one, two = (open_codes(tmp_path / name).compact().table for name in ("i", "i2"))
    order = [list(two.ids).index(image_id.rpartition("/")[2]) for image_id in one.ids]
    np.testing.assert_array_equal(one.image_codes, two.image_codes[order])


def test_the_same_encoder_and_seed_give_the_same_model(made, photos, encoders, tmp_path):
    index(photos, tmp_path / "i", encoders())
    assert read_checkpoint(tmp_path / "i").model_hash == read_checkpoint(made).model_hash
    index(photos, tmp_path / "j", encoders(), "--seed", 1)
    assert read_checkpoint(tmp_path / "j").model_hash != read_checkpoint(made).model_hash


@pytest.mark.parametrize("name", ["itq", "sign", "hyperplanes"])
def test_every_hash_finds_the_picture_itself(photos, encoders, tmp_path, name):
    bits = 8 if name == "sign" else 64
    run("index", photos, "-o", tmp_path / "i", "--encoder", encoders(), "--hash", name,
        "--bits", bits, "--short", 96, "--workers", 0)  # fmt: skip
    found = json.loads(run("search", tmp_path / "i", "--query", photos / "3.png", "--json").stdout)
    assert found["hits"][0]["picture"] == "3.png" and found["hits"][0]["distance"] == 0


def test_more_bits_than_dimensions_and_the_most_bits(photos, encoders, tmp_path):
    arguments = {"n_bits": 4096, "hash": "hyperplanes"}
    report = build_index(
        [str(photos)], tmp_path / "i", IndexSettings(arguments, 96, encoder=encoders())
    )
    assert report.checkpoint.arguments["n_dims"] == CHANNELS
    model, checkpoint = load_runtime(tmp_path / "i")
    assert encode_picture(model, checkpoint, read_image(photos / "0.png")).image_code.shape == (
        512,
    )


def test_the_copy_of_an_index_is_one_folder(made, photos, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    with Collection.open(tmp_path / "copy") as opened:
        found = opened.search(image=photos / "4.png")
        assert found.hits[0].id == "4.png" and found.hits[0].distance == 0


def test_info_names_the_encoder(made, encoders, worded):
    record = json.loads(run("info", made, "--json").stdout)
    assert (record["encoder"], record["licence"], record["words"]) == (encoders(), "", False)
    assert json.loads(run("info", worded, "--json").stdout)["words"] is True


def test_words_are_left_out_where_they_cannot_be_searched(photos, tmp_path):
    (tmp_path / "encoder").mkdir()
    spec = write_encoder_with_words(tmp_path / "encoder", kind="both")
    index(photos, tmp_path / "i", spec, "--regions", "map")
    assert not (tmp_path / "i/text.onnx").exists()
    index(photos, tmp_path / "j", spec, "--max-regions", 4, "--proposals", "pyramid")
    assert (tmp_path / "j/text.onnx").exists()
    assert read_checkpoint(tmp_path / "j").arguments["regions"] == "crop"


def test_the_service_searches_it(made, photos):
    from fastapi.testclient import TestClient

    from regionhash.service import create_app

    with TestClient(create_app(made), base_url="http://localhost") as client:
        content = (photos / "2.png").read_bytes()
        sent = client.post("/api/uploads", files={"file": content}).json()
        queries = [{"upload": sent["upload"], "boxes": [[10, 10, 90, 90]]}]
        answer = client.post("/api/search", json={"queries": queries})
        assert answer.status_code == 200 and answer.json()["hits"][0]["id"] == "2.png"


def test_a_hash_of_another_package_is_known_by_its_name(photos, encoders, tmp_path, monkeypatch):
    entry = EntryPoint("first-dims", f"{__name__}:first_dims", region_hash.HASH_ENTRY_POINTS)
    monkeypatch.setattr(region_hash, "entry_points", lambda group: [entry] * (group == entry.group))
    index(photos, tmp_path / "i", encoders(), "--hash", "first-dims")
    model, _ = load_runtime(tmp_path / "i")
    assert model.settings.hash == "first-dims"
    assert not model.arrays()["hash.weight"][CHANNELS:].any()
    said = error_of("index", photos, "-o", tmp_path / "j", "--encoder", encoders(), "--hash", "x")
    assert said == "unknown hash 'x'; known: drh, itq, sign, hyperplanes, first-dims"


def first_dims(x, n_bits, generator, reporter):
    return LinearHash(np.eye(n_bits, x.shape[1], dtype=np.float32), np.zeros(n_bits, np.float32))


# -- what is refused ------------------------------------------------------------------------------


def test_the_help_names_the_default_encoder():
    shown = "".join(run("index", "--help").stdout.split())  # lines break anywhere
    assert f"[default:{DEFAULT_ENCODER}]" in shown
    assert index_command.__doc__
    assert IndexSettings({}).encoder_to_fit == DEFAULT_ENCODER
    assert IndexSettings({"backbone": "tiny_fpn"}).encoder_to_fit is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "tiny_fpn"], "an encoder is given: leave out backbone"),
        (["--weights", "none"], "an encoder is given: leave out weights"),
        (["--proposals", "detector:x"], "an encoder is given: leave out detector"),
        (["--model", "x"], "a given model is not fitted: leave out n_bits, short, encoder"),
        (["--hash", "sign"], "sign has a bit for each of 12 features at most, got 64 bits"),
        (["--bits", 8192], "n_bits must be at most 4096, got 8192"),
        (["--bits", 12], "must be a positive multiple of 8, got 12"),
        (["--overlap", 1], "overlap must be in [0, 1), got 1.0"),
        (["--dims", 0], "n_dims must be in [1, 12], the number of features, got 0"),
        (["--dims", 13], "n_dims must be in [1, 12], the number of features, got 13"),
        (["--dims", 8, "--hash", "sign"], "sign has a bit for each of 8 features at most, got 64"),
        (["--model", "x", "--dims", 8], "leave out n_bits, n_dims, short, encoder"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_and_leave_nothing(
    photos, encoders, tmp_path, options, message
):
    words = ("index", photos, "-o", tmp_path / "i", "--encoder", encoders(), *SMALL, *options)
    assert message in error_of(*words)
    assert not (tmp_path / "i").exists()


def test_settings_of_an_encoder_need_one():
    with pytest.raises(ValueError, match="hash and regions need an encoder: leave out backbone"):
        IndexSettings({"backbone": "tiny_fpn", "hash": "itq", "regions": "crop"})
    with pytest.raises(ValueError, match="pooling need an encoder: leave out weights"):
        IndexSettings({"weights": "none", "pooling": "mean"})


@pytest.mark.parametrize(("kind", "default"), [("map", "max"), ("tokens", "mean")])
def test_pooling_and_dimensions_are_those_asked_for(photos, encoders, tmp_path, kind, default):
    windows = ("--proposals", "pyramid", "--max-regions", 6)
    index(photos, tmp_path / "plain", encoders(kind), *windows)
    assert read_checkpoint(tmp_path / "plain").arguments["pooling"] == default
    folder, other = tmp_path / "asked", {"max": "mean", "mean": "max"}[default]
    given = (*windows, "--pooling", other, "--dims", 5)
    index(photos, folder, encoders(kind), *given)
    model, checkpoint = load_runtime(folder)
    assert (checkpoint.arguments["pooling"], checkpoint.arguments["n_dims"]) == (other, 5)
    assert model.arrays()["hash.weight"].shape == (64, 5)
    pixels, _ = model.prepare(read_image(photos / "2.png"), checkpoint.short)
    _, described = model.describe(pixels)
    values = features(pixels)
    reduce = {"max": np.max, "mean": np.mean}[other]
    whole = reduce(values, axis=(1, 2))
    np.testing.assert_allclose(described[0], whole / np.linalg.norm(whole), atol=1e-5)
    index(photos, folder, encoders(kind), *given)  # resumes
    said = error_of("index", photos, "-o", folder, "--encoder", encoders(kind), *SMALL, "--dims", 6)
    assert "is an index with n_dims 5, got 6" in said


def test_crops_that_are_one_vector_have_nothing_to_pool(photos, encoders, tmp_path):
    words = ("index", photos, "-o", tmp_path / "i", "--encoder", encoders("vector"), *SMALL)
    assert "there is nothing to pool: leave out pooling" in error_of(*words, "--pooling", "max")
    assert not (tmp_path / "i").exists()


def test_dimensions_of_a_backbone_are_those_asked_for(photos, tmp_path):
    words = ("--backbone", "tiny_fpn", "--weights", "none", "--dims", 7, *SMALL)
    run("index", photos, "-o", tmp_path / "i", *words)
    assert read_checkpoint(tmp_path / "i").arguments["n_dims"] == 7


def test_an_encoder_without_a_map_is_cropped_or_refused(photos, encoders, tmp_path):
    index(photos, tmp_path / "i", encoders("vector"), "--proposals", "pyramid", "--max-regions", 4)
    assert read_checkpoint(tmp_path / "i").arguments["regions"] == "crop"
    words = ("index", photos, "-o", tmp_path / "j", "--encoder", encoders("vector"))
    assert "gives no map of a picture" in error_of(*words, "--regions", "map")
    assert "gives no map of a picture" in error_of(*words, "--regions", "both")


def test_the_index_of_another_encoder_is_refused(made, photos, encoders):
    said = error_of("index", photos, "-o", made, "--encoder", encoders("tokens"))
    assert f"is an index with encoder {encoders()}, got {encoders('tokens')}" in said
    said = error_of("index", photos, "-o", made, "--hash", "itq")
    assert "is an index with hash drh, got itq" in said
    run("index", photos, "-o", made, "--encoder", encoders())
    run("index", photos, "-o", made)  # what is not asked for is what the index has


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("encoder.onnx", lambda x: x[:-1], "encoder.onnx: "),
        ("encoder.onnx", lambda x: x[:-1] + b"x", "encoder.onnx: not the file that encoder.json"),
        ("encoder.json", lambda x: b"{}", "encoder.json: "),
        ("encoder.json", lambda x: x.replace(b"0.6", b"0.7"), "is not the one that model.json"),
        ("encoder.json", None, "encoder.json: "),
        ("encoder.onnx", None, "encoder.onnx: "),
        ("model.safetensors", lambda x: x[:-1] + b"x", "model.safetensors: damaged"),
        ("model.safetensors", lambda x: x[:40], "model.safetensors: damaged"),
    ],
)
def test_a_damaged_model_is_named_in_one_line(made, photos, tmp_path, file, change, message):
    folder = tmp_path / "i"
    shutil.copytree(made, folder)
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(content))
    said = error_of("search", folder, "--query", photos / "0.png")
    assert message in said and "\n" not in said


def test_the_encoder_of_another_index_is_not_taken(made, photos, encoders, tmp_path):
    index(photos, tmp_path / "other", encoders(seed=1))
    shutil.copytree(made, tmp_path / "i")
    for name in ("encoder.onnx", "encoder.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "i" / name)
    with pytest.raises(CheckpointError, match=r"is not the one that model\.json describes"):
        load_runtime(tmp_path / "i")


def test_it_is_no_network_of_torch_and_runs_on_the_cpu(made):
    with pytest.raises(CheckpointError, match="a region-hash is no network of torch"):
        load_checkpoint(made)
    for options in ({"runtime": "torch"}, {"device": "cuda"}, {"precision": "bf16-mixed"}):
        with pytest.raises(ValueError, match="an ONNX graph, which ONNX Runtime runs"):
            load_runtime(made, **options)
    assert "is no network of torch" in error_of("convert", made)


def test_a_model_that_is_not_fitted_gives_no_codes(encoders):
    model = RegionHash.of_encoder(resolve(encoders()), {"n_bits": 64})
    with pytest.raises(ValueError, match="the model is not fitted"):
        model.encode([noise((96, 96))[0].numpy()])
