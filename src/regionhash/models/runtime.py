"""What encoding, searches and the service need of a model, and the two ways to have it.

`TorchRuntime` runs a network with torch. `regionhash.models.onnx.OnnxRuntime` runs the graphs that
`regionhash convert` has made of it, without torch, in ONNX Runtime or OpenVINO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
from regionhash.precision import Precision as Precision
from regionhash.precision import PrecisionName, bf16_of_cpu, check_precision
from regionhash.structures import Detections, EncodedImage, Floats, Regions

if TYPE_CHECKING:
    import torch

    from regionhash.models import HashModel
    from regionhash.models.drh import DRH

RuntimeName = Literal["auto", "onnx", "openvino", "torch"]
"""What runs a model; "auto" is the first that can do what is asked, see `load_runtime`."""

_BY_SPEED: tuple[tuple[Literal["onnx", "openvino", "torch"], Precision], ...] = (
    ("openvino", "bf16-mixed"),
    ("onnx", "32-true"),
    ("openvino", "32-true"),
    ("torch", "bf16-mixed"),
    ("torch", "32-true"),
)
"""Ways to run a model, the one to prefer first; docs/onnx.md has the measurements.

ONNX Runtime starts in a third of OpenVINO's time and needs half of its memory.
"""


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
    def precision(self) -> Precision: ...  # noqa: D102
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
    precision: PrecisionName = "32-true",
) -> tuple[Runtime, Checkpoint]:
    """A model, ready to run, and its checkpoint.

    What is left to choose, as "auto", is the first of these that is installed: OpenVINO in
    bfloat16, ONNX Runtime, OpenVINO in float32, torch in bfloat16, torch in float32. The first
    three need graphs of the model, and the CPU. bfloat16 is chosen only on a CPU on which it is
    fast. If it is asked for, OpenVINO needs a CPU that has it, and torch does without, slowly.

    Args:
        path: the folder of the checkpoint, or a file in it.
        device: see `pick_device`; graphs run on the CPU.
        runtime: see `RuntimeName`.
        precision: of the forward pass; with "auto", the runtime's `precision` is what was chosen.

    Raises:
        CheckpointError: see `read_checkpoint`, `load_checkpoint` and `OnnxRuntime`; or what runs
            the model is not installed.
        ValueError: an unknown name; or a device or precision that the runtime does not have.
    """
    if runtime not in get_args(RuntimeName):
        raise ValueError(
            f"runtime must be one of {', '.join(get_args(RuntimeName))}, got {runtime!r}"
        )
    check_precision(precision, known=get_args(PrecisionName))
    checkpoint = read_checkpoint(path)
    folder = folder_of(path)
    if checkpoint.name == ENCODED_REGIONS:
        if runtime not in ("auto", "onnx") or device == "cuda" or precision == "bf16-mixed":
            raise ValueError(
                f"{folder}: its encoder is an ONNX graph, which ONNX Runtime runs on the CPU with "
                "precision 32-true"
            )
        return RegionHash.load(path)
    graphs = bool(Graphs.in_folder(folder))
    obstacles: dict[str, ValueError] = {}
    for name, possible in _BY_SPEED:
        if runtime not in ("auto", name) or precision not in ("auto", possible):
            continue
        if precision == "auto" and possible == "bf16-mixed" and not _bf16_is_fast(name, device):
            continue
        if name == "torch":
            obstacle = _obstacle_of_torch(folder, graphs, device, possible)
        else:
            obstacle = _obstacle_of_graphs(folder, graphs, device, name, possible)
        if obstacle is None:
            return _load(path, checkpoint, name, possible, device)
        obstacles[name] = obstacle
    if not obstacles:
        raise ValueError(f"precision {precision}: needs the runtime torch or openvino")
    raise obstacles.get("torch") or obstacles[runtime]


def _bf16_is_fast(runtime: str, device: str) -> bool:
    """Whether bfloat16 is known to be faster than float32 here."""
    if bf16_of_cpu() != "fast" or not find_spec(runtime):
        return False
    return runtime != "torch" or pick_device(device).type == "cpu"


def _obstacle_of_torch(
    folder: Path, graphs: bool, device: str, precision: Precision
) -> ValueError | None:
    """Why torch cannot run a model in this precision; None if it can."""
    if find_spec("torch"):
        return None
    if not graphs:
        return CheckpointError(
            f"{folder}: has no graphs; `regionhash convert` writes them where torch is "
            'installed, and torch runs it without: pip install "regionhash[train]"'
        )
    what, otherwise = "runtime torch", ""
    if device == "cuda":
        what = "device cuda"
    elif precision == "bf16-mixed":
        what, otherwise = f"precision {precision}", ", or openvino on a CPU with bfloat16"
    return CheckpointError(
        f'{folder}: {what} needs torch: pip install "regionhash[train]"{otherwise}'
    )


def _obstacle_of_graphs(
    folder: Path, graphs: bool, device: str, runtime: str, precision: Precision
) -> ValueError | None:
    """Why this runtime cannot run the graphs of a model in this precision; None if it can."""
    if device == "cuda":
        return ValueError("device cuda: needs the runtime torch")
    if not graphs:
        return CheckpointError(f"{folder}: has no graphs; `regionhash convert` writes them")
    package = "onnxruntime" if runtime == "onnx" else runtime
    if not find_spec(package):
        extra = "[openvino]" if runtime == "openvino" else ""
        return CheckpointError(f'{package} is not installed: pip install "regionhash{extra}"')
    if precision == "bf16-mixed" and bf16_of_cpu() == "none":
        return ValueError("precision bf16-mixed: this CPU has no bfloat16, which OpenVINO needs")
    return None


def _load(
    path: Path, checkpoint: Checkpoint, runtime: str, precision: Precision, device: str
) -> tuple[Runtime, Checkpoint]:
    """A model that can be run in this way."""
    if runtime == "torch":
        model, checkpoint = load_checkpoint(path)
        return runtime_of(model.to(pick_device(device)), precision), checkpoint
    if runtime == "onnx":
        return OnnxRuntime(Graphs.in_folder(folder_of(path)), checkpoint), checkpoint
    from regionhash.models.openvino import OpenVinoSession

    graphs = Graphs.in_folder(folder_of(path), partial(OpenVinoSession, precision=precision))
    return OnnxRuntime(graphs, checkpoint, precision), checkpoint


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
