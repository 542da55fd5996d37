"""Both ends of the spectrum of an operator that is known by its products with vectors, such as a Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Operators of so few rows are written out; of larger ones so many Lanczos vectors are kept.
WRITTEN_OUT, LANCZOS = 32, 20


@dataclass(frozen=True)
class Spectrum:
    """Ends of a symmetric operator's spectrum.

    Attributes:
        smoothness: largest absolute value of an eigenvalue.
        curvature: largest eigenvalue, with its sign.
        iterations: products with a vector that both took together.
        converged: whether both settled within the tolerance.
    """

    smoothness: float
    curvature: float
    iterations: int
    converged: bool


def extreme_eigenvalues(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = 1e-4, most: int = 200
) -> Spectrum:
    """Ends of the spectrum of a symmetric operator given by its ``product`` with a vector (d,), from ``start`` (d,).

    SciPy's Lanczos method finds the eigenvalue of the largest absolute value and, where that is negative, the largest
    one; a small operator is written out instead. Raises ValueError when a product is not finite.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    d, count = len(start), 0

    def multiply(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        image = product(torch.from_numpy(np.ascontiguousarray(vector.ravel())).to(start))
        if not image.isfinite().all():
            raise ValueError("the loss has no finite curvature at these weights, so nothing can be said about them")
        return image.cpu().numpy()

    first = start.cpu().numpy()
    if d <= WRITTEN_OUT:
        matrix = np.stack([multiply(row) for row in np.eye(d, dtype=first.dtype)])
        ends = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        return Spectrum(float(abs(ends).max()), float(ends[-1]), count, True)
    if not multiply(first).any():  # a linear loss
        return Spectrum(0.0, 0.0, count, True)
    settled = True

    def end(which: str, shift: float = 0.0) -> float:
        """The eigenvalue at that end of the spectrum, sought after all of it was moved by ``shift``."""
        nonlocal settled
        operator = LinearOperator((d, d), lambda vector: multiply(vector) + shift * vector.ravel(), dtype=first.dtype)
        options = {"k": 1, "which": which, "v0": first, "return_eigenvectors": False}
        try:
            found = eigsh(operator, **options, tol=tolerance, maxiter=max(1, most // LANCZOS), ncv=LANCZOS)
        except ArpackNoConvergence:
            settled = False
            found = eigsh(operator, **options, tol=1.0, ncv=LANCZOS)
        return float(found[0]) - shift

    largest = end("LM")
    # An eigenvalue near zero would never settle, relative to itself, so the other end is moved away from there.
    top = largest if largest > 0 else end("LA", shift=-2 * largest)
    return Spectrum(abs(largest), top, count, settled)
