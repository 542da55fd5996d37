"""Scores of labelled images in one pass, as they are and degraded, and the groups that the images fall into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from corit_cli.data.manifest import Sample
from corit_cli.data.robustness import CHAINS
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.engine.features import FeatureCache, Job, extract
from corit_cli.engine.fit import Calibration, Thresholds
from corit_cli.engine.predict import Detector
from corit_cli.engine.train import Progress
from corit_cli.errors import CoritError

Mask = NDArray[np.bool_]

#: Images of each class that a group needs before its AUC counts towards a mean over groups.
MINIMUM = 8
#: Feature vectors in memory at a time.
BLOCK = 2048


@dataclass
class Scored:
    """Scores of the readable images: rows are the image as it is and then each of ``chains``.

    Attributes:
        logits: (1 + chains, n), higher is more likely fake; NaN where a chain cannot be applied to an image.
        probabilities: the same shape, rounded as ``corit detect`` reports them.
        errors: samples that were left out, each with the reason.
    """

    samples: list[Sample]
    chains: tuple[str, ...]
    logits: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    thresholds: Thresholds
    errors: list[tuple[Sample, str]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        chains: tuple[str, ...],
        logits: NDArray,
        calibration: Calibration,
        thresholds: Thresholds,
        errors: Mapping[int, str] | None = None,
    ) -> Scored:
        """Scores from ``logits`` (1 + chains, n) of all ``samples``; those with ``errors`` are taken out."""
        errors = errors or {}
        kept = [i for i in range(len(samples)) if i not in errors]
        logits = np.asarray(logits, np.float64)[:, kept]
        probabilities = calibration(torch.from_numpy(logits).float()).double().numpy().round(6)
        left_out = [(samples[i], message) for i, message in sorted(errors.items())]
        return cls([samples[i] for i in kept], chains, logits, probabilities, thresholds, left_out)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,), 1 for fake."""
        return np.array([s.label for s in self.samples])

    @property
    def verdicts(self) -> NDArray[np.str_]:
        """(1 + chains, n): real, fake or uncertain; empty where there is no score."""
        p, t = self.probabilities, self.thresholds
        return np.select([np.isnan(p), p >= t.fake, p <= t.real], ["", "fake", "real"], "uncertain")

    @property
    def units(self) -> list[tuple[str, str]]:
        """What is resampled as a whole, (n,)."""
        return units_of(self.samples)


def units_of(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """An image's source and video, or its path where it has no video: what is resampled, and held out, as a whole."""
    return [(s.source, s.video_id) if s.video_id else ("", str(s.path)) for s in samples]


def score(
    detector: Detector,
    samples: Sequence[Sample],
    chains: tuple[str, ...] = (),
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Scores of all images, as they are and through each of ``chains`` (names in data/robustness.py).

    Memory grows by a few numbers an image. Raises CoritError when not one image can be read.
    """
    variants = [ORIGINAL, *(Variant(chain=CHAINS[name]) for name in chains)]
    logits = np.empty((len(variants), len(samples)))
    errors: dict[int, str] = {}
    tell = (progress or Progress()).features("scoring", logits.size)
    size = max(1, BLOCK // len(variants))
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        jobs = [Job(s.path, variant) for s in part for variant in variants]
        z, failed = extract(detector.extractor, jobs, cache, tell)  # (part * variants, F)
        with torch.inference_mode():
            logits[:, start : start + len(part)] = detector.head(z).view(len(part), -1).T.numpy()
        errors.update({start + k // len(variants): m for k, m in failed.items() if k % len(variants) == 0})
    if len(errors) == len(samples):
        path, reason = samples[0].path, errors[0]
        raise CoritError(f"none of the {len(samples)} images can be read; {path}: {reason}")
    c = detector.checkpoint
    return Scored.of(samples, chains, logits, c.calibration, c.thresholds, errors)


# --- groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Images that are judged together; ``against`` says which real images a generator's fakes are set against."""

    mask: Mask
    against: str = ""

    def two_class(self, labels: NDArray) -> bool:
        """Whether each class has at least ``MINIMUM`` images."""
        return bool(np.bincount(labels[self.mask], minlength=2).min() >= MINIMUM)


def groups_by(samples: Sequence[Sample], by: str) -> dict[str, Group]:
    """Named groups by ``source`` or by ``generator``, sorted by name; images without a name are in none.

    A generator's fakes are set against the real images of the sources they come from, or against all real images
    where those sources have none.
    """
    labels, sources = np.array([s.label for s in samples]), np.array([s.source for s in samples])
    if by == "source":
        return {str(name): Group(sources == name) for name in np.unique(sources) if name}
    generators = np.array([s.generator if s.label else "" for s in samples])
    groups = {}
    for name in np.unique(generators[generators != ""]):
        fakes = generators == name
        own = np.isin(sources, sources[fakes]) & (labels == 0)
        against = "its sources" if own.any() else "all real images"
        groups[str(name)] = Group(fakes | (own if own.any() else labels == 0), against)
    return groups


def comparable(samples: Sequence[Sample]) -> tuple[str, dict[str, Mask]]:
    """The groups that a mean AUC is taken over: sources with both classes, else generators, else all images as one.

    Returns what they are grouped by ("" for all images) and each group's mask.
    """
    labels = np.array([s.label for s in samples])
    for by in ("source", "generator"):
        found = {name: g.mask for name, g in groups_by(samples, by).items() if g.two_class(labels)}
        if found:
            return by, found
    return "", {"all images": np.ones(len(samples), bool)}
