"""Small detectors as ONNX graphs, made by hand: what they find can be computed in a line."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

FRACTIONS = np.array([[0.25, 0.5, 0.75, 1], [0, 0, 0.5, 0.25], [0.5, 0, 1, 0.5]], np.float32)
"""The boxes, as fractions of the sides."""

SCORES = (0.9, 0.1)
"""Of the second and the third box; that of the first is the mean of the input."""

NUMBERS = (7, 0, 1)
NAMES = ["cat", "dog", "cow", "pig", "hen", "ant", "bee", "elk"]
ULTRALYTICS = {
    "names": str(dict(enumerate(NAMES))),
    "task": "detect",
    "imgsz": "[96, 96]",
    "stride": "32",
}


def write_detector(
    folder,
    form="boxes",
    *,
    name="detector.onnx",
    shape=(1, 3, "height", "width"),
    kind=TensorProto.FLOAT,
    mean_scale=1.0,
    least=None,
    metadata=None,
    beside=None,
):
    """Writes a graph of three boxes; returns its path.

    Args:
        folder: an existing folder.
        form: of the outputs, see `_outputs`.
        name: of the file.
        shape: of the input; with 3 at the end, channels are last.
        kind: type of the input.
        mean_scale: what the mean of the input is multiplied with.
        least: gives only boxes of a greater score; None gives all.
        metadata: of the graph.
        beside: content of the file beside it.
    """
    width_axis = len(shape) - (2 if shape[-1] == 3 else 1)
    axes = np.array([width_axis, width_axis - 1] * 2, np.int64)
    constants = {
        "axes": axes,
        "fractions": FRACTIONS,
        "others": np.array(SCORES, np.float32),
        "one": np.array([1], np.int64),
        "scale": np.array(mean_scale, np.float32),
        "all_labels": np.array(NUMBERS, np.int64),
        "least": np.array(-1 if least is None else least, np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["pixels"], ["shape"]),
        helper.make_node("Gather", ["shape", "axes"], ["whole_sides"]),
        helper.make_node("Cast", ["whole_sides"], ["sides"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["fractions", "sides"], ["all_boxes"]),
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "one"], ["first"]),
        helper.make_node("Concat", ["first", "others"], ["all_scores"], axis=0),
        helper.make_node("LessOrEqual", ["all_scores", "least"], ["low"]),
        helper.make_node("Not", ["low"], ["kept"]),  # so that NaN is kept
        *(
            helper.make_node("Compress", [f"all_{x}", "kept"], [f"found_{x}"], axis=0)
            for x in ("boxes", "scores", "labels")
        ),
    ]
    more, outputs = _outputs(form, constants)
    graph = helper.make_graph(
        nodes + more,
        "detector",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    path = folder / name
    save(model, path)
    if beside is not None:
        (folder / f"{name}.json").write_text(json.dumps(beside))
    return path


def _outputs(form, constants):
    """Nodes that give the outputs of a form from found_boxes, ..., and the outputs' types.

    "boxes" are torchvision's; "batch" the same of a batch of one, with masks; "counted" those of
    TensorFlow, padded and with their number, corners as y, x, fractions; "table" is that of
    Ultralytics; "masks" the same with coefficients; "batches" that of YOLOv7; "dets" that of
    MMDeploy; "raw" is before suppression.
    """
    node = helper.make_node
    real, whole = TensorProto.FLOAT, TensorProto.INT64
    constants |= {
        "front": np.array([0], np.int64),
        "back": np.array([1], np.int64),
        "no_batch": np.zeros((3, 1), np.float32),
        "thirty": np.full((3, 32), 0.5, np.float32),
        "swapped": np.array([1, 0, 3, 2], np.int64),
        "padding": np.tile(np.array([0.25, 0.25, 0.5, 0.5], np.float32), (2, 1)),
        "sure": np.ones(2, np.float32),
        "sevens": np.full(2, 7, np.float32),
        "three": np.array([3], np.float32),
        "protos": np.zeros((1, 32, 4, 4), np.float32),
    }
    columns = [
        node("Unsqueeze", ["found_scores", "back"], ["score"]),
        node("Cast", ["found_labels"], ["real_labels"], to=real),
        node("Unsqueeze", ["real_labels", "back"], ["class"]),
    ]

    def table(*names, batch=True):
        joined = node("Concat", list(names), ["rows"], axis=1)
        last = node("Unsqueeze", ["rows", "front"], ["output0"]) if batch else None
        return [*columns, joined, last or node("Identity", ["rows"], ["output0"])]

    if form == "table":
        return table("found_boxes", "score", "class"), {"output0": real}
    if form == "masks":
        nodes = [
            *table("found_boxes", "score", "class", "thirty"),
            node("Identity", ["protos"], ["output1"]),
        ]
        return nodes, {"output0": real, "output1": real}
    if form == "batches":
        return table("no_batch", "found_boxes", "class", "score", batch=False), {"output0": real}
    if form == "dets":
        nodes = [
            *table("found_boxes", "score"),
            node("Identity", ["output0"], ["dets"]),
            node("Unsqueeze", ["found_labels", "front"], ["labels"]),
        ]
        return nodes, {"dets": real, "labels": whole}
    if form == "counted":
        nodes = [
            *columns,
            node("Gather", ["fractions", "swapped"], ["yxyx"], axis=1),
            node("Concat", ["yxyx", "padding"], ["padded"], axis=0),
            node("Concat", ["found_scores", "sure"], ["padded_scores"], axis=0),
            node("Concat", ["real_labels", "sevens"], ["padded_labels"], axis=0),
            node("Unsqueeze", ["padded", "front"], ["detection_boxes"]),
            node("Unsqueeze", ["padded_scores", "front"], ["detection_scores"]),
            node("Unsqueeze", ["padded_labels", "front"], ["detection_classes"]),
            node("Identity", ["three"], ["num_detections"]),
        ]
        names = ("boxes", "scores", "classes")
        return nodes, {f"detection_{x}": real for x in names} | {"num_detections": real}
    if form == "batch":
        nodes = [
            node("Unsqueeze", [f"found_{x}", "front"], [x]) for x in ("boxes", "scores", "labels")
        ]
        nodes.append(node("Identity", ["protos"], ["masks"]))
        return nodes, {"boxes": real, "labels": whole, "scores": real, "masks": real}
    if form == "raw":
        nodes = [*table("found_boxes", "score"), node("Transpose", ["rows"], ["raw"], perm=[1, 0])]
        return [*nodes, node("Unsqueeze", ["raw", "front"], ["predictions"])], {"predictions": real}
    nodes = [node("Identity", [f"found_{x}"], [x]) for x in ("boxes", "scores", "labels")]
    if form == "one vector":
        return nodes[:1], {"boxes": real}
    return nodes, {"boxes": real, "labels": whole, "scores": real}
