"""Sharpness-Aware Minimization (Foret et al., ICLR 2021, arXiv 2010.01412) around any optimizer.

One step on a batch B: w <- w - eta * grad L_B(w + rho * g / ||g||), with g = grad L_B(w) of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


def base_optimizer(
    name: str, parameters: Iterable[Any], lr: float, weight_decay: float, fused: bool = False
) -> torch.optim.Optimizer:
    """What SAM wraps: AdamW (``adamw``) or SGD with momentum 0.9 (``sgd``), over parameters or groups of them.

    ``fused`` runs AdamW's update as one operation, which many small steps want; it rounds otherwise. Raises KeyError
    for another name.
    """
    kinds = {"adamw": partial(torch.optim.AdamW, fused=fused or None), "sgd": partial(torch.optim.SGD, momentum=0.9)}
    return kinds[name](parameters, lr=lr, weight_decay=weight_decay)


@dataclass(frozen=True)
class Step:
    """What one step saw: floats for a single model, tensors of the shape of ``rho`` for a population.

    The loss at w and at the perturbed point, the norm of the gradient at w, and the cosine between the gradients there
    (where nothing was perturbed, the same loss twice, and 1).
    """

    loss: float | Tensor
    perturbed: float | Tensor
    norm: float | Tensor
    cosine: float | Tensor


class SAM:
    """Wraps an optimizer: the gradients of its step are taken at the perturbed weights.

    ``rho`` is the radius in units of the weights' Euclidean norm; 0 is the plain optimizer. The perturbation is

    * rho * g / ||g||, or
    * with ``adaptive`` (ASAM, Kwon et al., ICML 2021, without its constant eta) rho * w^2 g / ||w g||, elementwise;
    * with ``friendly`` = lambda (F-SAM, Li et al., CVPR 2024, arXiv 2403.12350, with sigma = 1) either of them with
      g_t - m_{t-1} in place of g_t, where m_t = lambda * m_{t-1} + (1 - lambda) * g_t and m_0 = 0. This direction is
      that of the paper's g_t - m_t. Other implementations, pytorch_optimizer's FriendlySAM among them, set m_1 = g_1.

    The neighbourhood is that of the loss on m samples, and m matters (Andriushchenko and Flammarion, ICML 2022):

    * One perturbation a step, from the summed gradient of all micro-batches: m is the batch.
    * ``per_micro_batch``: a perturbation for every micro-batch, from its own gradient: m is its size (m-sharpness).
      ``friendly`` then averages the gradients of micro-batches.
    * Under DistributedDataParallel both passes average the gradients over the processes, and m counts the samples of
      all of them.

    A population trains many models at once: ``rho`` is a tensor, say (S, R), every parameter begins with these
    dimensions and the loss has this shape. Norms are per member, over all its parameters. No member influences
    another; one without a radius, or without a finite gradient other than 0, takes its plain gradient.

    Autocast belongs into the loss. Buffers, such as running means, see both passes. In the second the parameters hold
    other tensors: what shares memory with a parameter does not see the moved weights.

    Raises ``ValueError`` for a ``rho`` that is negative or not finite, for ``friendly`` outside [0, 1) and for a
    parameter that lacks the population's dimensions.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float | Tensor,
        *,
        adaptive: bool = False,
        friendly: float | None = None,
        per_micro_batch: bool = False,
    ) -> None:
        self.optimizer, self.adaptive, self.friendly = optimizer, adaptive, friendly
        self.rho = torch.as_tensor(rho, dtype=torch.float64, device="cpu")  # (*population)
        self.per_micro_batch = per_micro_batch
        self._mean: list[Tensor] | None = None  # F-SAM's m
        if not (self.rho.isfinite() & (self.rho >= 0)).all():
            raise ValueError(f"rho must be finite and not negative, got {rho}")
        if friendly is not None and not 0 <= friendly < 1:
            raise ValueError(f"friendly must lie in [0, 1), got {friendly}")
        for p in self.parameters:
            if p.shape[: self.rho.ndim] != self.rho.shape:
                raise ValueError(f"parameters must begin with the shape of rho, {(*self.rho.shape,)}: {(*p.shape,)}")

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def step(self, loss: Callable[[Any], Tensor], micro_batches: Sequence[Any] = (None,)) -> Step:
        """One update that lowers the sum of ``loss`` over the ``micro_batches`` that make up the batch.

        ``loss`` builds a micro-batch's share of the batch's loss, of the shape of ``rho``, and does not call
        ``backward``. Raises ``ValueError`` for a loss of another shape and for no micro-batches.
        """
        if len(micro_batches) == 0:
            raise ValueError("a step needs at least one micro-batch")
        parameters = self.parameters
        self.optimizer.zero_grad(set_to_none=True)
        if self.rho.any():
            total, perturbed, ascent, norm = self._sharp_backward(loss, micro_batches, parameters)
            descent = _gradients(parameters)
            dots = [torch.linalg.vecdot(self._rows(a), self._rows(d)) for a, d in zip(ascent, descent, strict=True)]
            ratio = torch.stack(dots).sum(0) / (norm * self._norm(descent)).clamp_min(1e-30)
            cosine = torch.where((self.rho.to(norm) > 0) & (norm > 0), ratio, 1.0)
        else:
            total = perturbed = self._backward(loss, micro_batches)
            norm = self._norm(_gradients(parameters))
            cosine = torch.ones_like(total)
        self.optimizer.step()
        seen = (total, perturbed, norm, cosine)
        return Step(*seen) if self.rho.ndim else Step(*torch.stack(seen).tolist())  # a GPU is waited for once

    def _sharp_backward(
        self, loss: Callable[[Any], Tensor], micro_batches: Sequence[Any], parameters: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Leave the gradients at the perturbed points in ``p.grad``; return the loss at w and there, and the gradients
        at w and their norm."""
        batches = [[one] for one in micro_batches] if self.per_micro_batch else [micro_batches]
        losses, perturbed, ascent = [], [], None
        for batch in batches:
            descent = [_own(p.grad) for p in parameters]  # summed over the batches before
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(self._backward(loss, batch))
            gradients = _gradients(parameters)
            norm = self._norm(gradients)  # (*population)
            if ascent is None:
                ascent = gradients
            else:
                torch._foreach_add_(ascent, gradients)
            if not norm.isfinite().any():  # there is no direction: these gradients stay
                perturbed.append(losses[-1])
                break
            with self._perturbed(parameters, gradients, norm):
                for p, gradient in zip(parameters, descent, strict=True):
                    p.grad = gradient
                perturbed.append(self._backward(loss, batch))
        norm = norm if len(batches) == 1 else self._norm(ascent)
        return torch.stack(losses).sum(0), torch.stack(perturbed).sum(0), ascent, norm

    def _backward(self, loss: Callable[[Any], Tensor], micro_batches: Sequence[Any]) -> Tensor:
        """Add the gradients of ``micro_batches`` to ``p.grad`` and return their loss."""
        losses = []
        for one in micro_batches:
            value = loss(one)  # (*population)
            if value.shape != self.rho.shape:
                raise ValueError(f"the loss must have the shape of rho, {(*self.rho.shape,)}: {(*value.shape,)}")
            value.sum().backward()
            losses.append(value.detach())
        return torch.stack(losses).sum(0)

    @contextmanager
    def _perturbed(self, parameters: list[Tensor], gradients: list[Tensor], norm: Tensor) -> Iterator[None]:
        """Within it the parameters hold weights that are moved by rho along ``gradients`` of this ``norm``
        (*population), afterwards their own tensors again, untouched."""
        kept = [p.data for p in parameters]  # taking the perturbation off again would leave rounding behind
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
            moved = torch._foreach_addcmul(kept, direction, [_over(factor, p).to(p.dtype) for p in kept])
        try:
            _put(parameters, moved)
            yield
        finally:
            _put(parameters, kept)

    def _rows(self, values: Tensor) -> Tensor:
        """(*population, ...) to (*population, n)."""
        return values.reshape(*self.rho.shape, -1)

    def _norm(self, values: list[Tensor]) -> Tensor:
        """The Euclidean norm of each member's values over all tensors (*population)."""
        norms = [torch.linalg.vector_norm(self._rows(v), dim=-1) for v in values]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _put(parameters: list[Tensor], values: list[Tensor]) -> None:
    """Have parameters hold other values, which are not copied."""
    for p, value in zip(parameters, values, strict=True):
        p.data = value


def _over(members: Tensor, values: Tensor) -> Tensor:
    """One value a member (*population), shaped to broadcast over that member's ``values`` (*population, ...)."""
    return members.reshape(members.shape + (1,) * (values.ndim - members.ndim))


def _own(gradient: Tensor | None) -> Tensor | None:
    """A gradient that may be kept: DDP can hold them as views of its buckets, which the next backward overwrites."""
    return gradient.clone() if gradient is not None and gradient._is_view() else gradient


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients, zeros where the loss does not depend on a parameter."""
    return [torch.zeros_like(p) if p.grad is None else _own(p.grad) for p in parameters]
