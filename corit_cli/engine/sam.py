"""Sharpness-Aware Minimization (Foret et al., ICLR 2021, arXiv 2010.01412).

One step on a batch B: w <- w - eta * grad L_B(w + rho * g / ||g||), with g = grad L_B(w) of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What one step saw: the loss at w, the norms of the gradients at w and at the perturbed point, their cosine."""

    loss: float
    ascent_norm: float
    descent_norm: float
    cosine: float


class SAM:
    """Wraps an optimizer. ``rho`` is the radius in units of the weights' Euclidean norm; 0 is the plain optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float) -> None:
        if rho < 0:
            raise ValueError(f"rho must not be negative, got {rho}")
        self.optimizer, self.rho = optimizer, rho

    @property
    def parameters(self) -> Iterable[Tensor]:
        """The trained parameters that have a gradient."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def step(self, closure: Callable[[], Tensor]) -> Step:
        """One update. ``closure`` computes the loss on the current batch and calls ``backward`` on it."""
        self.optimizer.zero_grad()
        loss = closure().detach()
        ascent = [p.grad.clone() for p in self.parameters]
        ascent_norm = descent_norm = _norm(ascent)
        cosine = 1.0
        if self.rho > 0 and ascent_norm > 0:
            # The weights are copied and put back: subtracting the perturbation would leave rounding behind.
            kept = [p.detach().clone() for p in self.parameters]
            with torch.no_grad():
                for p, g in zip(self.parameters, ascent, strict=True):
                    p.add_(g, alpha=self.rho / ascent_norm)
            self.optimizer.zero_grad()
            closure()
            descent = [p.grad for p in self.parameters]
            descent_norm = _norm(descent)
            dot = sum(float((a * d).sum()) for a, d in zip(ascent, descent, strict=True))
            cosine = dot / max(ascent_norm * descent_norm, 1e-30)
            with torch.no_grad():
                for p, value in zip(self.parameters, kept, strict=True):
                    p.copy_(value)
        self.optimizer.step()
        return Step(float(loss), ascent_norm, descent_norm, cosine)


def _norm(gradients: Iterable[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))
