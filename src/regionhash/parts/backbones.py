"""Backbones: torchvision's ImageNet networks, cut into stages, with or without an FPN.

A backbone maps images (B, 3, H, W), float32 in [0, 1], to feature maps, fine to coarse. All that
a detector or a whole-image head needs to know about it is in `Backbone`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import WeightsEnum, get_model, get_model_weights
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from regionhash.files.text import one_line, reason_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Stages = tuple[list[nn.Module], list[int]]  # modules run one after another; output channels of each


@dataclass(frozen=True)
class BackboneSpec:
    """How a torchvision network becomes a backbone.

    Attributes:
        network: torchvision's name of the network; None for the built-in one.
        stages: cuts the network into stages.
        n_levels: how many of the last stages give a feature map.
        fpn: whether a feature pyramid is built on these maps, with one more map of half the size.
        anchor_sizes: sides of the RPN's square anchors on each map, in input pixels.
        summary: one line for `regionhash models`.
        options: arguments of torchvision's builder when it does not fetch the weights.
        unread: prefixes of the names of weights after the stages, which a file may lack.
        mean, std: normalisation of the input that the pretrained weights expect.
    """

    network: str | None
    stages: Callable[[Any], Stages]
    n_levels: int
    fpn: bool
    anchor_sizes: tuple[tuple[int, ...], ...]
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def _resnet(net: Any) -> Stages:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
    layers = [stem, net.layer2, net.layer3, net.layer4]
    width = getattr(net.layer1[-1], "conv3", net.layer1[-1].conv2).out_channels
    return layers, [width, 2 * width, 4 * width, 8 * width]


def _mobilenet_v2(net: Any) -> Stages:
    f = net.features  # strides 8, 16, 32
    return [f[:7], f[7:14], f[14:]], [32, 96, 1280]


def _mobilenet_v3_large(net: Any) -> Stages:
    f = net.features  # strides 8, 16, 32
    return [f[:7], f[7:13], f[13:]], [40, 112, 960]


def _squeezenet1_0(net: Any) -> Stages:
    f = net.features  # strides 4, 8, 16
    return [f[:6], f[6:11], f[11:]], [256, 512, 512]


def _vgg16(net: Any) -> Stages:
    f = net.features  # strides 4, 8, 16; conv5_3 with its ReLU, without the last pooling
    return [f[:16], f[16:23], f[23:30]], [256, 512, 512]


def _googlenet(net: Any) -> Stages:
    stem = [net.conv1, net.maxpool1, net.conv2, net.conv3, net.maxpool2]
    fourth = [net.inception4a, net.inception4b, net.inception4c, net.inception4d, net.inception4e]
    stages: list[nn.Module] = [  # strides 8, 16, 32
        nn.Sequential(*stem, net.inception3a, net.inception3b),
        nn.Sequential(net.maxpool3, *fourth),
        nn.Sequential(net.maxpool4, net.inception5a, net.inception5b),
    ]
    return stages, [480, 832, 1024]


def _tiny(_: Any) -> Stages:
    """Four small convolutions for 10 classes of digits and for tests: strides 4, 8, 16."""

    def block(n_in: int, n_out: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        return [conv, nn.GroupNorm(8, n_out), nn.ReLU(inplace=True)]

    first = nn.Sequential(*block(3, 24, 2), *block(24, 48, 2))
    second = nn.Sequential(*block(48, 96, 2), *block(96, 96, 1))
    third = nn.Sequential(*block(96, 128, 2), *block(128, 128, 1))
    return [first, second, third], [48, 96, 128]


_SIZES_4_TO_64 = ((32,), (64,), (128,), (256,), (512,))  # torchvision's, and so --init coco's
_SIZES_16_TO_64 = ((32, 64, 96), (64, 128, 192), (128, 256, 384))
_SIZES_8_TO_32 = ((16, 32, 48), (32, 64, 96), (64, 128, 192))

BACKBONES: dict[str, BackboneSpec] = {
    "vgg16": BackboneSpec(
        "vgg16", _vgg16, 1, False, ((32, 64, 128, 256, 512),), "conv5_3 at stride 16, the papers'"
    ),
    "resnet18_fpn": BackboneSpec(
        "resnet18", _resnet, 4, True, _SIZES_4_TO_64, "FPN at strides 4 to 64"
    ),
    "resnet34_fpn": BackboneSpec(
        "resnet34", _resnet, 4, True, _SIZES_4_TO_64, "FPN at strides 4 to 64"
    ),
    "resnet50_fpn": BackboneSpec(
        "resnet50", _resnet, 4, True, _SIZES_4_TO_64, "FPN at strides 4 to 64; can --init coco"
    ),
    "resnet101_fpn": BackboneSpec(
        "resnet101", _resnet, 4, True, _SIZES_4_TO_64, "FPN at strides 4 to 64"
    ),
    "resnext50_fpn": BackboneSpec(
        "resnext50_32x4d", _resnet, 4, True, _SIZES_4_TO_64, "FPN at strides 4 to 64"
    ),
    "mobilenet_v2_fpn": BackboneSpec(
        "mobilenet_v2", _mobilenet_v2, 2, True, _SIZES_16_TO_64, "FPN at strides 16 to 64; for CPUs"
    ),
    "mobilenet_v3_large_fpn": BackboneSpec(
        "mobilenet_v3_large", _mobilenet_v3_large, 2, True, _SIZES_16_TO_64, "as mobilenet_v2_fpn"
    ),
    "googlenet_fpn": BackboneSpec(
        "googlenet",
        _googlenet,
        2,
        True,
        _SIZES_16_TO_64,
        "IAH's; FPN at strides 16 to 64",
        options={"aux_logits": False, "init_weights": False},
        unread=("aux1.", "aux2.", "fc."),
        mean=(0.5, 0.5, 0.5),  # its weights come from TensorFlow: torchvision's transform_input
        std=(0.5, 0.5, 0.5),
    ),
    "squeezenet1_0_fpn": BackboneSpec(
        "squeezenet1_0", _squeezenet1_0, 2, True, _SIZES_8_TO_32, "FPN at strides 8 to 32"
    ),
    "tiny_fpn": BackboneSpec(
        None, _tiny, 2, True, _SIZES_8_TO_32, "0.4 M weights, for the digits and for tests"
    ),
}


class Backbone(nn.Module):
    """Stages of a network and, if asked for, a feature pyramid on the last of them.

    Batch normalisation keeps its ImageNet statistics (it always runs in evaluation mode): detection
    batches are too small to estimate them. Stages that are not trained take no gradient.

    Attributes:
        out_channels: channels of every feature map of `forward`.
        top_channels: channels of the last stage, whose map `forward` returns besides.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stages: list[nn.Module],
        channels: list[int],
        *,
        n_levels: int,
        fpn_channels: int | None,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.n_levels = n_levels
        self.top_channels = channels[-1]
        self.fpn: FeaturePyramidNetwork | None = None
        if fpn_channels is not None:
            self.fpn = FeaturePyramidNetwork(
                channels[-n_levels:], fpn_channels, extra_blocks=LastLevelMaxPool()
            )
        self.out_channels = fpn_channels or channels[-1]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def freeze_all_but(self, trained_stages: int) -> None:
        """Permanently freezes all but the last `trained_stages` stages: folds their batch norm.

        Raises:
            ValueError: there are fewer stages.
        """
        n_frozen = len(self.stages) - trained_stages
        if not 0 <= n_frozen <= len(self.stages):
            raise ValueError(
                f"trained_stages must be in [0, {len(self.stages)}], got {trained_stages}"
            )
        for stage in self.stages[:n_frozen]:
            stage.requires_grad_(False)
            fold_batch_norm(stage)

    def train(self, mode: bool = True) -> Backbone:
        """Sets the training mode of everything except the batch normalisation."""
        super().train(mode)
        for module in self.stages.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def top(self, images: Tensor) -> Tensor:
        """The last stage's map (B, top_channels, H/s, W/s) of images (B, 3, H, W) in [0, 1]."""
        return self._run_stages(images)[-1]

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Feature maps, fine to coarse, by name ("0", "1", ..., "pool"), and the last stage's map.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
        """
        maps = self._run_stages(images)
        named = {str(n): x for n, x in enumerate(maps[-self.n_levels :])}
        return (self.fpn(named) if self.fpn else named), maps[-1]

    def _run_stages(self, images: Tensor) -> list[Tensor]:
        x = (images - self.mean) / self.std
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def stack_images(images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """One batch (B, 3, H, W) float32 in [0, 1] of images (3, h, w) uint8, and their sizes (h, w).

    Smaller images are at the top left; the rest has the mean colour of ImageNet.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    fill = images[0].new_tensor(IMAGENET_MEAN, dtype=torch.float32).view(1, 3, 1, 1)
    batch = fill.expand(len(images), 3, height, width).contiguous()
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image.float() / 255
    return batch.contiguous(memory_format=torch.channels_last), sizes


def fold_batch_norm(module: nn.Module) -> None:
    """Folds each batch normalisation that directly follows a convolution into it, in place.

    A frozen stage computes the same as before; a MobileNet takes a fifth less time.
    """
    module.eval()
    previous: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norm(child)
        previous = (name, child) if isinstance(child, nn.Conv2d) else None
    module.requires_grad_(False)


def build_backbone(
    name: str,
    *,
    weights: str | Path = "default",
    trained_stages: int | None = None,
    fpn_channels: int | None = 256,
) -> Backbone:
    """A backbone of BACKBONES.

    Args:
        name: a key of BACKBONES.
        weights: "default" (torchvision's ImageNet weights, fetched once from the internet), "none"
            (random), or a local file: the state dict of the whole torchvision network. That of
            GoogLeNet may lack the classifiers.
        trained_stages: how many of the last stages are trained; 0 freezes the network, None freezes
            nothing yet. The feature pyramid is always trained.
        fpn_channels: channels of the feature pyramid; None leaves it out.

    Raises:
        ValueError: unknown name, or weights that are unavailable, with the reason.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    spec = BACKBONES[name]
    stages, channels = spec.stages(_network(spec, str(weights)))
    backbone = Backbone(
        stages,
        channels,
        n_levels=spec.n_levels,
        fpn_channels=fpn_channels if spec.fpn else None,
        mean=spec.mean,
        std=spec.std,
    )
    if trained_stages is not None:
        backbone.freeze_all_but(trained_stages)
    return backbone


def _network(spec: BackboneSpec, weights: str) -> nn.Module | None:
    """The torchvision network of a backbone with its weights."""
    name = spec.network
    if name is None:
        if weights not in ("default", "none"):
            raise ValueError(f"this backbone has no pretrained weights, got {weights!r}")
        return None
    if weights == "default":
        with downloading(get_model_weights(name).DEFAULT, "or pass random weights: --weights none"):
            return get_model(name, weights="DEFAULT")
    net = get_model(name, weights=None, **spec.options)
    if weights != "none":
        load_local_weights(net, Path(weights), spec.unread)
    return net


def load_local_weights(network: nn.Module, path: Path, unread: tuple[str, ...] = ()) -> None:
    """Loads a state dict of exactly this network; never runs pickled code in the file.

    Args:
        network: receives the weights.
        path: the state dict.
        unread: prefixes of names; weights with them stay as they are, in the file or not.

    Raises:
        ValueError: the file is missing, is no state dict, or belongs to another network.
    """
    if not path.is_file():  # opening a pipe would wait for a writer
        raise ValueError(
            f"{path}: {'not an ordinary' if path.exists() else 'no such weights'} file"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader runs into
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a readable state dict ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path}: not a state dict, but a {type(state).__name__}")
    read = {name: value for name, value in state.items() if not name.startswith(unread)}
    kept = {k: value for k, value in network.state_dict().items() if k.startswith(unread)}
    load_weights(network, read | kept, f"{path}: these are not the weights of this backbone")


def load_weights(network: nn.Module, state: Mapping[str, Any], message: str) -> None:
    """Loads a state dict. Raises ValueError with `message` and how it differs, in one line."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    parts = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": [
            name for name in wanted if given.get(name, wanted[name]) != wanted[name]
        ],
    }
    differences = [
        f"{len(names)} {what}, such as {one_line(names[0])}"
        for what, names in parts.items()
        if names
    ]
    if differences:
        raise ValueError(f"{message} ({len(wanted)} weights): {'; '.join(differences)}")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{message}: {one_line(str(error))}") from error


@contextmanager
def downloading(weights: WeightsEnum, otherwise: str) -> Iterator[None]:
    """Adds to an error what file to get from where, and where to put it.

    Args:
        weights: torchvision's description of the file.
        otherwise: what else can be done.

    Raises:
        ValueError: the file cannot be downloaded.
    """
    try:
        yield
    except (URLError, OSError) as error:
        megabytes = weights.meta["_file_size"]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        cause = getattr(error, "reason", None)  # of a URLError
        reason = reason_of(cause if isinstance(cause, OSError) else error)
        raise ValueError(
            f"{weights.url} ({megabytes:.0f} MB) could not be downloaded: {reason}; "
            f"without internet put this file into {folder}, or pass it as --weights FILE, "
            f"{otherwise}"
        ) from error
