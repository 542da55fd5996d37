"""``evaluate``: the whole of ``corit evaluate`` as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.robustness import CHAINS, parse_chains
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.detector import Detector
from corit_cli.detection.scores import Scored
from corit_cli.errors import CoritError
from corit_cli.evaluation import protocols as held_out
from corit_cli.evaluation.peers import compare, read_peer
from corit_cli.evaluation.summary import Evaluation, summarise
from corit_cli.features.cache import FeatureCache, Job, extract
from corit_cli.progress import Progress, quiet

#: Feature vectors in memory at a time.
BLOCK = 2048


def evaluate(
    data: str | Path | Sequence[Sample],
    detector: Detector | Checkpoint | str | Path | None = None,
    *,
    split: str | None = None,
    by: Sequence[str] = ("source", "generator"),
    robustness: str | None = None,
    protocols: Sequence[str] = (),
    scores: Sequence[str | Path] = (),
    cache: FeatureCache | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = quiet,
    warn: Callable[[str], object] = lambda message: None,
) -> Evaluation:
    """Measure a detector on labelled images.

    >>> found = evaluate("photos/", robustness="jpeg")
    >>> print(found.overall.figures["auc"])

    Args:
        data: a folder, a manifest (see :func:`~corit_cli.data.manifest.load_samples`), or samples.
        detector: one that is loaded, a checkpoint in memory, its folder, or None for the shipped one.
        split: only the images of this split.
        by: tables by ``source`` and ``generator``.
        robustness: also with every image degraded: ``all``, or families and names (``jpeg,resize-0.5``).
        protocols: heads trained anew with a group left out in turn, of ``leave-source-out``, ``leave-generator-out``.
        scores: CSV files with other detectors' scores, to compare with.
        cache: where features are kept; None reads them anew.
        device, precision: see :meth:`Detector.load`, where the detector is not loaded yet.
        progress, warn: told of the work, and of images that are left out.

    Raises CoritError for data or options that cannot be used, before images are read if possible.
    """
    by, protocols, scores = ([v] if isinstance(v, str | Path) else list(v) for v in (by, protocols, scores))
    wrong = [name for name in by if name not in ("source", "generator")]
    if wrong:
        raise CoritError(f"tables are by source and generator, not by {wrong[0]!r}")
    chains = () if robustness is None else parse_chains(robustness)
    protocols, files = list(dict.fromkeys(protocols)), [Path(file) for file in scores]
    if len({file.stem for file in files}) < len(files):
        raise CoritError("two --scores files have the same name: a detector goes by its file's name, rename one")
    place = Path(data) if isinstance(data, str | Path) else Path()
    samples = load_samples(place, warn) if isinstance(data, str | Path) else list(data)
    if not samples:
        raise CoritError("there are no images to measure the detector on")
    samples = samples if split is None else of_split(samples, split)
    if not isinstance(detector, Detector):
        detector = Detector.load(detector, device, precision)
    held_out.check(detector.checkpoint, samples, protocols)
    peers = [read_peer(file, samples, place) for file in files]
    whole = detector.without_faces()
    scored = score(whole, samples, chains, cache, progress)
    trained_anew = held_out.run(whole, scored.samples, protocols, cache, progress) if protocols else []
    advance = progress("intervals", 1)
    found = summarise(detector.checkpoint, scored, by)
    found.peers = [compare(scored, peer) for peer in peers]
    found.protocols = trained_anew
    advance()
    return found


def of_split(samples: Sequence[Sample], split: str) -> list[Sample]:
    """The images of a split. Raises CoritError where there are none."""
    chosen = [s for s in samples if s.split == split]
    if not chosen:
        there = ", ".join(sorted({s.split for s in samples} - {""})) or "none"
        raise CoritError(f"there is no image of the split {split!r} (there: {there})")
    return chosen


def score(
    detector: Detector,
    samples: Sequence[Sample],
    chains: tuple[str, ...] = (),
    cache: FeatureCache | None = None,
    progress: Progress = quiet,
) -> Scored:
    """Scores of all images, as they are and through each of ``chains`` (names in data/robustness.py).

    Memory grows by a few numbers an image. Raises CoritError when not one image can be read.
    """
    variants = [ORIGINAL, *(Variant(chain=CHAINS[name]) for name in chains)]
    logits = np.empty((len(variants), len(samples)))
    errors: dict[int, str] = {}
    advance = progress("scoring", logits.size)
    size = max(1, BLOCK // len(variants))
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        jobs = [Job(s.path, variant) for s in part for variant in variants]
        z, failed = extract(detector.extractor, jobs, cache, advance)  # (part * variants, F)
        with torch.inference_mode():
            logits[:, start : start + len(part)] = detector.head(z).view(len(part), -1).T.numpy()
        errors.update({start + k // len(variants): m for k, m in failed.items() if k % len(variants) == 0})
    if len(errors) == len(samples):
        path, reason = samples[0].path, errors[0]
        raise CoritError(f"none of the {len(samples)} images can be read; {path}: {reason}")
    c = detector.checkpoint
    return Scored.of(samples, chains, torch.from_numpy(logits), c.calibration, c.thresholds, errors)
