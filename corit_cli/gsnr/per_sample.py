"""Exact per-sample gradient norms of a model in one forward and one backward pass (ghost norms).

A sample's gradient of a linear layer's weight is sum_t d_t a_t^T, with a_t the layer's input at token t and d_t the
loss's gradient at its output. Its squared norm is <A A^T, D D^T> (Goodfellow 2015, arXiv 1510.01799; sequences: Li et
al. 2022, arXiv 2110.05679), so per-sample norms need no per-sample gradients. Where many tokens make that dearer than
the gradient matrix itself, the matrix is formed in a buffer, one sample at a time, in place of the batch's weight
gradient. Either way the ordinary gradient, the sum over samples, comes out too, and nothing grows with their number.

A sample may pass a weight several times: as image and as contrast views, in one call or in several, through the whole
matrix or some of its rows. Its gradient is the sum over all of these, so they are gathered until the last has arrived
and treated as more tokens of one sample. Rows of any activation belong to samples in turn: row r to sample r mod B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

#: What forming a sample's gradient matrix costs beyond the batch's, in multiply-adds per entry (measured on a CPU).
PASS_COST = 80


class GhostPass:
    """Per-sample squared gradient norms of ``parameters``, batch by batch.

    ``sums`` holds, by name, the gradients summed over all samples so far. The parameters are thawed during a call, and
    their ``.grad`` is never touched. Of B samples row r of any activation must be sample r mod B's: an image's tokens
    stand along a second axis, (B, T, d), not one after the other.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.sums: dict[str, Tensor] = {}

    def __call__(self, losses: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run ``losses``, which returns the batch's B losses, forward and backward.

        Returns the losses (B,) and each parameter's squared gradient norms (B,); parameters that took no part are
        absent. Raises ValueError when one is used in a way whose per-sample gradient is not known, and for losses of
        another shape.
        """
        with _thawed(self.parameters.values()):
            with _Capture(self) as capture:
                values = losses()  # (B,)
            if values.ndim != 1:
                raise ValueError(f"there must be one loss a sample, not losses of shape {(*values.shape,)}")
            capture.samples = len(values)
            rest = torch.autograd.grad(values.sum(), list(self.parameters.values()), allow_unused=True)
        for name, grad in zip(self.parameters, rest, strict=True):
            if grad is not None:
                raise ValueError(f"{name} is used in an operation whose per-sample gradient norm is not known")
        norms = {name: use.finish() for name, use in capture.uses.items()}
        # The capture and its parts refer to each other; left so, small tensors would stay among the large ones around
        # them until the next garbage collection, and memory would grow from batch to batch.
        capture.uses.clear()
        capture.handlers.clear()
        return values.detach(), norms


@contextmanager
def _thawed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in parameters]
    try:
        for p, _ in flags:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


@dataclass
class _Use:
    """What one parameter has collected in one batch."""

    ghost: GhostPass
    name: str
    capture: _Capture
    expected: int = 0
    pairs: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    grads: Tensor | None = None
    norms: Tensor | None = None

    @property
    def sum(self) -> Tensor:
        if self.name not in self.ghost.sums:
            self.ghost.sums[self.name] = torch.zeros_like(self.ghost.parameters[self.name], requires_grad=False)
        return self.ghost.sums[self.name]

    def matrix(self, row: int, a: Tensor, d: Tensor) -> None:
        """Inputs ``a`` (R, [T,] i) and output gradients ``d`` (R, [T,] o) of the weight's rows from ``row`` on."""
        shape = (len(a), -1)
        self.pairs.append((row, a.detach().reshape(*shape, a.shape[-1]), d.reshape(*shape, d.shape[-1])))
        self._arrived()

    def direct(self, row: int, grads: Tensor) -> None:
        """The gradients of R rows of activations, (R, ...), with respect to the parameter's rows from ``row`` on."""
        if len(grads) % self.capture.samples:
            raise ValueError(
                f"{self.name} has {len(grads)} rows, which are not those of {self.capture.samples} samples"
            )
        grads = grads.unflatten(0, (-1, self.capture.samples)).sum(0)  # (B, ...)
        if self.grads is None:
            self.grads = grads.new_zeros(len(grads), *self.ghost.parameters[self.name].shape)
        self.grads[:, row : row + grads.shape[1]] += grads
        self._arrived()

    def _arrived(self) -> None:
        self.expected -= 1
        if self.expected == 0:
            self.finish()

    def finish(self) -> Tensor:
        """Squared norms (B,); called when the last use has arrived, and again, to collect, after the pass."""
        if self.norms is None:
            self.norms = self._matrix_norms() if self.pairs else self._direct_norms()
            self.pairs, self.grads = [], None
        return self.norms

    def _direct_norms(self) -> Tensor:
        if self.grads is None:  # used, but nothing that was read depends on it
            return self.sum.new_zeros(self.capture.samples)
        self.sum.add_(self.grads.sum(0))
        return self.grads.flatten(1).square().sum(1)

    def _matrix_norms(self) -> Tensor:
        # Uses of overlapping rows are cut at each other's ends, so that every stretch is used whole or not at all.
        ends = sorted({end for row, _, d in self.pairs for end in (row, row + d.shape[-1])})
        norms = self.sum.new_zeros(self.capture.samples)
        for start, stop in pairwise(ends):
            stretch = [
                (a, d[..., start - row : stop - row])
                for row, a, d in self.pairs
                if row <= start and stop <= row + d.shape[-1]
            ]
            if stretch:
                norms += self._stretch_norms(slice(start, stop), stretch)
        return norms

    def _stretch_norms(self, rows: slice, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        B = self.capture.samples
        total = self.sum.flatten(1)[rows]  # (o, i)
        tokens = sum(a.shape[0] * a.shape[1] for a, _ in pairs) // B
        gram = tokens**2 * sum(total.shape) < PASS_COST * total.numel()
        if gram:
            for a, d in pairs:
                total.addmm_(d.flatten(0, 1).T, a.flatten(0, 1))
        buffer = None if gram else torch.empty_like(total)
        norms = []
        for i in range(B):
            a = _tokens_of(i, B, [a for a, _ in pairs])  # (T, i)
            d = _tokens_of(i, B, [d for _, d in pairs])  # (T, o)
            if gram:
                norms.append(torch.dot((a @ a.T).flatten(), (d @ d.T).flatten()))
                continue
            torch.mm(d.T, a, out=buffer)
            norms.append(torch.dot(buffer.flatten(), buffer.flatten()))
            total.add_(buffer)
        return torch.stack(norms)


def _tokens_of(sample: int, samples: int, activations: list[Tensor]) -> Tensor:
    """All tokens of one sample in activations (R, T, d), whose rows belong to ``samples`` samples in turn."""
    own = [x[sample::samples].flatten(0, 1) for x in activations]
    return own[0] if len(own) == 1 else torch.cat(own)


class _Capture(TorchFunctionMode):
    """Sees every torch function of a forward pass and replaces those that read a tracked parameter.

    A handler has its function's signature and returns NotImplemented when no tracked parameter is involved.
    """

    def __init__(self, ghost: GhostPass) -> None:
        super().__init__()
        self.ghost = ghost
        self.samples = 0
        self.names = {id(p): name for name, p in ghost.parameters.items()}
        self.uses: dict[str, _Use] = {}
        self.handlers = {
            F.linear: self._linear,
            F.layer_norm: self._layer_norm,
            F.conv2d: self._conv2d,
            Tensor.add: self._add,
            Tensor.expand: self._expand,
            Tensor.matmul: self._matmul,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        handler = self.handlers.get(func)
        out = NotImplemented if handler is None else handler(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if out is NotImplemented else out

    def _tracked(self, p: Tensor | None) -> tuple[_Use, int] | None:
        """The use and the first row of a tracked parameter or of a stretch of its rows."""
        if not isinstance(p, Tensor):
            return None
        base = p if id(p) in self.names else p._base
        name = self.names.get(id(base))
        if name is None or p.shape[1:] != base.shape[1:] or p.stride() != base.stride():
            return None
        use = self.uses.setdefault(name, _Use(self.ghost, name, self))
        use.expected += 1
        return use, (p.storage_offset() - base.storage_offset()) // max(1, base.stride(0))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        w, b = self._tracked(weight), self._tracked(bias)
        return NotImplemented if w is None and b is None else _Linear.apply(input, weight, bias, w, b)

    def _matmul(self, input: Tensor, other: Tensor) -> Tensor:
        w = self._tracked(other)
        return NotImplemented if w is None else _Linear.apply(input, other.T, None, w, None, True)

    def _conv2d(self, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
        """A convolution of disjoint patches is a linear layer on them; others are left alone."""
        h, w = weight.shape[2:]
        disjoint = stride in ((h, w), h) and padding in ((0, 0), 0) and dilation in ((1, 1), 1) and groups == 1
        whole = input.shape[2] % h == 0 and input.shape[3] % w == 0
        if not disjoint or not whole or id(weight) not in self.names:
            return NotImplemented
        x = input.unflatten(3, (-1, w)).unflatten(2, (-1, h))  # (R, c, H/h, h, W/w, w)
        grid = x.shape[2], x.shape[4]
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (R, P, c*h*w)
        y = _Linear.apply(x, weight.flatten(1), bias, self._tracked(weight), self._tracked(bias))  # (R, P, d)
        return y.transpose(1, 2).unflatten(2, grid)  # (R, d, H/h, W/w)

    def _layer_norm(self, input, normalized_shape, weight=None, bias=None, eps=1e-5) -> Tensor:
        if len(normalized_shape) > 1 or weight is None or bias is None:
            return NotImplemented
        w, b = self._tracked(weight), self._tracked(bias)
        return NotImplemented if w is None and b is None else _LayerNorm.apply(input, weight, bias, eps, w, b)

    def _add(self, input: Tensor, other: Tensor | float, **kwargs) -> Tensor:
        if not isinstance(other, Tensor) or other.shape != input.shape[1:] or kwargs:
            return NotImplemented
        use = self._tracked(other)
        return NotImplemented if use is None else input + _PerRow.apply(other, len(input), use)

    def _expand(self, input: Tensor, *sizes: int | Sequence[int]) -> Tensor:
        """A parameter (...) to rows of it, (R, ...), perhaps with axes between; or one (1, T, ...) to more than its
        row."""
        sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        more = len(sizes) - input.ndim
        single = more == 0 and input.ndim > 2 and len(input) == 1
        first = 1 if single else more
        kept = zip(sizes[max(0, first) :], input.shape[1:] if single else input.shape, strict=False)
        if first < 1 or sizes[0] < 1 or not all(size in (-1, own) for size, own in kept):
            return NotImplemented
        use = self._tracked(input)
        if use is None:
            return NotImplemented
        rows = sizes[0]
        repeated = _PerRow.apply(input, rows, use)  # (R, ...)
        if single:
            return repeated.flatten(0, 1)
        ones = [1] * (more - 1)
        return repeated.view(rows, *ones, *input.shape).expand(*sizes)


class _Linear(Function):
    """F.linear that hands input and output gradient to the recorder in place of a weight gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, w, b, transposed=False):
        ctx.save_for_backward(x, weight)
        ctx.w, ctx.b, ctx.transposed = w, b, transposed
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        if ctx.w:
            use, row = ctx.w
            use.matrix(row, *((dy, x.detach()) if ctx.transposed else (x, dy)))
        if ctx.b:
            use, row = ctx.b
            use.direct(row, dy.flatten(1, -2).sum(1) if dy.ndim > 2 else dy)
        return dy @ weight if ctx.needs_input_grad[0] else None, None, None, None, None, None


class _LayerNorm(Function):
    """F.layer_norm over the last axis whose weight and bias gradients are kept apart by row."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, w, b):
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.w, ctx.b = w, b
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            dx, _, _ = torch.ops.aten.native_layer_norm_backward(
                dy, x, weight.shape, mean, rstd, weight, bias, [True, False, False]
            )
        x, dy, mean, rstd = (t.reshape(len(t), -1, t.shape[-1]) for t in (x, dy, mean, rstd))  # (R, T, d or 1)
        if ctx.w:
            use, row = ctx.w
            # sum_t dy_t (x_t - mean_t) rstd_t as two products, which spares a tensor of normalised inputs.
            use.direct(row, (rstd.mT @ (dy * x) - (mean * rstd).mT @ dy).squeeze(1))  # (R, d)
        if ctx.b:
            use, row = ctx.b
            use.direct(row, dy.sum(1))  # (R, d)
        return dx, None, None, None, None, None


class _PerRow(Function):
    """A parameter repeated once per row of activations, so that its gradient arrives row by row."""

    @staticmethod
    def forward(ctx, p, rows, use):
        ctx.use = use
        return p.expand(rows, *p.shape)

    @staticmethod
    def backward(ctx, dy):
        use, row = ctx.use
        use.direct(row, dy)
        return None, None, None
