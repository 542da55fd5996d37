"""What is trained on: each image as it is, its forgeries, degraded copies and further windows, and their features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from corit_cli.data.forge import Forge, parse_forge
from corit_cli.data.images import inspect
from corit_cli.data.manifest import Sample
from corit_cli.data.opening import ImageError
from corit_cli.data.variants import Variant
from corit_cli.features.cache import Job
from corit_cli.features.extractor import Extractor
from corit_cli.files import content_sha256
from corit_cli.model.settings import FACE
from corit_cli.training.settings import Recipe


@dataclass(frozen=True)
class Planned:
    """One row of the training set: which sample it comes from, what is done to it, its label afterwards, whether heads
    are trained on it or only scored, and the ``readings`` that are taken of it, if it is not for all."""

    sample: int
    job: Job
    label: int
    trained: bool = True
    readings: tuple[str, ...] | None = None

    @property
    def is_copy(self) -> bool:
        """Whether it weighs as degraded copies do: these, and forgeries for some readings only."""
        degradations, forge = self.job.variant.degradations, self.job.variant.forge
        return bool(degradations or (forge and (forge.native or forge.of_faces)))


def plan(
    samples: Sequence[Sample], indices: Sequence[int], recipe: Recipe, extractor: Extractor | None = None
) -> list[Planned]:
    """The training rows of ``samples[indices]``: each sample, forgeries of the real ones, degraded copies of all, and
    further windows of what is not a region's or a face's forgery.

    A forgery is saved the way its photograph was (JPEG at the same quality, or losslessly), so that the codec does
    not give it away. Where every image is re-encoded, each is there as it is too, to be scored: files to be detected
    are not re-encoded. What is for the readings of native windows is for those of ``extractor``, further windows for
    those of class tokens; where it has none, or there is no extractor, that is a ValueError.
    """
    forges = [parse_forge(spec) for spec in recipe.forge]
    native, tokens = (extractor.native_readings, extractor.native_tokens) if extractor else ((), ())
    if (recipe.windows and not tokens) or (any(forge.native for forge in forges) and not native):
        raise ValueError("rows for the readings of native windows, and there are none")
    rows = []
    for i in indices:
        sample = samples[i]
        clean = Variant(codec=recipe.match_codec, seed=recipe.seed if recipe.match_codec else 0)
        versions: list[tuple[Variant, int, tuple[str, ...] | None]] = [(clean, sample.label, None)]
        chosen = [forge for forge in forges if sample.label == 0 and _drawn(sample.path, forge, recipe.seed)]
        if chosen:
            try:
                quality = inspect(sample.path).jpeg_quality
            except ImageError:
                rows.append(Planned(i, Job(sample.path), sample.label))  # to be reported when it is read
                continue
            versions += [
                (
                    replace(clean, forge=forge, saved=quality, seed=recipe.seed),
                    1,
                    (FACE,) if forge.of_faces else native if forge.native else None,
                )
                for forge in chosen
            ]
        for variant, label, readings in versions:
            row, first = Planned(i, Job(sample.path, variant), label, readings=readings), recipe.seed * 1000
            rows += _with_copies(row, recipe, first)
            # A window of a region's forgery might show nothing of it.
            whole = variant.forge is None or not (variant.forge.of_faces or variant.forge.local)
            for number in range(1, recipe.windows + 1) if whole else ():
                seed = first + number * (recipe.copies_made + 1) - 1  # so that its copies are not those that are there
                cut = replace(variant, window=extractor.crops.size, seed=seed)
                rows += _with_copies(replace(row, job=Job(sample.path, cut), readings=tokens), recipe, seed)
        if recipe.match_codec:
            rows.append(Planned(i, Job(sample.path), sample.label, trained=False))
    return rows


def _with_copies(row: Planned, recipe: Recipe, seed: int) -> list[Planned]:
    """A row and its degraded copies, drawn by the seeds after ``seed``."""
    seeds = range(seed + 1, seed + 1 + recipe.copies_made)
    variants = [replace(row.job.variant, degradations=recipe.degrade, seed=own) for own in seeds]
    return [row, *(replace(row, job=replace(row.job, variant=variant)) for variant in variants)]


def _drawn(photograph: Path, forge: Forge, seed: int) -> bool:
    """Whether a photograph is among the share to be forged: by its content, whatever else is trained on."""
    if forge.share == 1:
        return True
    named = f"{seed} {forge.spelling} {content_sha256(photograph)}"
    return int(hashlib.sha256(named.encode()).hexdigest()[:8], 16) < forge.share * 2**32


def by_readings(rows: Sequence[Planned], extractor: Extractor) -> list[tuple[list[int], Extractor]]:
    """The numbers of rows of which the same is taken, with what of ``extractor`` takes it; rows that it has no reading
    for are left out."""
    found = []
    for readings in dict.fromkeys(row.readings for row in rows):
        part = extractor if readings is None else extractor.of(readings)
        if part.readers:
            found.append(([k for k, row in enumerate(rows) if row.readings == readings], part))
    return found


#: Takes an extractor and jobs to features (n, F), NaN where a job failed, and errors by position.
Read = Callable[[Extractor, list[Job]], tuple[Tensor, dict[int, str]]]


def features_of(rows: Sequence[Planned], extractor: Extractor, read: Read) -> tuple[Tensor, dict[int, str]]:
    """Features (n, F) of ``rows`` and errors by position. Of a row that is there for some readings only these are read,
    if the extractor has them and the image is fit for them, and the others are NaN. That an image shows no face is no
    error of a row for that reading."""
    z, errors = torch.full((len(rows), extractor.width), float("nan")), {}
    columns = dict(
        zip(extractor.readings, torch.arange(z.shape[1]).split(list(extractor.readings.values())), strict=True)
    )
    for where, part in by_readings(rows, extractor):
        found, failed = read(part, [rows[k].job for k in where])
        wanted = rows[where[0]].readings
        for name, values in zip(part.readings, found.split(list(part.readings.values()), 1), strict=True):
            if wanted is None or name in wanted:
                z[torch.tensor(where)[:, None], columns[name]] = values
        if wanted != (FACE,):
            errors |= {where[k]: message for k, message in failed.items()}
    return z, errors
