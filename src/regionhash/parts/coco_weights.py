"""Weights of torchvision's Faster R-CNN, trained on COCO, for models with the same detector."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from regionhash.parts.backbones import downloading, load_local_weights

BACKBONE = "resnet50_fpn"

_NAMES = {  # torchvision's prefix: ours
    "backbone.body.conv1.": "backbone.stages.0.0.",
    "backbone.body.bn1.": "backbone.stages.0.1.",
    "backbone.body.layer1.": "backbone.stages.0.4.",
    "backbone.body.layer2.": "backbone.stages.1.",
    "backbone.body.layer3.": "backbone.stages.2.",
    "backbone.body.layer4.": "backbone.stages.3.",
    "backbone.fpn.": "backbone.fpn.",
    "rpn.": "rpn.",
    "roi_heads.box_head.": "head.",
}


def load_coco_detector(model: nn.Module, weights: str) -> None:
    """Puts the backbone, pyramid, RPN, FC6 and FC7 of a COCO detector into `model`.

    Args:
        model: with the parts of Region-DH on `resnet50_fpn`, 256 pyramid channels and 1,024 hidden
            units.
        weights: "default" (fetched once from the internet) or a local state dict of torchvision's
            `fasterrcnn_resnet50_fpn`.

    Raises:
        ValueError: weights that are unavailable, or a model with other parts.
    """
    # 91: COCO's category ids and the background, as torchvision counts them.
    detector = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), 91)
    if weights == "default":
        enum = get_weight("FasterRCNN_ResNet50_FPN_Weights.DEFAULT")
        with downloading(enum, "or start without --init coco"):
            detector.load_state_dict(enum.get_state_dict(progress=False, check_hash=True))
    else:
        load_local_weights(detector, Path(weights))
    found = {
        ours + name.removeprefix(theirs): value
        for name, value in detector.state_dict().items()
        for theirs, ours in _NAMES.items()
        if name.startswith(theirs)
    }
    _fit(model, found)


def _fit(model: nn.Module, found: dict[str, Tensor]) -> None:
    weights = model.state_dict()
    for name, value in found.items():
        if name not in weights or weights[name].shape != value.shape:
            got = tuple(weights[name].shape) if name in weights else "nothing"
            raise ValueError(
                f"init='coco' needs backbone={BACKBONE!r} and the default sizes: "
                f"{name} should be {tuple(value.shape)}, this model has {got}"
            )
    model.load_state_dict(weights | found)
