"""How much each layer's features weigh in front of a head: evenly, by their GSNR, or as training has it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.splits import jackknife_groups
from corit_cli.errors import CoritError
from corit_cli.metrics import gsnr
from corit_cli.metrics.gsnr import Moments

#: No layer is switched off altogether: a head could not be told from one without it.
LEAST = 1e-3
#: Units that signal and noise can be told apart with.
UNITS = 3


def gsnr_weights(x: Tensor, labels: Tensor, weights: Tensor, units: Sequence[Hashable], parts: int) -> Tensor:
    """Weights (parts,) of mean 1, proportional to the GSNR of a linear head's gradient in each part of ``x`` (n, F).

    The gradients are those at a head of zeros, where a sample's is w (1/2 - y) x. Samples of one unit (a source) may
    depend on each other, so signal is what the gradients of different units have in common: a layer whose signal
    points elsewhere in every source weighs little. Where no layer shows any, or there are fewer than ``UNITS`` units
    to tell by, all weigh the same. ``labels`` (n,) and the samples' ``weights`` (n,).
    """
    groups = jackknife_groups(units)
    if len(groups) < UNITS:
        return torch.ones(parts)
    gradients = ((0.5 - labels.float()) * weights)[:, None] * x  # (n, F)
    gradients = gradients.unflatten(1, (parts, -1)).double().numpy()  # (n, parts, d)
    try:
        every = [Moments.of_samples(gradients[:, part], labels.numpy(), groups) for part in range(parts)]
        found = [gsnr.variances(moments, clustered=True) for moments in every]
    except ValueError as error:
        raise CoritError(f"layer weights by GSNR: {error}") from None
    positive = np.array([max(v.signal, 0.0) / v.within for v in found])
    return mean_one(torch.from_numpy(positive)).float() if positive.any() else torch.ones(parts)


def learned_weights(logits: Tensor) -> Tensor:
    """Parameters (parts,) to weights (parts,) of mean 1; zeros give even weights."""
    return mean_one(logits.softmax(0))


def mean_one(weights: Tensor) -> Tensor:
    """Weights (parts,) scaled to mean 1, with a little left of each."""
    return (weights / weights.mean()).clamp_min(LEAST)
