"""Scores of images that are made up, and a detector that they might be of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.detection.calibration import Calibration, Thresholds
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.scores import Scored
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings

THRESHOLDS = Thresholds(0.3, 0.7)


def checkpoint(**data: object) -> Checkpoint:
    torch.manual_seed(0)
    backbone = {"name": "tiny", "sha256": "0" * 64}
    return Checkpoint(
        FusedHead({"hri": Head(4)}), backbone, CoRITSettings(), CropConfig(), Calibration(), THRESHOLDS, data=data
    )


def scored(
    n: int = 80, chains: tuple[str, ...] = (), seed: int = 0, frames: int = 0, fake: float = 0.5, sources: str = "ab"
) -> Scored:
    """Images of two sources, fakes of two generators, ``frames`` to a video; each chain blurs the scores further."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        label = int(i / n >= 1 - fake)
        video = f"v{i // frames}" if frames else ""
        k = i // max(frames, 1)
        generator = "gan" if label and k % 3 else "diffusion" if label else ""
        source = sources[k % len(sources)] if sources else ""
        samples.append(Sample(Path(f"{i}.png"), label, source, generator, video_id=video))
    labels = np.array([s.label for s in samples])
    base = 0.8 * (2 * labels - 1) + rng.normal(size=n)
    logits = np.stack([base, *(base + 2 * (k + 1) * rng.normal(size=n) + k for k in range(len(chains)))])
    return Scored.of(samples, chains, torch.from_numpy(logits), Calibration(), THRESHOLDS)
