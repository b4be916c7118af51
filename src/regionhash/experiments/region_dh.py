"""Runs a preset: trains every method at every length, ranks, and writes the report.

Whole-image methods read a backbone that is not trained, and Region-DH is trained with all its
losses at one length. What either gives for a picture is then computed once, and for each length and
seed only the layers of the hash are trained on it: for Region-DH its modules 3 and 4, on the
proposals of modules 1 and 2. That is the same code as any other training with `cached_views`, and
makes the difference between days and an hour on a CPU.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionhash.data import open_dataset
from regionhash.data.image_set import ImageSet
from regionhash.evaluation import paper_figures
from regionhash.evaluation.code_files import detections_of_file
from regionhash.experiments.presets import Preset, find_preset
from regionhash.experiments.region_dh_report import (
    Comparison,
    Result,
    best_acg,
    hash_ids,
    score,
    write_report,
)
from regionhash.models import hashes_pictures
from regionhash.models.checkpoints import (
    Checkpoint,
    build_model,
    load_checkpoint,
    provenance,
    read_checkpoint,
)
from regionhash.models.encoding import code_file_writer, encode_images
from regionhash.parts.regions import codes_of
from regionhash.store import CodeSet
from regionhash.structures import Codes
from regionhash.training import Cache, TrainingConfig, TrainingError, copy_weights, train
from regionhash.training.feature_cache import PRECISION, head_training, stored_features

_TRUNK_BITS = 48  # at which what all lengths share is trained
_ABLATION_BITS = 48
HEAD_ARGUMENTS = {"context": True, "reduction": "mean", "gamma_h2": 1.0}
"""Of Region-DH on a detector: E terms as printed cost more than they give."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a preset is run; the defaults are those of the report in docs/results.

    Attributes:
        backbone, weights: see `build_backbone`.
        short: short side of the network's input in pixels.
        seeds: of the layers behind what is cached; what is cached has seed 0.
        detector_epochs: of the detector, and of SSDH where it trains its backbone.
        trained_stages: of the backbone, in these.
        head_epochs: of the layers behind what is cached. Region-DH, which learns from dozens of
            regions in each picture, takes half as many.
        views: of every training picture that are cached.
        processes: that train the detector together; on a CPU one per core is fastest.
        ablations: whether the variants of Region-DH are run, with the first seed.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    seeds: tuple[int, ...] = (0, 1)
    detector_epochs: int = 6
    trained_stages: int = 1
    head_epochs: int = 16
    views: int = 2
    processes: int = 1
    ablations: bool = True

    def detector_arguments(self) -> dict[str, Any]:
        """Of the Region-DH whose modules 1 and 2 all lengths share."""
        return {
            "n_bits": _TRUNK_BITS,
            "backbone": self.backbone,
            "weights": self.weights,
            "trained_stages": self.trained_stages,
            "fpn_channels": 128,
            "n_proposals": 48,
            "context": False,  # it reads what is trained without it
        }

    def detector_training(self) -> TrainingConfig:
        """AdamW learns layers that start from nothing in fewer steps than the paper's SGD."""
        return TrainingConfig(
            epochs=self.detector_epochs,
            batch_size=4,
            optimizer="adamw",
            learning_rate=4e-4,
            backbone_rate=0.25,
            weight_decay=1e-3,
            warmup=0.03,
            ramp_start=0.3,
            ramp_end=0.5,
            short=self.short,
            held_out=0.0,
            precision=PRECISION,
        )

    def ssdh_training(self) -> TrainingConfig:
        """Of SSDH with its backbone: as the detector, but for what counts from when."""
        return replace(self.detector_training(), ramp_start=0.0, ramp_end=0.0)

    def head_training(self, method: str, seed: int, *, ramped: bool = True) -> TrainingConfig:
        """Of the layers behind what is cached, for all methods the same but for the epochs."""
        half = -(-self.head_epochs // 2)
        epochs = half if method == "region-dh" else self.head_epochs
        return head_training(
            epochs=epochs, short=self.short, views=self.views, seed=seed, ramped=ramped
        )


@dataclass(frozen=True)
class _Data:
    """Both sides of a preset."""

    database: ImageSet
    queries: ImageSet


@dataclass(frozen=True)
class _Trunk:
    """What a network without its image hash says of all pictures.

    Attributes:
        model: the network.
        database: one entry per view; the first is the pictures as they are.
        queries: of the pictures as they are.
        seconds: of its training; making the features takes some minutes more.
    """

    model: Any
    database: Cache
    queries: Cache
    seconds: float = 0.0


@dataclass(frozen=True)
class _Variant:
    """A row of a report: a method and what is different about it.

    Attributes:
        label: of the row.
        method: a key of MODELS.
        arguments: of the model, beyond `_head_arguments`.
        ramped: whether the hashing terms come in slowly.
    """

    label: str
    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ramped: bool = True


_OURS = _Variant("Region-DH", "region-dh")
_ON_FROZEN = (
    _Variant("control", "control"),
    _Variant("SSDH", "ssdh"),
    _Variant("DLBHC", "dlbhc"),
)
_ABLATIONS = (
    _Variant("image code of regions alone", "region-dh", {"context": False}),
    _Variant("fusion without objectness (IAH)", "region-dh", {"fusion": "plain"}),
    _Variant("fusion normalised by its weights", "region-dh", {"fusion": "normalised"}),
    _Variant("L_cls3 with one sigmoid per class", "region-dh", {"multi_label": "bce"}),
    _Variant("no E terms", "region-dh", {"gamma_h1": 0.0, "gamma_h2": 0.0}),
    _Variant("E terms as printed", "region-dh", {"reduction": "sum", "gamma_h2": 10.0}),
    _Variant("E terms and L_cls3 from the first step", "region-dh", ramped=False),
)


def reproduce(name: str, root: Path, out: Path, options: Options, say: Say) -> Path:
    """Runs the preset `name` on the data below `root`; returns the report's path in `out`.

    What was done before in the same folder with the same options is not done again.

    Raises:
        ValueError: unknown preset, missing data (the message says what to put where), pictures
            that are on both sides, or a training of several processes that failed.
    """
    preset = find_preset(name)
    data = _open(preset, root)
    labels = data.queries.labels(), data.database.labels()
    features = out / "features"
    results: list[Result] = []
    ablations: list[Result] = []
    curves: dict[str, tuple[Any, ...]] = {}

    def run(variant: _Variant, trunk: _Trunk, n_bits: int, seed: int) -> Result:
        arguments = _head_arguments(variant.method, options, n_bits) | dict(variant.arguments)
        config = options.head_training(variant.method, seed, ramped=variant.ramped)
        folder = _run_folder(out, variant.label, n_bits, seed)
        queries, database = _hash(variant.method, arguments, data.database, trunk, folder, config)
        seconds = trunk.seconds + _training_seconds(folder)
        own = (queries, labels[0]), (database, labels[1])
        result = score(variant.label, n_bits, seed, *own, k=preset.k, seconds=seconds)
        say(f"{variant.label} {n_bits} bits, seed {seed}: MAP@{preset.k} {result.mean('map'):.4f}")
        if n_bits == _ABLATION_BITS and seed == options.seeds[0]:
            curves[variant.label] = (queries, database, *labels)
        return result

    def compare(variant: _Variant, trunk: _Trunk) -> None:
        for n_bits in preset.bits:
            results.extend(run(variant, trunk, n_bits, seed) for seed in options.seeds)

    def ablate(variant: _Variant, trunk: _Trunk) -> None:
        ablations.append(run(variant, trunk, _ABLATION_BITS, options.seeds[0]))

    def trained(method: str, folder: str, **changes: Any) -> Path:
        path = out / "runs" / folder
        _train_trunk(method, replace(options, **changes), preset, root, data.database, path, say)
        return path

    pictures = _untrained(data, options, features, say)
    for variant in _ON_FROZEN:
        compare(variant, pictures)
    del pictures
    compare(
        _Variant("SSDH, fine-tuned", "ssdh", {"trained_stages": options.trained_stages}),
        _trunk(trained("ssdh", "ssdh-trunk"), data, options, features, say),
    )
    detector = trained("region-dh", "detector")
    regions = _trunk(detector, data, options, features, say)
    compare(_OURS, regions)
    compared = dict(curves)
    detection = _detect(out, data.queries, options)

    def report() -> Path:
        comparison = Comparison(
            title=f"{name}: Region-DH and whole-image hashing",
            facts=_facts(name, preset, data, options, detector),
            results=results,
            ours=_OURS.label,
            k=preset.k,
            ceiling_acg=best_acg(*labels, preset.k),
            published=paper_figures(preset.paper, preset.dataset),
            ablations=ablations,
            detection=detection,
        )
        return write_report(out, comparison, compared)

    if options.ablations:
        ablate(_OURS, regions)
        for variant in _ABLATIONS:
            ablate(variant, regions)
        for n in (8, 24):
            ablate(_Variant(f"{n} proposals", "region-dh"), _first_proposals(regions, n))
        del regions
        say(f"wrote {report()}; what needs other features follows")
        ablate(
            _Variant("the control, on the trained backbone", "control"),
            _untrained(data, options, features, say, start=detector),
        )
        frozen = trained("region-dh", "detector-frozen", trained_stages=0)
        ablate(
            _Variant("backbone not trained", "region-dh", {"trained_stages": 0}),
            _trunk(frozen, data, options, features, say),
        )
    return report()


def _open(preset: Preset, root: Path) -> _Data:
    try:
        database = open_dataset(preset.database.format(root=root))
        queries = open_dataset(preset.queries.format(root=root))
    except ValueError as error:
        raise ValueError(f"{error}\nthis preset needs, below {root}: {preset.layout}") from error
    common = set(database.ids) & set(queries.ids)
    if common:
        raise ValueError(f"{len(common)} pictures are queries and database at once: {min(common)}")
    return _Data(database, queries)


def _head_arguments(method: str, options: Options, n_bits: int) -> dict[str, Any]:
    if method == "region-dh":
        return options.detector_arguments() | {"n_bits": n_bits} | HEAD_ARGUMENTS
    arguments = {"n_bits": n_bits, "backbone": options.backbone, "weights": options.weights}
    return arguments if method == "control" else arguments | {"trained_stages": 0}


def _hash(
    method: str,
    arguments: dict[str, Any],
    database: ImageSet,
    trunk: _Trunk,
    folder: Path,
    config: TrainingConfig,
) -> tuple[Codes, Codes]:
    """Trains the image hash; codes of the queries and of the database."""
    train(method, arguments, database, folder, config, start=trunk.model, cache=trunk.database)
    model, _ = load_checkpoint(folder)
    assert hashes_pictures(model)
    with torch.no_grad():
        queries = codes_of(model.hash_features(trunk.queries[0][0]))
        return queries, codes_of(model.hash_features(trunk.database[0][0]))


def _untrained(
    data: _Data, options: Options, folder: Path, say: Say, *, start: Path | None = None
) -> _Trunk:
    """The backbone as the whole-image methods read it: pretrained, or as `start` has it."""
    arguments = _head_arguments("control", options, _TRUNK_BITS)
    model = build_model("control", arguments | {"n_classes": len(data.database.classes)})
    if start is None:
        return _features(model, f"pictures-{options.backbone}", data, options, folder, say)
    other, checkpoint = load_checkpoint(start)
    copy_weights(model, other)
    return _features(model, f"pictures-{checkpoint.model_hash}", data, options, folder, say)


def _trunk(path: Path, data: _Data, options: Options, folder: Path, say: Say) -> _Trunk:
    """What a trained model says of all pictures."""
    model, checkpoint = load_checkpoint(path)
    name = f"{checkpoint.name}-{checkpoint.model_hash}"
    trunk = _features(model, name, data, options, folder, say)
    return replace(trunk, seconds=_training_seconds(path))


def _training_seconds(folder: Path) -> float:
    epochs = read_checkpoint(folder).provenance["epochs"]
    return float(sum(row["seconds"] for row in epochs))


def _features(
    model: Any, name: str, data: _Data, options: Options, folder: Path, say: Say
) -> _Trunk:
    config = options.head_training("region-dh", 0)

    def cached(image_set: ImageSet, n_views: int) -> Cache:
        key = f"{name}-{options.short}-{n_views}-{image_set.fingerprint()}.safetensors"
        return stored_features(folder / key, lambda: model, image_set, config, n_views, say)

    database, queries = cached(data.database, options.views), cached(data.queries, 1)
    return _Trunk(model, database, queries)


def _train_trunk(
    method: str,
    options: Options,
    preset: Preset,
    root: Path,
    database: ImageSet,
    folder: Path,
    say: Say,
) -> None:
    """Trains a whole network; several processes are started by torchrun, as a user would."""
    say(f"training {method} in {folder}")
    if method == "region-dh":
        arguments, config = options.detector_arguments(), options.detector_training()
    else:
        arguments = _head_arguments(method, options, _TRUNK_BITS)
        arguments |= {"trained_stages": options.trained_stages}
        config = options.ssdh_training()
    if options.processes == 1:
        train(method, arguments, database, folder, config, on_epoch=lambda r: say(str(r)))
        return
    spec = preset.database.format(root=root)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(options.processes), "-m", "regionhash"]
    command += ["train", method, spec, "-o", str(folder)]
    for name, value in (arguments | asdict(config)).items():
        command += ["--set", f"{name}={json.dumps(value)}"]  # JSON is TOML here
    say(shlex.join(command))
    if subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise TrainingError(f"{folder}: the training failed, see above")


def _first_proposals(trunk: _Trunk, n: int) -> _Trunk:
    """The features of the n proposals of highest objectness, and of known objects."""

    def cut(own: dict[str, Tensor]) -> dict[str, Tensor]:
        # Proposals stand first, best first; known objects behind them have no objectness.
        kept = torch.ones_like(own["present"])
        kept[:, n:] = own["objectness"][:, n:] == 0
        return own | {
            "present": own["present"] & kept,
            "objectness": own["objectness"] * kept,
        }

    return replace(
        trunk,
        database=[(cut(own), labels) for own, labels in trunk.database],
        queries=[(cut(own), labels) for own, labels in trunk.queries],
    )


def _detect(out: Path, queries: ImageSet, options: Options) -> dict[str, float]:
    """Mean average precision at IoU 0.5 of the kept instances of the queries."""
    folder = _run_folder(out, _OURS.label, _ABLATION_BITS, options.seeds[0])
    model, checkpoint = load_checkpoint(folder)
    path = out / f"detections-{checkpoint.model_hash}.h5"
    with code_file_writer(
        path, model, checkpoint, checkpoint_path=folder, precision=PRECISION
    ) as writer:
        encode_images(model, checkpoint, queries, writer, precision=PRECISION)
        writer.finish()
    found, _ = detections_of_file(CodeSet.open(path), queries)
    return {f"Region-DH, {_ABLATION_BITS} bits": float(found["map"])}


def _run_folder(out: Path, label: str, n_bits: int, seed: int) -> Path:
    return out / "runs" / f"{label.lower().replace(' ', '-')}-{n_bits}-{seed}"


def _command(name: str, options: Options) -> str:
    """What a user types for the same report; folders are left to the user."""
    weights = Path(options.weights).name
    return (
        f"regionhash reproduce {name} --data VOCdevkit --backbone {options.backbone} "
        f"--weights {weights} --short {options.short} --seeds {len(options.seeds)} "
        f"--detector-epochs {options.detector_epochs} --trained-stages {options.trained_stages} "
        f"--head-epochs {options.head_epochs} --processes {options.processes}"
    )


def _facts(name: str, preset: Preset, data: _Data, options: Options, detector: Path) -> list[str]:
    """What a report must tell of how its figures came to be."""
    facts = provenance()
    checkpoint: Checkpoint = read_checkpoint(detector)
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    lines = [f"Command: `{_command(name, options)}`"]
    for side, image_set in (("Database and training", data.database), ("Queries", data.queries)):
        lines.append(
            f"{side}: {image_set.name}, {len(image_set)} pictures, "
            f"hash of ids {hash_ids(image_set.ids)}"
        )
    labels = data.queries.labels().astype(np.int64) @ data.database.labels().T.astype(np.int64)
    lines += [
        f"Chance: {float((labels > 0).mean()):.3f} of the database shares a label with a query.",
        f"Ties: exact expectation over random orders; denominator `retrieved`; k = {preset.k}.",
        f"Backbone {options.backbone}, weights `{Path(options.weights).name}`, short side "
        f"{options.short} pixels; seeds {', '.join(map(str, options.seeds))}.",
        f"Detector: {options.detector_epochs} epochs, the last {options.trained_stages} of the "
        f"backbone's stages trained, checkpoint {checkpoint.model_hash}.",
        f"Versions: {versions}; Python {facts['python']}; git {facts['git']}.",
        f"Machine: {facts['machine']}.",
    ]
    return lines
