"""The SIVAL layout: a folder for each of the 25 categories, with 60 pictures in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from regionhash.data.folder import read_folder
from regionhash.data.image_set import ImageSet

N_CATEGORIES, N_PICTURES = 25, 60  # Rahmani et al., PAMI 2008


def read_sival(root: str | Path) -> ImageSet:
    """The pictures of SIVAL; classes are the names of the folders, one for each picture.

    Any number of folders and pictures is accepted, so that a part can be read; the error message
    describes the whole set.

    Raises:
        ValueError: the folder is missing, holds no picture, or has one outside the subfolders.
    """
    try:
        image_set = read_folder(root, labelled=True)
    except ValueError as error:
        raise ValueError(
            f"{error}; SIVAL has {N_CATEGORIES} folders, such as ajaxorange and wd40can, with "
            f"{N_PICTURES} pictures each"
        ) from error
    counts = image_set.labels().sum(0)
    if len(counts) < 2:
        raise ValueError(f"{root}: needs at least two categories, got {image_set.classes[0]} only")
    return replace(image_set, name=f"SIVAL, {len(counts)} x {int(np.median(counts))}")
