"""A folder without labels made searchable, as a user does it."""

import json
import multiprocessing
import shutil
from contextlib import suppress
from threading import BrokenBarrierError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from cli_runner import error_of, run
from conftest import TINY_BACKBONE, build_tiny, write_picture
from regionhash.collection import Collection, indexing, open_codes
from regionhash.collection.box_files import recorded_files
from regionhash.collection.fitting import sample_features
from regionhash.data import open_dataset
from regionhash.data.images import read_image
from regionhash.data.inputs import open_inputs
from regionhash.models import checkpoints
from regionhash.models.checkpoints import (
    Checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from regionhash.models.encoding import encode_boxes
from regionhash.parts.backbones import stack_images
from regionhash.parts.choosing import RegionChoice
from regionhash.search.request import Filter

SMALL = ("--backbone", "tiny_fpn", "--weights", "none", "--bits", 64, "--short", 64)


def index(inputs, output, *options):
    return run("index", inputs, "-o", output, "--workers", 0, *(options or SMALL))


def record_of(result):
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """The index of the six photos, and what the command said."""
    folder = tmp_path_factory.mktemp("indexed") / "photos.index"
    return folder, index(photos, folder)


def search(codes, *options):
    return record_of(run("search", codes, *options, "--json"))


# Making


def test_two_runs_at_once_make_one_index(photos, tmp_path):
    context = multiprocessing.get_context("fork")
    output, both = tmp_path / "photos.index", context.Barrier(2)

    def make(seed):
        original = indexing._take_up_model

        def look(*arguments):
            found = original(*arguments)
            if not both.broken and both.n_waiting < 2:
                with suppress(BrokenBarrierError):
                    both.wait(2)  # each has seen that nothing is there
            return found

        indexing._take_up_model = look
        index(photos, output, *SMALL, "--seed", seed)

    processes = [context.Process(target=make, args=(seed,)) for seed in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert record_of(run("check", output, "--json"))["problems"] == []
    found = search(output, "--query", photos / "1.png")["hits"]
    assert len(found) == 6 and (found[0]["picture"], found[0]["distance"]) == ("1.png", 0)


def test_an_index_is_one_folder_and_says_what_was_fitted_and_what_comes_next(made):
    folder, result = made
    assert sorted(file.name for file in folder.iterdir()) == [
        "arrays",
        "collection.db",
        "model.json",
        "model.safetensors",
    ]
    fitted, encoded, following, serving = result.stdout.splitlines()
    assert fitted.startswith("fitted: loss per bit -")
    assert encoded.startswith(f"{folder}: 6 encoded in ")
    assert encoded.endswith(" s, 0 stored before, 0 skipped")
    assert following == f"next: regionhash search {folder} --query PICTURE --box x0,y0,x1,y1"
    assert serving == f"   or: regionhash serve {folder}"
    fit = json.loads((folder / "model.json").read_text())["provenance"]["fit"]
    assert fit["losses"][-1] < fit["losses"][0]


def test_the_codes_are_those_of_the_model_that_lies_beside_them(made, photos):
    folder, _ = made
    model, checkpoint = load_checkpoint(folder)
    table = open_codes(folder).compact().table
    for n in range(6):
        regions = table.regions(n)
        again = encode_boxes(
            model, checkpoint, read_image(photos / table.ids[n]), regions.boxes.copy()
        )
        differing = np.unpackbits(again.codes ^ regions.codes, axis=1)
        assert differing.mean() < 0.01  # boxes go through pixels of the picture and back
        np.testing.assert_array_equal(table.image_codes[n], regions.codes[0])


def test_given_again_the_command_adds_new_pictures_to_the_same_model(photos, tmp_path):
    pictures, folder = tmp_path / "pictures", tmp_path / "index"
    pictures.mkdir()
    for n in range(3):
        shutil.copy(photos / f"{n}.png", pictures)
    first = record_of(index(pictures, folder, *SMALL, "--json"))
    assert (first["encoded"], first["model"]) == (3, "drh")
    assert len(first["fit"]["losses"]) == 10
    shutil.copy(photos / "3.png", pictures)
    second = record_of(run("index", pictures, "-o", folder, "--workers", 0, "--json"))
    assert second["fit"] is None
    assert (second["encoded"], second["stored_before"]) == (1, 3)
    assert second["model_hash"] == first["model_hash"]


def test_an_interrupted_index_goes_on_without_fitting_again(photos, tmp_path, monkeypatch):
    from regionhash.models import encoding

    def interrupted(*_, reporter, **__):
        reporter.progress(0, 6)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode_images", interrupted)
        result = run("index", photos, "-o", tmp_path, "--workers", 0, *SMALL, code=130)
    assert result.stderr == "interrupted\nrun the same command again to resume\n"
    before = (tmp_path / "model.safetensors").read_bytes()
    again = record_of(index(photos, tmp_path, *SMALL, "--json"))
    assert (again["fit"], again["encoded"]) == (None, 6)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_same_folder_and_seed_give_the_same_index(made, photos, tmp_path):
    index(photos, tmp_path)
    hashes = [open_codes(folder).model_hash for folder in (made[0], tmp_path)]
    assert hashes[0] == hashes[1]
    tables = [open_codes(folder).compact().table for folder in (made[0], tmp_path)]
    np.testing.assert_array_equal(tables[0].region_codes, tables[1].region_codes)


def test_labels_are_stored_and_do_not_matter(tmp_path):
    index("digits:test:12", tmp_path / "labelled")
    file = open_codes(tmp_path / "labelled")
    assert file.labels is not None and file.labels.any()
    assert file.model_hash != ""
    command = ["evaluate", tmp_path / "labelled", tmp_path / "labelled", "--json"]
    assert 0 < record_of(run(*command))["metrics"]["map"] <= 1


def test_regions_of_no_class_name_none(tmp_path):
    index("digits:test:4", tmp_path / "labelled")
    file = open_codes(tmp_path / "labelled")
    assert set(file.table.labels.tolist()) == {-1} and len(file.classes) == 10
    known = {
        image_id: tuple(file.classes[n] for n in np.flatnonzero(labels))
        for image_id, labels in zip(file.table.ids, file.labels, strict=True)
    }
    with Collection.open(tmp_path / "labelled") as collection:
        hits = collection.search(like=file.table.ids[0]).hits
    assert {hit.id: hit.classes for hit in hits} == known
    assert not all("9" in classes for classes in known.values())  # the last class


def test_a_trained_model_is_taken_as_it_is(saved, photos, tmp_path):
    folder = tmp_path / "index"
    result = record_of(index(photos, folder, "--model", saved.folder, "--json"))
    assert (result["fit"], result["encoded"]) == (None, 6)
    assert result["model_hash"] == saved.checkpoint.model_hash
    hits = search(folder, "--query", photos / "2.png", "--box", "20,30,90,100")["hits"]
    assert len(hits[0]["matches"]) == 1


# What an earlier run has left


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.json", b'{"format": 1, "model": "dr'),
        ("model.json", b""),
        ("model.safetensors", b"\0" * 100),
        ("model.safetensors", None),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_damaged_model_without_codes_is_made_anew(saved, photos, tmp_path, name, content, given):
    folder = tmp_path / "run"
    shutil.copytree(saved.folder, folder)
    damage(folder / name, content)
    result = index(photos, folder, *(["--model", saved.folder] if given else SMALL))
    first = result.stderr.splitlines()[0]
    assert first.startswith(f"{folder / name}: ") and first.endswith("; making the model again")
    assert record_of(run("info", folder, "--json"))["model"] == ("region-dh" if given else "drh")
    assert record_of(run("info", folder, "--json"))["pictures"] == 6


def damage(path, content):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.json", b"{"), ("model.json", None), ("model.safetensors", b"cut")],
)
def test_a_damaged_model_of_codes_is_named_or_restored_from_a_copy(
    saved, other_saved, photo_collection, photos, tmp_path, name, content
):
    folder = tmp_path / "run"
    shutil.copytree(photo_collection, folder)
    damage(folder / name, content)
    wanted = saved.checkpoint.model_hash
    for options in (SMALL, ["--model", other_saved.folder], ["--short", 64]):
        said = error_of("index", photos, "-o", folder, "--workers", 0, *options)
        assert said.startswith(f"{folder / name}: ")
        assert f"the codes there are of model {wanted}: pass the folder of a copy" in said
    restored = index(photos, folder, "--model", saved.folder)
    assert f"restored from {saved.folder}" in restored.stderr
    assert load_checkpoint(folder)[1].model_hash == wanted
    assert record_of(run("info", folder, "--json"))["pictures"] == 6


@pytest.mark.parametrize("name", ["ssdh", "control", "one-stage", "iah", "dmih"])
def test_models_of_all_kinds_make_the_codes(name, photos, tmp_path):
    arguments = TINY_BACKBONE | {"n_bits": 16, "n_classes": 10}
    bare = Checkpoint(name, arguments, tuple("0123456789"), short=64)
    known = save_checkpoint(tmp_path / "model", build_tiny(name, **arguments).eval(), bare)
    result = record_of(index(photos, tmp_path / "index", "--model", tmp_path / "model", "--json"))
    assert (result["fit"], result["encoded"]) == (None, 6)
    assert result["model_hash"] == known.model_hash
    hits = search(tmp_path / "index", "--query", photos / "2.png", "--box", "20,30,90,100")["hits"]
    assert [len(hit["matches"]) for hit in hits] == [1] * 6


def test_the_proposals_are_those_of_the_given_detector(saved, photos, tmp_path):
    index(photos, tmp_path, "--proposals", saved.folder, "--bits", 64, "--short", 64)
    model, _ = load_checkpoint(tmp_path)
    assert model.rpn is not None
    image = torch.from_numpy(read_image(photos / "0.png")[:64, :96]).permute(2, 0, 1)
    (regions,) = model.region_features([image])
    with torch.no_grad():
        batch, sizes = stack_images([image])
        maps, _ = saved.model.backbone(batch)
        (boxes,), (scores,), _ = saved.model.rpn(ImageList(batch, sizes), maps)
    # The detector keeps 8 proposals and the index 300; the best are the same.
    torch.testing.assert_close(regions.boxes[1 : 1 + len(boxes)], boxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(regions.scores[1 : 1 + len(scores)], scores, atol=1e-4, rtol=0)
    assert record_of(run("info", tmp_path, "--json"))["bits"] == 64


def test_the_regions_of_a_pyramid_are_as_many_as_asked_for(made, photos, tmp_path):
    options = ("--proposals", "pyramid", "--max-regions", 30, "--max-iou", 0.8)
    index(photos, tmp_path, *SMALL, *options)
    model, checkpoint = load_checkpoint(tmp_path)
    assert model.choice == RegionChoice("pyramid", n_proposals=30, max_iou=0.8)
    assert checkpoint.arguments["proposals"] == "pyramid"
    counts = [np.diff(open_codes(folder).compact().table.offsets) for folder in (made[0], tmp_path)]
    assert (counts[0] >= 36).all()  # windows, of which there are that many on these small maps
    assert ((counts[1] > 1) & (counts[1] <= 31)).all()
    assert search(tmp_path, "--query", photos / "1.png", "--box", "5,5,60,60")["steps"] == ["exact"]


def test_an_index_without_the_newer_arguments_has_their_defaults(made, photos, tmp_path):
    shutil.copytree(made[0], tmp_path / "old")
    _, checkpoint = load_checkpoint(made[0])
    arguments = {name: checkpoint.arguments[name] for name in ("n_bits", "backbone", "weights")}
    old = Checkpoint("drh", arguments, (), 64)
    record = json.loads((tmp_path / "old/model.json").read_text())
    identity = checkpoints._identity(old)
    record |= identity | {
        "model_hash": checkpoints._identity_hash(identity, record["weights_hash"])
    }
    (tmp_path / "old/model.json").write_text(json.dumps(record))
    known = read_checkpoint(tmp_path / "old")
    with pytest.raises(ValueError, match=r"is an index with max_iou 1.0, got 0.5"):
        indexing._check_same(tmp_path / "old", known, indexing.IndexSettings({"max_iou": 0.5}))
    indexing._check_same(tmp_path / "old", known, indexing.IndexSettings({"max_iou": 1.0}))


# Boxes that a detector found


def detections_of(photos, names=("0.png", "1.png", "2.png", "3.png")):
    """COCO's results: two objects in each of some photos."""
    results = []
    for n, name in enumerate(names):
        height, width = read_image(photos / name).shape[:2]
        half = [0, 0, width / 2, height / 2]
        results += [
            {"file_name": name, "bbox": half, "score": 0.25, "category_name": "cat"},
            {"file_name": name, "bbox": [1, 2, 20, 30], "score": 0.75, "category_name": "dog"},
        ][: 1 + (n != 3)]
    return results


@pytest.fixture(scope="module")
def boxed(photos, tmp_path_factory):
    """The index of the six photos by boxes of four of them; its file, and what the command said."""
    folder = tmp_path_factory.mktemp("boxed")
    file = folder / "found.json"
    file.write_text(json.dumps([*detections_of(photos), {"file_name": "x", "bbox": [0, 0, 1, 1]}]))
    result = index(photos, folder / "index", *SMALL, "--proposals", f"boxes:{file}", "--json")
    return folder / "index", file, result


def test_the_regions_are_the_boxes_with_their_classes_and_scores(boxed, photos):
    folder, _, result = boxed
    table = open_codes(folder).compact().table
    assert table.classes == ("cat", "dog")
    assert np.diff(table.offsets).tolist() == [3, 3, 3, 2, 1, 1]
    regions = table.regions(0)
    height, width = table.sizes[0].tolist()
    wanted = [[0, 0, width, height], [1, 2, 21, 32], [0, 0, width / 2, height / 2]]
    np.testing.assert_allclose(regions.boxes, wanted, atol=1e-3)
    assert regions.labels.tolist() == [-1, 1, 0]
    assert regions.scores.tolist() == [1, 0.75, 0.25]
    model, checkpoint = load_checkpoint(folder)
    again = encode_boxes(model, checkpoint, read_image(photos / "0.png"), regions.boxes.copy())
    np.testing.assert_array_equal(again.codes, regions.codes)
    assert record_of(result)["noticed"] == {
        "pictures with boxes that are not among the pictures, left out": 1,
        "pictures without boxes, encoded without them": 2,
    }


def test_pictures_can_be_selected_by_the_classes_of_the_boxes(boxed, photos):
    query = {"image": photos / "5.png", "boxes": [(5, 5, 60, 60)]}
    with Collection.open(boxed[0]) as opened:

        def found(**options):
            return {hit.id for hit in opened.search(**query, filter=Filter(**options)).hits}

        assert found() == {f"{n}.png" for n in range(6)}
        assert found(labels=("cat",)) == {"0.png", "1.png", "2.png", "3.png"}
        assert found(labels=("dog",)) == {"0.png", "1.png", "2.png"}
        assert found(labels=("cat",), min_score=0.5) == set()
        assert found(min_score=0.5) == {"0.png", "1.png", "2.png"}  # the whole picture is none


def test_boxes_and_windows_are_one_index(boxed, made, photos, tmp_path):
    file = boxed[1]
    index(photos, tmp_path / "index", *SMALL, "--proposals", f"boxes:{file}+windows")
    model, checkpoint = load_checkpoint(tmp_path / "index")
    assert model.choice == RegionChoice("boxes+windows")
    assert checkpoint.arguments["proposals"] == "boxes+windows" and model.takes_boxes
    assert json.loads((tmp_path / "index/boxes.json").read_text()) == {"files": [str(file)]}
    both, boxes, windows = (
        open_codes(folder).compact().table for folder in (tmp_path / "index", boxed[0], made[0])
    )
    for n in range(6):
        found, own, others = (table.regions(n) for table in (both, boxes, windows))
        np.testing.assert_allclose(found.boxes, [*own.boxes, *others.boxes[1:]], atol=1e-3)
        assert found.labels.tolist() == [*own.labels, *[-1] * (len(others) - 1)]
    index(photos, tmp_path / "index", *SMALL, "--proposals", f"boxes:{file}+windows")
    said = error_of("index", photos, "-o", tmp_path / "index", "--proposals", f"boxes:{file}")
    assert "is an index with proposals boxes+windows, got boxes" in said
    shutil.copytree(photos, tmp_path / "more")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "more/new.png")
    run("add", tmp_path / "index", tmp_path / "more/new.png", "--workers", 0)
    with Collection.open(tmp_path / "index") as opened:  # no file has it: windows alone
        (new,) = [image.id for image in opened.images() if image.id.endswith("new.png")]
        assert len(opened.encoded(new).regions) > 1


def test_a_file_whose_name_ends_in_windows_is_that_file(boxed, photos, tmp_path):
    file = tmp_path / "texts+windows"
    file.mkdir()
    (file / "0.txt").write_text("0 .5 .5 .5 .5 .9\n")
    index(photos, tmp_path / "index", *SMALL, "--proposals", f"boxes:{file}")
    assert load_checkpoint(tmp_path / "index")[0].choice.proposals == "boxes"


def test_a_query_without_boxes_has_windows_and_a_stored_one_its_objects(boxed, photos, tmp_path):
    folder, _, _ = boxed
    record = search(folder, "--query", photos / "1.png", "--mode", "objects")
    assert record["hits"][0]["matches"][0]["box"] is not None
    with Collection.open(folder) as opened:
        encoded = opened.encoded("0.png")
        assert len(encoded.regions) == 3
        found = opened.search(image_id="0.png", mode="objects")
    assert [len(hit.matches) for hit in found.hits][:1] == [2]  # cat and dog, not the whole picture


def test_new_pictures_have_the_boxes_of_their_own_file_or_of_the_first(photos, tmp_path):
    pictures, folder = tmp_path / "pictures", tmp_path / "index"
    pictures.mkdir()
    shutil.copy(photos / "0.png", pictures)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(detections_of(photos, ("0.png", "1.png"))))
    index(pictures, folder, *SMALL, "--proposals", f"boxes:{first}")
    assert json.loads((folder / "boxes.json").read_text()) == {"files": [str(first)]}
    shutil.copy(photos / "1.png", pictures)
    run("refresh", folder, "--workers", 0)  # reads the first file again
    shutil.copy(photos / "2.png", pictures)
    second.write_text(json.dumps(detections_of(photos, ("2.png",))))
    run("add", folder, pictures, "--boxes", second, "--workers", 0)
    assert recorded_files(folder) == [second, first]
    table = open_codes(folder).compact().table
    assert list(table.ids) == ["0.png", "1.png", "2.png"]
    assert np.diff(table.offsets).tolist() == [3, 3, 3]
    # A file that is gone is no reason to stop, and the collection says so.
    second.unlink()
    shutil.copy(photos / "3.png", pictures)
    result = run("refresh", folder, "--workers", 0)
    assert f"{second}: " in result.stderr and "No such file" in result.stderr
    assert "no file has boxes of it; it is encoded without them" in result.stderr
    assert np.diff(open_codes(folder).compact().table.offsets).tolist() == [3, 3, 3, 1]
    assert record_of(run("check", folder, "--json"))["problems"] == []


def test_boxes_are_refused_by_an_index_of_windows_and_a_damaged_list_is_named(
    made, boxed, photos, tmp_path
):
    said = error_of("add", made[0], photos, "--boxes", boxed[1])
    assert said.startswith(f"{made[0]}: its model takes no boxes; `regionhash index --proposals")
    said = error_of("add", boxed[0], photos, "--boxes", tmp_path / "no.json")
    assert said.startswith(f"{tmp_path / 'no.json'}: ")
    shutil.copytree(boxed[0], tmp_path / "copy")
    for content, reason in (
        ("[", "Expecting"),
        ("{}", "'files' is missing"),
        ('{"files": ["a"]}', "files must be absolute paths, got 'a'"),
    ):
        (tmp_path / "copy/boxes.json").write_text(content)
        said = error_of("refresh", tmp_path / "copy")
        assert said.startswith(f"{tmp_path / 'copy/boxes.json'}: ") and reason in said


def test_a_function_finds_the_boxes(photos, tmp_path):
    seen = []

    def detector(image):
        seen.append(image.shape)
        height, width = image.shape[:2]
        return [[0, 0, width / 2, height], [0, 0, 10, 10]], [0.5, 0.9], [1, 0]

    settings = indexing.IndexSettings(
        {"backbone": "tiny_fpn", "weights": "none", "n_bits": 64},
        short=64,
        boxes=detector,
        classes=("corner", "half"),
    )
    report = indexing.build_index([str(photos)], tmp_path, settings, workers=2)
    assert report.checkpoint.classes == ("corner", "half")
    table = open_codes(tmp_path).compact().table
    assert np.diff(table.offsets).tolist() == [3] * 6
    assert table.regions(0).labels.tolist() == [-1, 0, 1]
    assert len(seen) == 12  # fitted, then encoded
    shutil.copytree(photos, tmp_path / "more")
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "more/new.png")
    with Collection.open(tmp_path) as opened:
        opened.add([str(tmp_path / "more")], boxes=lambda _: [[1, 1, 9, 9]], workers=0)
        assert opened.encoded("new.png").regions.boxes[1].tolist() == pytest.approx([1, 1, 9, 9])
    with (
        Collection.open(tmp_path) as opened,
        pytest.raises(ValueError, match=r"b\.png: boxes must"),
    ):
        Image.fromarray(np.ones((50, 60, 3), np.uint8)).save(tmp_path / "more/b.png")
        opened.add([str(tmp_path / "more/b.png")], boxes=lambda _: [1, 2], workers=0)
    with Collection.open(tmp_path) as opened, pytest.raises(ValueError, match="below 2, the num"):
        opened.add(
            [str(tmp_path / "more/b.png")], boxes=lambda _: ([[1, 1, 9, 9]], None, [2]), workers=0
        )


def test_encoding_with_a_model_of_boxes_takes_windows_and_says_so(boxed, photos, tmp_path):
    result = run("encode", boxed[0], photos, "-o", tmp_path / "codes.h5", "--workers", 0)
    assert "the model takes boxes, but none are given; the regions are windows" in result.stderr


def test_the_sample_of_regions_is_bounded_and_holds_the_whole_pictures(made, photos, monkeypatch):
    from regionhash.collection import fitting
    from regionhash.collection.fitting_drh import Described

    model, _ = load_checkpoint(made[0])
    image_set, _ = open_inputs([str(photos)])
    monkeypatch.setattr(fitting, "MAX_PICTURES", 4)
    monkeypatch.setattr(fitting, "MAX_REGIONS", 12)
    sample = sample_features(Described(model), image_set, short=64, seed=0, workers=0)
    assert len(sample) == 12
    again = sample_features(Described(model), image_set, short=64, seed=0, workers=0)
    np.testing.assert_array_equal(sample, again)
    other = sample_features(Described(model), image_set, short=64, seed=1, workers=0)
    assert not np.array_equal(sample, other)
    monkeypatch.setattr(fitting, "MAX_REGIONS", 1)
    whole = sample_features(Described(model), image_set, short=64, seed=0, workers=0)
    np.testing.assert_array_equal(whole, sample[::3])


# Searching


def test_a_search_by_box_answers_with_boxes(made, photos):
    folder, _ = made
    record = search(folder, "--query", photos / "2.png", "--box", "20,30,90,100")
    assert (record["mode"], record["steps"]) == ("region", ["exact"])
    assert len(record["hits"]) == 6
    table = open_codes(folder).compact().table
    for hit in record["hits"]:
        (match,) = hit["matches"]
        regions = table.regions(list(table.ids).index(hit["picture"]))
        assert match["box"] in regions.boxes.tolist()
        assert match["class"] is None


def test_an_index_that_was_moved_brings_its_model_along(photos, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    index(photos, before)
    command = ["--query", photos / "1.png", "--box", "5,5,60,60"]
    wanted = search(before, *command)
    before.rename(after)
    assert search(after, *command) == wanted
    other = shutil.copytree(after, tmp_path / "other")
    (after / "model.json").write_text("[]")  # something else of that name
    said = error_of("search", after, *command)
    assert said == f"{after / 'model.json'}: cannot read the checkpoint: must be an object, got []"
    assert search(after, *command, "--model", other) == wanted


def test_a_picture_without_a_box_is_compared_as_a_whole(made, photos):
    record = search(made[0], "--query", photos / "2.png")
    assert record["mode"] == "image"
    assert record["hits"][0]["picture"] == "2.png"
    assert record["hits"][0]["distance"] == 0


def test_the_steps_of_the_paper_answer_with_boxes_of_the_candidates(made, photos):
    command = ["--query", photos / "2.png", "--box", "20,30,90,100"]
    first = search(made[0], *command, "--steps", "global")
    assert [hit["matches"] for hit in first["hits"]] == [[]] * 6
    steps = "global,global-expand,local,local-expand"
    options = ["--candidates", 3, "--expand", 2]
    record = search(made[0], *command, "--steps", steps, *options)
    assert record["steps"] == steps.split(",")
    assert {hit["picture"] for hit in record["hits"]} == {
        hit["picture"] for hit in first["hits"][:3]
    }
    assert all(len(hit["matches"]) == 1 for hit in record["hits"])
    assert [hit["distance"] for hit in record["hits"][:2]] == [0, 0]  # they are queries themselves


def test_steps_work_with_a_model_whose_picture_codes_are_of_another_kind(saved, photos, tmp_path):
    folder = tmp_path / "index"
    index(photos, folder, "--model", saved.folder)  # 32 bits a picture, 16 a region
    whole = search(folder, "--query", photos / "2.png")
    height, width, _ = read_image(photos / "2.png").shape
    box = f"0,0,{width},{height}"
    first = search(folder, "--query", photos / "2.png", "--box", box, "--steps", "global")
    # The box is the whole picture, so what is cut out along it is the picture.
    assert [hit["distance"] for hit in first["hits"]] == [hit["distance"] for hit in whole["hits"]]
    both = search(folder, "--query", photos / "2.png", "--box", box, "--steps", "global,local")
    exact = search(folder, "--query", photos / "2.png", "--box", box)
    assert {hit["picture"]: hit["matches"] for hit in both["hits"]} == {
        hit["picture"]: hit["matches"] for hit in exact["hits"]
    }


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "local"], "steps must begin with exact or global, got local"),
        (["--steps", "global,nearest"], "unknown step 'nearest'; known: exact, global,"),
        (["--steps", "global", "--candidates", 9], "--candidates needs several steps"),
        (["--steps", "global,local", "--expand", 2], "--expand needs a step that expands"),
        (["--steps", "global,local", "--candidates", 0], "candidates must be at least 1, got 0"),
        (["--steps", "exact", "--mode", "objects"], "(mode region), got objects"),
        (["--box", "500,500,600,600"], "lies outside of the picture, 160 x 100 pixels"),
        (["--box", "158,98,500,500"], "more than half of it lies outside of the picture, 160 x"),
    ],
)
def test_bad_input_of_a_search_is_named(made, photos, options, message):
    assert message in error_of("search", made[0], "--query", photos / "0.png", *options)


@pytest.mark.parametrize("box", ["40,40,41,42", "158,98,161,101", "-9,-9,30,20", "0,50,160,50.5"])
def test_a_box_of_a_few_pixels_or_over_the_edge_has_an_answer(made, photos, box):
    for steps in ("exact", "global,local"):
        options = ["--query", photos / "0.png", f"--box={box}", "--steps", steps]
        assert len(search(made[0], *options)["hits"]) == 6


@pytest.mark.parametrize(
    "scenes",
    [
        lambda scene: [scene],
        lambda scene: [scene] * 4,
        lambda scene: [np.full_like(scene, 255)] * 3,
        lambda scene: [np.full_like(scene, grey) for grey in (0, 90, 255)],
        lambda scene: [scene[:1, :1], scene[:3]],
    ],
    ids=["one", "identical", "white", "constant", "tiny"],
)
def test_collections_with_nothing_to_tell_apart_can_be_searched(tmp_path, scenes):
    pictures, folder = tmp_path / "pictures", tmp_path / "index"
    pictures.mkdir()
    made = scenes(open_dataset("digits:test:1").images[0])
    for n, scene in enumerate(made):
        write_picture(pictures / f"{n}.png", scene)
    assert record_of(index(pictures, folder, *SMALL, "--json"))["encoded"] == len(made)
    hits = search(folder, "--query", pictures / "0.png")["hits"]
    assert (len(hits), hits[0]["distance"]) == (len(made), 0)
    hits = search(folder, "--query", pictures / "0.png", "--box", "0,0,1,1.5")["hits"]
    assert len(hits) == len(made)


def test_a_bad_picture_is_named_and_left_out(photos, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(photos / "0.png", pictures)
    (pictures / "bad.jpg").write_bytes(b"no picture")
    result = run("index", pictures, "-o", tmp_path / "a", "--workers", 0, *SMALL)
    assert result.stderr.startswith(f"skipped: {pictures / 'bad.jpg'}: not a picture")
    assert "1 encoded" in result.stdout and "1 skipped" in result.stdout
    run("index", pictures, "-o", tmp_path / "a", "--workers", 0, "--strict", code=1)
    (pictures / "0.png").unlink()
    said = error_of("index", pictures, "-o", tmp_path / "b", "--workers", 0, *SMALL)
    assert "can be read" in said and "bad.jpg" in said
    assert not (tmp_path / "b").exists()


def test_an_index_of_other_settings_is_refused_and_kept(made, saved, photos, tmp_path):
    folder = made[0]
    before = (folder / "collection.db").read_bytes()
    for options, message in (
        (["--bits", 128], f"{folder}: is an index with n_bits 64, got 128; give another folder"),
        (["--short", 96], f"{folder}: is an index with short 64, got 96; give another folder"),
        (["--proposals", saved.folder], "is an index with proposals windows, got rpn"),
        (["--proposals", f"detector:{saved.folder}"], "with proposals windows, got rpn"),
        (["--proposals", "pyramid"], "is an index with proposals windows, got pyramid"),
        (["--proposals", f"boxes:{photos}"], "is an index with proposals windows, got boxes"),
        (["--max-regions", 50], "is an index with n_proposals 300, got 50"),
        (["--max-iou", 0.5], "is an index with max_iou 1.0, got 0.5"),
        (["--model", saved.folder], "is an index of another model than"),
    ):
        assert message in error_of("index", photos, "-o", folder, *options)
    assert (folder / "collection.db").read_bytes() == before


def test_bad_settings_are_named(photos, saved, tmp_path):
    for options, message in (
        (["--model", saved.folder, "--bits", 64], "is not fitted: leave out n_bits"),
        (["--model", tmp_path / "gone"], "no such file; a checkpoint is a folder with it"),
        (["--proposals", tmp_path / "gone"], "no such file; a checkpoint is a folder with it"),
        (["--proposals", saved.folder, "--backbone", "vgg16"], "leave out backbone"),
        (
            ["--proposals", "piramid"],
            "+pyramid after it, or detector:CHECKPOINT, got 'piramid'",
        ),
        (["--proposals", "boxes:"], "+pyramid after it, or detector:CHECKPOINT, got 'boxes:'"),
        (["--proposals", "boxes:+windows"], "+windows: no such file or folder; detections are"),
        (["--proposals", "boxes:x+rpn"], "x+rpn: no such file or folder; detections are"),
        (["--model", saved.folder, "--proposals", "boxes:x"], "is not fitted: leave out proposals"),
        (
            ["--proposals", f"boxes:{tmp_path / 'no.json'}", *SMALL],
            "no.json: cannot read the det",
        ),
        (["--max-iou", 0, *SMALL[:4]], "max_iou must be in (0, 1], got 0"),
        (["--bits", 12, *SMALL[:4]], "positive multiple of 8, got 12"),
        (["--overlap", 1.5, *SMALL[:4]], "overlap must be in [0, 1), got 1.5"),
        (["--short", 8], "short must be in [32, 2048], got 8"),
        (["--backbone", "vgg"], "unknown backbone 'vgg'; known: vgg16,"),
    ):
        assert message in error_of("index", photos, "-o", tmp_path / "run", *options)
        assert not (tmp_path / "run").exists()
    assert "no such file or folder" in error_of("index", tmp_path / "no", "-o", tmp_path / "run")


def test_an_index_of_drh_proposes_nothing(made, photos, tmp_path):
    said = error_of("index", photos, "-o", tmp_path / "run", "--proposals", made[0])
    assert said == f"{made[0]}: a drh proposes no regions"
