"""Train a detector: features of every image and its variants, a head on them, and what held-out images say of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from corit_cli.config import Recipe, TrainSettings
from corit_cli.data.forge import parse_forge
from corit_cli.data.images import ImageError, inspect
from corit_cli.data.manifest import Sample, group_folds, group_split
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.engine.checkpoint import Checkpoint
from corit_cli.engine.distributed import ALONE, World
from corit_cli.engine.features import Extractor, FeatureCache, Job
from corit_cli.engine.fit import (
    Calibration,
    Thresholds,
    balance_weights,
    fit_calibration,
    fit_head,
    fit_thresholds,
)
from corit_cli.engine.layer_weights import UNITS
from corit_cli.errors import CoritError
from corit_cli.model.head import Head
from corit_cli.model.settings import baseline


@dataclass(frozen=True)
class Planned:
    """One row of the training set: which sample it comes from, what is done to it, its label afterwards, and whether
    heads are trained on it or only scored."""

    sample: int
    job: Job
    label: int
    trained: bool = True


def plan(samples: Sequence[Sample], indices: Sequence[int], recipe: Recipe) -> list[Planned]:
    """The training rows of ``samples[indices]``: each sample, forgeries of the real ones, and degraded copies of all.

    A forgery is saved the way its photograph was (JPEG at the same quality, or losslessly), so that the codec does
    not give it away. Where every image is re-encoded, each is there as it is too, to be scored: files to be detected
    are not re-encoded.
    """
    forges = [parse_forge(spec) for spec in recipe.forge]
    rows = []
    for i in indices:
        sample = samples[i]
        clean = Variant(codec=recipe.match_codec, seed=recipe.seed if recipe.match_codec else 0)
        versions: list[tuple[Variant, int]] = [(clean, sample.label)]
        if sample.label == 0 and forges:
            try:
                quality = inspect(sample.path).jpeg_quality
            except ImageError:
                rows.append(Planned(i, Job(sample.path), sample.label))  # to be reported when it is read
                continue
            versions += [(replace(clean, forge=forge, saved=quality, seed=recipe.seed), 1) for forge in forges]
        for variant, label in versions:
            rows.append(Planned(i, Job(sample.path, variant), label))
            for copy in range(1, recipe.copies + 1):
                degraded = replace(variant, degradations=recipe.degrade, seed=recipe.seed * 1000 + copy)
                rows.append(Planned(i, Job(sample.path, degraded), label))
        if recipe.match_codec:
            rows.append(Planned(i, Job(sample.path), sample.label, trained=False))
    return rows


@dataclass
class TrainingSet:
    """Features of planned rows, failures left out, with the sources that balance and folds go by."""

    rows: list[Planned]
    z: Tensor  # (n, F)
    labels: Tensor  # (n,)
    sources: list[str]
    parts: int = 1  # equally wide, one a layer and kind, that make up the features

    @classmethod
    def of(cls, samples: Sequence[Sample], rows: list[Planned], z: Tensor, parts: int = 1) -> TrainingSet:
        """Rows with their features ``z`` (n, F), in the same order."""
        labels = torch.tensor([row.label for row in rows])
        return cls(rows, z, labels, [samples[row.sample].source for row in rows], parts)

    def fit(self, settings: TrainSettings, keep: Tensor | None = None, **progress: Callable) -> Head:
        """A head on the rows to be trained on, or on those of them where ``keep`` (n,) is true."""
        keep = self.trained if keep is None else keep & self.trained
        sources = [s for s, k in zip(self.sources, keep.tolist(), strict=True) if k]
        weights = balance_weights(self.labels[keep].tolist(), sources, settings.balance)
        return fit_head(self.z[keep], self.labels[keep], weights, settings, parts=self.parts, units=sources, **progress)

    @property
    def trained(self) -> Tensor:
        """Which rows heads are trained on, (n,) bool."""
        return torch.tensor([row.trained for row in self.rows], dtype=torch.bool)

    @property
    def originals(self) -> Tensor:
        """Which rows are images as they are, (n,) bool."""
        return torch.tensor([row.job.variant == ORIGINAL for row in self.rows], dtype=torch.bool)

    def cross_fit(self, folds: Sequence[Sequence[int]], settings: TrainSettings) -> dict[int, float]:
        """Logits of the originals in ``folds`` (lists of sample numbers) by heads that never saw their fold.

        Returns {sample number: logit}. A fold without which only one class would be left is passed over.
        """
        samples = torch.tensor([row.sample for row in self.rows])
        original = self.originals
        logits: dict[int, float] = {}
        for fold in folds:
            held_out = torch.isin(samples, torch.tensor(list(fold)))
            if len(self.labels[~held_out].unique()) < 2 or not held_out.any():
                continue
            head = self.fit(settings, ~held_out)
            chosen = held_out & original
            with torch.inference_mode():
                logits.update(zip(samples[chosen].tolist(), head(self.z[chosen]).tolist(), strict=True))
        return logits


@dataclass
class Validation:
    """Scores on the readable validation images: the detector's logits and probabilities, the probe's logits."""

    samples: list[Sample]
    logits: np.ndarray
    probabilities: np.ndarray
    probe: np.ndarray | None

    @property
    def labels(self) -> np.ndarray:
        """(n,), 1 for fake."""
        return np.array([s.label for s in self.samples])


@dataclass
class Trained:
    """The outcome of :func:`train`."""

    checkpoint: Checkpoint
    validation: Validation
    errors: list[tuple[Sample, str]]


class Progress:
    """What a caller may want to hear of; every method does nothing here."""

    def features(self, title: str, total: int) -> Callable[[int], None]:
        """Called before images are passed over; the returned function is told how many more are done."""
        return lambda count: None

    def epoch(self, number: int, total: int, loss: float) -> None:
        """Called after each epoch of the final head."""

    def tuned(self, number: int, total: int, loss: float, held_out: float) -> None:
        """Called after each epoch of tuning with the mean losses on the training images and on those set aside."""


def train(
    samples: Sequence[Sample],
    extractor: Extractor,
    settings: TrainSettings,
    recipe: Recipe,
    cache: FeatureCache | None = None,
    probe: bool = True,
    val_fraction: float = 0.3,
    progress: Progress | None = None,
    world: World = ALONE,
) -> Trained:
    """Train, calibrate and validate. With ``probe`` the last block's linear probe is trained on the same rows.

    Calibration and thresholds come from cross-fitting: each source of the training part is scored by a head that never
    saw it, which is what a file from an unknown source will meet. Raises CoritError when a class is missing.
    """
    progress = progress or Progress()
    train_part, val_part = split(samples, val_fraction, settings.seed)
    folds = folds_of(samples, train_part, settings)
    check_sources(samples, train_part, folds, settings)
    read = Read.of(samples, train_part, val_part, extractor, recipe, cache, probe, progress, world)
    head = read.data.fit(settings, progress=lambda n, loss: progress.epoch(n, settings.epochs, loss))
    held_out = read.data.cross_fit(folds, settings)
    return read.trained(
        extractor,
        head,
        read.z_val,
        calibrate(samples, held_out, settings),
        settings,
        {"settings": asdict(settings), "recipe": asdict(recipe)},
        describe(samples, train_part, val_part),
    )


def check_sources(
    samples: Sequence[Sample], train_part: Sequence[int], folds: Sequence[Sequence[int]], settings: TrainSettings
) -> None:
    """Raise CoritError, before anything is read, when too few sources are left for GSNR where a fold is held out."""
    if settings.layer_weights != "gsnr":
        return
    least = min(len({samples[i].source for i in set(train_part) - set(fold)}) for fold in folds)
    if least < UNITS:
        raise CoritError(
            f"layer weights by GSNR need images of at least {UNITS} sources besides those held out to calibrate on, "
            f"not {least}: give images of more sources, or more --folds"
        )


def split(samples: Sequence[Sample], val_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the training and the validation part. Raises CoritError when one lacks a class."""
    train_part, val_part = group_split(samples, val_fraction, seed)
    for name, part in (("training", train_part), ("validation", val_part)):
        if len({samples[i].label for i in part}) < 2:
            raise CoritError(f"the {name} part ({len(part)} images) needs both real and fake images")
    return train_part, val_part


@dataclass
class Read:
    """What every training begins with: all planned rows and the validation images, read by the backbone as it is.

    Training rows with their features, the probe's features (n, d) of the same rows; readable validation samples, their
    features (v, F) and the probe's; and what could not be read, by sample number.
    """

    data: TrainingSet
    z_probe: Tensor | None
    val: list[Sample]
    z_val: Tensor
    z_probe_val: Tensor | None
    errors: list[tuple[Sample, str]]

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        train_part: Sequence[int],
        val_part: Sequence[int],
        extractor: Extractor,
        recipe: Recipe,
        cache: FeatureCache | None,
        probe: bool,
        progress: Progress,
        world: World,
    ) -> Read:
        """Plan the training part and read it all. Raises CoritError when a class has no readable image left."""
        for spec in recipe.forge:
            parse_forge(spec).check()
        rows = plan(samples, train_part, recipe)
        jobs = [row.job for row in rows] + [Job(samples[i].path) for i in val_part]
        owners = [row.sample for row in rows] + list(val_part)
        z, z_probe, failed = read_features(extractor, cache, jobs, progress, probe, world)
        kept = [k for k in range(len(rows)) if k not in failed]
        val = [k for k in range(len(rows), len(jobs)) if k not in failed]
        for labels in ({rows[k].label for k in kept}, {samples[owners[k]].label for k in val}):
            if len(labels) < 2:
                raise CoritError("after leaving out the images that cannot be read, one class is empty")
        errors = {owners[k]: message for k, message in failed.items()}
        return cls(
            TrainingSet.of(samples, [rows[k] for k in kept], z[kept], len(extractor.parts)),
            None if z_probe is None else z_probe[kept],
            [samples[owners[k]] for k in val],
            z[val],
            None if z_probe is None else z_probe[val],
            [(samples[i], errors[i]) for i in sorted(errors)],
        )

    def trained(
        self,
        extractor: Extractor,
        head: Head,
        z_val: Tensor,
        calibrated: tuple[Calibration, Thresholds, dict[str, float | int]],
        settings: TrainSettings,
        training: dict,
        data: dict,
        tuned: dict[str, Tensor] | None = None,
    ) -> Trained:
        """The outcome: the checkpoint, and what the head (features ``z_val``) and the probe say of the validation."""
        calibration, thresholds, operating = calibrated
        probe_logits = None
        if self.z_probe is not None:
            probe = replace(self.data, z=self.z_probe, parts=1).fit(of_probe(settings))
            with torch.inference_mode():
                probe_logits = probe(self.z_probe_val).numpy()
        with torch.inference_mode():
            logits = head(z_val)
        names = [f"{kind} {layer}" for kind, layer in extractor.parts]
        shares = {} if head.layer_weights is None else dict(zip(names, head.layer_weights, strict=True))
        weighed = {"layer_weights": {name: round(share, 3) for name, share in shares.items()}} if shares else {}
        checkpoint = Checkpoint(
            head=head,
            backbone={
                "name": extractor.backbone.name,
                "sha256": extractor.backbone.sha256,
                "activation": extractor.backbone.tower.config.activation,
            },
            settings=extractor.settings,
            crops=extractor.crops,
            calibration=calibration,
            thresholds=thresholds,
            training=training,
            data=data | {"unreadable": len(self.errors)},
            metrics={"held_out_sources": operating} | weighed,
            tuned=tuned or {},
        )
        validation = Validation(self.val, logits.numpy(), calibration(logits).numpy(), probe_logits)
        return Trained(checkpoint, validation, self.errors)


def of_probe(settings: TrainSettings) -> TrainSettings:
    """The linear probe's settings beside a head of ``settings``: it reads one layer."""
    return replace(settings, hidden=0, layer_weights="uniform")


def read_features(
    extractor: Extractor,
    cache: FeatureCache | None,
    jobs: Sequence[Job],
    progress: Progress,
    probe: bool,
    world: World = ALONE,
) -> tuple[Tensor, Tensor | None, dict[int, str]]:
    """Features (n, F) of ``jobs``, the last layer's CLS token (n, d) for the probe, and errors by position.

    Without injection both come from one pass; with it the plain stream has to be run by itself.
    """

    def run(extractor: Extractor, title: str) -> tuple[Tensor, dict[int, str]]:
        return world.extract(extractor, jobs, cache, progress.features(title, len(world.share(jobs))))

    if not probe:
        z, errors = run(extractor, "features")
        return z, None, errors
    settings, last = extractor.settings, baseline(extractor.backbone.tower.config.layers)
    again = partial(Extractor, extractor.backbone, crops=extractor.crops, device=extractor.device.type)
    if settings.inject_at:
        z, errors = run(extractor, "features")
        return z, run(again(last), "linear probe")[0], errors
    both = again(replace(settings, integrate=settings.integrate + last.integrate))
    z, errors = run(both, "features")
    return both.select(z, settings), both.select(z, last), errors


def folds_of(samples: Sequence[Sample], part: Sequence[int], settings: TrainSettings) -> list[list[int]]:
    """The parts of ``samples[part]``, as sample numbers, that are held out in turn for calibration."""
    folds = group_folds([samples[i] for i in part], settings.folds, settings.seed)
    return [[part[k] for k in fold] for fold in folds]


def calibrate(
    samples: Sequence[Sample], held_out: dict[int, float], settings: TrainSettings
) -> tuple[Calibration, Thresholds, dict[str, float | int]]:
    """Calibration and thresholds from held-out logits {sample number: logit}, with the rates they had there."""
    numbers = sorted(held_out)
    labels = np.array([samples[i].label for i in numbers])
    if len(np.unique(labels)) < 2:
        raise CoritError("the held-out folds have only one class: give more images, or fewer --folds")
    logits = torch.tensor([held_out[i] for i in numbers])
    calibration = fit_calibration(logits, torch.from_numpy(labels))
    probabilities = calibration(logits).double().numpy()
    sources = [samples[i].source for i in numbers]
    thresholds = fit_thresholds(probabilities, labels, sources, settings.target_fpr, settings.target_fnr)
    verdicts = np.array([thresholds.verdict(p) for p in probabilities])
    operating = {
        "images": len(numbers),
        **{
            f"{kind}_called_{verdict}": float((verdicts[labels == label] == verdict).mean())
            for label, kind in ((0, "real"), (1, "fake"))
            for verdict in ("real", "uncertain", "fake")
        },
    }
    return calibration, thresholds, operating


def describe(samples: Sequence[Sample], train_part: Sequence[int], val_part: Sequence[int]) -> dict:
    """Counts by source and class, and a fingerprint of the file list, for the checkpoint."""
    table: dict[str, dict[str, int]] = {}
    for part, indices in (("train", train_part), ("val", val_part)):
        for i in indices:
            kind = f"{part}_{'fake' if samples[i].label else 'real'}"
            row = table.setdefault(samples[i].source or "unnamed", {})
            row[kind] = row.get(kind, 0) + 1
    lines = (f"{samples[i].path.name} {samples[i].label}" for i in (*train_part, *val_part))
    return {"fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest(), "sources": table}
