"""Encoders of timm and torchvision, exported to ONNX with torch, which is needed this once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regionhash.encoders.errors import EncoderError
from regionhash.encoders.layout import Hints, run_graph
from regionhash.encoders.preprocessing import MAX_SIDE, Preprocessing
from regionhash.encoders.stored import Resolved
from regionhash.files.text import one_line, reason_of
from regionhash.reporter import Reporter
from regionhash.sessions import open_session

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regionhash.parts.exporting import Free

TOLERANCE = 1e-3
"""Largest difference of a graph from its network, as a share of the largest value."""

_OUTPUTS = ("last_hidden_state", "pooler_output")


def of_timm(rest: str, reporter: Reporter) -> Resolved:
    """An encoder of timm: its last map or tokens, and the vector that its classifier reads.

    Args:
        rest: NAME, with weights that timm fetches, or NAME=FILE with a state dict in a file.
        reporter: is told what is fetched.

    Raises:
        EncoderError: a package is missing, the name is unknown, the weights cannot be had, or the
            network cannot be exported.
    """
    name, _, file = rest.partition("=")
    place = f"timm:{name}"
    with _importing(place, "timm"):
        timm: Any = import_module("timm")

    if not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:3])
        raise EncoderError(f"{place}: no such model in timm{near and f'; there are {near}'}")
    if not file:
        reporter.note(f"{place}: fetching its weights unless they are in timm's cache")
    with _getting(place):
        try:  # transformers need this for sizes other than their own
            network: Any = timm.create_model(name, pretrained=not file, dynamic_img_size=True)
        except TypeError:
            network = timm.create_model(name, pretrained=not file)
    config: dict[str, Any] = timm.data.resolve_model_data_config(network)
    if file:
        classifier = network.pretrained_cfg.get("classifier") or ()
        classifiers = [classifier] if isinstance(classifier, str) else classifier
        _load(network, Path(file), tuple(f"{prefix}." for prefix in classifiers))
    with _getting(place):
        preprocessing = Preprocessing.of_timm(config)
    licence = network.pretrained_cfg.get("license") or ""
    prefix = getattr(network, "num_prefix_tokens", None)
    return _exported(
        f"timm:{rest}", _timm_features(network), preprocessing, prefix, reporter, licence=licence
    )


def of_torchvision(rest: str, reporter: Reporter) -> Resolved:
    """A classifier of torchvision up to the map of its last stage, or to its tokens.

    Args:
        rest: NAME, with its best weights, or NAME=FILE with a state dict in a file.
        reporter: is told what is fetched.

    Raises:
        EncoderError: see `of_timm`.
    """
    name, _, file = rest.partition("=")
    place = f"torchvision:{name}"
    with _importing(place, "torchvision"):
        from torchvision import models

    from regionhash.parts.backbones import BACKBONES

    if name not in models.list_models(module=models):
        raise EncoderError(f"{place}: no such classifier in torchvision")
    weights = models.get_model_weights(name).DEFAULT
    known = next((spec for spec in BACKBONES.values() if spec.network == name), None)
    if file:
        network = models.get_model(name, weights=None, **(known.options if known else {}))
        _load(network, Path(file), known.unread if known else ())
    else:
        reporter.note(
            f"{place}: {weights.meta['_file_size']:.1f} MB from {weights.url}, unless it is in "
            "torch's cache"
        )
        with _getting(place, f"; or get {weights.url} and pass {place}=FILE"):
            network = models.get_model(name, weights=weights)
    transforms = weights.transforms()
    preprocessing = Preprocessing.of_timm(
        {
            "mean": known.mean if known else transforms.mean,
            "std": known.std if known else transforms.std,
            "interpolation": transforms.interpolation.value,
            "input_size": [3, *transforms.crop_size * 2][:3],
        }
    )
    features, prefix = _last_stage(network, name)
    return _exported(f"torchvision:{rest}", features, preprocessing, prefix, reporter)


# -- networks -------------------------------------------------------------------------------------


def _timm_features(network: Any) -> nn.Module:
    """The network as a module that gives its map (B, D, h, w) or tokens, and its vector."""
    from torch import nn

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> tuple[Any, Any]:
            features = self.network.forward_features(x)
            vector = self.network.forward_head(features, pre_logits=True)
            if features.ndim == 4 and getattr(self.network, "output_fmt", "NCHW") == "NHWC":
                features = features.permute(0, 3, 1, 2)
            return features, vector.flatten(1)

    return Features()


def _last_stage(network: Any, name: str) -> tuple[nn.Module, int | None]:
    """The network up to its last map (B, D, h, w) or tokens; the number of tokens to leave out."""
    import torch
    from torch import nn
    from torchvision.models.densenet import DenseNet
    from torchvision.models.regnet import RegNet
    from torchvision.models.resnet import ResNet
    from torchvision.models.shufflenetv2 import ShuffleNetV2
    from torchvision.models.swin_transformer import SwinTransformer
    from torchvision.models.vision_transformer import VisionTransformer

    from regionhash.parts.backbones import BACKBONES

    net = network
    known = next((spec for spec in BACKBONES.values() if spec.network == name), None)
    stages: list[nn.Module]
    if known is not None:
        stages = known.stages(net)[0]
    elif isinstance(net, ResNet):
        stages = [net.conv1, net.bn1, net.relu, net.maxpool]
        stages += [net.layer1, net.layer2, net.layer3, net.layer4]
    elif isinstance(net, VisionTransformer):

        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = net

            def forward(self, x: Any) -> Any:
                patches = self.network._process_input(x)
                first = self.network.class_token.expand(patches.shape[0], -1, -1)
                return self.network.encoder(torch.cat([first, patches], dim=1))

        return Tokens(), 1
    elif isinstance(net, SwinTransformer):
        stages = [net.features, net.norm, net.permute]
    elif isinstance(net, RegNet):
        stages = [net.stem, net.trunk_output]
    elif isinstance(net, ShuffleNetV2):
        stages = [net.conv1, net.maxpool, net.stage2, net.stage3, net.stage4, net.conv5]
    elif isinstance(net, DenseNet):
        stages = [net.features, nn.ReLU()]
    elif hasattr(net, "features") or hasattr(net, "layers"):  # MNASNet's are layers
        stages = list(net.features if hasattr(net, "features") else net.layers)
        if isinstance(stages[-1], nn.MaxPool2d):  # of AlexNet and VGG
            stages.pop()
    else:
        raise EncoderError(f"torchvision:{name}: its last map is not known; take it from timm")
    return nn.Sequential(*stages), None


def _load(network: Any, path: Path, unread: tuple[str, ...]) -> None:
    """Loads a state dict of this network; see `load_local_weights`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from regionhash.parts.backbones import load_local_weights, load_weights

    try:
        if path.suffix != ".safetensors":
            load_local_weights(network, path, unread)
            return
        if not path.is_file():
            raise ValueError(f"{path}: no such weights file")
        own = network.state_dict()
        given = load_file(path)
        state = {name: value for name, value in given.items() if not name.startswith(unread)}
        state |= {name: value for name, value in own.items() if name.startswith(unread)}
        load_weights(network, state, f"{path}: these are not the weights of this network")
    except SafetensorError as error:
        raise EncoderError(f"{path}: no readable safetensors ({one_line(str(error))})") from error
    except (ValueError, OSError) as error:
        raise EncoderError(one_line(str(error))) from error


# -- export ---------------------------------------------------------------------------------------


def _exported(
    spec: str,
    network: nn.Module,
    preprocessing: Preprocessing,
    prefix: int | None,
    reporter: Reporter,
    **origin: Any,
) -> Resolved:
    """The network as a graph: of any size if that gives what the network gives, else of its own."""
    from regionhash.encoders.sources import encoder_of

    with _importing(spec, "onnx"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

    import torch

    from regionhash.parts.exporting import to_graph

    assert preprocessing.size is not None
    network = network.eval().requires_grad_(False)
    size = preprocessing.size
    with torch.no_grad(), _getting(spec):
        outputs = _as_tuple(network(torch.zeros(1, 3, *size)))
    stride = _stride_of(outputs[0], size, prefix or 0)
    names = _OUTPUTS[: len(outputs)]
    free = [] if stride is None else [(True, True), (True, False)]
    reason = "no size was tried"
    with reporter.stage("exporting"):
        for any_size, any_batch in [*free, (False, True), (False, False)]:
            try:
                example = _example(size, stride or 1, any_size=any_size, any_batch=any_batch)
                graph = to_graph(
                    network, {"pixel_values": example}, names, one_try=True, error=EncoderError
                )
                _check_equal(network, graph, size, stride or 1, any_size=any_size)
            except EncoderError as error:
                reason = str(error)
                continue
            hints = Hints(patch=stride, prefix=prefix)
            return encoder_of(spec, graph, preprocessing, hints, spec, **origin)
    raise EncoderError(f"{spec}: {reason}")


def _stride_of(first: Any, size: tuple[int, int], prefix: int) -> int | None:
    """Input pixels per cell of a map or tokens; None if that is no whole number."""
    if first.ndim == 3:
        cells = first.shape[1] - prefix
        stride = round((size[0] * size[1] / max(cells, 1)) ** 0.5)
        return stride if (size[0] // stride) * (size[1] // stride) == cells else None
    h, w = first.shape[2:]
    return None if size[0] % h or size[1] % w else size[0] // h


def _example(
    size: tuple[int, int], stride: int, *, any_size: bool, any_batch: bool
) -> tuple[Tensor, Free]:
    """An input of a network, and its free dimensions."""
    import torch

    if any_size:  # not its own size, at which some networks do something else
        size = (max(2, size[0] // stride - 2) * stride, (size[1] // stride + 1) * stride)
    most = MAX_SIDE // stride
    free: Free = {0: torch.export.Dim("batch", min=1, max=256)} if any_batch else {}
    if any_size:
        free |= {
            2: stride * torch.export.Dim("rows", min=1, max=most),
            3: stride * torch.export.Dim("columns", min=1, max=most),
        }
    return torch.zeros(2 if any_batch else 1, 3, *size), free


def _check_equal(
    network: nn.Module, graph: bytes, size: tuple[int, int], stride: int, *, any_size: bool
) -> None:
    """Raises EncoderError unless the graph gives what the network gives of some noise."""
    import torch

    session = open_session(graph, "the graph")
    sizes = [size]
    if any_size:
        rows, columns = size[0] // stride, size[1] // stride
        sizes += [(rows * stride, 2 * columns * stride), ((rows + 1) * stride, columns * stride)]
    for checked in sizes:
        picture = np.random.default_rng(0).standard_normal((1, 3, *checked), np.float32)
        with torch.no_grad():
            wanted = [x.numpy() for x in _as_tuple(network(torch.from_numpy(picture)))]
        found = run_graph(session, "pixel_values", picture)
        for one, other in zip(wanted, found.values(), strict=True):
            if one.shape != other.shape or not np.allclose(
                one, other, rtol=0, atol=TOLERANCE * max(float(np.abs(one).max()), 1e-6)
            ):
                raise EncoderError("its graph gives other values than the network")


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@contextmanager
def _importing(place: str, package: str) -> Iterator[None]:
    """Says how to get a package that is missing."""
    try:
        import torch  # noqa: F401

        yield
    except ImportError as error:
        missing = error.name or package
        raise EncoderError(
            f'{place}: exporting it needs {missing}: pip install "regionhash[train]"'
        ) from error


@contextmanager
def _getting(place: str, otherwise: str = "") -> Iterator[None]:
    """Makes one line of whatever a package raises while it makes a network or gets its weights."""
    try:
        yield
    except TypeError:
        raise
    except Exception as error:  # of its HTTP library, for one
        raise EncoderError(f"{place}: {reason_of(error)}{otherwise}") from error
