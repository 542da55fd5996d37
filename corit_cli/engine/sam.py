"""Sharpness-Aware Minimization (Foret et al., ICLR 2021, arXiv 2010.01412) around any optimizer.

One step on a batch B: w <- w - eta * grad L_B(w + rho * g / ||g||), with g = grad L_B(w) of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What one step saw: floats for a single model, tensors of the shape of ``rho`` for a population.

    The loss at w, the norms of the gradients at w and at the perturbed point, their cosine (1 where nothing was
    perturbed), and whether the scaler skipped the update because a gradient was not finite.
    """

    loss: float | Tensor
    ascent_norm: float | Tensor
    descent_norm: float | Tensor
    cosine: float | Tensor
    skipped: bool


class SAM:
    """Wraps an optimizer: the gradients of its step are taken at the perturbed weights.

    ``rho`` is the radius in units of the weights' Euclidean norm; 0 is the plain optimizer. The perturbation is

    * rho * g / ||g||, or
    * with ``adaptive`` (ASAM, Kwon et al., ICML 2021, without its constant eta) rho * w^2 g / ||w g||, elementwise;
    * with ``friendly`` = lambda (F-SAM, Li et al., CVPR 2024, arXiv 2403.12350, with sigma = 1) either of them with
      g_t - m_{t-1} in place of g_t, where m_t = lambda * m_{t-1} + (1 - lambda) * g_t and m_0 = 0. This direction is
      that of the paper's g_t - m_t. Other implementations, pytorch_optimizer's FriendlySAM among them, set m_1 = g_1.

    The neighbourhood is that of the loss on m samples, and m matters (Andriushchenko and Flammarion, ICML 2022):

    * One perturbation a step, from the summed gradient of all parts: m is the batch.
    * ``per_part``: a perturbation for every part, from its own gradient: m is the part (m-sharpness). ``friendly``
      then averages the gradients of parts.
    * Under DistributedDataParallel both passes average the gradients over the processes, and m counts the samples of
      all of them. With ``no_sync`` (the wrapped model's method of that name) each process perturbs by its own
      gradients, m counts the samples of one process, and only the last backward of a step communicates.

    A population trains many models at once: ``rho`` is a tensor, say (S, R), every parameter begins with these
    dimensions and the loss has this shape. Norms are per member, over all its parameters. No member influences
    another; one without a radius, or without a finite gradient other than 0, takes its plain gradient.

    ``scaler`` serves mixed precision; autocast belongs into the loss. Buffers, such as running means, see both passes.

    Raises ``ValueError`` for a ``rho`` that is negative or not finite, for ``friendly`` outside [0, 1), for a parameter
    that lacks the population's dimensions and for a population with a scaler.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float | Tensor,
        *,
        adaptive: bool = False,
        friendly: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        per_part: bool = False,
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.optimizer, self.adaptive, self.friendly = optimizer, adaptive, friendly
        self.rho = torch.as_tensor(rho, dtype=torch.float64, device="cpu")  # (*population)
        self.per_part, self.no_sync = per_part, no_sync
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)  # which passes everything through
        self._mean: list[Tensor] | None = None  # F-SAM's m
        if not (self.rho.isfinite() & (self.rho >= 0)).all():
            raise ValueError(f"rho must be finite and not negative, got {rho}")
        if friendly is not None and not 0 <= friendly < 1:
            raise ValueError(f"friendly must lie in [0, 1), got {friendly}")
        if scaler is not None and self.rho.ndim:
            raise ValueError("a population cannot share a gradient scaler: leave scaler out")
        for p in self.parameters:
            if p.shape[: self.rho.ndim] != self.rho.shape:
                raise ValueError(f"parameters must begin with the shape of rho, {(*self.rho.shape,)}: {(*p.shape,)}")

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def step(self, loss: Callable[[Any], Tensor], parts: Sequence[Any] = (None,)) -> Step:
        """One update that lowers the sum of ``loss(part)`` over ``parts``, the micro-batches that make up the batch.

        ``loss`` builds a part's share of the batch's loss, of the shape of ``rho``, and does not call ``backward``.
        Raises ``ValueError`` for a loss of another shape and for no parts.
        """
        if len(parts) == 0:
            raise ValueError("a step needs at least one part")
        parameters, scale = self.parameters, self.scaler.get_scale()
        self.optimizer.zero_grad(set_to_none=True)
        if self.rho.any():
            total, ascent, ascent_norm = self._sharp_backward(loss, parts, parameters, scale)
        else:
            total, ascent, ascent_norm = self._backward(loss, parts, sync=True), None, None
        self.scaler.unscale_(self.optimizer)
        descent = _gradients(parameters)
        descent_norm = self._norm(descent)
        cosine = torch.ones_like(descent_norm)
        if ascent is None:
            ascent_norm = descent_norm
        else:
            dots = [torch.linalg.vecdot(self._rows(a), self._rows(d)) for a, d in zip(ascent, descent, strict=True)]
            ratio = torch.stack(dots).sum(0) / (ascent_norm * descent_norm).clamp_min(1e-30)
            cosine = torch.where((self.rho.to(ascent_norm) > 0) & (ascent_norm > 0), ratio, cosine)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        seen: tuple[Any, ...] = (total, ascent_norm, descent_norm, cosine)
        return Step(*(seen if self.rho.ndim else map(float, seen)), skipped=self.scaler.get_scale() < scale)

    def _sharp_backward(
        self, loss: Callable[[Any], Tensor], parts: Sequence[Any], parameters: list[Tensor], scale: float
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Leave the gradients at the perturbed points in ``p.grad``; return loss, gradients and their norm at w."""
        batches = [[part] for part in parts] if self.per_part else [parts]
        losses, ascent = [], None
        for number, batch in enumerate(batches, 1):
            descent = [_own(p.grad) for p in parameters]  # summed over the batches before
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(self._backward(loss, batch, sync=False))
            gradients = _gradients(parameters)
            if scale != 1:
                torch._foreach_div_(gradients, scale)  # by hand: the scaler unscales once an update
            norm = self._norm(gradients)  # (*population)
            if ascent is None:
                ascent = gradients
            else:
                torch._foreach_add_(ascent, gradients)
            # Without a direction these gradients stay, and a scaler skips the update. Where only this process may know
            # of it, the others wait in the second pass: it runs, unperturbed, and spreads what is not finite.
            if self.no_sync is nullcontext and not norm.isfinite().any():
                break
            with self._perturbed(parameters, gradients, norm):
                for p, gradient in zip(parameters, descent, strict=True):
                    p.grad = gradient
                self._backward(loss, batch, sync=number == len(batches))
        return torch.stack(losses).sum(0), ascent, norm if len(batches) == 1 else self._norm(ascent)

    def _backward(self, loss: Callable[[Any], Tensor], parts: Sequence[Any], *, sync: bool) -> Tensor:
        """Add the gradients of ``parts`` to ``p.grad`` and return their loss; the last one is synced if ``sync``."""
        losses = []
        for number, part in enumerate(parts, 1):
            with nullcontext() if sync and number == len(parts) else self.no_sync():
                value = loss(part)  # (*population)
                if value.shape != self.rho.shape:
                    raise ValueError(f"the loss must have the shape of rho, {(*self.rho.shape,)}: {(*value.shape,)}")
                self.scaler.scale(value.sum()).backward()
            losses.append(value.detach())
        return torch.stack(losses).sum(0)

    @contextmanager
    def _perturbed(self, parameters: list[Tensor], gradients: list[Tensor], norm: Tensor) -> Iterator[None]:
        """Move the weights along ``gradients`` of this ``norm`` (*population), and put them back exactly."""
        # The weights are copied and put back: subtracting the perturbation would leave rounding behind.
        kept = [p.detach().clone() for p in parameters]
        direction, finite = gradients, norm.isfinite()
        with torch.no_grad():
            if self.friendly is not None:
                self._mean = self._mean or [torch.zeros_like(p) for p in parameters]
                direction = torch._foreach_sub(direction, self._mean)
            if not finite.all():  # 0 times such a gradient would not be 0
                direction = [d.where(_over(finite, d), 0) for d in direction]
            if self.friendly is not None:
                torch._foreach_add_(self._mean, direction, alpha=1 - self.friendly)
            if self.adaptive:
                direction = torch._foreach_mul(direction, parameters)  # w g
            length = (norm if direction is gradients else self._norm(direction)).cpu()  # (*population)
            if self.adaptive:
                torch._foreach_mul_(direction, parameters)  # w^2 g
            factor = torch.where(length > 0, self.rho / length, 0).to(norm)
            torch._foreach_addcmul_(parameters, direction, [_over(factor, p) for p in parameters])
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, kept)

    def _rows(self, values: Tensor) -> Tensor:
        """(*population, ...) to (*population, n)."""
        return values.reshape(*self.rho.shape, -1)

    def _norm(self, values: list[Tensor]) -> Tensor:
        """The Euclidean norm of each member's values over all tensors (*population)."""
        norms = [torch.linalg.vector_norm(self._rows(v), dim=-1) for v in values]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _over(members: Tensor, values: Tensor) -> Tensor:
    """One value a member (*population), shaped to broadcast over that member's ``values`` (*population, ...)."""
    return members.reshape(members.shape + (1,) * (values.ndim - members.ndim))


def _own(gradient: Tensor | None) -> Tensor | None:
    """A gradient that may be kept: DDP can hold them as views of its buckets, which the next backward overwrites."""
    return gradient.clone() if gradient is not None and gradient._is_view() else gradient


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients, zeros where the loss does not depend on a parameter."""
    return [torch.zeros_like(p) if p.grad is None else _own(p.grad) for p in parameters]
