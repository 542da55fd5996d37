"""What a training is made of and what comes out of it: reading the images, calibrating, validating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corit_cli.data.forge import parse_forge
from corit_cli.data.manifest import Sample, describe
from corit_cli.data.splits import group_folds, group_split, units_of
from corit_cli.data.variants import ORIGINAL
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.scores import Scored
from corit_cli.errors import CoritError
from corit_cli.features.cache import FeatureCache, Job, Read
from corit_cli.features.extractor import Extractor
from corit_cli.model.fusion import FusedHead
from corit_cli.model.settings import FACE, baseline
from corit_cli.progress import Progress, quiet
from corit_cli.training.distributed import ALONE, World
from corit_cli.training.fusion import HeldOut
from corit_cli.training.log import Log, unlogged
from corit_cli.training.operating import OperatingPoint, has_both
from corit_cli.training.plan import Planned, features_of, plan
from corit_cli.training.rows import TrainingSet
from corit_cli.training.settings import Recipe, TrainSettings

#: Features that differ by no more than this share of the largest are those of one picture.
SAME = 1e-4
#: Images of each class that must show a face, as they are, for a reading of faces to be trained and judged.
FEWEST_FACES = 10


@dataclass
class Trained:
    """The outcome of a training.

    Attributes:
        checkpoint: the detector.
        validation: its scores on the readable validation images.
        probe: logits (n,) of the last block's linear probe on the same images, if it was asked for.
        errors: images that could not be read, each with the reason.
    """

    checkpoint: Checkpoint
    validation: Scored
    probe: NDArray[np.float64] | None
    errors: list[tuple[Sample, str]]


@dataclass
class Run:
    """One training: images, what reads them, how, and who is told.

    With ``probe`` the last block's linear probe is trained on the same rows. The images are split as
    :func:`~corit_cli.data.splits.group_split` does it, ``val_fraction`` for validation where they name no split; with
    ``refit`` the detector is trained once more on both parts when it was validated. Where too few show a face,
    ``extractor`` is left without that reading. ``reading`` reads the images if not this process; ``log`` is told of
    every epoch. Raises CoritError when a part lacks a class, and for settings that do not go together.
    """

    samples: Sequence[Sample]
    extractor: Extractor
    settings: TrainSettings = field(default_factory=TrainSettings)
    recipe: Recipe = field(default_factory=Recipe)
    val_fraction: float = 0.3
    probe: bool = True
    refit: bool = False
    cache: FeatureCache | None = None
    progress: Progress = quiet
    world: World = ALONE
    reading: Read | None = None
    log: Log = unlogged

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise CoritError(f"val_fraction must lie between 0 and 1, not {self.val_fraction}")
        self.train_part, self.val_part = group_split(self.samples, self.val_fraction, self.settings.seed)
        for name, part in (("training", self.train_part), ("validation", self.val_part)):
            if len({self.samples[i].label for i in part}) < 2:
                raise CoritError(f"the {name} part ({len(part)} images) needs both real and fake images")
        reads_faces = self.faces_wanted = bool(self.extractor.settings.face)
        if reads_faces and self.settings.fusion == "early":
            raise CoritError("one head on all readings needs all of every image: with --fusion early give --no-face")
        forges = [parse_forge(spec) for spec in self.recipe.forge]
        if not reads_faces and any(forge.of_faces for forge in forges):
            raise CoritError("face_blend trains the reading of faces, and none is read: give --face LAYERS")
        e = self.extractor
        for what, asked, there, layers in (
            ("@native", any(forge.native for forge in forges), e.native_readings, "--native or --cgp LAYERS"),
            ("--more-windows", self.recipe.windows, e.native_tokens, "--native LAYERS"),
        ):
            if asked and self.settings.fusion == "early":
                raise CoritError(f"{what} trains some readings' heads: leave out --fusion early, which has one for all")
            if asked and not there:
                raise CoritError(
                    f"{what} trains readings of native windows, and none is read: leave out --crop resize, and give "
                    f"{layers}"
                )

    def folds(self, part: Sequence[int] | None = None) -> list[list[int]]:
        """What is held out in turn for calibration of the training part, or of another ``part``, as sample numbers."""
        part = self.train_part if part is None else part
        folds = group_folds([self.samples[i] for i in part], self.settings.folds, self.settings.seed)
        return [[part[k] for k in fold] for fold in folds]

    def features(
        self, extractor: Extractor, jobs: Sequence[Job], title: str, cached: bool = True
    ) -> tuple[Tensor, dict[int, str]]:
        """Features (n, F) of ``jobs`` and errors by position, each process with its share."""
        advance = self.progress(title, len(self.world.share(jobs)))
        return self.world.extract(extractor, jobs, self.cache if cached else None, advance, self.reading)

    def read(self) -> Images:
        """Plan what is trained on and read it all. Raises CoritError when a class has no readable image left, or all
        images look the same."""
        for spec in self.recipe.forge:
            parse_forge(spec).check()
        samples = self.samples
        part = sorted([*self.train_part, *(self.val_part if self.refit else ())])
        rows = plan(samples, part, self.recipe, self.extractor)
        every = rows + [Planned(i, Job(samples[i].path), samples[i].label) for i in self.val_part]
        z, z_probe, failed = self._features_and_probe(every)
        kept = [k for k in range(len(rows)) if k not in failed]
        val = [k for k in range(len(rows), len(every)) if k not in failed]
        taught = set(self.train_part)
        trained = {every[k].label for k in kept if every[k].sample in taught and not every[k].readings}
        for labels in (trained, {every[k].label for k in val}):
            if len(labels) < 2:
                raise CoritError("without the images that cannot be read, no real or no fake ones are left")
        if self._too_few_faces(z[kept], [every[k] for k in kept]):
            self.extractor = self.extractor.with_settings(replace(self.extractor.settings, face=()))
            z = z[:, : self.extractor.width]  # that reading is the last one
            kept = [k for k in kept if every[k].readings != (FACE,)]
        errors = {every[k].sample: message for k, message in failed.items()}
        width = self.extractor.backbone.tower.config.width
        seen = z[[k for k in kept if every[k].job.variant == ORIGINAL]].nan_to_num()
        if len(seen) and (seen - seen[0]).abs().max() <= SAME * seen.abs().max():
            raise CoritError("the detector sees the same in every image: there is nothing to learn")
        data = TrainingSet.of(samples, [every[k] for k in kept], z[kept], self.extractor.readings)
        return Images(
            data=data,
            probe=None if z_probe is None else replace(data, z=z_probe[kept], readings={"cls": width}),
            val=[samples[every[k].sample] for k in val],
            z_val=z[val],
            z_probe_val=None if z_probe is None else z_probe[val],
            errors=[(samples[i], errors[i]) for i in sorted(errors)],
        )

    def _too_few_faces(self, z: Tensor, rows: Sequence[Planned]) -> bool:
        """Whether features ``z`` (n, F) of ``rows`` hold too few faces of a class to train their reading on."""
        if not self.extractor.settings.face:
            return False
        shown = z[:, -1].isfinite().tolist()
        seen = {(r.sample, r.label) for r, s in zip(rows, shown, strict=True) if s and r.job.variant == ORIGINAL}
        return any(sum(label == c for _, label in seen) < FEWEST_FACES for c in (0, 1))

    def _features_and_probe(self, rows: Sequence[Planned]) -> tuple[Tensor, Tensor | None, dict[int, str]]:
        """Features (n, F) of ``rows``, the last layer's CLS token (n, d) for the probe, and errors by position.

        Without injection both come from one pass; with it the plain stream has to be run by itself.
        """
        ours = self.extractor

        def read(extractor: Extractor, title: str) -> tuple[Tensor, dict[int, str]]:
            return features_of(rows, extractor, lambda part, jobs: self.features(part, jobs, title))

        if not self.probe:
            z, errors = read(ours, "features")
            return z, None, errors
        last = baseline(ours.backbone.tower.config.layers)
        if ours.settings.inject_at:
            z, errors = read(ours, "features")
            return z, read(ours.with_settings(last), "linear probe")[0], errors
        both = ours.with_settings(replace(ours.settings, integrate=ours.settings.integrate + last.integrate))
        z, errors = read(both, "features")
        return both.select(z, ours.settings), both.select(z, last), errors


@dataclass
class Images:
    """What every training begins with, read by the backbone as it is: training rows with their features and, of the
    same rows, the probe's, with ``refit`` those of the validation part too; readable validation samples, their features
    (v, F) and the probe's (v, d); what could not be read."""

    data: TrainingSet
    probe: TrainingSet | None
    val: list[Sample]
    z_val: Tensor
    z_probe_val: Tensor | None
    errors: list[tuple[Sample, str]]

    def of(self, part: Sequence[int]) -> Images:
        """The same with the training rows of some samples only, by number."""
        keep = torch.isin(torch.tensor([row.sample for row in self.data.rows]), torch.tensor(list(part)))
        return replace(self, data=self.data.chosen(keep), probe=self.probe and self.probe.chosen(keep))


def train_head(run: Run) -> Trained:
    """Train a head on frozen features, calibrate and validate it.

    Calibration and thresholds come from cross-fitting: each source of the training part is scored by a head that never
    saw it, which is what a file from an unknown source will meet.
    """
    images = run.read()
    heads = len(run.settings.fitted(run.extractor.readings, run.recipe))

    def trained(part: Sequence[int], title: str, stage: str) -> Trained:
        chosen, advance = images.of(part), run.progress(title, heads * run.settings.epochs)
        head, held_out = chosen.data.cross_fit(run.folds(part), run.settings, advance, partial(run.log, stage=stage))
        return outcome(run, chosen, head, chosen.z_val, held_out)

    first = trained(run.train_part, "head", "head")
    if not run.refit:
        return first
    again = trained(sorted([*run.train_part, *run.val_part]), "head, on all images", "refit")
    return replace(first, checkpoint=again.checkpoint)


def outcome(
    run: Run,
    images: Images,
    head: FusedHead,
    z_val: Tensor,
    held_out: HeldOut,
    tuned: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Trained:
    """The checkpoint, calibrated on what heads say of images ``held_out`` from them, and what it and the probe say of
    the validation images, whose features are ``z_val`` (v, F). Raises CoritError when one class was held out only."""
    settings, extractor = run.settings, run.extractor
    labels, touched, folds = held_out.labels, held_out.touched, held_out.folds
    if not has_both(labels, ~touched):
        raise CoritError("the held-out folds have only one class: give more images, or fewer --folds")
    sources = [run.samples[i].source for i in held_out.samples]
    units = units_of([run.samples[i] for i in held_out.samples])
    targets = settings.target_fpr, settings.target_fnr
    pictures = OperatingPoint.fit(held_out.fused(), labels, sources, units, folds, touched, targets)
    metrics: dict[str, Any] = {
        "held_out_sources": pictures.rates(~touched),
        "held_out_strict": pictures.rates(~touched, strict=True),
    }
    if has_both(labels, touched):
        metrics["held_out_degraded"] = pictures.rates(touched)
    if head.degradation is not None and touched.any():
        told = head.degraded(held_out.logits) > 0.5
        shares = {"copies": float(told[touched].double().mean()), "others": float(told[~touched].double().mean())}
        metrics["held_out_called_degraded"] = shares
    faces = None
    if FACE in head.names:
        alone = held_out.fused(*extractor.face_readings)
        seen = alone.isfinite()  # (n,)
        if has_both(labels, seen & ~touched):
            own = seen.nonzero().squeeze(1).tolist()
            named = ([values[k] for k in own] for values in (sources, units))
            found = OperatingPoint.fit(alone[seen], labels[seen], *named, folds[seen], touched[seen], targets)
            faces, clean = found.verdicts, ~touched[seen]
            metrics["held_out_faces"] = found.rates(clean)
            metrics["held_out_faces_strict"] = found.rates(clean, strict=True)
    backbone = extractor.backbone
    checkpoint = Checkpoint(
        head=head,
        backbone={"name": backbone.name, "sha256": backbone.sha256, "activation": backbone.tower.config.activation},
        settings=extractor.settings,
        crops=extractor.crops,
        calibration=pictures.verdicts.calibration,
        thresholds=pictures.verdicts.thresholds,
        faces=faces,
        face_readings=extractor.face_readings,
        training={
            "settings": asdict(settings),
            "recipe": asdict(run.recipe),
            "refit": run.refit,
            "precision": extractor.precision,
            "judged_by": "thresholds of the other folds" if pictures.judged_by_others else None,
            **(training or {}),
        },
        data=describe(run.samples, run.train_part, run.val_part) | {"unreadable": len(images.errors)},
        metrics=metrics,
        tuned=dict(tuned or {}),
    )
    probe = None if images.probe is None else images.probe.fit(of_probe(settings))
    with torch.inference_mode():
        logits = head(z_val)[None]  # (1, v)
        probe_logits = None if probe is None else probe(images.z_probe_val).double().numpy()
    validation = Scored.of(images.val, (), logits, checkpoint.calibration, checkpoint.thresholds)
    return Trained(checkpoint, validation, probe_logits, images.errors)


def of_probe(settings: TrainSettings) -> TrainSettings:
    """The linear probe's settings beside a head of ``settings``: it reads one layer."""
    return replace(settings, head="linear", degradation_aware=False)
