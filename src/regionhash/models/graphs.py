"""Models as ONNX graphs: from a picture to codes, and from a picture and boxes to their codes.

A graph takes one picture of any size that `regionhash.data.frames.fit_size` gives, and repeats what
the model's `encode` or `encode_boxes` computes with a batch of one. What depends on data, such as
non-maximum suppression, is in the graph. What is a choice among its outputs, such as the hash bag
of DMIH, is left to `regionhash.models.onnx`, which runs graphs without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.ops import nms

from regionhash.files.atomic import replacing
from regionhash.models.checkpoints import (
    BOXES_GRAPH,
    ENCODE_GRAPH,
    GRAPH_FILES,
    Checkpoint,
    folder_of,
    load_checkpoint,
)
from regionhash.models.dmih import DMIH
from regionhash.models.drh import DRH
from regionhash.models.families import HashModel
from regionhash.models.iah import IAH
from regionhash.models.image_level import CategoryBaseline, LatentHash, TripletHash
from regionhash.models.onnx import GRAPH_FORMAT, METADATA, Graphs, OnnxRuntime
from regionhash.models.region_dh import RegionDH
from regionhash.models.runtime import TorchRuntime
from regionhash.parts.backbones import Backbone
from regionhash.parts.exporting import Free, to_graph
from regionhash.parts.fusion import fuse_proposals
from regionhash.parts.heads import centre
from regionhash.parts.losses import bag_log_probs, multi_label_probs
from regionhash.parts.pooling import PYRAMID, SAMPLES, SEMANTIC, SPATIAL
from regionhash.parts.proposals import ScoredRPN
from regionhash.parts.windows import TOUCH

LEAST_EQUAL = 0.999
"""Share of the bits in which a graph must agree with its model before it is written."""

_TRACED = (128, 160)  # any size: height and width stay free
_CHECKED = ((96, 128), (128, 96), (160, 224))
_MAX_SIDE = 4096  # input sides are at most twice `checkpoints.MAX_SHORT`


class ConversionError(ValueError):
    """A model that cannot be converted: the message is the reason."""


Outputs = dict[str, Tensor]


def convert(path: Path) -> dict[Path, int]:
    """Writes the graphs of a model beside it, and returns their files with their sizes in bytes.

    Before a file appears, its graph is compared with the model on pictures of noise.

    Args:
        path: folder of a checkpoint or of a collection.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConversionError: the model cannot be converted, or its graph gives other codes.
        OSError: writing fails.
    """
    model, checkpoint = load_checkpoint(path)
    folder = folder_of(path)
    written = {}
    made = export_graphs(model, checkpoint)
    for name, content in made.items():
        with replacing(folder / name) as new:
            new.write_bytes(content)
        written[folder / name] = len(content)
    for name in GRAPH_FILES:
        if name not in made:  # of an older version of this program
            (folder / name).unlink(missing_ok=True)
    return written


def export_graphs(model: HashModel, checkpoint: Checkpoint) -> dict[str, bytes]:
    """The content of each file of graphs, checked against the model; see `convert`.

    Args:
        model: from `load_checkpoint`, on the CPU.
        checkpoint: from `load_checkpoint`.
    """
    facts = {
        "format": GRAPH_FORMAT,
        "model": checkpoint.name,
        "model_hash": checkpoint.model_hash,
        "n_bits": model.n_bits,
        "n_region_bits": model.n_region_bits,
        "shared_code_space": model.shared_code_space,
    }
    made = {}
    for name, graph in _graphs_of(model).items():
        made[name] = _exported(graph, facts | {"graph": name, "stride": graph.trunk.stride})
    _check_equal(model, checkpoint, made)
    return made


def _graphs_of(model: HashModel) -> dict[str, Any]:
    """The networks of a model's graphs, by name of file."""
    for kind, build in _BUILDERS.items():
        if isinstance(model, kind):
            return build(model)
    raise ConversionError(f"{type(model).__name__} has no graph")


def _exported(graph: nn.Module, facts: dict[str, Any]) -> bytes:
    """A network as the bytes of an ONNX file with `facts` in its metadata."""
    picture = torch.zeros(1, 3, *_TRACED, dtype=torch.uint8)
    height = torch.export.Dim("height", min=32, max=_MAX_SIDE)
    width = torch.export.Dim("width", min=32, max=_MAX_SIDE)
    inputs: dict[str, tuple[Tensor, Free]] = {"picture": (picture, {2: height, 3: width})}
    if facts["graph"] == BOXES_GRAPH:
        boxes = torch.tensor([[0.0, 0, 64, 64], [32, 32, 96, 128], [8, 8, 24, 120]])
        inputs["boxes"] = boxes, {0: torch.export.Dim("boxes", min=1, max=65_536)}
    graph.eval()
    with torch.no_grad():
        names = list(graph(*(example for example, _ in inputs.values())))
    metadata = {METADATA: json.dumps(facts)}
    return to_graph(graph, inputs, names, metadata=metadata, error=ConversionError)


def _check_equal(model: HashModel, checkpoint: Checkpoint, made: dict[str, bytes]) -> None:
    """Raises ConversionError unless graphs give the model's codes of some noise, up to rounding."""
    graph, ours = OnnxRuntime(Graphs(made), checkpoint), TorchRuntime(model)
    rng = np.random.default_rng(0)
    different = total = 0
    for height, width in _CHECKED:
        coarse = rng.integers(0, 256, (3, height // 8, width // 8), np.uint8)
        image = coarse.repeat(8, axis=1).repeat(8, axis=2)
        pairs = []
        for runtime in (ours, graph):
            encoded = runtime.encode([image])[0]
            pairs.append([encoded.image_code])
            if model.n_region_bits:
                boxes = np.array([[0, 0, width, height], [8, 8, 64, 80], [1, 40, 90, 60]])
                pairs[-1].append(runtime.encode_boxes([image], [boxes.astype(np.float32)])[0].codes)
            if encoded.categories is not None and not model.n_bits:
                pairs[-1].append(encoded.categories.codes)
        for one, other in zip(*pairs, strict=True):
            if one is not None and other is not None:
                different += int(np.unpackbits(one ^ other).sum())
                total += 8 * one.size
    if different > (1 - LEAST_EQUAL) * total + 1:  # a single bit may be a tie
        raise ConversionError(
            f"the graph differs from the model in {different} of {total} bits, so it is not written"
        )


# -- parts ----------------------------------------------------------------------------------------


class _Trunk(nn.Module):
    """The backbone of a model, on one picture.

    Attributes:
        strides: input pixels per cell of the maps that regions are pooled from, fine to coarse.
        stride: of the last stage.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        side = 256
        with torch.no_grad():
            maps, top = backbone(torch.zeros(1, 3, side, side))
        heights = [maps[str(n)].shape[2] for n in range(backbone.n_levels)]
        if any(side % height for height in [*heights, top.shape[2]]):
            raise ConversionError(
                "the backbone's maps have no whole number of input pixels per cell, which a graph "
                "for pictures of any size needs"
            )
        self.strides = [side // height for height in heights]
        self.stride = side // top.shape[2]

    def forward(self, picture: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        maps, top = self.backbone(picture.float() / 255)
        return maps, top.float()


def _packed(bits: Tensor) -> Tensor:
    """Codes (..., ceil(K/8)) uint8 of bits (..., K), as `pack_signs` packs them."""
    n_bits = bits.shape[-1]
    padded = F.pad(bits.to(torch.int32), (0, -n_bits % 8))
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32)
    return (padded.unflatten(-1, (-1, 8)) * powers).sum(-1, dtype=torch.int32).to(torch.uint8)


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (R, 4) within a picture."""
    limits = torch.stack(
        [boxes.new_full((), side, dtype=torch.float32) for side in (width, height, width, height)]
    )
    return boxes.clamp(min=0).minimum(limits)


def _propose(
    rpn: ScoredRPN, maps: dict[str, Tensor], height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Proposals (R, 4) of one picture, best first, and their objectness; see `ScoredRPN`."""
    logits, deltas = rpn.head(list(maps.values()))
    boxes, scores = [], []
    bases = rpn.anchor_generator.cell_anchors
    for logit, delta, base in zip(logits, deltas, bases, strict=True):
        n, h, w = logit.shape[1:]
        objectness = logit.permute(0, 2, 3, 1).reshape(-1)  # (h * w * n,)
        delta = delta.reshape(n, 4, h, w).permute(2, 3, 0, 1).reshape(-1, 4)
        y = (torch.arange(h) * (height // h))[:, None].expand(h, w).reshape(-1)
        x = (torch.arange(w) * (width // w))[None].expand(h, w).reshape(-1)
        anchors = (torch.stack([x, y, x, y], 1)[:, None] + base[None]).reshape(-1, 4)
        most = torch.sym_min(rpn._pre_nms_top_n["testing"], objectness.shape[0])
        best, rows = objectness.topk(most)
        found = rpn.box_coder.decode_single(delta[rows], anchors[rows])
        found = _clipped(found, height, width)
        kept = nms(found, best, rpn.nms_thresh)
        boxes.append(found[kept])
        scores.append(best[kept].sigmoid())
    all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
    # Objectness in [0, 1] is at least `score_thresh`, which is 0.
    large = ((all_boxes[:, 2:] - all_boxes[:, :2]) >= rpn.min_size).all(1)
    best, rows = torch.where(large, all_scores, -1.0).sort(descending=True)
    most = torch.sym_min(rpn._post_nms_top_n["testing"], best.shape[0])
    rows = rows[:most]
    rows = rows[(best[:most] >= 0).nonzero()[:, 0]]
    return all_boxes[rows], all_scores[rows]


def _with_image(boxes: Tensor) -> Tensor:
    """Boxes (R, 4) as RoIAlign takes them: the number of the picture first."""
    return torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], 1)


def _align(maps: Tensor, boxes: Tensor, stride: int, bins: int, *, aligned: bool) -> Tensor:
    """RoIAlign (R, D, bins, bins) of boxes in input pixels."""
    return torch.ops.torchvision.roi_align(
        maps, _with_image(boxes), 1 / stride, bins, bins, SAMPLES, aligned
    )


def _max_pool(maps: Tensor, boxes: Tensor, bins: int) -> Tensor:
    """The maxima (R, D * bins^2) of a map in bins of boxes (R, 4), in cells, the last inclusive.

    As torchvision's `roi_pool`, which the exporter does not translate.
    """
    n_boxes, channels = boxes.shape[0], maps.shape[1]
    return torch.onnx.ops.symbolic(
        "MaxRoiPool",
        (maps, _with_image(boxes)),
        {"pooled_shape": [bins, bins], "spatial_scale": 1.0},
        dtype=torch.float32,
        shape=(n_boxes, channels, bins, bins),
    ).flatten(1)


def _pool_top(top: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """As `regionhash.parts.pooling.pool_top`, of one picture."""
    bins = _align(top, boxes, stride, SEMANTIC, aligned=True).flatten(2)
    return torch.cat([bins.mean(2), bins.amax(2)], dim=1)


def _pool_whole(top: Tensor) -> Tensor:
    """As `regionhash.parts.pooling.pool_whole`, of one picture."""
    return torch.cat([top.mean((2, 3)), top.amax((2, 3))], dim=1)


# -- Region-DH ------------------------------------------------------------------------------------


class _RegionDHParts(nn.Module):
    def __init__(self, model: RegionDH) -> None:
        super().__init__()
        self.model = model
        self.trunk = _Trunk(model.backbone)

    def pool(self, maps: dict[str, Tensor], top: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """What the instance layers read of R boxes, (R, D), and FC7, (R, n_hidden)."""
        model = self.model
        strides = self.trunk.strides
        levels = [
            _align(maps[str(n)], boxes, stride, SPATIAL, aligned=False)
            for n, stride in enumerate(strides)
        ]
        spatial = levels[0]
        if len(levels) > 1:  # torchvision's LevelMapper, eq. 1 of FPN
            side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
            level = torch.floor(4 + torch.log2(side / 224) + 1e-6)
            first = strides[0].bit_length() - 1
            level = level.clamp(first, first + len(levels) - 1) - first
            for n, pooled in enumerate(levels[1:], 1):
                spatial = torch.where((level == n)[:, None, None, None], pooled, spatial)
        x = model.head(spatial.flatten(1))
        if not model.pooling.n_semantic:
            return x, x
        return _pool_top(top, boxes, self.trunk.stride), x

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations (R, K1) of H1 and class probabilities (R, C + 1)."""
        a = self.model.h1(self.model.instance(x))
        return a, self.model.classify(centre(a, self.model.centred)).float().softmax(1)


class _RegionDH(_RegionDHParts):
    def forward(self, picture: Tensor) -> Outputs:
        model = self.model
        height, width = picture.shape[2:]
        maps, top = self.trunk(picture)
        proposals, objectness = _propose(model.rpn, maps, height, width)
        x, fc7 = self.pool(maps, top, proposals)
        deltas = model.regress(fc7).float()
        a, probs = self.describe(x)
        fused = fuse_proposals(
            objectness[None], probs[None, :, 1:], centre(a, model.centred)[None], model.fusion
        )
        fused = model.normalise(fused.flatten(1))
        if model.context is not None:
            fused = torch.cat([fused, model.context(_pool_whole(top))], dim=1)
        image_activations = model.h2(fused)
        logits = model.classify_image(centre(image_activations, model.centred)).float()
        boxes = model.box_coder.decode_single(deltas, proposals)
        boxes = _clipped(boxes, height, width)
        scores, labels = probs[:, 1:].max(1)
        sides = boxes[:, 2:] - boxes[:, :2]
        rows = ((scores >= model.min_score) & (sides >= 1).all(1)).nonzero()[:, 0]
        # As batched_nms: boxes of different classes do not meet.
        apart: Any = torch.sym_max(height, width) + 1
        shift = labels[rows].float() * apart
        kept = nms(boxes[rows] + shift[:, None], scores[rows], 0.5)
        rows = rows[kept[: model.max_regions]]
        return {
            "image_code": _packed(image_activations[0] >= 0.5),
            "class_probs": multi_label_probs(logits, model.multi_label)[0],
            "boxes": boxes[rows],
            "scores": scores[rows],
            "labels": labels[rows],
            "codes": _packed(a[rows] >= 0.5),
        }


class _RegionDHBoxes(_RegionDHParts):
    def forward(self, picture: Tensor, boxes: Tensor) -> Outputs:
        maps, top = self.trunk(picture)
        x = _pool_top(top, boxes, self.trunk.stride)
        if not self.model.pooling.n_semantic:
            x, _ = self.pool(maps, top, boxes)
        a, probs = self.describe(x)
        scores, labels = probs[:, 1:].max(1)
        return {"scores": scores, "labels": labels, "codes": _packed(a >= 0.5)}


# -- DRH ------------------------------------------------------------------------------------------


class _DRHParts(nn.Module):
    def __init__(self, model: DRH) -> None:
        super().__init__()
        self.model = model
        self.trunk = _Trunk(model.backbone)

    def hashed(self, top: Tensor, boxes: Tensor) -> Tensor:
        """Codes (R, K/8) of boxes, as `snap_boxes` and `max_pool_windows` see them."""
        height, width = top.shape[2:]
        limits = torch.stack(
            [boxes.new_full((), side, dtype=torch.float64) for side in (width, height)]
        )
        cells = boxes.double() / self.trunk.stride
        low = torch.floor(cells[:, :2] + TOUCH).clamp(min=0).minimum(limits - 1)
        high = torch.ceil(cells[:, 2:] - TOUCH).maximum(low + 1).minimum(limits)
        windows = torch.cat([low, high - 1], dim=1).float()  # the last cell is inclusive
        x = _max_pool(top, windows, 1)
        x = F.normalize(x, dim=1)  # (R, D)
        return _packed(self.model(self.model.whitening(x)) >= 0)


class _DRHProposals(_DRHParts):
    def forward(self, picture: Tensor) -> Outputs:
        assert self.model.rpn is not None
        height, width = picture.shape[2:]
        maps, top = self.trunk(picture)
        boxes, scores = _propose(self.model.rpn, maps, height, width)
        whole = torch.stack(
            [boxes.new_full((), side, dtype=torch.float32) for side in (0, 0, width, height)]
        )
        boxes = torch.cat([whole[None], boxes])
        scores = torch.cat([scores.new_ones(1), scores])
        return {"boxes": boxes, "scores": scores, "codes": self.hashed(top, boxes)}


class _DRHBoxes(_DRHParts):
    def forward(self, picture: Tensor, boxes: Tensor) -> Outputs:
        top = self.trunk.backbone.top(picture.float() / 255)
        return {"codes": self.hashed(top, boxes)}


# -- whole pictures -------------------------------------------------------------------------------


class _WholePicture(nn.Module):
    """Of the models that hash the pooled last stage of a backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model  # a LatentHash, a TripletHash or a CategoryBaseline
        self.trunk = _Trunk(model.backbone)

    def top(self, picture: Tensor) -> Tensor:
        return self.trunk.backbone.top(picture.float() / 255)

    def hashed(self, pooled: Tensor) -> Outputs:
        """Codes of features (R, 2 * D), and class probabilities if the model has any."""
        activations = self.model.hash_features({"pooled": pooled})
        found = {"codes": _packed(activations >= 0.5)}
        if isinstance(self.model, LatentHash):
            found["probs"] = self.model._probs(activations)
        return found

    def forward(self, picture: Tensor) -> Outputs:
        pooled = _pool_whole(self.top(picture))
        if isinstance(self.model, CategoryBaseline):
            activations = self.model.category_features({"pooled": pooled})[0]
            return {"category_codes": _packed(activations >= 0)}
        return self.hashed(pooled)


class _PictureBoxes(_WholePicture):
    def forward(self, picture: Tensor, boxes: Tensor) -> Outputs:  # type: ignore[override]
        return self.hashed(_pool_top(self.top(picture), boxes, self.trunk.stride))


# -- IAH ------------------------------------------------------------------------------------------


class _IAHParts(nn.Module):
    def __init__(self, model: IAH) -> None:
        super().__init__()
        self.model = model
        self.trunk = _Trunk(model.backbone)

    def described(
        self, top: Tensor, boxes: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (R, C), P (R, C) and features H (R, b) of boxes in input pixels."""
        model = self.model
        h, w = top.shape[2:]
        reduced = F.relu(model.reduce(top.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        sides = torch.stack(
            [boxes.new_full((), side, dtype=torch.float32) for side in (width, height) * 2]
        )
        cells = torch.stack([boxes.new_full((), n, dtype=torch.float32) for n in (w, h) * 2])
        of_map = boxes / sides * cells
        inclusive = torch.cat([of_map[:, :2], (of_map[:, 2:] - 1).maximum(of_map[:, :2])], dim=1)
        x = torch.cat([_max_pool(reduced, inclusive, n) for n in PYRAMID], dim=1)  # (R, 960)
        logits = model.label(x).float()
        return logits, multi_label_probs(logits, model.multi_label), model.describe(x).float()

    def region_codes(self, probs: Tensor, features: Tensor) -> Tensor:
        """Codes (R, C, B) of each region for each category, as if it were alone in its picture."""
        fused = probs[:, :, None] * features[:, None]
        return _packed(self.model._of_categories(fused) >= 0)


class _IAH(_IAHParts):
    def forward(self, picture: Tensor) -> Outputs:
        model = self.model
        assert model.rpn is not None
        height, width = picture.shape[2:]
        maps, top = self.trunk(picture)
        boxes, _ = _propose(model.rpn, maps, height, width)
        top = top.half().float()  # as `IAH.frozen_features` keeps it
        logits, probs, features = self.described(top, boxes, height, width)
        present = probs.new_ones(1, boxes.shape[0])
        fused = fuse_proposals(present, probs[None], features[None], "plain")
        return {
            "image_code": _packed(model._of_image(fused)[0] >= 0),
            "class_probs": multi_label_probs(logits.amax(0)[None], model.multi_label)[0],
            "category_codes": _packed(model._of_categories(fused)[0] >= 0),
            "boxes": boxes,
            "region_probs": probs,
            "region_codes": self.region_codes(probs, features),
        }


class _IAHBoxes(_IAHParts):
    def forward(self, picture: Tensor, boxes: Tensor) -> Outputs:
        height, width = picture.shape[2:]
        top = self.trunk.backbone.top(picture.float() / 255)
        _, probs, features = self.described(top, boxes, height, width)
        return {"region_probs": probs, "region_codes": self.region_codes(probs, features)}


# -- DMIH -----------------------------------------------------------------------------------------


class _DMIH(nn.Module):
    def __init__(self, model: DMIH) -> None:
        super().__init__()
        self.model = model
        self.trunk = _Trunk(model.backbone)

    def forward(self, picture: Tensor) -> Outputs:
        model = self.model
        base = self.trunk.backbone.top(picture.float() / 255)
        height, width = base.shape[2:]
        shape = torch.stack([torch.full((), side) for side in (height, width)])[None]
        x, present = model.maps(base, shape)
        logits = model.mil(x).float()
        log_p, _ = bag_log_probs(logits, present, model.pooling)
        return {
            "class_probs": log_p[0].exp(),
            "region_probs": logits[0].sigmoid(),
            "codes": _packed(model.hash(x[0]) >= 0.5),
            "map_size": shape[0],
        }


# -- which graphs ---------------------------------------------------------------------------------


def _of_drh(model: Any) -> dict[str, nn.Module]:
    """The whole picture and the sliding windows are boxes too."""
    graphs: dict[str, nn.Module] = {BOXES_GRAPH: _DRHBoxes(model)}
    if model.rpn is not None:
        graphs[ENCODE_GRAPH] = _DRHProposals(model)
    return graphs


def _of_iah(model: Any) -> dict[str, nn.Module]:
    if model.rpn is None:
        raise ConversionError(
            "selective search, which proposes its regions, is not part of a graph"
        )
    return {ENCODE_GRAPH: _IAH(model), BOXES_GRAPH: _IAHBoxes(model)}


def _of_whole_pictures(model: Any) -> dict[str, nn.Module]:
    return {ENCODE_GRAPH: _WholePicture(model), BOXES_GRAPH: _PictureBoxes(model)}


_BUILDERS: dict[type[nn.Module], Callable[[Any], dict[str, nn.Module]]] = {
    RegionDH: lambda model: {ENCODE_GRAPH: _RegionDH(model), BOXES_GRAPH: _RegionDHBoxes(model)},
    DRH: _of_drh,
    IAH: _of_iah,
    DMIH: lambda model: {ENCODE_GRAPH: _DMIH(model)},  # boxes are answered by its windows
    CategoryBaseline: lambda model: {ENCODE_GRAPH: _WholePicture(model)},
    LatentHash: _of_whole_pictures,
    TripletHash: _of_whole_pictures,
}
