"""Hand-crafted local features: SIFT, from OpenCV."""

from __future__ import annotations

from typing import Any

import numpy as np

from regionhash.data.image_set import Image
from regionhash.structures import Floats

_MOST = 500  # features of a picture


def load_opencv() -> Any:
    """The module `cv2`.

    Raises:
        ValueError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ValueError('SIFT needs OpenCV: pip install "regionhash[selective-search]"') from error
    return cv2


def sift_features(image: Image) -> tuple[Floats, Floats]:
    """Positions (P, 2), x and y in pixels, and RootSIFT descriptors (P, 128) of a picture.

    Lowe, IJCV 2004; the square root is Arandjelovic and Zisserman's (CVPR 2012). A picture without
    corners has none; of one with many, the strongest are kept.

    Args:
        image: (H, W, 3) uint8, RGB.

    Raises:
        ValueError: OpenCV is not installed.
    """
    cv2 = load_opencv()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    keys, descriptors = cv2.SIFT_create(_MOST).detectAndCompute(grey, None)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    places = np.array([key.pt for key in keys], np.float32)
    sums = descriptors.sum(1, keepdims=True)
    return places, np.sqrt(descriptors / np.maximum(sums, 1e-9))
