"""Small encoders as ONNX graphs, made by hand: their features can be computed in a line."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

STRIDE = 16
CHANNELS = 12


def kernel(seed=0):
    """The weights (D, 3, 16, 16) of the patches."""
    return np.random.default_rng(seed).standard_normal((CHANNELS, 3, STRIDE, STRIDE)) / 400


def write_encoder(folder, *, kind="map", seed=0, size=None, vector="vector"):
    """Writes encoder.onnx, of one layer that reads patches of 16 x 16 pixels; returns its path.

    Args:
        folder: an existing folder.
        kind: "map" gives rectified features of each patch, "tokens" the same as tokens behind a
            class token of zeros, "vector" their mean, "both" the map and the vector.
        seed: of the weights.
        size: side of the input if it is fixed.
        vector: name of the output of that kind.
    """
    weights = numpy_helper.from_array(kernel(seed).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["conv"], strides=[STRIDE] * 2),
        helper.make_node("Relu", ["conv"], ["map"]),
    ]
    constants = [weights]
    outputs = [("map", [1, CHANNELS, "h", "w"])]
    if kind == "tokens":
        constants += [
            numpy_helper.from_array(np.array([0, CHANNELS, -1], np.int64), "flat"),
            numpy_helper.from_array(np.zeros((1, 1, CHANNELS), np.float32), "cls"),
        ]
        nodes += [
            helper.make_node("Reshape", ["map", "flat"], ["columns"]),
            helper.make_node("Transpose", ["columns"], ["patches"], perm=[0, 2, 1]),
            helper.make_node("Concat", ["cls", "patches"], ["last_hidden_state"], axis=1),
        ]
        outputs = [("last_hidden_state", [1, "tokens", CHANNELS])]
    if kind in ("vector", "both"):
        nodes += [
            helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], [vector]),
        ]
        outputs = outputs * (kind == "both") + [(vector, [1, CHANNELS])]
    each = [(name, TensorProto.FLOAT, shape) for name, shape in outputs]
    sides = [size, size] if size else ["height", "width"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, *sides])],
        [helper.make_tensor_value_info(*output) for output in each],
        constants,
    )
    path = folder / "encoder.onnx"
    opsets = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2})
    )
    (folder / "config.json").write_text(json.dumps({"patch_size": STRIDE}))
    return path


def features(pixels, seed=0):
    """The map (D, h, w) of pixels (3, H, W) uint8, patch by patch."""
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    x = (pixels.transpose(1, 2, 0) / 255 - mean) / std
    h, w = pixels.shape[1] // STRIDE, pixels.shape[2] // STRIDE
    found = np.zeros((CHANNELS, h, w))
    for i in range(h):
        for j in range(w):
            patch = x[i * STRIDE : (i + 1) * STRIDE, j * STRIDE : (j + 1) * STRIDE]
            product = kernel(seed) * patch.transpose(2, 0, 1)
            found[:, i, j] = np.maximum(product.sum((1, 2, 3)), 0)
    return found


WORDS = ("red", "green", "blue", "cat", "dog", "chair", "a", "and")
LENGTH = 12


def word_vectors():
    """The vector (W, D) of each of the words; the first row is of the padding."""
    return np.random.default_rng(7).standard_normal((len(WORDS) + 2, CHANNELS)).astype(np.float32)


def write_encoder_with_words(folder, kind="vector"):
    """Writes an encoder of a kind in the hub's layout, whose words are means of word vectors."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    (folder / "onnx").mkdir(parents=True)
    write_encoder(folder, kind=kind, vector="image_embeds").rename(
        folder / "onnx/vision_model.onnx"
    )
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("ReduceMean", ["each", "axes"], ["text_embeds"], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", LENGTH])
    vectors = helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, ["batch", CHANNELS])
    constants = [
        numpy_helper.from_array(word_vectors(), "table"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    ]
    graph = helper.make_graph(nodes, "words", [ids], [vectors], constants)
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    save(model, folder / "onnx/text_model.onnx")
    known = {"<pad>": 0, "<unk>": 1} | {word: n + 2 for n, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"pad_token": "<pad>", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return f"onnx:{folder}"
