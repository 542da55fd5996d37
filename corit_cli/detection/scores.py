"""What a detector says of labelled images, as they are and degraded: a record that is free of torch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from corit_cli.data.manifest import Sample
from corit_cli.data.splits import units_of
from corit_cli.detection.calibration import Calibration, Thresholds

if TYPE_CHECKING:
    from torch import Tensor


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
        logits: Tensor,
        calibration: Calibration,
        thresholds: Thresholds,
        errors: Mapping[int, str] | None = None,
    ) -> Scored:
        """Scores from ``logits`` (1 + chains, n) of all ``samples``; those with ``errors`` are taken out."""
        errors = errors or {}
        kept = [i for i in range(len(samples)) if i not in errors]
        logits = logits[:, kept]
        probabilities = calibration(logits.float()).double().numpy().round(6)
        left_out = [(samples[i], message) for i, message in sorted(errors.items())]
        return cls([samples[i] for i in kept], chains, logits.double().numpy(), probabilities, thresholds, left_out)

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
    def units(self) -> list[Hashable]:
        """What is resampled as a whole, (n,)."""
        return units_of(self.samples)
