"""Patch spread: how much the patches of a window differ, channel by channel.

The class token says what is in a window, the spread how evenly. The motive: a camera's noise, and what compression
leaves of it, lie over a whole picture, and a generator's own traces need not. It is ours, not the paper's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def spread(patches: Tensor) -> Tensor:
    """Standard deviations over the patches of tokens (B, P, d), each token brought to mean 0 and variance 1 first:
    (B, d)."""
    y = F.layer_norm(patches, patches.shape[-1:])  # (B, P, d)
    variance = (y - y.mean(1, keepdim=True)).square().mean(1)  # faster than torch's over the middle dimension
    return variance.clamp_min(1e-12).sqrt()  # (B, d); where all patches are the same, its gradient is 0
