import numpy as np
import pytest
import torch

from conftest import build_tiny
from regionhash.parts import selective_search
from regionhash.parts.selective_search import CACHE_VARIABLE, SelectiveSearch, cache_folder


def _picture():
    """Two plain rectangles on a plain ground."""
    image = torch.full((3, 96, 128), 40, dtype=torch.uint8)
    image[0, 20:60, 10:50] = 220
    image[1, 30:80, 70:110] = 200
    return image


def test_the_rectangles_of_a_picture_are_proposed(tmp_path):
    pytest.importorskip("cv2")
    boxes = SelectiveSearch(100, tmp_path)(_picture())
    assert boxes.dtype == torch.float32
    for wanted in ([10, 20, 50, 60], [70, 30, 110, 80]):
        assert (boxes - torch.tensor(wanted)).abs().amax(1).min() <= 4
    assert (boxes[:, 2:] <= torch.tensor([128, 96])).all()


def _fake(monkeypatch, boxes):
    calls = []

    def search(pixels):
        calls.append(pixels.shape)
        return np.array(boxes, np.float32).reshape(-1, 4)

    monkeypatch.setattr(selective_search, "_search", search)
    return calls


def test_a_picture_is_searched_once(tmp_path, monkeypatch):
    calls = _fake(monkeypatch, [[0, 0, 20, 20], [40, 40, 90, 90]])
    first = SelectiveSearch(100, tmp_path)(_picture())
    again = SelectiveSearch(100, tmp_path)(_picture())
    assert torch.equal(first, again) and len(calls) == 1
    SelectiveSearch(100, tmp_path)(_picture().flip(2))
    assert len(calls) == 2
    assert len(list(tmp_path.rglob("*.npy"))) == 2


def test_a_file_that_a_kill_left_broken_is_made_anew(tmp_path, monkeypatch):
    calls = _fake(monkeypatch, [[0, 0, 20, 20]])
    SelectiveSearch(100, tmp_path)(_picture())
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:20])
    assert SelectiveSearch(100, tmp_path)(_picture()).tolist() == [[0, 0, 20, 20]]
    assert len(calls) == 2


def test_near_doubles_are_left_out_and_the_number_is_kept(tmp_path, monkeypatch):
    _fake(monkeypatch, [[0, 0, 40, 40], [0, 0, 41, 40], [50, 0, 90, 40], [0, 50, 40, 90]])
    assert len(SelectiveSearch(100, tmp_path)(_picture())) == 3
    assert len(SelectiveSearch(2, tmp_path)(_picture())) == 2


def test_nothing_found_is_no_error_and_the_model_takes_the_whole_picture(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    _fake(monkeypatch, [])
    assert SelectiveSearch(100)(_picture()).shape == (0, 4)
    model = build_tiny("iah", n_bits=8, n_classes=3, proposals="selective-search").eval()
    (encoded,) = model.encode([_picture()])
    assert np.unique(encoded.regions.boxes, axis=0).tolist() == [[0, 0, 128, 96]]
