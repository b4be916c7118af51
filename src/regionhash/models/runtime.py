"""What encoding, searches and the service need of a model, and the two ways to have it.

`TorchRuntime` runs a network with torch. `regionhash.models.onnx.OnnxRuntime` runs the graphs that
`regionhash convert` has made of it, without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from regionhash.data.frames import Frame, Pixels
from regionhash.data.image_set import Image
from regionhash.models import ENCODED_REGIONS
from regionhash.models.checkpoints import (
    Checkpoint,
    CheckpointError,
    folder_of,
    load_checkpoint,
    read_checkpoint,
)
from regionhash.models.onnx import Graphs, OnnxRuntime
from regionhash.models.region_hash import RegionHash
from regionhash.structures import Detections, EncodedImage, Floats, Regions

if TYPE_CHECKING:
    import torch

    from regionhash.models import HashModel
    from regionhash.models.drh import DRH

Precision = Literal["32-true", "bf16-mixed"]
"""Precision of the forward pass: float32, or bfloat16 where autocast finds it safe."""

RuntimeName = Literal["auto", "onnx", "torch"]
"""What runs a model; "auto" is onnx if its graphs are there and can do what is asked."""


class Runtime(Protocol):
    """A model that can be run.

    Attributes:
        shared_code_space: whether codes of boxes and of whole pictures can be compared.
        n_bits: bits of the image code, 0 if there is none; n_region_bits: bits of a region's code.
        takes_boxes: whether the regions of a picture are boxes that are given with it.
        precision: of the forward pass.
        threads_read: whether threads of this process prepare its pictures, rather than processes.
    """

    shared_code_space: bool
    n_bits: int
    n_region_bits: int
    takes_boxes: bool

    # Read-only, since a class may have a constant.
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def threads_read(self) -> bool: ...  # noqa: D102

    def prepare(self, image: Image, short: int) -> tuple[Pixels, Frame]:
        """The network's input of a picture, as `to_pixels` makes it, and the frame of its boxes."""

    def encode(
        self, images: Sequence[Pixels], given: Sequence[Detections] | None = None
    ) -> list[EncodedImage]:
        """Codes of pictures.

        Args:
            images: (3, h, w) uint8 each, of one shape.
            given: the boxes of each, in their pixels, for a model that takes boxes; None if there
                are none.

        Returns:
            Their codes, with boxes in their pixels.
        """

    def encode_boxes(self, images: Sequence[Pixels], boxes: Sequence[Floats]) -> list[Regions]:
        """Codes of given boxes of pictures: (R, 4) float32 each, xyxy in their pixels."""


class TorchRuntime:
    """A model that torch runs, on the device it is on; see `Runtime`."""

    threads_read = False

    def __init__(self, model: HashModel, precision: Precision = "32-true") -> None:
        check_precision(precision)
        self.model = model
        self.precision = precision
        self.device = device_of(model)
        self.shared_code_space = model.shared_code_space
        self.n_bits, self.n_region_bits = model.n_bits, model.n_region_bits
        self.takes_boxes: bool = getattr(model, "takes_boxes", False)

    def prepare(self, image: Image, short: int) -> tuple[Pixels, Frame]:
        """The network's input of a picture, and the frame of its boxes."""
        from regionhash.data.transforms import to_input

        tensor, frame = to_input(image, short)
        return tensor.numpy(), frame

    def encode(
        self, images: Sequence[Pixels], given: Sequence[Detections] | None = None
    ) -> list[EncodedImage]:
        """Codes of pictures (3, h, w) uint8; boxes in their pixels."""
        tensors = self._tensors(images)
        with inference(self.device, self.precision):
            if self.takes_boxes:
                return cast("DRH", self.model).encode(tensors, given)
            return self.model.encode(tensors)

    def activations_of(self, features: Floats) -> Floats | None:
        """What the bits of regions with features (R, P) are the signs of; None if unknown."""
        if not hasattr(self.model, "activations_of"):
            return None
        (tensor,) = self._tensors([features])
        activations: Floats = cast("DRH", self.model).activations_of(tensor).cpu().numpy()
        return activations

    def encode_boxes(self, images: Sequence[Pixels], boxes: Sequence[Floats]) -> list[Regions]:
        """Codes of given boxes of pictures: (R, 4) float32 each, xyxy in their pixels."""
        with inference(self.device, self.precision):
            return self.model.encode_boxes(self._tensors(images), self._tensors(boxes))

    def _tensors(self, arrays: Sequence[Any]) -> list[torch.Tensor]:
        import torch

        return [torch.from_numpy(array).to(self.device) for array in arrays]


def runtime_of(model: HashModel | Runtime, precision: Precision = "32-true") -> Runtime:
    """A model as a runtime of this precision; a runtime is returned as it is.

    Raises:
        ValueError: an unknown precision, or a runtime of another one.
    """
    check_precision(precision)
    if hasattr(model, "state_dict"):  # a module of torch, or what stands in for one
        return TorchRuntime(cast("HashModel", model), precision)
    given: Runtime = model
    if getattr(given, "precision", precision) != precision:
        raise ValueError(f"these codes need precision {precision}, the model has {given.precision}")
    return given


def load_runtime(
    path: Path,
    *,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "32-true",
) -> tuple[Runtime, Checkpoint]:
    """A model, ready to run, and its checkpoint.

    Args:
        path: the folder of the checkpoint, or a file in it.
        device: see `pick_device`; graphs run on the CPU.
        runtime: see `RuntimeName`.
        precision: of the forward pass.

    Raises:
        CheckpointError: see `read_checkpoint`, `load_checkpoint` and `OnnxRuntime`; or what runs
            the model is not installed.
        ValueError: an unknown name; or a device or precision that graphs do not have.
    """
    if runtime not in get_args(RuntimeName):
        raise ValueError(
            f"runtime must be one of {', '.join(get_args(RuntimeName))}, got {runtime!r}"
        )
    check_precision(precision)
    checkpoint = read_checkpoint(path)
    if checkpoint.name == ENCODED_REGIONS:
        if runtime == "torch" or device == "cuda" or precision != "32-true":
            raise ValueError(
                f"{folder_of(path)}: its encoder is an ONNX graph, which runs on the CPU with "
                "precision 32-true"
            )
        return RegionHash.load(path)
    graphs = Graphs.in_folder(folder_of(path))
    can = device != "cuda" and precision == "32-true"
    if runtime == "auto":
        runtime = "onnx" if graphs and can and find_spec("onnxruntime") else "torch"
    if runtime == "onnx":
        if not can:
            asked = "device cuda" if device == "cuda" else f"precision {precision}"
            raise ValueError(f"{asked}: needs the runtime torch")
        if not graphs:
            raise CheckpointError(
                f"{folder_of(path)}: has no graphs; `regionhash convert` writes them"
            )
        return OnnxRuntime(graphs, checkpoint), checkpoint
    if not find_spec("torch"):
        raise CheckpointError(
            f"{folder_of(path)}: has no graphs; `regionhash convert` writes them where torch is "
            'installed, and torch runs it without: pip install "regionhash[train]"'
        )
    model, checkpoint = load_checkpoint(path)
    return runtime_of(model.to(pick_device(device)), precision), checkpoint


def check_precision(precision: str) -> None:
    """Raises ValueError for an unknown precision."""
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"precision must be one of {known}, got {precision!r}")


def pick_device(name: str) -> torch.device:
    """The device "cpu", "cuda", or "auto": the GPU if there is one.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("device cuda: torch finds no GPU on this machine")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def device_of(model: HashModel) -> torch.device:
    """The device a model is on."""
    return next(model.parameters()).device


@contextmanager
def inference(device: torch.device, precision: str) -> Iterator[None]:
    """Context in which a model computes codes in this precision."""
    import torch

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    with torch.inference_mode(), autocast:
        yield
