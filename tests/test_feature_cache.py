"""What is kept on disk of pictures: whole, or computed again with a line that says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from regionhash.data import open_dataset
from regionhash.experiments.drh_features import BagWriter, _stored
from regionhash.training import Cache, TrainingConfig, feature_cache
from regionhash.training.feature_cache import kept_features
from reporters import Recording

SCENES = open_dataset("digits:train:3")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that features were computed."""
    calls: list[int] = []

    def compute(model: object, image_set: object, config: object, n_views: int) -> Cache:
        calls.append(n_views)
        return [({"pooled": torch.arange(6.0).reshape(3, 2)}, torch.eye(3)) for _ in range(n_views)]

    monkeypatch.setattr(feature_cache, "cache_features", compute)
    return calls


def features(folder: Path, told: Recording, n_views: int = 2) -> Cache:
    return kept_features(folder, "x", lambda: None, SCENES, TrainingConfig(), n_views, told)


def test_features_are_computed_once(tmp_path, computed):
    folder, told = tmp_path / "new", Recording()
    first, again = features(folder, told), features(folder, told)
    assert computed == [2] and len(told.notes) == 1
    assert torch.equal(first[1][0]["pooled"], again[1][0]["pooled"])
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "garbage", "one view"])
def test_damaged_features_are_computed_again_with_a_line(tmp_path, computed, damage):
    told = Recording()
    features(tmp_path, told)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 40)
    else:
        features(tmp_path / "b", told, n_views=1)
        shutil.copy(next((tmp_path / "b").iterdir()), path)
    found = features(tmp_path, told)
    assert len(found) == 2 and computed[-1] == 2
    assert f"{path}: damaged (" in told.notes[-2] and told.notes[-2].endswith("; computed again")
    assert path.read_bytes() == content


def bags(path: Path) -> None:
    """Features for instance search of two pictures and a query."""
    path.mkdir()
    for part, n in (("database", 2), ("queries", 1)):
        writer = BagWriter(path / part)
        for _ in range(n):
            writer.add({"MAC": torch.ones(3, 4)})
        writer.finish()
    (path / "pictures.json").write_text(json.dumps({"ids": ["a", "b"], "skipped": {}}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pictures.json", b'{"ids": ["a", '),
        ("pictures.json", b"[]"),
        ("pictures.json", None),
        ("database/bags.json", b'{"n_dims": 4, "counts": {"MAC": [3, 4]}}'),
        ("database/bags.json", b'{"n_dims": "4", "counts": {"MAC": [3, 3]}}'),
        ("database/bags.json", b'{"n_dims": 4, "counts": 3}'),
        ("database/MAC.f16", np.ones(23, "<f2").tobytes()),
        ("database/MAC.f16", b""),
        ("queries/MAC.f16", None),
    ],
)
def test_a_damaged_folder_of_features_is_removed_with_a_line(tmp_path, name, content):
    path, told = tmp_path / "features", Recording()
    bags(path)
    assert len(_stored(path, told).database["MAC"].values) == 6 and not told.notes
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    assert _stored(path, told) is None
    (line,) = told.notes
    assert line.startswith(f"{path}: damaged (")
    assert not path.exists()
