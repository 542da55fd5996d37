"""Hierarchical Representation Integration (HRI): one feature vector from what several layers read.

Each part, a CLS token or a contrast of one layer, is scaled to unit norm so that deep layers, whose tokens are larger,
do not drown the early ones; the parts are then laid side by side. Nothing is learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def integrate(parts: Sequence[Tensor]) -> Tensor:
    """S parts of shape (..., d), each scaled to unit norm and concatenated: (..., S * d)."""
    return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1)
