"""Checkpoints: weights as safetensors, everything else as JSON beside them. No pickle is read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from regionhash.models import MODELS

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
_PACKAGES = ("regionhash", "torch", "torchvision", "numpy", "faiss-cpu")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A model and how it came to be.

    Attributes:
        name: a key of MODELS.
        arguments: what its builder was called with, so that it can be built again.
        classes: names of the classes.
        short: short side of the network's input in pixels.
        model_hash: of the weights and all of the above: two checkpoints with the same hash give
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
        "versions": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "git": _git_hash(),
    }


def _git_hash() -> str | None:
    """The commit of the source tree that runs, with "+" where it was changed; None outside git."""
    root = Path(__file__).resolve().parents[2]
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


def save_checkpoint(folder: Path, model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """Writes `folder`/model.safetensors and model.json; an older pair is replaced at the end.

    Returns the checkpoint with its hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    new_weights, new_config = folder / f"{WEIGHTS_FILE}.new", folder / f"{CONFIG_FILE}.new"
    save_file(state, new_weights)
    identity = {
        "format": FORMAT_VERSION,
        "model": checkpoint.name,
        "arguments": checkpoint.arguments,
        "classes": list(checkpoint.classes),
        "short": checkpoint.short,
    }
    weights_hash = _file_hash(new_weights)
    model_hash = _identity_hash(identity, weights_hash)
    record = identity | {
        "weights_hash": weights_hash,
        "model_hash": model_hash,
        "provenance": checkpoint.provenance,
    }
    new_config.write_text(json.dumps(record, indent=2) + "\n")
    # Two renames are not one: a kill between them is found by the hash when the pair is read.
    new_weights.replace(weights)
    new_config.replace(config)
    return Checkpoint(
        checkpoint.name,
        checkpoint.arguments,
        checkpoint.classes,
        checkpoint.short,
        model_hash,
        checkpoint.provenance,
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """What model.json says; the weights are not read.

    Args:
        path: the folder, or either file in it.

    Raises:
        CheckpointError: missing, damaged, of another format version, or of an unknown model.
    """
    config = _folder(path) / CONFIG_FILE
    record = _read_json(config)
    if record.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{config}: checkpoint format {record.get('format')}, this version of regionhash reads "
            f"{FORMAT_VERSION}"
        )
    try:
        checkpoint = Checkpoint(
            record["model"],
            record["arguments"],
            tuple(record["classes"]),
            record["short"],
            record["model_hash"],
            record["provenance"],
        )
    except KeyError as error:
        raise CheckpointError(f"{config}: not a checkpoint, {error} is missing") from error
    if checkpoint.name not in MODELS:
        known = ", ".join(MODELS)
        raise CheckpointError(f"{config}: unknown model {checkpoint.name!r}; known: {known}")
    return checkpoint


def load_checkpoint(path: Path) -> tuple[Any, Checkpoint]:
    """The model, in evaluation mode, and what is known of it.

    Raises:
        CheckpointError: as `read_checkpoint`; or weights that are missing or damaged, or that do
            not belong to the JSON beside them.
    """
    checkpoint = read_checkpoint(path)
    weights = _folder(path) / WEIGHTS_FILE
    if not weights.is_file():
        raise CheckpointError(f"{weights}: no such file")
    if _file_hash(weights) != _read_json(_folder(path) / CONFIG_FILE)["weights_hash"]:
        raise CheckpointError(
            f"{weights}: damaged, or not the weights that {CONFIG_FILE} describes"
        )
    model = build_model(checkpoint.name, checkpoint.arguments | {"weights": "none"})
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{weights}: the weights do not fit the model ({error})") from error
    return model.eval(), checkpoint


def build_model(name: str, arguments: dict[str, Any]) -> Any:
    """A model of MODELS. Raises ValueError for an unknown name or argument."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    try:
        return MODELS[name](**arguments).to(memory_format=torch.channels_last)
    except TypeError as error:
        raise ValueError(f"model {name}: {error}") from error


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read_json(config: Path) -> dict[str, Any]:
    try:
        record = json.loads(config.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{config}: no such file; a checkpoint is a folder with it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config}: not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{config}: not a checkpoint")
    return record


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity_hash(identity: dict[str, Any], weights_hash: str) -> str:
    text = json.dumps(identity, sort_keys=True) + weights_hash
    return hashlib.sha256(text.encode()).hexdigest()[:16]
