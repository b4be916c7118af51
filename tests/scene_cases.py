"""Scenes of digits as files, in VOC's layout and as a table of boxes."""

from PIL import Image

from regionhash.data import open_dataset


def write_voc_scenes(root):
    """Nine pictures of train and three of val, and a table of the boxes of all; returns `root`."""
    lines = write_scenes(root / "VOC2012", "train", 0, 9)
    lines += write_scenes(root / "VOC2012", "val", 9, 3)
    text = "\n".join(["image,label,xmin,ymin,xmax,ymax", *lines]) + "\n"
    (root / "found.csv").write_text(text)
    (root / "objects.csv").write_text(text)
    (root / "images").symlink_to(root / "VOC2012/JPEGImages")
    return root


def write_scenes(root, split, first, n):
    """Scenes of digits in VOC's layout, under three of its classes; and lines of a table."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    scenes, lines = open_dataset("digits:test:12"), []
    for row in range(first, first + n):
        Image.fromarray(scenes.images[row]).save(root / f"JPEGImages/{row}.jpg")
        height, width = scenes.images[row].shape[:2]
        target, objects = scenes.targets[row], ""
        for box, label in zip(target.boxes.astype(int).tolist(), target.labels, strict=True):
            keys = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            marks = "".join(f"<{key}>{x + (key[1:] == 'min')}</{key}>" for key, x in keys)
            name = ("cat", "dog", "cow")[label % 3]
            objects += f"<object><name>{name}</name><bndbox>{marks}</bndbox></object>"
            lines.append(f"{row}.jpg,{name},{','.join(map(str, box))}")
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        page = f"<annotation>{size}{objects}</annotation>"
        (root / f"Annotations/{row}.xml").write_text(page)
    listed = "".join(f"{row}\n" for row in range(first, first + n))
    (root / f"ImageSets/Main/{split}.txt").write_text(listed)
    return lines
