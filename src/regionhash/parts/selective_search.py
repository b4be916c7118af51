"""Object proposals without learning: selective search through OpenCV, cached on disk.

Uijlings, van de Sande, Gevers, Smeulders, "Selective Search for Object Recognition", IJCV 2013.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from regionhash.files.atomic import replacing

CACHE_VARIABLE = "REGIONHASH_CACHE"
"""The environment variable that names the cache folder; default ~/.cache/regionhash."""

_MIN_SIDE = 16  # pixels of a proposal
_NMS = 0.7


def cache_folder() -> Path:
    """The folder in which proposals are cached."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "regionhash")


class SelectiveSearch:
    """The boxes of a picture, found once and then read from disk.

    OpenCV gives some thousand boxes in random order. Here the order is seeded with the hash of the
    picture, so that the same picture always has the same boxes; near duplicates are left out. Each
    picture has one file, named by the hash of its pixels and written atomically: a run that was
    killed resumes where it stopped.

    Args:
        n_proposals: greatest number of boxes of a picture.
        folder: where the files are; None takes `cache_folder`.
    """

    def __init__(self, n_proposals: int, folder: Path | None = None) -> None:
        self.n_proposals = n_proposals
        self.folder = folder

    def __call__(self, image: Tensor) -> Tensor:
        """Boxes (R, 4) float32, xyxy in pixels, of an image (3, h, w) uint8; R may be 0.

        Raises:
            ValueError: OpenCV is not installed.
        """
        pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()  # (h, w, 3)
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        folder = (self.folder or cache_folder()) / "selective-search" / digest[:2]
        path = folder / f"{digest}.npy"
        boxes = _read(path)
        if boxes is None:
            boxes = _search(pixels)
            _write(path, boxes)
        order = np.random.default_rng(int(digest[:16], 16)).permutation(len(boxes))
        shuffled = torch.from_numpy(boxes[order])
        first = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
        return shuffled[nms(shuffled, first, _NMS)[: self.n_proposals]].to(image.device)


def _search(pixels: Any) -> Any:
    """All boxes (N, 4) float32 of a picture (h, w, 3), sorted by their edges."""
    try:
        from cv2 import ximgproc
    except ImportError as error:
        raise ValueError(
            "selective search needs OpenCV with its contributed modules: "
            'pip install "regionhash[selective-search]"'
        ) from error
    search = ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(pixels[:, :, ::-1]))  # BGR
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process(), np.float32).reshape(-1, 4)  # x, y, width, height
    found = np.unique(found[(found[:, 2:] >= _MIN_SIDE).all(1)], axis=0)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def _read(path: Path) -> Any:
    """The boxes in a file; None if it is missing or damaged."""
    try:  # mapped, because a damaged header may declare more than the file holds
        boxes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, ArithmeticError):
        return None
    if not isinstance(boxes, np.ndarray) or boxes.dtype != np.float32 or boxes.shape[1:] != (4,):
        return None
    return np.array(boxes) if np.isfinite(boxes).all() else None


def _write(path: Path, boxes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new, new.open("wb") as file:
        np.save(file, boxes)
