"""What `import regionhash` offers."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import regionhash
from regionhash.search import search_regions


def test_everything_that_is_offered_can_be_had():
    assert {*regionhash.__all__} <= {*dir(regionhash)}
    for name in regionhash.__all__:
        assert callable(getattr(regionhash, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        regionhash.nothing  # noqa: B018


def test_the_face_itself_imports_next_to_nothing():
    code = "import sys, regionhash; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_are_encoded_and_found_with_one_import(saved, photos, tmp_path):
    report = regionhash.encode(saved.folder, [str(photos)], tmp_path / "codes.h5", workers=0)
    assert report.n_encoded == 6
    codes = regionhash.open_codes(tmp_path / "codes.h5")
    query = regionhash.Query(photos / "1.png", boxes=[(10, 10, 90, 90)])
    answer = regionhash.find(codes, regionhash.Search([query], limit=3))
    model, checkpoint = regionhash.load_model(saved.folder)
    from regionhash.models.encoding import encode_boxes

    image = np.asarray(Image.open(photos / "1.png").convert("RGB"))
    regions = encode_boxes(model, checkpoint, image, np.array([[10, 10, 90, 90]], np.float32))
    assert list(answer.hits) == search_regions(regions.codes[0], codes.table, top=3)
    with pytest.raises(ValueError, match="filter needs a collection"):
        regionhash.find(codes, regionhash.Search([query], filter=regionhash.Filter(folder="a")))
    with pytest.raises(ValueError, match="gone: model not found"):
        regionhash.find(codes, regionhash.Search([query]), model=tmp_path / "gone")
