"""One plain training loop for all models: seeded, logged, and resumed as if never killed."""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from regionhash.data.batches import shuffled_batches
from regionhash.data.image_set import ImageSet
from regionhash.data.splits import split_off
from regionhash.files.atomic import replacing
from regionhash.models import HashModel, TrainedHashModel, learns_from_labels
from regionhash.models.checkpoints import (
    Checkpoint,
    build_model,
    provenance,
    read_checkpoint,
    save_checkpoint,
)
from regionhash.parts.losses import nan_term
from regionhash.parts.proposals import Targets, pad_regions
from regionhash.reporter import SILENT, EpochReport, Reporter
from regionhash.training.config import TrainingConfig, TrainingError
from regionhash.training.reader import Cache, Features, Reader, image_of, known_to
from regionhash.training.start import copy_weights

log = logging.getLogger(__name__)

_SHOWN_SKIPPED = 1000  # pictures that a checkpoint names; with a million, its JSON is unreadable

Losses = dict[str, Tensor]
Steps = Iterator[tuple[int, Callable[[], Losses]]]  # pictures in a batch, and their losses


def train(
    model_name: str,
    arguments: dict[str, Any],
    image_set: ImageSet,
    folder: Path,
    config: TrainingConfig,
    *,
    start: HashModel | None = None,
    cache: Cache | None = None,
    reporter: Reporter = SILENT,
) -> Checkpoint:
    """Trains a model and leaves its best epoch in `folder` (model.safetensors, model.json).

    A run that was killed resumes after its last whole epoch when called again with the same
    arguments, and ends as if never killed. log.csv and TensorBoard files are beside the model.

    Args:
        model_name: a key of MODELS.
        arguments: for its builder; `n_classes` is filled in.
        image_set: labelled pictures.
        folder: of the run.
        config: see `TrainingConfig`.
        start: a model, such as a trained detector, whose weights of the same name and shape are
            copied (`copy_weights`); with `cached_views`, the source of all that is not retrained.
        cache: with `cached_views`, features of all pictures, computed by `cache_features` of a
            model that differs in the image hash alone; nothing is held out.
        reporter: is told each step, with pictures done and their total over all epochs, and each
            epoch.

    Raises:
        TrainingError: no readable or labelled picture, or a loss that is not finite.
        ValueError: unusable arguments; a `folder` that holds a run with other arguments.
    """
    if not image_set.classes:
        raise TrainingError(f"{image_set.name}: no classes; training needs labelled pictures")
    # torchrun sets the number of processes it started; without it, all devices are used.
    devices = os.environ.get("LOCAL_WORLD_SIZE", "auto")
    fabric = Fabric(accelerator="auto", devices=devices, precision=config.precision)
    fabric.launch()
    torch.manual_seed(config.seed)
    built = arguments | {"n_classes": len(image_set.classes)}
    model = build_model(model_name, built)
    if not learns_from_labels(model):
        raise TrainingError(f"{model_name} learns without labels; `regionhash index` fits it")
    image_set.notices.tell(reporter)
    _check_labelled(image_set, "the set")
    has_boxes = any(not target.difficult.all() for target in image_set.targets)
    if model.learns_boxes and not config.cached_views and not has_boxes:
        raise TrainingError(
            f"{image_set.name}: no object has a box to train on, which {model_name} needs to learn "
            "where objects are; dmih learns from labels of whole pictures"
        )
    image_set = known_to(model, image_set)
    if start is not None:
        copy_weights(model, start)
    elif model.needs_trained_rpn:
        log.warning(
            "%s: its proposals are random, because its RPN is never trained; start from a trained "
            'region-dh, or set proposals="selective-search"',
            model_name,
        )
    if cache is not None and (config.held_out or len(cache) != config.cached_views):
        raise ValueError("a given cache needs held_out = 0 and as many cached_views as it holds")
    run = TrainingRun(fabric, model_name, built, model, image_set, folder, config, cache, reporter)
    with reporter.stage("training"):
        return run.train()


class TrainingRun:
    """One run of `train`."""

    def __init__(
        self,
        fabric: Fabric,
        name: str,
        arguments: dict[str, Any],
        model: TrainedHashModel,
        image_set: ImageSet,
        folder: Path,
        config: TrainingConfig,
        cache: Cache | None,
        reporter: Reporter,
    ) -> None:
        if config.cached_views and fabric.world_size > 1:
            raise ValueError("cached_views runs on one device; start a single process")
        self.fabric = fabric
        self.folder = folder
        self.config = config
        self.checkpoint = Checkpoint(name, arguments, image_set.classes, config.short)
        self.data_hash = image_set.fingerprint()
        self.rest, self.held = image_set, image_set.subset([])
        if config.held_out:
            self.rest, self.held = _split_off(image_set, config)
        self.reader = Reader(config, len(image_set.classes), fabric.device)
        optimizer = _build_optimizer(model, config)
        self.bare = model
        self.model, self.optimizer = fabric.setup(cast(nn.Module, model), optimizer)
        for method in ("losses", "frozen_features"):
            self.model.mark_forward_method(method)
        self.cache = cache
        self.reporter = reporter
        self.reports: list[EpochReport] = []

    def train(self) -> Checkpoint:
        """Trains all epochs that are left; returns the checkpoint of the best."""
        self._resume()
        if self.config.cached_views and self.cache is None:
            self.cache = self.reader.views(self.model, self.rest, self.config.cached_views)
        steps = self._cached_steps if self.config.cached_views else self._fresh_steps
        writer = SummaryWriter(str(self.folder / "tensorboard"))
        for epoch in range(len(self.reports), self.config.epochs):
            began = time.perf_counter()
            # torchvision samples regions, and dropout units, from the global generator.
            torch.manual_seed(self.config.seed * 10_000 + epoch)
            terms = self._train_epoch(epoch, steps(epoch))
            held_out = self._held_out_loss() if len(self.held) else None
            known = [report.held_out for report in self.reports if report.held_out is not None]
            best = held_out is None or held_out < min(known, default=math.inf)
            report = EpochReport(epoch, terms, held_out, best, time.perf_counter() - began)
            self.reports.append(report)
            if self.fabric.is_global_zero:
                self._save(best)
                for name, value in terms.items():
                    writer.add_scalar(name, value, epoch)
            self.reporter.epoch(report, self.config.epochs)
        writer.close()
        self.fabric.barrier()  # the first process has written the best epoch
        return read_checkpoint(self.folder)

    # -- one epoch --------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int, steps: Steps) -> dict[str, float]:
        self.model.train()
        n_images = len(self.rest) // self.fabric.world_size
        total = self.config.epochs * n_images
        sums: dict[str, float] = {}
        done = n_steps = 0
        for n_read, compute in steps:
            progress = (epoch * n_images + done) / total
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * self.config.rate(progress)
            losses = compute()
            bad = nan_term(losses)
            if bad:
                raise TrainingError(
                    f"the loss {bad} is {losses[bad].item()} in epoch {epoch + 1}, "
                    f"step {n_steps + 1}; try a lower learning rate"
                )
            ramp = self.config.ramp(progress)
            weights = dict.fromkeys(self.bare.ramped_terms, ramp)
            loss = torch.stack([x * weights.get(name, 1.0) for name, x in losses.items()]).sum()
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip_norm)
            self.optimizer.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            n_steps += 1
            done += n_read
            self.reporter.progress(epoch * n_images + done, total)
        if not n_steps:
            raise TrainingError(f"{self.rest.name}: no picture could be read")
        return {name: value / n_steps for name, value in sums.items()}

    def _fresh_steps(self, epoch: int) -> Steps:
        """Batches of new views of all pictures, in random order."""
        rng = np.random.default_rng([self.config.seed, epoch])
        order = rng.permutation(len(self.rest))
        n_rows = len(order) // self.fabric.world_size  # of each process
        rows = order[self.fabric.global_rank :: self.fabric.world_size][:n_rows]
        views = self.reader.read(self.rest, rows, self.reader.augment, epoch)
        for batch in shuffled_batches(views, image_of, self.config.batch_size, rng):
            images, targets = self.reader.to_device([sample for _, sample in batch])
            yield len(batch), partial(self._losses, images, targets)

    def _cached_steps(self, epoch: int) -> Steps:
        """Batches of cached features, each picture in one of its views."""
        cache = self.cache or []
        rng = np.random.default_rng([self.config.seed, epoch])
        n_images = len(cache[0][1])
        picked = rng.integers(len(cache), size=n_images).tolist()
        for rows in np.array_split(
            rng.permutation(n_images), -(-n_images // self.config.batch_size)
        ):
            features = {
                name: pad_regions([cache[picked[row]][0][name][row] for row in rows])
                for name in cache[0][0]
            }
            yield len(rows), partial(self._head_losses, features, cache[0][1][rows])

    def _losses(self, images: list[Tensor], targets: Targets) -> Losses:
        with self.fabric.autocast():  # Fabric itself does so only around a distributed model
            return dict(self.model.losses(images, targets))

    def _head_losses(self, features: Features, image_labels: Tensor) -> Losses:
        with self.fabric.autocast():
            return self.bare.head_losses(features, image_labels)

    def _held_out_loss(self) -> float:
        """The model's `held_out_term` on the held-out pictures, unchanged."""
        features, labels = self.reader.features(self.model, self.held, self.reader.plain, 0)
        with torch.no_grad():
            losses = self._head_losses(features, labels)
        term = self.bare.held_out_term
        return sum(x.item() for x in losses.values()) if term is None else losses[term].item()

    # -- files ------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one that was killed."""
        return {
            "model": self.checkpoint.name,
            "arguments": {k: str(v) for k, v in self.checkpoint.arguments.items()},
            "data": self.data_hash,
            "training": asdict(self.config) | {"workers": None},
        }

    def _provenance(self) -> dict[str, Any]:
        return provenance() | {
            "data": {"name": self.rest.name, "hash": self.data_hash, "pictures": len(self.rest)},
            "noticed": self.rest.notices.counts,
            "training": asdict(self.config),
            "epochs": [report.row() for report in self.reports],
            "skipped": sorted(self.reader.skipped)[:_SHOWN_SKIPPED],
            "n_skipped": len(self.reader.skipped),
        }

    def _save(self, best: bool) -> None:
        """The state to resume from, the log, and the model if this epoch is the best so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reports": [asdict(report) for report in self.reports],
        }
        if best:
            made = replace(self.checkpoint, provenance=self._provenance())
            save_checkpoint(self.folder, self.bare, made)
        with replacing(self.folder / "state.pt") as path:
            torch.save(state, path)
        with replacing(self.folder / "log.csv") as path, path.open("w", newline="") as file:
            rows = [report.row() for report in self.reports]
            table = csv.DictWriter(file, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            if not path.is_file():
                raise ValueError("not a file")
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            found = dict(state["identity"])
            reports = [EpochReport(**report) for report in state["reports"]]
        except Exception as error:  # torch raises what its reader happens to meet
            raise self._damaged(path, error) from error
        identity = self._identity()
        differing = [key for key in identity if identity[key] != found.get(key)]
        if differing:
            raise ValueError(
                f"{self.folder}: holds a run with other {' and '.join(differing)}; "
                f"choose another folder"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(path, error) from error
        self.reports = reports

    @staticmethod
    def _damaged(path: Path, error: Exception) -> ValueError:
        reason = str(error).partition("\n")[0]
        return ValueError(f"{path}: damaged ({reason}); delete it to start again")


def _check_labelled(image_set: ImageSet, part: str) -> None:
    """Raises TrainingError if no picture has a label that can be trained on."""
    if image_set.labels().any():
        return
    reasons = [image_set.notices.summary()]
    if n_difficult := sum(int(target.difficult.sum()) for target in image_set.targets):
        reasons.append(f"difficult or crowd objects: {n_difficult}")
    found = "; ".join(filter(None, reasons))
    raise TrainingError(
        f"{image_set.name}: {part} of {len(image_set)} pictures has no label or object to train on"
        + (f" ({found})" if found else "")
    )


def _split_off(image_set: ImageSet, config: TrainingConfig) -> tuple[ImageSet, ImageSet]:
    """The pictures to train on and those held out, both with labels."""
    try:
        rest, held = split_off(image_set, config.held_out, seed=config.seed)
        _check_labelled(rest, "the part")
        _check_labelled(held, "the held-out part")
    except ValueError as error:
        raise TrainingError(
            f"{error}; to hold nothing out, set held_out = 0 (--set held_out=0)"
        ) from error
    return rest, held


def _build_optimizer(model: TrainedHashModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer of all trained weights; each group holds its peak rate as "peak"."""
    if config.cached_views:
        groups = [{"params": model.head_parameters(), "peak": config.learning_rate}]
    else:
        stages = [p for p in model.backbone.stages.parameters() if p.requires_grad]
        inside = {id(p) for p in model.backbone.stages.parameters()}
        others = [p for p in model.parameters() if id(p) not in inside]
        groups = [{"params": others, "peak": config.learning_rate}]
        if stages:
            peak = config.learning_rate * config.backbone_rate
            groups.append({"params": stages, "peak": peak})
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
