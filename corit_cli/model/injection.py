"""Regional Signal Injection (RSI): put the masked contrast back into the stream, at the stream's own scale.

h'_k = h_k + alpha * M * c_s * ||h_k|| / ||h_s||, for each patch. The residual stream grows with depth, so a contrast
taken at the source layer s would fade beside it; the ratio of norms keeps its relative magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inject(tokens: Tensor, source_norm: Tensor, contrast: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Patches of ``tokens`` (B, 1+P, d) moved along ``contrast`` (B, P, d) where ``mask`` (B, P) allows.

    ``source_norm`` (B, P, 1) holds ||h_s||. The class token is left as it is. Returns new tokens (B, 1+P, d).
    """
    patches = tokens[:, 1:]  # (B, P, d)
    ratio = patches.norm(dim=-1, keepdim=True) / source_norm.clamp_min(1e-12)  # (B, P, 1)
    return torch.cat([tokens[:, :1], patches + alpha * ratio * mask.unsqueeze(-1) * contrast], dim=1)
