"""What several tests share. Environment variables come first: torch reads them when imported."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow shared cores tenfold
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

import costly_pictures as costly
from regionhash.collection import Collection
from regionhash.collection.indexing import IndexSettings, build_index
from regionhash.data import open_dataset
from regionhash.data.images import read_image
from regionhash.models.checkpoints import Checkpoint, build_model, save_checkpoint
from regionhash.models.encoding import encode_boxes
from regionhash.store import CodeFileWriter
from regionhash.structures import EncodedImage, Regions

torch.set_num_threads(1)

# How fast inputs are made says more of the machine than of the test.
settings.register_profile("any machine", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

TINY_BACKBONE: dict[str, Any] = {"backbone": "tiny_fpn", "weights": "none"}
TINY: dict[str, Any] = TINY_BACKBONE | {
    "n_bits": 32,
    "n_classes": 10,
    "n_proposals": 8,
    "n_hidden": 32,
    "fpn_channels": 16,
    "n_region_bits": 16,
    "max_regions": 5,
}
"""Arguments of a Region-DH model that takes milliseconds a picture."""


def pytest_collection_finish() -> None:
    """What is imported stays: each full collection of garbage would look at all of it again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def plain_cpu() -> Iterator[None]:
    """No test depends on what its machine computes fast; those of precision say what it has."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("regionhash.models.runtime.bf16_of_cpu", lambda: "none")
        yield


def build_tiny(name: str, *, seed: int = 0, **arguments: Any) -> Any:
    """A model on the tiny backbone, untrained, with weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return build_model(name, TINY_BACKBONE | arguments)


def noise(*shapes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    """Pictures (3, h, w) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
        for shape in shapes
    ]


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint folder with what is in it."""

    folder: Path
    model: Any
    checkpoint: Checkpoint


def save_tiny(folder: Path, *, seed: int = 0, **changes: Any) -> SavedModel:
    """A checkpoint of an untrained model for the classes of the digits."""
    arguments = TINY | changes
    model = build_tiny("region-dh", seed=seed, **arguments)
    with torch.no_grad():  # spread around 0.5, so that codes of untrained weights differ
        for layer in (model.h1, model.h2):
            for parameter in layer.parameters():
                parameter.mul_(20)
    bare = Checkpoint("region-dh", arguments, tuple("0123456789"), short=64)
    checkpoint = save_checkpoint(folder, model, bare)
    return SavedModel(folder, model.eval(), checkpoint)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    """The tiny model."""
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_saved(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    """The tiny model with other weights."""
    return save_tiny(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six scenes of three shapes."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = open_dataset("digits:test:6")
    for n, image in enumerate(scenes.images):
        write_picture(folder / f"{n}.png", image[: 160 if n % 3 else 100, : 120 if n % 2 else 160])
    return folder


def write_picture(path: Path, image: Any) -> None:
    """Writes (H, W, 3) pixels to a file."""
    Image.fromarray(np.asarray(image, np.uint8)).save(path)


@pytest.fixture(scope="session")
def slow_jpeg() -> bytes:
    """A picture that decodes for seconds."""
    return costly.jpeg_of_many_scans(85, side=7000)


@pytest.fixture(scope="session")
def chdb_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of chDB's tables: a process can open one."""
    return tmp_path_factory.mktemp("chdb")


@pytest.fixture(scope="session")
def photo_collection(
    saved: SavedModel, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A collection of the six photos, not to be changed."""
    return collect(photos, saved.folder, tmp_path_factory.mktemp("collected") / "photos.collection")


@pytest.fixture(scope="session")
def category_collection(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of the six photos with codes of categories, not to be changed."""
    model = tmp_path_factory.mktemp("iah")
    arguments = TINY_BACKBONE | {"n_bits": 16, "n_classes": 3, "n_category_bits": 16}
    arguments |= {name: TINY[name] for name in ("n_proposals", "fpn_channels")}
    built = build_tiny("iah", **arguments)
    save_checkpoint(model, built, Checkpoint("iah", arguments, ("cat", "dog", "cow"), short=64))
    return collect(photos, model, tmp_path_factory.mktemp("collected") / "categories.collection")


@pytest.fixture(scope="session")
def drh_collection(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of the six photos, not to be changed, by a model without classes and scores."""
    model = tmp_path_factory.mktemp("drh")
    arguments = TINY_BACKBONE | {"n_bits": 16}
    built = build_tiny("drh", **arguments)
    save_checkpoint(model, built, Checkpoint("drh", arguments, (), short=64))
    return collect(photos, model, tmp_path_factory.mktemp("collected") / "windows.collection")


@pytest.fixture(scope="session")
def worded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of the six photos, not to be changed, by an encoder with words."""
    from tiny_encoders import write_encoder_with_words

    folder = tmp_path_factory.mktemp("worded")
    (folder / "encoder").mkdir()
    arguments = {"n_bits": 64, "proposals": "pyramid", "n_proposals": 12}
    spec = write_encoder_with_words(folder / "encoder")
    settings = IndexSettings(arguments, 96, encoder=spec)
    build_index([str(photos)], folder / "index", settings, workers=0)
    return folder / "index"


@pytest.fixture(scope="session")
def certain_collection(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of the six photos, not to be changed, with categories of no probability."""
    model = tmp_path_factory.mktemp("baseline")
    arguments = TINY_BACKBONE | {"n_bits": 16, "n_classes": 3}
    built = build_tiny("category-baseline", **arguments)
    classes = ("cat", "dog", "cow")
    save_checkpoint(model, built, Checkpoint("category-baseline", arguments, classes, short=64))
    return collect(photos, model, tmp_path_factory.mktemp("collected") / "certain.collection")


@pytest.fixture(scope="session")
def cups(saved: SavedModel, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection, not to be changed, of pictures of the object in a box of 2.png.

    nested.png has it twice in one place, one.png once, two.png twice, the second 1 bit away.
    """
    box = np.array([[20, 30, 90, 100]], np.float32)
    image = read_image(photos / "2.png")
    (code,) = encode_boxes(saved.model, saved.checkpoint, image, box).codes
    near = code ^ np.array([1, 0], np.uint8)
    folder = tmp_path_factory.mktemp("cups")
    with CodeFileWriter(
        folder / "cups.h5",
        model_hash=saved.checkpoint.model_hash,
        model_name="region-dh",
        classes=saved.checkpoint.classes,
        n_bits=32,
        n_region_bits=16,
        meta={"checkpoint": str(saved.folder), "precision": "32-true"},
    ) as writer:
        for name, places, codes in (
            ("nested.png", [[0, 0, 40, 40], [2, 2, 40, 40]], [code, code]),
            ("one.png", [[0, 0, 40, 40]], [code]),
            ("two.png", [[0, 0, 40, 40], [50, 0, 90, 40]], [code, near]),
        ):
            regions = Regions(
                np.array(places, np.float32),
                np.linspace(0.9, 0.8, len(places), dtype=np.float32),
                np.zeros(len(places), np.int64),
                np.stack(codes),
            )
            probs = np.full(10, 0.1, np.float32)
            writer.add(name, EncodedImage((100, 100), np.zeros(4, np.uint8), probs, regions))
        writer.finish()
    Collection.of_code_file(folder / "cups.collection", folder / "cups.h5").close()
    return folder / "cups.collection"


def collect(pictures: Path, model: Path, folder: Path) -> Path:
    """Makes a collection of the pictures in `folder`, with a model that is saved."""
    build_index([str(pictures)], folder, IndexSettings({}, model=model), workers=0)
    return folder
