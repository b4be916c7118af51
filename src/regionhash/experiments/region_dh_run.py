"""Runs a preset of Region-DH: trains every method at every length, ranks, and writes the report.

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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regionhash.data.image_set import ImageSet
from regionhash.evaluation import paper_figures
from regionhash.evaluation.code_files import detections_of_file
from regionhash.experiments import common
from regionhash.experiments.region_dh import PRESETS, RegionDHOptions, RegionDHPreset
from regionhash.experiments.region_dh_report import (
    RegionDHReport,
    best_acg,
    score,
    write_report,
)
from regionhash.experiments.results import Result, Results
from regionhash.models import ImageHashModel
from regionhash.models.checkpoints import load_checkpoint, read_checkpoint
from regionhash.models.image_level import DLBHC, SSDH, Control
from regionhash.models.region_dh import RegionDH
from regionhash.parts.regions import codes_of
from regionhash.reporter import Reporter
from regionhash.training import Cache, TrainingConfig, TrainingError, copy_weights, train
from regionhash.training.feature_cache import PRECISION, head_training, kept_features

_TRUNK_BITS = 48  # at which what all lengths share is trained
_ABLATION_BITS = 48
HEAD_ARGUMENTS = {"context": True, "reduction": "mean", "gamma_h2": 1.0}
"""Arguments of Region-DH on a detector: E terms as printed cost more than they give."""


@dataclass(frozen=True)
class _Trunk:
    """What a network without its image hash says of all pictures.

    Attributes:
        model: the network.
        database: one entry per view; the first is the pictures as they are.
        queries: of the pictures as they are.
        seconds: of its training; making the features takes some minutes more.
    """

    model: ImageHashModel
    database: Cache
    queries: Cache
    seconds: float = 0.0


@dataclass(frozen=True)
class _Variant:
    """A row of a report: a method and what is different about it.

    Attributes:
        label: of the row.
        kind: the class of its model.
        arguments: of the model, beyond `_head_arguments`.
        ramped: whether the hashing terms come in slowly.
    """

    label: str
    kind: type[ImageHashModel] = RegionDH
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ramped: bool = True


_OURS = _Variant("Region-DH")
_ON_FROZEN = (_Variant("control", Control), _Variant("SSDH", SSDH), _Variant("DLBHC", DLBHC))
_ABLATIONS = (
    _Variant("image code of regions alone", arguments={"context": False}),
    _Variant("fusion without objectness (IAH)", arguments={"fusion": "plain"}),
    _Variant("fusion normalised by its weights", arguments={"fusion": "normalised"}),
    _Variant("L_cls3 with one sigmoid per class", arguments={"multi_label": "bce"}),
    _Variant("no E terms", arguments={"gamma_h1": 0.0, "gamma_h2": 0.0}),
    _Variant("E terms as printed", arguments={"reduction": "sum", "gamma_h2": 10.0}),
    _Variant("E terms and L_cls3 from the first step", ramped=False),
)


def reproduce(
    name: str, root: Path, out: Path, options: RegionDHOptions, reporter: Reporter
) -> Path:
    """Runs a preset, see `Experiment.run`."""
    preset = PRESETS[name]
    methods = RegionDHMethods(preset, root, out, options, reporter)
    frozen = methods.untrained()
    for variant in _ON_FROZEN:
        methods.compare(variant, frozen)
    del frozen
    ssdh = methods.trained_trunk(SSDH, "ssdh-trunk", options.trained_stages)
    fine_tuned = {"trained_stages": options.trained_stages}
    methods.compare(_Variant("SSDH, fine-tuned", SSDH, fine_tuned), ssdh)
    del ssdh
    detector = methods.trained_trunk(RegionDH, "detector", options.trained_stages)
    methods.compare(_OURS, detector)
    compared = dict(methods.curves)
    report = RegionDHReport(
        title=f"{name}: Region-DH and whole-image hashing",
        facts=methods.facts(common.command(name, root, options)),
        results=methods.results,
        ours=_OURS.label,
        k=preset.k,
        ceiling_acg=best_acg(*methods.labels, preset.k),
        published=paper_figures("region-dh", preset.dataset),
        ablations=methods.ablations,
        detection=methods.detect(),
    )
    if options.ablations:
        for variant in (_OURS, *_ABLATIONS):
            methods.ablate(variant, detector)
        for n in (8, 24):
            methods.ablate(_Variant(f"{n} proposals"), first_proposals(detector, n))
        del detector
        page = write_report(out, report, compared)
        reporter.note(f"wrote {page}; what needs other features follows")
        on_detector = methods.untrained(start=methods.run_folder("detector"))
        methods.ablate(_Variant("the control, on the trained backbone", Control), on_detector)
        methods.ablate(
            _Variant("backbone not trained", arguments={"trained_stages": 0}),
            methods.trained_trunk(RegionDH, "detector-frozen", 0),
        )
    return write_report(out, report, compared)


class RegionDHMethods:
    """All methods on both sides of a preset, and what they were found to do.

    Attributes:
        labels: of the queries and of the database.
        results, ablations: one each for every method, length and seed.
        curves: codes and labels of both sides by method, of one length and seed.
    """

    def __init__(
        self,
        preset: RegionDHPreset,
        root: Path,
        out: Path,
        options: RegionDHOptions,
        reporter: Reporter,
    ) -> None:
        self.sides = common.open_sides([preset.database], preset.queries, preset.layout, root)
        self.labels = self.sides.queries.labels(), self.sides.database.labels()
        self.database_spec = preset.database.format(root=root)
        self.preset, self.out, self.options, self.reporter = preset, out, options, reporter
        self.results, self.ablations = Results(), Results()
        self.curves: dict[str, tuple[Any, ...]] = {}

    def compare(self, variant: _Variant, trunk: _Trunk) -> None:
        """A method at every length, with every seed."""
        for n_bits in self.preset.bits:
            for seed in range(self.options.seeds):
                self.results.append(self._result(variant, trunk, n_bits, seed))

    def ablate(self, variant: _Variant, trunk: _Trunk) -> None:
        """A variant at one length, with the first seed."""
        self.ablations.append(self._result(variant, trunk, _ABLATION_BITS, 0))

    def _result(self, variant: _Variant, trunk: _Trunk, n_bits: int, seed: int) -> Result:
        model, seconds = common.trained(
            variant.kind,
            self._head_arguments(variant.kind, n_bits) | dict(variant.arguments),
            self.sides.database,
            self._head_folder(variant.label, n_bits, seed),
            self._head_training(variant.kind, seed, ramped=variant.ramped),
            start=trunk.model,
            cache=trunk.database,
        )
        with torch.no_grad():
            queries, database = (
                codes_of(model.hash_features(cache[0][0]))
                for cache in (trunk.queries, trunk.database)
            )
        if n_bits == _ABLATION_BITS and seed == 0:
            self.curves[variant.label] = (queries, database, *self.labels)
        k = self.preset.k
        result = score(
            variant.label,
            n_bits,
            seed,
            (queries, self.labels[0]),
            (database, self.labels[1]),
            k=k,
            seconds=trunk.seconds + seconds,
        )
        self.reporter.note(
            f"{variant.label} {n_bits} bits, seed {seed}: MAP@{k} {result.mean('map'):.4f}"
        )
        return result

    # -- trunks -----------------------------------------------------------------------------------

    def untrained(self, *, start: Path | None = None) -> _Trunk:
        """The backbone as the whole-image methods read it: pretrained, or as `start` has it."""
        arguments = self._head_arguments(Control, _TRUNK_BITS)
        n_classes = len(self.sides.database.classes)
        model = common.built(Control, arguments | {"n_classes": n_classes})
        if start is None:
            return self._features(model, f"pictures-{self.options.backbone}")
        detector, checkpoint = load_checkpoint(start, RegionDH)
        copy_weights(model, detector)
        return self._features(model, f"pictures-{checkpoint.model_hash}")

    def trained_trunk(self, kind: type[ImageHashModel], folder: str, stages: int) -> _Trunk:
        """What a network that is trained as a whole says of all pictures."""
        path = self.run_folder(folder)
        self.reporter.note(f"training {common.name_of(kind)} in {path}")
        if kind is RegionDH:
            arguments, config = self._detector_arguments(), self._network_training()
        else:
            arguments = self._head_arguments(kind, _TRUNK_BITS)
            config = replace(self._network_training(), ramp_start=0.0, ramp_end=0.0)
        train_network(
            common.name_of(kind),
            arguments | {"trained_stages": stages},
            self.sides.database,
            path,
            config,
            spec=self.database_spec,
            processes=self.options.processes,
            reporter=self.reporter,
        )
        model, checkpoint = load_checkpoint(path, kind)
        trunk = self._features(model, f"{checkpoint.name}-{checkpoint.model_hash}")
        return replace(trunk, seconds=common.training_seconds(checkpoint))

    def _features(self, model: ImageHashModel, name: str) -> _Trunk:
        def kept(pictures: ImageSet, n_views: int) -> Cache:
            folder, config = self.out / "features", self._head_training(RegionDH, 0)
            return kept_features(
                folder, name, lambda: model, pictures, config, n_views, self.reporter
            )

        database = kept(self.sides.database, self.options.views)
        return _Trunk(model, database, kept(self.sides.queries, 1))

    # -- settings ---------------------------------------------------------------------------------

    def run_folder(self, name: str) -> Path:
        """The folder of a training."""
        return self.out / "runs" / name

    def _head_folder(self, label: str, n_bits: int, seed: int) -> Path:
        return self.run_folder(f"{label.lower().replace(' ', '-')}-{n_bits}-{seed}")

    def _detector_arguments(self) -> dict[str, Any]:
        """Arguments of the Region-DH whose modules 1 and 2 all lengths share."""
        return common.body(self.options) | {
            "n_bits": _TRUNK_BITS,
            "trained_stages": self.options.trained_stages,
            "fpn_channels": 128,
            "n_proposals": 48,
            "context": False,  # it reads what is trained without it
        }

    def _head_arguments(self, kind: type[ImageHashModel], n_bits: int) -> dict[str, Any]:
        if kind is RegionDH:
            return self._detector_arguments() | {"n_bits": n_bits} | HEAD_ARGUMENTS
        arguments = common.body(self.options) | {"n_bits": n_bits}
        return arguments if kind is Control else arguments | {"trained_stages": 0}

    def _network_training(self) -> TrainingConfig:
        """AdamW learns layers that start from nothing in fewer steps than the paper's SGD."""
        return TrainingConfig(
            epochs=self.options.detector_epochs,
            batch_size=4,
            optimizer="adamw",
            learning_rate=4e-4,
            backbone_rate=0.25,
            weight_decay=1e-3,
            warmup=0.03,
            ramp_start=0.3,
            ramp_end=0.5,
            short=self.options.short,
            held_out=0.0,
            precision=PRECISION,
        )

    def _head_training(
        self, kind: type[ImageHashModel], seed: int, *, ramped: bool = True
    ) -> TrainingConfig:
        """For all methods the same except for the epochs."""
        epochs, options = self.options.head_epochs, self.options
        return head_training(
            epochs=-(-epochs // 2) if kind is RegionDH else epochs,
            short=options.short,
            views=options.views,
            seed=seed,
            ramped=ramped,
        )

    # -- report -----------------------------------------------------------------------------------

    def detect(self) -> dict[str, float]:
        """Mean average precision at IoU 0.5 of the kept instances of the queries."""
        folder = self._head_folder(_OURS.label, _ABLATION_BITS, 0)
        model, checkpoint = load_checkpoint(folder)
        path = self.out / f"detections-{checkpoint.model_hash}.h5"
        queries = self.sides.queries
        codes = common.encoded(model, checkpoint, folder, queries, path)
        found, _ = detections_of_file(codes, queries)
        return {f"Region-DH, {_ABLATION_BITS} bits": float(found["map"])}

    def facts(self, command: str) -> list[str]:
        """What a report must state of how its figures came to be."""
        options, weights = self.options, Path(self.options.weights).name
        detector = read_checkpoint(self.run_folder("detector"))
        return [
            f"Command: `{command}`",
            *common.facts_of_sides(self.sides.database, self.sides.queries, *self.labels),
            "Ties: exact expectation over random orders; denominator `retrieved`; "
            f"k = {self.preset.k}.",
            f"Backbone {options.backbone}, weights `{weights}`, short side {options.short} pixels; "
            f"seeds {', '.join(map(str, range(options.seeds)))}.",
            f"Detector: {options.detector_epochs} epochs, the last {options.trained_stages} of the "
            f"backbone's stages trained, checkpoint {detector.model_hash}.",
            *common.facts_of_run(),
        ]


def train_network(
    name: str,
    arguments: dict[str, Any],
    pictures: ImageSet,
    folder: Path,
    config: TrainingConfig,
    *,
    spec: str,
    processes: int,
    reporter: Reporter,
) -> None:
    """Trains a whole network; several processes are started by torchrun, as a user would.

    Raises:
        TrainingError: several processes failed.
    """
    if processes == 1:
        train(name, arguments, pictures, folder, config, reporter=reporter)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", "regionhash"]
    command += ["train", name, spec, "-o", str(folder)]
    for setting, value in (arguments | asdict(config)).items():
        command += ["--set", f"{setting}={json.dumps(value)}"]  # JSON is TOML here
    reporter.note(shlex.join(command))
    if subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise TrainingError(f"{folder}: the training failed, see above")


def first_proposals(trunk: _Trunk, n: int) -> _Trunk:
    """The features of the n proposals of highest objectness, and of known objects."""

    def cut(cache: Cache) -> Cache:
        return [(cut_view(features), labels) for features, labels in cache]

    def cut_view(features: dict[str, Tensor]) -> dict[str, Tensor]:
        # Proposals stand first, best first; known objects follow, without an objectness.
        kept = torch.ones_like(features["present"])
        kept[:, n:] = features["objectness"][:, n:] == 0
        return features | {
            "present": features["present"] & kept,
            "objectness": features["objectness"] * kept,
        }

    return replace(trunk, database=cut(trunk.database), queries=cut(trunk.queries))
