import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from cli_runner import run
from conftest import TINY_BACKBONE, build_tiny
from regionhash.data import open_dataset
from regionhash.data.images import ImageError
from regionhash.models import MODELS
from regionhash.models.checkpoints import (
    CheckpointError,
    build_model,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from regionhash.structures import Target
from regionhash.training import (
    TrainingConfig,
    TrainingError,
    cache_features,
    copy_weights,
    loop,
    train,
)
from reporters import Recording

TINY = TINY_BACKBONE | {"n_bits": 16}
REGION = TINY | {"n_region_bits": 16, "n_hidden": 16, "fpn_channels": 16, "n_proposals": 8}
QUICK = {"epochs": 2, "batch_size": 4, "short": 64, "workers": 0, "held_out": 0.25, "flip": False}


def _config(**changes) -> TrainingConfig:
    return TrainingConfig(**(QUICK | changes))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def _assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0)


SCENES = open_dataset("digits:train:16")


def test_a_run_leaves_a_checkpoint_a_log_and_its_provenance(tmp_path):
    told = Recording()
    checkpoint = train(
        "region-dh",
        REGION,
        SCENES,
        tmp_path,
        _config(),
        reporter=told,
    )
    assert told.stages == ["training"]
    assert told.steps[-1] == (24, 24) and len(told.epochs) == 2  # 12 of 16 pictures, two epochs
    model, stored = load_checkpoint(tmp_path)
    assert stored.model_hash == read_checkpoint(tmp_path / "model.json").model_hash
    assert checkpoint == stored and stored.classes == SCENES.classes
    assert stored.arguments.items() >= (REGION | {"n_classes": 10}).items()
    assert stored.arguments["gamma_h1"] == 0.05  # a default of the builder, which may change
    assert not model.training
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"cls1", "reg1", "cls2", "reg2", "cls3", "h1_e1", "h2_e2", "held_out"} <= set(rows[0])
    assert stored.provenance["data"]["hash"] == SCENES.fingerprint()
    assert {"versions", "git", "training"} <= set(stored.provenance)
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("ssdh", TINY, SCENES, tmp_path / name, _config(epochs=1, seed=seed, held_out=0.0))
    _assert_same(_weights(tmp_path / "a"), _weights(tmp_path / "b"))
    first, other = _weights(tmp_path / "a"), _weights(tmp_path / "c")
    assert not torch.equal(first["latent.linear.weight"], other["latent.linear.weight"])


RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from regionhash.data import open_dataset
from regionhash.reporter import Reporter
from regionhash.training import TrainingConfig, train
class Printing(Reporter):
    def epoch(self, report, n_epochs):
        print(report.epoch, flush=True)
config = TrainingConfig(epochs=3, batch_size=4, short=64, workers=0, held_out=0.0, flip=False)
arguments = {arguments}
train("region-dh", arguments, open_dataset("digits:train:16"), Path(sys.argv[1]), config,
      reporter=Printing())
"""


@pytest.mark.slow
def test_a_killed_run_ends_as_if_never_killed(tmp_path):
    command = [sys.executable, "-c", RUN.format(arguments=REGION)]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, tmp_path / "killed"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    assert process.stdout.readline() == b"0\n"
    time.sleep(0.05)  # somewhere in the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = subprocess.run(
        [*command, tmp_path / "killed"], check=True, capture_output=True, text=True
    )
    assert "0" not in again.stdout.split()  # the first epoch is not done twice
    _assert_same(_weights(tmp_path / "whole"), _weights(tmp_path / "killed"))


class Stopping(Recording):
    """Stops a run after its first epoch, as Ctrl-C does."""

    def epoch(self, report, n_epochs):
        raise KeyboardInterrupt


def test_a_run_resumes_in_its_own_precision(tmp_path):
    config = _config(precision="bf16-mixed")
    train("ssdh", TINY, SCENES, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train("ssdh", TINY, SCENES, tmp_path / "stopped", config, reporter=Stopping())
    with pytest.raises(ValueError, match="a run with other training"):
        train("ssdh", TINY, SCENES, tmp_path / "stopped", _config())
    told = Recording()
    train("ssdh", TINY, SCENES, tmp_path / "stopped", config, reporter=told)
    assert [report.epoch for report in told.epochs] == [1]
    _assert_same(_weights(tmp_path / "whole"), _weights(tmp_path / "stopped"))
    train("ssdh", TINY, SCENES, tmp_path / "full", _config())
    half, full = _weights(tmp_path / "whole"), _weights(tmp_path / "full")
    assert not all(torch.equal(value, full[name]) for name, value in half.items())


def test_the_precision_of_training_is_a_flag(tmp_path):
    words = ("train", "ssdh", "digits:train:8", "-o", tmp_path, "--backbone", "tiny_fpn")
    words += ("--weights", "none", "--epochs", "1", "--short", "64", "--bits", "16")
    words += ("--set", "held_out=0", "--set", "workers=0")
    run(*words, "--precision", "bf16-mixed")
    recorded = read_checkpoint(tmp_path).provenance["training"]
    assert recorded["precision"] == "bf16-mixed"


def test_a_finished_run_is_not_trained_again(tmp_path):
    train("ssdh", TINY, SCENES, tmp_path, _config())
    first, told = read_checkpoint(tmp_path), Recording()
    again = train("ssdh", TINY, SCENES, tmp_path, _config(), reporter=told)
    assert told.epochs == [] and again == first


def test_a_folder_of_another_run_is_refused(tmp_path):
    train("ssdh", TINY, SCENES, tmp_path, _config())
    with pytest.raises(ValueError, match="a run with other training; choose another folder"):
        train("ssdh", TINY, SCENES, tmp_path, _config(epochs=5))
    with pytest.raises(ValueError, match="a run with other data"):
        train("ssdh", TINY, open_dataset("digits:train:17"), tmp_path, _config())


def test_the_best_epoch_is_that_of_the_least_loss_on_held_out_pictures(tmp_path):
    told = Recording()
    config = _config(epochs=4, learning_rate=0.5, schedule="constant", held_out=0.5)
    train("ssdh", TINY, SCENES, tmp_path, config, reporter=told)
    reports = told.epochs
    losses = [report.held_out for report in reports]
    best = int(np.argmin(losses))
    assert reports[best].best and not any(report.best for report in reports[best + 1 :])
    kept = read_checkpoint(tmp_path).provenance["epochs"]
    assert len(kept) == best + 1


def test_ramp_and_rate_follow_the_progress():
    config = _config(warmup=0.1, ramp_start=0.2, ramp_end=0.6)
    assert [config.ramp(x) for x in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert config.rate(0.05) == pytest.approx(0.5)
    assert config.rate(0.55) == pytest.approx(0.5)
    assert config.rate(1.0) == pytest.approx(0.0)
    step = _config(schedule="step", warmup=0.0)
    assert [step.rate(x) for x in (0.5, 0.7, 0.9)] == pytest.approx([1, 0.1, 0.01])
    assert _config(schedule="constant", warmup=0.0).rate(0.9) == 1
    assert _config().ramp(0) == 1  # no ramp unless asked for


def test_ramped_terms_do_not_train_before_their_time(tmp_path):
    """With a ramp that starts after the end, the image hash of Region-DH stays as it was made."""
    config = _config(epochs=1, held_out=0.0, ramp_start=0.98, ramp_end=0.99, weight_decay=0.0)
    train("region-dh", REGION, SCENES, tmp_path, config)
    start = build_tiny("region-dh", **REGION, n_classes=10).state_dict()
    trained = _weights(tmp_path)
    assert torch.equal(start["h2.linear.weight"], trained["h2.linear.weight"])
    assert not torch.equal(start["classify.weight"], trained["classify.weight"])


def test_cached_views_train_the_image_hash_alone(tmp_path):
    config = _config(cached_views=2, epochs=3, learning_rate=0.1)
    train("region-dh", REGION, SCENES, tmp_path, config)
    start = build_tiny("region-dh", **REGION, n_classes=10).state_dict()
    changed = {name for name, x in _weights(tmp_path).items() if not torch.equal(x, start[name])}
    modules = {name.split(".")[0] for name in changed}
    assert modules == {"instance", "h1", "classify", "context", "h2", "classify_image"}


def test_a_given_cache_trains_what_a_computed_one_does(tmp_path):
    config = _config(cached_views=2, held_out=0.0)
    start = build_tiny("control", **TINY, n_classes=10)
    cache = cache_features(start, SCENES, config, 2)
    assert cache[0][0]["pooled"].shape == (16, 256)
    assert torch.equal(cache[0][1], torch.from_numpy(SCENES.labels()).float())
    train("control", TINY, SCENES, tmp_path / "own", config, start=start)
    train("control", TINY, SCENES, tmp_path / "given", config, start=start, cache=cache)
    _assert_same(_weights(tmp_path / "own"), _weights(tmp_path / "given"))
    with pytest.raises(ValueError, match="held_out = 0 and as many cached_views"):
        train("control", TINY, SCENES, tmp_path / "x", _config(cached_views=3), cache=cache)


def test_a_model_takes_over_a_detector_with_another_length_of_code():
    old = build_model("region-dh", REGION | {"n_classes": 10})
    new = build_model("region-dh", REGION | {"n_classes": 10, "n_bits": 32})
    left = copy_weights(new, old)
    assert set(left) == {"h2.linear.weight", "h2.linear.bias", "classify_image.weight"}
    assert torch.equal(new.h1.linear.weight, old.h1.linear.weight)
    other = build_model("region-dh", REGION | {"n_classes": 10, "fpn_channels": 24})
    with pytest.raises(ValueError, match=r"differ in backbone\.fpn\.inner_blocks\.0\.0\.weight"):
        copy_weights(new, other)
    stranger = torch.nn.ParameterDict({"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="learns without labels"):
        copy_weights(new, stranger)
    stranger.losses, stranger.backbone = None, SimpleNamespace(stages=())
    with pytest.raises(ValueError, match="no weights in common"):
        copy_weights(new, stranger)


def test_a_backbone_of_which_other_stages_are_trained_is_not_taken_over_in_part():
    mobile = REGION | {"n_classes": 10, "backbone": "mobilenet_v2_fpn", "weights": "none"}
    trained = build_model("region-dh", mobile | {"trained_stages": 1})
    frozen = build_model("region-dh", mobile | {"trained_stages": 0})
    with pytest.raises(
        ValueError, match=r"same stages: only the new model has backbone\.stages\.2\."
    ):
        copy_weights(trained, frozen)  # batch normalisation, once folded, cannot be taken apart
    assert copy_weights(frozen, trained) == []


def test_a_loss_that_is_not_finite_stops_with_its_name(tmp_path, monkeypatch):
    from regionhash.models import image_level

    monkeypatch.setattr(image_level, "balance_bits", lambda a: a.mean(-1) * torch.nan)
    with pytest.raises(TrainingError, match="the loss e2 is nan in epoch 1, step 1"):
        train("ssdh", TINY, SCENES, tmp_path, _config())


def test_an_rpn_that_nobody_trains_gives_a_warning(tmp_path, caplog):
    start = build_model("region-dh", REGION | {"n_classes": 10})
    arguments = {name: REGION[name] for name in ("n_bits", "backbone", "weights", "fpn_channels")}
    config = _config(epochs=1, held_out=0.0)
    for given, told in ((None, True), (start, False)):
        caplog.clear()
        train("iah", arguments, SCENES, tmp_path / str(told), config, start=given)
        assert ("its proposals are random" in caplog.text) == told


def _table(tmp_path, text, n=4):
    for row in range(n):
        PILImage.new("RGB", (80, 64)).save(tmp_path / f"{row}.png")
    (tmp_path / "a.csv").write_text(text)
    return open_dataset(f"csv:{tmp_path}/a.csv")


HEAD = "image,label,x0,y0,x1,y1\n"


@pytest.mark.parametrize("model", ["ssdh", "region-dh", "dmih"])
def test_training_on_nothing_stops_before_the_first_step_and_says_why(tmp_path, model):
    empty = _table(tmp_path, HEAD + "".join(f"{n}.png,cup,200,2,300,4\n" for n in range(4)))
    crowd = replace(
        SCENES,
        targets=tuple(
            replace(target, difficult=np.ones(len(target.boxes), bool)) for target in SCENES.targets
        ),
    )
    n_objects = sum(len(target.boxes) for target in SCENES.targets)
    bare = replace(SCENES, targets=(Target.empty(),) * len(SCENES))
    for image_set, reason in (
        (empty, r"a: the set of 4 pictures has no .*\(boxes without area, left out: 4\)"),
        (crowd, rf"no label or object .*\(difficult or crowd objects: {n_objects}\)"),
        (bare, "the set of 16 pictures has no label or object to train on$"),
    ):
        told = Recording()
        with pytest.raises(TrainingError, match=reason):
            train(model, TINY, image_set, tmp_path / "run", _config(), reporter=told)
        assert not told.steps and not (tmp_path / "run").exists()


def test_a_detector_is_not_trained_without_boxes(tmp_path):
    told = Recording()
    with pytest.raises(TrainingError, match="no object has a box to train on, which region-dh"):
        train(
            "region-dh",
            REGION,
            SCENES.without_boxes(),
            tmp_path / "run",
            _config(),
            reporter=told,
        )
    assert not told.steps and not (tmp_path / "run").exists()


def test_a_part_without_labels_names_the_share_that_is_held_out(tmp_path):
    rows = [f"{n}.png,{'cup' * (n == 0)}\n" for n in range(4)]
    one = _table(tmp_path, "image,label\n" + "".join(rows))
    with pytest.raises(TrainingError, match=r"part of \d pictures has no label.*--set held_out=0"):
        train("ssdh", TINY, one, tmp_path / "run", _config(held_out=0.5))
    train("ssdh", TINY, one, tmp_path / "run", _config(held_out=0.0, epochs=1))


def test_a_set_too_small_to_be_split_names_the_share_that_is_held_out(tmp_path):
    with pytest.raises(TrainingError, match=r"leaves 0 held out.*--set held_out=0"):
        train("ssdh", TINY, SCENES.subset([0, 1]), tmp_path / "run", _config(held_out=0.1))


def test_unreadable_pictures_are_skipped_and_named(tmp_path, caplog):
    rows = ["image,label"]
    for n in range(5):
        PILImage.fromarray(np.full((40, 40, 3), 50 * n, np.uint8)).save(tmp_path / f"{n}.png")
        rows.append(f"{n}.png,{'ab'[n % 2]}")
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    images = open_dataset(f"csv:{tmp_path / 'list.csv'}")
    train("ssdh", TINY, images, tmp_path / "run", _config(held_out=0.0))
    named = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(named) == 1 and "2.png" in named[0]
    assert "2.png" in read_checkpoint(tmp_path / "run").provenance["skipped"][0]


def test_data_without_labels_is_refused(tmp_path):
    PILImage.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(TrainingError, match="no classes; training needs labelled pictures"):
        train("ssdh", TINY, open_dataset(f"folder:{tmp_path}"), tmp_path / "run", _config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"held_out": 1.0}, r"held_out must be in \[0, 1\), got 1.0"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"learning_rate": 0.0}, "must be positive"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _config(**changes)


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    train("ssdh", TINY, SCENES, tmp_path / "run", _config(epochs=1, held_out=0.0))
    return tmp_path / "run"


def test_a_checkpoint_is_read_from_its_folder_or_either_file(checkpoint):
    hashes = {
        load_checkpoint(path)[1].model_hash
        for path in (checkpoint, checkpoint / "model.json", checkpoint / "model.safetensors")
    }
    assert len(hashes) == 1


def test_another_kind_of_model_than_the_one_that_is_wanted_is_refused(checkpoint):
    kind = MODELS[read_checkpoint(checkpoint).name]
    assert isinstance(load_checkpoint(checkpoint, kind)[0], kind)
    with pytest.raises(CheckpointError, match="must be a dmih, is a"):
        load_checkpoint(checkpoint, MODELS["dmih"])


def test_the_hash_depends_on_weights_and_settings(checkpoint, tmp_path):
    model, first = load_checkpoint(checkpoint)
    same = save_checkpoint(tmp_path / "same", model, first)
    assert same.model_hash == first.model_hash
    with torch.no_grad():
        model.latent.linear.bias += 1
    assert save_checkpoint(tmp_path / "other", model, first).model_hash != first.model_hash


def test_damaged_weights_are_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_checkpoint(checkpoint)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "checkpoint format 99, this version of regionhash reads 1"),
        ({"model": "resnet"}, "unknown model 'resnet'"),
        ({"classes": None}, "'classes' is missing"),
    ],
)
def test_a_foreign_json_is_refused(checkpoint, change, message):
    config = checkpoint / "model.json"
    record = json.loads(config.read_text()) | change
    config.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(checkpoint)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        read_checkpoint(checkpoint)
    config.unlink()
    with pytest.raises(CheckpointError, match="a checkpoint is a folder with it"):
        read_checkpoint(checkpoint)


def _run_again(folder: Path) -> None:
    train("ssdh", TINY, SCENES, folder, _config(epochs=1, held_out=0.0))


def test_a_damaged_state_is_named(checkpoint):
    path = checkpoint / "state.pt"
    whole = torch.load(path, weights_only=True)
    for content in (b"half", b"", path.read_bytes()[:-500]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"state\.pt: damaged \(.*\); delete it to start again"
        ):
            _run_again(checkpoint)
    odd = [3, [], {}, {"identity": whole["identity"]}, whole | {"reports": [{"epoch": 1}]}]
    odd += [whole | {"model": {}}, whole | {"model": 3}, whole | {"optimizer": {"state": 3}}]
    for state in odd:
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"state\.pt: damaged \(") as caught:
            _run_again(checkpoint)
        assert "\n" not in str(caught.value)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"state\.pt: damaged \(not a file\)"):
        _run_again(checkpoint)
    path.unlink()
    _run_again(checkpoint)
    assert {entry.name for entry in checkpoint.iterdir()} == {
        "log.csv", "model.json", "model.safetensors", "state.pt", "tensorboard",
    }  # fmt: skip


def test_of_many_skipped_pictures_a_checkpoint_names_some_and_tells_their_number(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "_SHOWN_SKIPPED", 1)
    broken = [ImageError("a.jpg: cut"), ImageError("b.jpg: cut")]
    images = [*broken, *(SCENES.images[n] for n in range(2, 16))]

    class Images(list):
        def __getitem__(self, row):
            found = super().__getitem__(row)
            if isinstance(found, ImageError):
                raise found
            return found

    some = replace(SCENES, images=Images(images))
    found = train("ssdh", TINY, some, tmp_path, _config(epochs=1, held_out=0.0)).provenance
    assert found["skipped"] == ["a.jpg: cut"] and found["n_skipped"] == 2
