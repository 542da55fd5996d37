"""The detector as its users meet it: files in, calibrated verdicts out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from corit_cli.engine.checkpoint import Checkpoint
from corit_cli.engine.features import Extractor, Job, pool, stream
from corit_cli.engine.weights import load_backbone, weights_dir
from corit_cli.errors import CoritError

DEFAULT_DETECTOR, FAST_DETECTOR = "detector", "detector-fast"


@dataclass(frozen=True)
class Prediction:
    """The verdict on one file.

    ``probability`` is the calibrated probability of being fake, for a file that is as likely fake as real beforehand;
    ``verdict`` is real, fake or uncertain. Both are None when ``error`` says why the file could not be scored.
    ``seconds`` is what decoding and the model took.
    """

    path: str
    probability: float | None
    verdict: str | None
    seconds: float
    error: str | None = None


class Detector:
    """A checkpoint together with its backbone.

    >>> detector = Detector.load()
    >>> for p in detector.predict(["photo.jpg"]):
    ...     print(p.path, p.verdict, p.probability)
    """

    def __init__(self, checkpoint: Checkpoint, extractor: Extractor) -> None:
        self.checkpoint, self.extractor = checkpoint, extractor
        self.head = checkpoint.head

    @classmethod
    def load(cls, checkpoint: str | Path | None = None, device: str = "auto", fast: bool = False) -> Detector:
        """The shipped detector, or the one in a ``checkpoint`` folder, on ``cpu``, ``cuda`` or whichever is there.

        ``fast`` takes the shipped detector that reads one window an image. Raises CoritError when the checkpoint is
        missing or damaged, or its backbone is not the one it was trained on.
        """
        if checkpoint is not None and fast:
            raise CoritError("--fast means a detector that ships with corit: give it or --checkpoint, not both")
        shipped = weights_dir() / (FAST_DETECTOR if fast else DEFAULT_DETECTOR)
        folder = shipped if checkpoint is None else Path(checkpoint)
        found = Checkpoint.load(folder)
        device = pick_device(device)
        name = found.backbone["name"]
        backbone = load_backbone(name, found.backbone.get("activation"), device)
        if backbone.sha256 != found.backbone["sha256"]:
            raise CoritError(
                f"{folder} was trained on other weights than those now called {name} "
                f"(SHA-256 {found.backbone['sha256'][:12]} against {backbone.sha256[:12]})"
            )
        extractor = Extractor(backbone, found.settings, found.crops, device)
        if extractor.width != found.head.mean.shape[0]:
            raise CoritError(f"{folder}: its head reads {found.head.mean.shape[0]} features, not {extractor.width}")
        return cls(found, extractor)

    def predict(self, paths: Iterable[str | Path], workers: int | None = None) -> Iterator[Prediction]:
        """Predictions for ``paths`` in order, as they are ready; a file that cannot be read gives its error.

        Memory does not grow with the number of paths, which may come from a generator.
        """
        for item in stream(self.extractor, (Job(Path(path)) for path in paths), workers):
            path = str(item.job.path)
            if item.readings is None:
                yield Prediction(path, None, None, item.seconds, item.error)
                continue
            with torch.inference_mode():
                logit = self.head(pool(item.readings)[None])  # (1,)
                probability = round(float(self.checkpoint.calibration(logit)), 6)
            yield Prediction(path, probability, self.checkpoint.thresholds.verdict(probability), item.seconds)


def pick_device(name: str) -> str:
    """``auto`` to ``cuda`` where there is one, else ``cpu``. Raises CoritError for a device this machine lacks."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise CoritError(f"unknown device {name!r}: give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise CoritError("there is no CUDA device that torch can use: give --device cpu")
    return name
