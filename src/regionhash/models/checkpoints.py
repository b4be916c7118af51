"""Checkpoints: weights as safetensors, everything else as JSON beside them. No pickle is read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from safetensors import SafetensorError, numpy, safe_open

from regionhash.detectors import DETECTOR_FILES
from regionhash.encoders.stored import ENCODER_FILES
from regionhash.files import strict_json
from regionhash.files.atomic import replacing, sync_directory, write_text
from regionhash.files.text import reason_of, refusing, shown
from regionhash.models import ENCODED_REGIONS, NAMES, known_names
from regionhash.models.parameters import checked, defaults_of, types_of
from regionhash.store import StoreError

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
NEXT_WEIGHTS_FILE = f"{WEIGHTS_FILE}.new"  # exists only during a write, or after a kill
CONFIG_FILE = "model.json"
GRAPH_FILES = ENCODE_GRAPH, BOXES_GRAPH = "encode.onnx", "encode_boxes.onnx"

MIN_SHORT, MAX_SHORT = 32, 2048
"""Short side of the input: below, the last stage sees nothing; above, pictures take gigabytes."""


_MAX_HEADER = 10 << 20  # bytes of names and shapes in a file of weights; a ResNet-101 has 100 KB
_PACKAGES = ("regionhash", "torch", "torchvision", "onnxruntime", "numpy", "faiss-cpu")


if TYPE_CHECKING:
    from regionhash.models import HashModel
    from regionhash.models.region_hash import RegionHash

Kind = TypeVar("Kind", bound="HashModel")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A model and its origin.

    Attributes:
        name: a key of MODELS.
        arguments: arguments of its builder, to build it again; once saved, with the defaults of the
            version that saved it.
        classes: names of the classes.
        short: short side of the network's input in pixels.
        model_hash: hash of the weights and all of the above: checkpoints with the same hash give
            the same codes.
        provenance: versions, git hash, data hash, training configuration, figures.
    """

    name: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    short: int
    model_hash: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


def provenance() -> dict[str, Any]:
    """Versions, git hash and machine: what every checkpoint and result carries."""
    return {
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "git": _git_hash(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # of the two runtimes, one is enough
        return None


def _git_hash() -> str | None:
    """The commit of the running source tree, with "+" if it was changed; None outside git."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=+", "--abbrev=12", "--match="],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip()


def save_checkpoint(
    folder: Path, model: HashModel | RegionHash, checkpoint: Checkpoint
) -> Checkpoint:
    """Writes `folder`/model.safetensors and model.json, replacing an older pair.

    Killed at any moment, it leaves the older pair or the new one, whole; see `load_checkpoint`.

    Returns:
        The checkpoint with its hash, and with the defaults of the builder among its arguments:
        a later version may have other defaults, which would change the codes.

    Raises:
        CheckpointError: what `read_checkpoint` would refuse, or a full disk.
        OSError: writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / NEXT_WEIGHTS_FILE) as weights:
        _save_weights(model, weights)
        weights_hash = _file_hash(weights)
        defaults = defaults_of(_builder(checkpoint.name))
        complete = replace(checkpoint, arguments=defaults | checkpoint.arguments)
        model_hash = _identity_hash(_identity(complete), weights_hash)
        hashes = {"weights_hash": weights_hash, "model_hash": model_hash}
        record = _identity(complete) | hashes | {"provenance": checkpoint.provenance}
        text = json.dumps(record, indent=2) + "\n"
        with refusing(f"{folder / CONFIG_FILE}: not written", CheckpointError):
            _check_arguments(_checked(strict_json.parse_object(text.encode())))
        _finish_pair(folder)
    _put_in_place(folder, text)
    return replace(complete, model_hash=model_hash)


def copy_checkpoint(origin: Path, folder: Path) -> None:
    """Copies a model into a folder, replacing an older one, as `save_checkpoint` writes it.

    Graphs, and the detector of a collection's model, come along.

    Raises:
        CheckpointError: there is no usable one at `origin`.
        OSError: writing fails.
    """
    record, _ = _read_record(origin)
    weights, _ = find_weights(origin)
    folder.mkdir(parents=True, exist_ok=True)
    _copy_files(DETECTOR_FILES, origin, folder)
    with replacing(folder / NEXT_WEIGHTS_FILE) as copied:
        shutil.copyfile(weights, copied)
        _finish_pair(folder)
    _put_in_place(folder, json.dumps(record, indent=2) + "\n")
    _copy_files((*GRAPH_FILES, *ENCODER_FILES), origin, folder)


def _copy_files(names: Iterable[str], origin: Path, folder: Path) -> None:
    """Copies the files that are there."""
    for name in names:
        if (file := folder_of(origin) / name).is_file():
            with replacing(folder / name) as copied:
                shutil.copyfile(file, copied)


# The new weights have a temporary name until the JSON with their hash is written. So at any moment
# the weights that belong to the JSON exist, under one of the two names.


def _put_in_place(folder: Path, text: str) -> None:
    """Writes the JSON of the waiting weights, then renames these.

    Graphs of the model that was there before are removed.
    """
    for name in GRAPH_FILES:
        (folder / name).unlink(missing_ok=True)
    write_text(folder / CONFIG_FILE, text)
    (folder / NEXT_WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    sync_directory(folder)


def _finish_pair(folder: Path) -> None:
    """Completes the work of a writer that was killed between the two steps, if any."""
    waiting = folder / NEXT_WEIGHTS_FILE
    if not waiting.exists():
        return
    try:
        used, _ = find_weights(folder)
    except CheckpointError:  # no pair to keep
        return
    if used == waiting:
        waiting.replace(folder / WEIGHTS_FILE)
        sync_directory(folder)


def _builder(name: str) -> Callable[..., Any]:
    """What takes the arguments of a model; that of `MODELS` needs torch."""
    if name == ENCODED_REGIONS:
        from regionhash.models.region_hash import RegionHashSettings

        return RegionHashSettings
    from regionhash.models import MODELS

    return MODELS[name]


def _save_weights(model: HashModel | RegionHash, path: Path) -> None:
    try:
        if hasattr(model, "arrays"):
            numpy.save_file(model.arrays(), path)
            return
        from safetensors.torch import save_file

        state = model.state_dict()
        save_file({name: x.detach().contiguous().cpu() for name, x in state.items()}, path)
    except SafetensorError as error:  # also if the disk is full
        raise CheckpointError(f"{path}: cannot write: {reason_of(error)}") from error


def read_arrays(weights: Path) -> dict[str, Any]:
    """The arrays in a file of weights that `find_weights` has found.

    Raises:
        CheckpointError: values that are not finite.
    """
    with refusing(f"{weights}: not readable", CheckpointError, SafetensorError):
        arrays = numpy.load_file(weights)
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"{weights}: {name} holds values that are not finite")
    return arrays


def read_checkpoint(path: Path) -> Checkpoint:
    """What model.json says; the weights are not read.

    Args:
        path: the folder, or either file in it.

    Raises:
        CheckpointError: the file is missing, damaged, of another format version, of an unknown
            model, has an invalid field, or was changed since its hash was taken. The model's
            arguments are checked when it is built.
    """
    return _read_record(path)[1]


@overload
def load_checkpoint(path: Path) -> tuple[HashModel, Checkpoint]: ...
@overload
def load_checkpoint(path: Path, kind: type[Kind]) -> tuple[Kind, Checkpoint]: ...
def load_checkpoint(path: Path, kind: type[Any] | None = None) -> tuple[Any, Checkpoint]:
    """The model, in evaluation mode, and its checkpoint.

    If a writer was killed before its last step, the weights that belong to model.json are still
    called model.safetensors.new, and are read from there.

    Args:
        path: the folder, or either file in it.
        kind: the class of MODELS that is required; None takes any.

    Raises:
        CheckpointError: as `read_checkpoint`; a model of another kind; or weights that are missing
            or damaged, that do not belong to the JSON beside them or do not fit the model, or are
            not finite.
    """
    import torch  # noqa: F401  (first: what follows reads weights as its tensors)
    from safetensors.torch import load_file

    from regionhash.models import MODELS

    weights, checkpoint = find_weights(path)
    if checkpoint.name == ENCODED_REGIONS:
        raise CheckpointError(f"{path}: a {ENCODED_REGIONS} is no network of torch")
    if kind is not None and MODELS[checkpoint.name] is not kind:
        (wanted,) = (name for name, known in MODELS.items() if known is kind)
        raise CheckpointError(f"{path}: must be a {wanted}, is a {checkpoint.name}")
    with refusing(f"{weights}: not readable", CheckpointError, SafetensorError):
        state = load_file(weights)
    model = build_model(checkpoint.name, checkpoint.arguments | {"weights": "none"})
    model.load_state_dict(state)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(f"{weights}: {name} holds values that are not finite")
    return model.eval(), checkpoint


def build_model(name: str, arguments: dict[str, Any]) -> HashModel:
    """A model of MODELS. Raises ValueError for an unknown name or argument."""
    import torch

    from regionhash.models import MODELS

    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    try:
        return MODELS[name](**arguments).to(memory_format=torch.channels_last)
    except TypeError as error:
        reason = str(error).rpartition("__init__() ")[2]
        raise ValueError(f"model {name}: {reason}") from error


def model_folder(path: Path, model_hash: str, meta: Mapping[str, Any]) -> Path:
    """The folder of the model that made the codes of a file: next to it, or as recorded in it.

    So a directory that holds both can be moved and copied.

    Args:
        path: the file.
        model_hash: of the model.
        meta: what the file says of where its codes come from.

    Raises:
        StoreError: the model is not next to the file, which does not say where it is.
    """
    with suppress(CheckpointError):
        if read_checkpoint(path.parent).model_hash == model_hash:
            return path.parent
    if "checkpoint" not in meta:
        raise StoreError(f"{path}: its writer recorded no 'checkpoint' in meta")
    return Path(meta["checkpoint"])


# -- model.json -----------------------------------------------------------------------------------


def _read_record(path: Path) -> tuple[dict[str, Any], Checkpoint]:
    """The content of model.json, and the checkpoint it describes, validated."""
    config = folder_of(path) / CONFIG_FILE
    with refusing(f"{config}: cannot read the checkpoint", CheckpointError):
        try:
            record = strict_json.read_object(config)
        except FileNotFoundError:
            raise ValueError("no such file; a checkpoint is a folder with it") from None
    with refusing(str(config), CheckpointError):
        return record, _checked(record)


def _checked(record: dict[str, Any]) -> Checkpoint:
    """The checkpoint that model.json describes. Raises ValueError for invalid fields."""
    if record.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint format {shown(record.get('format'))}, this version of regionhash reads "
            f"{FORMAT_VERSION}"
        )
    name = strict_json.field(record, "model", str)
    if name not in NAMES and name not in known_names():  # which asks every installed package
        raise ValueError(f"unknown model {shown(name)}; known: {', '.join(known_names())}")
    checkpoint = Checkpoint(
        name,
        strict_json.field(record, "arguments", dict),
        strict_json.class_names(record),
        strict_json.whole_number(record, "short", MIN_SHORT, MAX_SHORT),
        _hash_field(record, "model_hash", 16),
        strict_json.field(record, "provenance", dict),
    )
    identity = _identity_hash(_identity(checkpoint), _hash_field(record, "weights_hash", 64))
    if identity != checkpoint.model_hash:
        raise ValueError(
            f"model_hash is {checkpoint.model_hash}, but the content has {identity}: changed since "
            "the model was saved"
        )
    return checkpoint


def _hash_field(record: dict[str, Any], name: str, length: int) -> str:
    value: str = strict_json.field(record, name, str)
    if not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
        raise ValueError(f"{name} must be {length} digits of 0-9 and a-f, got {shown(value)}")
    return value


def _check_arguments(checkpoint: Checkpoint) -> None:
    """Raises ValueError for arguments that the builder does not take."""
    builder = _builder(checkpoint.name)
    types, defaults = types_of(builder), defaults_of(builder)
    for name, value in checkpoint.arguments.items():
        if name not in types:
            known = ", ".join(types)
            raise ValueError(f"arguments: {shown(name)} is unknown; known are {known}")
        checked(f"arguments: {name}", value, types[name])
    for name in types:
        if name not in checkpoint.arguments and name not in defaults:
            raise ValueError(f"arguments: {name} is missing")
    n_classes = checkpoint.arguments.get("n_classes")
    if (
        "n_classes" in types
        and "n_classes" not in defaults
        and n_classes != len(checkpoint.classes)
    ):
        raise ValueError(f"arguments: n_classes is {n_classes}, of {len(checkpoint.classes)}")


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything codes depend on besides the weights."""
    return {
        "format": FORMAT_VERSION,
        "model": checkpoint.name,
        "arguments": checkpoint.arguments,
        "classes": list(checkpoint.classes),
        "short": checkpoint.short,
    }


def _identity_hash(identity: dict[str, Any], weights_hash: str) -> str:
    text = json.dumps(identity, sort_keys=True) + weights_hash
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- weights --------------------------------------------------------------------------------------

_Shapes = dict[str, tuple[str, tuple[int, ...]]]  # kind of number, and shape, of each weight
_KINDS = {**dict.fromkeys(("F16", "BF16", "F32", "F64"), "float"), "I64": "int"}


def find_weights(path: Path) -> tuple[Path, Checkpoint]:
    """The file of the weights that belong to model.json, and its checkpoint.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    folder = folder_of(path)
    record, checkpoint = _read_record(folder)
    wanted = None  # without torch: a model that cannot be built here is only copied
    if find_spec("torch") or checkpoint.name == ENCODED_REGIONS:
        with refusing(str(folder / CONFIG_FILE), CheckpointError):
            _check_arguments(checkpoint)
            wanted = _shapes_wanted(checkpoint)
    weights, waiting = folder / WEIGHTS_FILE, folder / NEXT_WEIGHTS_FILE
    try:
        _check_weights(weights, wanted, record["weights_hash"])
        return weights, checkpoint
    except CheckpointError:
        if not waiting.exists():
            raise
        try:
            _check_weights(waiting, wanted, record["weights_hash"])
        except CheckpointError:
            pass
        else:
            return waiting, checkpoint
        raise


def _shapes_wanted(checkpoint: Checkpoint) -> _Shapes:
    """The weights the model needs. It is built without memory for them, however large they are.

    Raises:
        ValueError: the model cannot be built.
    """
    if checkpoint.name == ENCODED_REGIONS:
        settings = _builder(checkpoint.name)(**checkpoint.arguments)
        return {name: ("float", shape) for name, shape in settings.shapes.items()}
    return _shapes_of_network(checkpoint.name, json.dumps(checkpoint.arguments))


@lru_cache(maxsize=16)  # building takes longer than reading weights: one model, many collections
def _shapes_of_network(name: str, arguments: str) -> _Shapes:
    """The weights of a model of MODELS with these arguments, as JSON; not to be changed."""
    import torch

    from regionhash.models import MODELS

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights of no value at all
            model = MODELS[name](**json.loads(arguments) | {"weights": "none"})
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Whatever torch and torchvision raise for numbers that make no layer.
        raise ValueError(f"arguments: {reason_of(error)}") from error
    return {
        name: ("float" if value.is_floating_point() else "int", tuple(value.shape))
        for name, value in model.state_dict().items()
    }


def _check_weights(weights: Path, wanted: _Shapes | None, weights_hash: str) -> None:
    """Raises CheckpointError unless the file holds the wanted weights, if any, and has the hash.

    Names and shapes are checked first: only then is the file known to be no larger than the model.
    """
    if not weights.is_file():
        raise CheckpointError(f"{weights}: {'not a' if weights.exists() else 'no such'} file")
    found: _Shapes = {}
    if wanted is not None:
        with refusing(f"{weights}: damaged", CheckpointError, SafetensorError):
            found = _shapes_in(weights)
    for name in [*(wanted or ()), *found]:
        assert wanted is not None
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{weights}: the weights do not fit the model: {shown(name)} must be "
                f"{_described(wanted.get(name))}, got {_described(found.get(name))}"
            )
    if _file_hash(weights) != weights_hash:
        raise CheckpointError(
            f"{weights}: damaged, or not the weights that {CONFIG_FILE} describes"
        )


def _shapes_in(weights: Path) -> _Shapes:
    """Type and shape of each weight in a file; only its header is read."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    with safe_open(weights, framework="np") as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: (_KINDS.get(view.get_dtype(), view.get_dtype()), tuple(view.get_shape()))
            for name, view in views.items()
        }


def _described(weight: tuple[str, tuple[int, ...]] | None) -> str:
    return "left out" if weight is None else f"{weight[0]} {shown(weight[1])}"


def folder_of(path: Path) -> Path:
    """The folder of a checkpoint that is named by it or by a file in it.

    Raises:
        CheckpointError: the name is too long.
    """
    with refusing(f"{path}: cannot read the checkpoint", CheckpointError):  # a name too long
        of_file = path.is_file() or path.name in (CONFIG_FILE, WEIGHTS_FILE, *GRAPH_FILES)
        return path.parent if of_file else path


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
