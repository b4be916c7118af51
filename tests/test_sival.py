import numpy as np
import pytest
from PIL import Image

from regionhash.data import open_dataset


def _write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)


def test_the_folders_of_sival_are_its_classes(tmp_path):
    for category in ("wd40can", "ajaxorange"):
        for n in range(3):
            _write(tmp_path / category / f"{category}{n}.jpg")
    image_set = open_dataset(f"sival:{tmp_path}")
    assert image_set.classes == ("ajaxorange", "wd40can")
    assert image_set.name == "SIVAL, 2 x 3"
    assert image_set.labels().sum(1).tolist() == [1] * 6
    assert image_set.images[0].shape == (4, 6, 3)


def test_what_sival_is_stands_in_the_message_where_it_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"gone is missing.*25 folders.*60 pictures each"):
        open_dataset(f"sival:{tmp_path / 'gone'}")
    _write(tmp_path / "one" / "1.jpg")
    with pytest.raises(ValueError, match="needs at least two categories, got one only"):
        open_dataset(f"sival:{tmp_path}")
