"""From pictures to codes: the order of the input, the frame of the picture, nothing twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from conftest import TINY, build_tiny, write_picture
from regionhash.data import open_dataset
from regionhash.data.images import ImageError
from regionhash.data.inputs import open_inputs
from regionhash.models import encoding
from regionhash.models.checkpoints import Checkpoint
from regionhash.models.encoding import (
    encode_boxes,
    encode_picture,
    encode_set,
    pick_device,
)
from regionhash.store import CodeFile
from reporters import Recording


def encode(saved, path, inputs, **options):
    image_set, source = open_inputs(inputs)
    return encode_into(saved, path, image_set, source, **options)


def encode_into(saved, path, image_set, source=None, **options):
    options = {"checkpoint_path": saved.folder, "source": source, "workers": 0} | options
    return encode_set(saved.model, saved.checkpoint, image_set, path, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "codes.h5"


def check_same_codes(table, other):
    assert list(table.ids) == list(other.ids)
    np.testing.assert_array_equal(table.sizes, other.sizes)
    np.testing.assert_array_equal(table.image_codes, other.image_codes)
    np.testing.assert_array_equal(table.offsets, other.offsets)
    np.testing.assert_array_equal(table.region_codes, other.region_codes)
    np.testing.assert_allclose(table.boxes, other.boxes, atol=1e-3)
    np.testing.assert_allclose(table.scores, other.scores, atol=1e-5)


def test_pictures_of_several_shapes_are_stored_in_the_order_of_the_input(saved, photos, path):
    report = encode(saved, path, [str(photos)], batch_size=2)
    assert (report.n_encoded, report.n_stored_before, report.skipped) == (6, 0, {})
    assert 0 < report.model_seconds < report.seconds
    table = CodeFile.open(path).table
    assert list(table.ids) == [f"{n}.png" for n in range(6)]
    assert table.sizes.tolist() == [
        [100 if n % 3 == 0 else 160, 120 if n % 2 else 160] for n in range(6)
    ]


def test_a_code_is_that_of_the_picture_alone_whatever_batch_and_worker(saved, photos, path):
    encode(saved, path, [str(photos)], batch_size=4, workers=2)
    table = CodeFile.open(path).table
    images = open_inputs([str(photos)])[0].images
    for n, image in enumerate(images):
        alone = encode_picture(saved.model, saved.checkpoint, image)
        np.testing.assert_array_equal(table.image_codes[n], alone.image_code)
        np.testing.assert_allclose(table.class_probs[n], alone.class_probs, atol=1e-5)
        np.testing.assert_array_equal(table.regions(n).codes, alone.regions.codes)
        np.testing.assert_allclose(table.regions(n).boxes, alone.regions.boxes, atol=1e-3)
    assert len({code.tobytes() for code in table.image_codes}) > 1


def test_boxes_are_in_pixels_of_the_picture_and_inside_it(saved, photos, path):
    encode(saved, path, [str(photos)])
    table = CodeFile.open(path).table
    for n, (height, width) in enumerate(table.sizes.tolist()):
        boxes = table.regions(n).boxes
        assert len(boxes)
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
    # The input's short side is 64: boxes left in its pixels would never come this far.
    assert table.boxes.max() > 100


def test_a_whole_picture_comes_back_as_its_own_frame(saved):
    image = open_dataset("digits:test:1").images[0][:100]  # 100 x 160, input 64 x 96
    frame = np.array([[0, 0, 160, 100]], np.float32)
    regions = encode_boxes(saved.model, saved.checkpoint, image, frame)
    np.testing.assert_array_equal(regions.boxes, frame)


def test_the_model_gets_a_box_in_pixels_of_its_own_input(saved, monkeypatch):
    image = open_dataset("digits:test:1").images[0][:100]  # 100 x 160, input 64 x 96
    seen = []

    def watched(images, boxes, _original=saved.model.encode_boxes):
        seen.extend(
            (*images[0].shape[1:], *boxes_of_image.flatten().tolist()) for boxes_of_image in boxes
        )
        return _original(images, boxes)

    monkeypatch.setattr(saved.model, "encode_boxes", watched)
    encode_boxes(saved.model, saved.checkpoint, image, np.array([[40, 25, 80, 50]], np.float32))
    assert seen == [(64, 96, 24, 16, 48, 32)]


def test_a_box_is_cut_off_at_the_edge_of_the_picture(saved):
    image = open_dataset("digits:test:1").images[0]
    box = np.array([[-10, 20, 500, 400]], np.float32)
    regions = encode_boxes(saved.model, saved.checkpoint, image, box)
    np.testing.assert_array_equal(regions.boxes, [[0, 20, 160, 160]])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 10, 40), "box 10,10,10,40: needs x0 < x1 and y0 < y1"),
        ((40, 10, 10, 40), "box 40,10,10,40: needs x0 < x1 and y0 < y1"),
        (
            (200, 10, 300, 40),
            "box 200,10,300,40: lies outside of the picture, 160 x 160 pixels",
        ),
    ],
)
def test_a_box_without_area_in_the_picture_is_refused(saved, box, message):
    image = open_dataset("digits:test:1").images[0]
    with pytest.raises(ValueError, match="box") as error:
        encode_boxes(saved.model, saved.checkpoint, image, np.array([box], np.float32))
    assert str(error.value) == message


def test_unreadable_pictures_are_skipped_with_name_and_reason(saved, tmp_path, path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    scene = open_dataset("digits:test:1").images[0]
    write_picture(folder / "a.png", scene)
    write_picture(folder / "z.png", scene)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "broken.jpg").write_bytes(b"no picture at all")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:3000])
    told = Recording()
    report = encode(
        saved,
        path,
        [str(folder)],
        reporter=told,
    )
    assert list(CodeFile.open(path).table.ids) == ["a.png", "z.png"]
    assert list(report.skipped) == ["broken.jpg", "cut.png", "empty.jpg"]
    assert told.skips == list(report.skipped.items())
    assert report.skipped["empty.jpg"] == f"{folder}/empty.jpg: the file is empty"
    assert told.steps[-1] == (5, 5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_whose_file_is_cut_off_is_encoded_and_told(saved, tmp_path, path, workers):
    image = PILImage.fromarray(open_dataset("digits:test:1").images[0])
    image.save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 9 // 10])
    told = Recording()
    report = encode(saved, path, [str(tmp_path / "a.jpg")], reporter=told, workers=workers)
    assert (report.n_encoded, report.skipped) == (1, {})
    assert report.noticed == {"files that are cut off, read as far as they go": 1}
    (line,) = told.notes
    assert line.startswith(f"{tmp_path}/a.jpg: ") and "missing" in line


def test_the_smallest_and_the_widest_picture_are_encoded(saved, tmp_path, path):
    write_picture(tmp_path / "dot.png", np.zeros((1, 1, 3)))
    write_picture(tmp_path / "line.png", np.zeros((3, 20_000, 3)))
    report = encode(saved, path, [str(tmp_path / "dot.png"), str(tmp_path / "line.png")])
    assert (report.n_encoded, report.skipped) == (2, {})
    assert CodeFile.open(path).table.sizes.tolist() == [[1, 1], [3, 20_000]]


def test_nothing_readable_gives_an_empty_code_file(saved, tmp_path, path):
    (tmp_path / "broken.jpg").write_bytes(b"x")
    report = encode(saved, path, [str(tmp_path / "broken.jpg")])
    assert (report.n_encoded, len(report.skipped)) == (0, 1)
    assert len(CodeFile.open(path).table) == 0


class Counted:
    """Pictures that remember which of them were read, and break off at one of them."""

    def __init__(self, images, stop_at=None):
        self.images = images
        self.stop_at = stop_at
        self.read = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, n):
        if n == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(n)
        return self.images[n]


def test_an_interrupted_run_goes_on_without_reading_anything_again(saved, tmp_path):
    scenes = open_dataset("digits:test:20")
    whole, halved = tmp_path / "whole.h5", tmp_path / "halved.h5"
    encode_into(saved, whole, scenes, batch_size=1)
    first = Counted(scenes.images, stop_at=19)
    with pytest.raises(KeyboardInterrupt):
        encode_into(saved, halved, replace(scenes, images=first), batch_size=1)
    second = Counted(scenes.images)
    report = encode_into(saved, halved, replace(scenes, images=second), batch_size=1)
    assert report.n_stored_before == 16  # two windows of eight batches
    assert second.read == list(range(16, 20))
    assert halved.read_bytes() == whole.read_bytes()


def test_pictures_are_added_to_a_finished_file(saved, path, tmp_path):
    encode_into(saved, path, open_dataset("digits:test:3"), {"data": "digits:test:3"})
    report = encode_into(saved, path, open_dataset("digits:test:5"), {"data": "digits:test:5"})
    assert (report.n_encoded, report.n_stored_before) == (2, 3)
    file = CodeFile.open(path)
    assert file.meta["sources"] == [{"data": "digits:test:3"}, {"data": "digits:test:5"}]
    assert file.labels.tolist() == open_dataset("digits:test:5").labels().tolist()


def test_labels_are_stored_by_the_models_classes_whatever_their_order(saved, path):
    scenes = open_dataset("digits:test:4")
    turned = replace(
        scenes,
        classes=scenes.classes[::-1],
        targets=tuple(replace(target, labels=9 - target.labels) for target in scenes.targets),
    )
    encode_into(saved, path, turned)
    assert CodeFile.open(path).labels.tolist() == scenes.labels().tolist()


def test_pictures_without_labels_have_none(saved, photos, path):
    encode(saved, path, [str(photos)])
    assert CodeFile.open(path).labels is None


def test_a_class_that_the_model_does_not_know_is_refused(saved, path):
    scenes = replace(open_dataset("digits:test:2"), classes=(*"012345678", "ten"))
    with pytest.raises(ValueError, match="does not know the classes ten; it knows 0, 1"):
        encode_into(saved, path, scenes)


def test_the_file_tells_where_its_codes_come_from(saved, photos, path):
    encode(saved, path, [str(photos)], precision="bf16-mixed")
    meta = CodeFile.open(path).meta
    assert meta["checkpoint"] == str(saved.folder)
    assert meta["precision"] == "bf16-mixed"
    assert meta["sources"] == [{"folder": f"{photos}/", "suffix": ""}]
    assert "torch" in meta["provenance"]["versions"]


def test_bf16_gives_other_activations_but_much_the_same_codes(saved, photos):
    image = open_inputs([str(photos)])[0].images[1]
    full = encode_picture(saved.model, saved.checkpoint, image)
    half = encode_picture(saved.model, saved.checkpoint, image, precision="bf16-mixed")
    assert not np.array_equal(full.class_probs, half.class_probs)
    np.testing.assert_allclose(half.class_probs, full.class_probs, atol=0.05)
    assert half.class_probs.dtype == np.float32


def test_codes_of_two_precisions_do_not_mix(saved, photos, path):
    encode(saved, path, [str(photos)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds codes of precision 32-true, got bf16-mixed"):
        encode(saved, path, [str(photos)], precision="bf16-mixed")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers at least 0"),
        ({"precision": "64"}, "precision must be one of 32-true, bf16-mixed, got '64'"),
    ],
)
def test_wrong_options_are_refused(saved, photos, path, options, message):
    with pytest.raises(ValueError, match=message):
        encode(saved, path, [str(photos)], **options)


def test_memory_does_not_grow_with_the_number_of_pictures(saved, path, monkeypatch):
    """At no time are more pictures held than a window and those that wait in front of it."""
    scenes = open_dataset("digits:test:60")
    held, most = set(), 0

    def watched(item, _original=encoding._image_of):
        nonlocal most
        held.add(item[0])
        most = max(most, len(held))
        return _original(item)

    def stored(self, image_id, *rest, _original=encoding.CodeFileWriter.add):
        held.discard(scenes.ids.index(image_id))
        return _original(self, image_id, *rest)

    monkeypatch.setattr(encoding, "_image_of", watched)
    monkeypatch.setattr(encoding.CodeFileWriter, "add", stored)
    encode_into(saved, path, scenes, batch_size=2)
    assert most == 16


def test_a_device_is_picked_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device cuda: torch finds no GPU"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="must be auto, cpu or cuda, got 'tpu'"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


def test_an_error_of_a_reader_is_a_skipped_picture(saved, path):
    class Failing(Counted):
        def __getitem__(self, n):
            if n == 1:
                raise ImageError("scene 1: no paint left")
            return super().__getitem__(n)

    scenes = open_dataset("digits:test:3")
    report = encode_into(saved, path, replace(scenes, images=Failing(scenes.images)))
    assert report.skipped == {scenes.ids[1]: "scene 1: no paint left"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("name", "arguments"), [("region-dh", TINY | {"n_bits": 256}), ("drh", {"n_bits": 256})]
)
def test_codes_of_a_gpu_are_those_of_the_cpu_but_for_rounding(name, arguments):
    checkpoint = Checkpoint(name, arguments, (), short=64)
    box = np.array([[10, 20, 90, 100]], np.float32)
    codes = {}
    for device in ("cpu", "cuda"):
        model = build_tiny(name, **arguments).eval().to(device)
        for n, image in enumerate(open_dataset("digits:test:4").images):
            encoded = encode_picture(model, checkpoint, image)
            (of_box,) = encode_boxes(model, checkpoint, image, box).codes
            codes[device, n] = np.unpackbits(np.concatenate([encoded.image_code, of_box]))
    for n in range(4):
        differing = np.count_nonzero(codes["cpu", n] != codes["cuda", n])
        assert differing <= len(codes["cpu", n]) // 64  # another picture differs in more
