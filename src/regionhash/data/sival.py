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

    Any number of folders and pictures will do, so that a part can be read; what the whole set has
    is in the message where there are none.

    Raises:
        ValueError: the folder is missing, holds no picture, or one beside the folders.
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
        raise ValueError(f"{root}: one category alone, {image_set.classes[0]}, is no data set")
    return replace(image_set, name=f"SIVAL, {len(counts)} x {int(np.median(counts))}")
