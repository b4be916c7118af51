"""Tiny encoders with random weights as graphs, in the hub's layout, beside their own networks."""

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from torch.onnx.symbolic_helper import _unpack_list
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from regionhash.data import open_dataset

SCENES = list(open_dataset("digits:test:6").images)
LANDSCAPE, PORTRAIT, SQUARE = SCENES[0][:100, :150], SCENES[1][:150, :90], SCENES[2][:120, :120]

_TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
_DINO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 70,
    "patch_size": 14,
}
_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
}
_TOKENS = ("last_hidden_state", "pooler_output")
_SQUASHED = {"size": {"height": 64, "width": 64}}
_CROPPED = {"size": {"shortest_edge": 70}, "crop_size": {"height": 70, "width": 70}}


def clip_config():
    vision = _TOWER | {"projection_dim": 24}
    text = _TEXT | {
        "max_position_embeddings": 77,
        "projection_dim": 24,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
    }
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def siglip_config():
    text = _TEXT | {"max_position_embeddings": 64, "projection_size": 32}
    return transformers.SiglipConfig(text_config=text, vision_config=_TOWER)


def networks(name):
    """The configuration, the network, its processor, and the outputs that are exported."""
    t = transformers
    if name == "dinov2":
        config = t.Dinov2Config(**_DINO)
        return config, t.Dinov2Model(config), BitImageProcessorPil(**_CROPPED), _TOKENS
    if name == "registers":
        config = t.Dinov2WithRegistersConfig(**_DINO, num_register_tokens=4)
        processor = BitImageProcessorPil(**_CROPPED)
        return config, t.Dinov2WithRegistersModel(config), processor, ("last_hidden_state",)
    if name == "clip":
        config = clip_config()
        network = t.CLIPVisionModelWithProjection(config.vision_config)
        sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
        return config, network, CLIPImageProcessorPil(**sizes), ("image_embeds",)
    if name == "siglip2":
        config = siglip_config()
        network = t.SiglipVisionModel(config.vision_config)
        return config, network, SiglipImageProcessorPil(**_SQUASHED), _TOKENS
    if name == "vit":
        config = t.ViTConfig(**_TOWER)
        return config, t.ViTModel(config), ViTImageProcessorPil(**_SQUASHED), _TOKENS
    config = t.ConvNextConfig(hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 1, 1])
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 384})
    return config, t.ConvNextModel(config), processor, _TOKENS


class Outputs(torch.nn.Module):
    """Some outputs of a network, as a tuple, by its inputs in their order."""

    def __init__(self, network, inputs, names):
        super().__init__()
        self.network, self.inputs, self.names = network, inputs, names

    def forward(self, *values):
        found = self.network(**dict(zip(self.inputs, values, strict=True)))
        return tuple(found[name] for name in self.names)


class Encoded:
    """A tiny network and the folder of its graph.

    Attributes:
        folder: in the hub's layout.
        processor: of transformers.
    """

    def __init__(self, name, folder):
        torch.manual_seed(0)
        config, network, self.processor, self.names = networks(name)
        with torch.no_grad():  # larger than at the start of training, so that layers matter
            for weight in network.parameters():
                weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim > 1 else 0.5))
        self.network, self.folder = network.eval(), folder
        graph = "vision_model" if name in ("clip", "siglip2") else "model"
        (folder / "onnx").mkdir(parents=True)
        self.graph = folder / "onnx" / f"{graph}.onnx"
        side = self.processor.to_dict()
        side = side.get("crop_size") or side["size"]
        side = side.get("height") or 64
        self.size = (side, side)
        export(
            network,
            self.graph,
            {"pixel_values": torch.zeros(1, 3, side, side)},
            {"pixel_values": {0: "batch_size", 2: "height", 3: "width"}},
            self.names,
        )
        record = json.loads(self.processor.to_json_string())
        (folder / "preprocessor_config.json").write_text(json.dumps(record))
        (folder / "config.json").write_text(config.to_json_string(use_diff=False))

    def reference(self, pixel_values):
        """The outputs of the network for (B, 3, h, w), by name."""
        with torch.no_grad():
            found = self.network(pixel_values=torch.as_tensor(np.asarray(pixel_values)))
        return {name: found[name].numpy() for name in self.names}


def export(network, path, inputs, free, names):
    """Writes a network as a graph, as optimum does."""
    torch.onnx.register_custom_op_symbolic("aten::_upsample_bicubic2d_aa", _antialiased, 18)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Outputs(network, list(inputs), names).eval(),
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            input_names=list(inputs),
            output_names=list(names),
            dynamic_axes=free | {name: {0: "batch_size"} for name in names},
            opset_version=18,
        )


def _antialiased(g, x, size, *_):
    """The filter of the positions of DINOv2 with registers, which this exporter does not know."""

    def numbers(*values):
        return g.op("Constant", value_t=torch.tensor(values))

    sides = [g.op("Unsqueeze", side, numbers(0)) for side in _unpack_list(size)]
    kept = g.op("Slice", g.op("Shape", x), numbers(0), numbers(2))
    none = g.op("Constant", value_t=torch.zeros(0))
    sizes = g.op("Concat", kept, *sides, axis_i=0)
    options = {"mode_s": "cubic", "cubic_coeff_a_f": -0.5, "antialias_i": 1, "exclude_outside_i": 1}
    return g.op("Resize", x, none, none, sizes, **options)


def write_graph(path, text, opset='"" : 20'):
    """Writes a graph in ONNX's textual form: "g (float[B,3,H,W] x) => (...) { ... }"."""
    model = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{opset}]>\n{text}")
    Path(path).write_bytes(model.SerializeToString())
    return path
