"""Geometry of the training loss at given weights: what theory says about SAM's radius there, without training.

docs/theory.md derives every quantity. K minibatches of one size, no sample in two of them, stand for the training data;
the products of *different* batches' gradients estimate ||E g||^2 without bias, and what the batches' own squared norms
have beyond it is noise. The Hessian is that of the mean loss of all K batches, known by its products with vectors only.

Cost, in forward and backward passes over one minibatch: K for the gradients, K for each radius tried (14 at most to
bracket, and about 6 for each of three bisections), and K forward and 2 K backward passes for each product with the
Hessian. Memory: K copies of the parameters, and 20 for the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from corit_cli.cor.spectrum import extreme_eigenvalues
from corit_cli.metrics import jackknife
from corit_cli.metrics.intervals import Estimate

Params = dict[str, Tensor]
Batch = Sequence[int] | Tensor
#: Mean loss (a scalar, differentiable in the parameters) of the samples at these positions. It must always give the
#: same value for the same arguments: no dropout, no random augmentation.
Loss = Callable[[Params, Batch], Tensor]

#: Radii are tried from ``limit`` / 2^DOUBLINGS upwards, each twice the one before.
DOUBLINGS = 12


@dataclass(frozen=True)
class Radius:
    """The local COR, with the 95% interval over minibatches; None stands for beyond the limit."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Geometry:
    """The loss around given weights, seen through K minibatches of b samples.

    Attributes:
        gradient_norm: ||E g||, the root of the debiased square, or zero when that is negative.
        batch_norm: root mean square norm of the minibatches' gradients, about what SAM divides by in batches with as
            many of either class. One drawn at random has ||delta||^2 / b more in the square (docs/theory.md).
        noise: tr Cov of per-sample gradients within the classes.
        gsnr: debiased ||E g||^2 / tr Cov. It may be negative; infinite without noise, zero without any gradient.
        smoothness: beta, the largest absolute eigenvalue of the Hessian at these weights.
        curvature: the Hessian's largest eigenvalue, with its sign.
        bound: sqrt(max(gsnr, 0) * noise) / smoothness = gradient_norm / smoothness. At radii below it a full-batch SAM
            step is a descent direction, provided that the Hessian's norm is nowhere larger on the way to the perturbed
            point than here. Infinite on a flat loss with a gradient.
        edge: :func:`edge_radius` of the full-batch gradient.
        local: :func:`local_radius`: None when no radius up to the limit breaks descent, zero when these batches do not
            agree on a direction in the first place. ``local_low`` and ``local_high`` are its interval, likewise. As
            ``batch_norm`` it speaks of minibatches that are balanced as these are.
        iterations: Hessian-vector products with the whole loss that were needed.
        converged: whether smoothness and curvature settled within the tolerance.
    """

    gradient_norm: float
    batch_norm: float
    noise: float
    gsnr: float
    smoothness: float
    curvature: float
    bound: float
    edge: float | None
    local: float | None
    local_low: float | None
    local_high: float | None
    iterations: int
    converged: bool


def geometry(
    loss: Loss,
    params: Params,
    batches: Sequence[Batch],
    lr: float,
    limit: float = 16.0,
    precision: float = 0.02,
    tolerance: float = 1e-4,
    iterations: int = 200,
    seed: int = 0,
) -> Geometry:
    """Measure the loss at ``params``, a model's trained parameters by name.

    Args:
        batches: K >= 3 disjoint minibatches, each as large as in training, of the same mix of classes. Samples that
            depend on each other belong into one batch; ``noise`` is then that of independent samples with the same
            scatter between batches.
        lr: SAM's step size eta, for ``edge`` alone, which speaks of plain gradient steps.
        limit: the largest radius to try for the local COR.
        precision: relative error allowed in the local COR and its interval's ends.
        tolerance: relative error of an eigenvalue at which it has settled.
        iterations: products with the Hessian, at most, for either end of the spectrum.
        seed: of the vector that the search for them begins with.

    Raises ValueError on batches that are too few, overlap or differ in size, a step size that is not positive, and a
    loss, gradient or curvature at ``params`` that is not finite.
    """
    _check(batches)
    gradients = batch_gradients(loss, params, batches)  # (K, d)
    signal, noise = signal_and_noise(gradients, len(batches[0]))
    norm = math.sqrt(max(signal, 0.0))

    def product(vector: Tensor) -> Tensor:
        """The Hessian of the mean over all batches, times a vector (d,)."""
        parts = (_flat(hessian_vector(loss, params, batch, _like(vector, params))) for batch in batches)
        return sum(parts, torch.zeros_like(vector)) / len(batches)

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(gradients.shape[1], generator=generator).to(gradients)  # (d,)
    spectrum = extreme_eigenvalues(product, start, tolerance, iterations)
    radius = local_radius(loss, params, batches, gradients, limit, precision)
    return Geometry(
        gradient_norm=norm,
        batch_norm=float(gradients.double().square().sum(1).mean().sqrt()),
        noise=noise,
        gsnr=_ratio(signal, noise),
        smoothness=spectrum.smoothness,
        curvature=spectrum.curvature,
        bound=_ratio(norm, spectrum.smoothness),
        edge=edge_radius(norm, spectrum.curvature, lr),
        local=radius.value,
        local_low=radius.low,
        local_high=radius.high,
        iterations=spectrum.iterations,
        converged=spectrum.converged,
    )


def batch_gradients(loss: Loss, params: Params, batches: Sequence[Batch]) -> Tensor:
    """Gradients of the batches' mean losses, parameters laid end to end: (K, d).

    Raises ValueError when one of them, or a loss, is not finite.
    """
    gradients = torch.stack([_gradient(loss, params, batch) for batch in batches])
    if not gradients.isfinite().all():
        raise ValueError("the loss or its gradient is not finite at these weights, so nothing can be said about them")
    return gradients


def signal_and_noise(gradients: Tensor, size: int) -> tuple[float, float]:
    """Unbiased ||E g||^2 and tr Cov of per-sample gradients, from those of K minibatches of ``size`` samples, (K, d).

    The covariance of a minibatch's mean gradient is Cov / size, and the product of two different batches' gradients
    has the mean ||E g||^2, which the square of their common mean exceeds by tr Cov / (K size). Both hold for batches
    drawn independently, and where all have the same numbers of each class; Cov is then that within the classes.
    """
    mean = gradients.mean(0)  # (d,)
    spread = sum(float((g - mean).double().square().sum()) for g in gradients) / (len(gradients) - 1)
    return float(mean.double().square().sum()) - spread / len(gradients), spread * size


def hessian_vector(loss: Loss, params: Params, indices: Batch, vector: Params) -> Params:
    """The Hessian of the loss of these samples, times a vector of the parameters' shapes."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    # Fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        value = loss(leaves, indices)
        first = torch.autograd.grad(value, list(leaves.values()), create_graph=True, materialize_grads=True)
        along = torch.stack([(g * vector[name]).sum() for name, g in zip(leaves, first, strict=True)]).sum()
        if not along.requires_grad:  # a linear loss
            return {name: torch.zeros_like(p) for name, p in params.items()}
        second = torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, second, strict=True))


def edge_radius(gradient_norm: float, curvature: float, lr: float) -> float | None:
    """The radius at which SAM with step size ``lr`` stops contracting along the Hessian's top eigenvector.

    rho* = ||g|| (2 - eta lambda) / (eta lambda^2), the edge of stability of Long and Bartlett (arXiv 2309.12488) solved
    for the radius. ``gradient_norm`` is what SAM divides by: the full batch's, or a minibatch's for minibatch training.
    None where no radius is an edge: no positive curvature, or steps that overshoot without SAM (eta lambda >= 2).

    Raises ValueError on a step size that is not positive.
    """
    if lr <= 0:
        raise ValueError(f"the edge of stability needs a positive step size, not {lr}")
    if curvature <= 0 or lr * curvature >= 2:
        return None
    return gradient_norm * (2 - lr * curvature) / (lr * curvature) / curvature


def local_radius(
    loss: Loss,
    params: Params,
    batches: Sequence[Batch],
    gradients: Tensor,
    limit: float = 16.0,
    precision: float = 0.02,
) -> Radius:
    """The local COR: the largest radius below which SAM's update descends the whole loss on average over minibatches.

    It is where q(rho) = mean over B of <g, grad L_B(w + rho g_B / ||g_B||)> first falls to zero or below, on a grid of
    radii up to ``limit`` and then by bisection, with the same batches throughout. Each end of the interval is where
    that end of q's 95% jackknife interval over batches does so: between them, q cannot be told from zero. ``gradients``
    (K, d) are the batches' own, from :func:`batch_gradients`. A batch whose gradient is zero is not perturbed, as in
    training. Radii at which a gradient is no longer finite count as breaking descent.

    Raises ValueError as :func:`geometry` does on unfit batches.
    """
    _check(batches)
    weights, norms = _flat(params), gradients.norm(dim=1)

    @cache
    def descent(radius: float) -> Estimate:
        products = torch.empty(len(batches), len(batches), dtype=torch.float64)  # <g_k, step of batch j>
        for j, batch in enumerate(batches):
            scale = radius / norms[j] if norms[j] > 0 else 0.0
            step = _gradient(loss, _like(weights + scale * gradients[j], params), batch)
            products[:, j] = (gradients @ step).double()
        return _mean_between(products) if products.isfinite().all() else Estimate(-math.inf, -math.inf, -math.inf)

    grid = [limit / 2**k for k in range(DOUBLINGS, -1, -1)]

    def first(end: Callable[[Estimate], float]) -> float | None:
        """The last radius before this end of the interval reaches zero."""
        if end(descent(0.0)) <= 0:
            return 0.0
        broken = next((k for k, radius in enumerate(grid) if end(descent(radius)) <= 0), None)
        if broken is None:
            return None
        low, high = grid[broken - 1] if broken else 0.0, grid[broken]
        while high - low > precision * high and high > 1e-9 * limit:
            middle = (low + high) / 2
            low, high = (middle, high) if end(descent(middle)) > 0 else (low, middle)
        return low

    return Radius(first(lambda q: q.value), first(lambda q: q.low), first(lambda q: q.high))


def _mean_between(products: Tensor) -> Estimate:
    """Mean of <g_k, step of batch j> over all k != j, with its jackknife interval over batches.

    The gradient g that judges batch j's step must not contain batch j: the noise the two share would add
    E||g_j - g||^2 / K to every product, and show descent where there is no signal at all. With g taken as the mean of
    the other batches, the products of a batch with itself, on the diagonal, drop out.
    """
    K = len(products)
    products = products.clone().fill_diagonal_(0)
    total = products.sum()
    without = (total - products.sum(0) - products.sum(1)) / ((K - 1) * (K - 2))  # (K,)
    value = float(total) / (K * (K - 1))
    _, reach = jackknife(value, without.numpy(), torch.ones(K).numpy())
    return Estimate(value, value - reach, value + reach)


def _gradient(loss: Loss, params: Params, indices: Batch) -> Tensor:
    """Gradient of the loss of these samples, (d,); all NaN when the loss is not finite."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    value = loss(leaves, indices)
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)])
    return flat if value.isfinite() else torch.full_like(flat, math.nan)


def _flat(params: Params) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params.values()])


def _like(vector: Tensor, params: Params) -> Params:
    """A flat vector (d,) cut into the parameters' shapes."""
    parts = vector.split([p.numel() for p in params.values()])
    return {name: part.view_as(p) for (name, p), part in zip(params.items(), parts, strict=True)}


def _ratio(a: float, b: float) -> float:
    """a / b; infinite where only b is zero, and zero where both are."""
    if b > 0:
        return a / b
    return math.inf if a > 0 else 0.0


def _check(batches: Sequence[Batch]) -> None:
    if len(batches) < 3:
        raise ValueError(f"at least three minibatches are needed, not {len(batches)}")
    if len({len(batch) for batch in batches}) > 1:
        raise ValueError("all minibatches must be of one size")
    positions = torch.cat([torch.as_tensor(batch) for batch in batches])
    if len(positions.unique()) < len(positions):
        raise ValueError("a sample is in two minibatches, which are then not independent")
