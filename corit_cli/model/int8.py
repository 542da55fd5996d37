"""Products of 8-bit integers that keep the digits of float32.

The embedded tower's weights are stored in 8 bits, with a scale for each output channel. Rounding activations to 8 bits
as well costs verdicts; here they have 16, as two digits of 8 bits, and a scale for each token: a product is two
products of integers, whose sums are exact. Processors with instructions for such products (VNNI, AMX) do four and more
of them in the time of one in float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from corit_cli.errors import NotMultiplied

#: The largest activation of a token becomes this, the largest whole number of 16 bits.
LARGEST = 32767.0
_SMALLEST = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Linear):
    """``layer`` with its products from ``digits`` (out, in) int8 and ``scale`` (out,), whose product is its weight.

    ``gain`` multiplies what the weights give, ``shift`` the bias. The float32 ``weight`` stays that of ``layer``, for
    who multiplies by parts of it. There are no gradients. Raises CoritError, also where it was sent to, on machines
    whose torch does not multiply so: see :func:`available`.
    """

    def __init__(self, layer: nn.Linear, digits: Tensor, scale: Tensor, gain: float = 1.0, shift: float = 1.0) -> None:
        _check()
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._digits = _packed(digits)  # (in, out)
        self._scale, self._shift = scale * gain, layer.bias.detach() * shift  # (out,)
        self._zero = torch.zeros(len(scale), dtype=torch.long)  # (out,)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: with the digits in no form of oneDNN's own."""
        return {**self.__dict__, "_digits": self._digits.to_dense().t()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _check()
        super().__setstate__({**state, "_digits": _packed(state["_digits"])})

    def forward(self, x: Tensor) -> Tensor:
        """Activations (..., in) float32 to (..., out)."""
        rows = x.reshape(-1, self.in_features)  # (n, in)
        largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
        step = largest.div_(LARGEST).clamp_min_(_SMALLEST)  # (n, 1)
        whole = (rows / step).round_().to(torch.int16)  # 256 * upper + lower
        lower = whole.to(torch.uint8)  # its last 8 bits, 0 to 255
        upper = whole.bitwise_right_shift_(8).to(torch.uint8).bitwise_xor_(128)  # -128 to 127, counted from 128
        y = _product(upper, lower, self._digits, self._scale, self._zero)
        return torch.addcmul(self._shift, y, step, out=y).view(*x.shape[:-1], self.out_features)


def _packed(digits: Tensor) -> Tensor:
    """Digits (out, in) int8 as oneDNN reads them, (in, out); its own blocked form gains a few percent and takes half a
    second to make."""
    return digits.t().contiguous().to_mkldnn()


def _product(upper: Tensor, lower: Tensor, digits: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """256 (``upper`` - 128) + ``lower``, both (n, in) uint8, times ``digits`` and ``scale``: (n, out) float32."""
    multiply, weights = torch.ops.onednn.qlinear_pointwise, (digits, scale, zero)
    result = (None, 1.0, 0, torch.float32)  # no bias
    y = multiply(upper, 256.0, 128, *weights, *result, "none", [], "")
    return multiply.binary(lower, 1.0, 0, *weights, y, *result, 1.0, 0, "sum", 1.0, "none", [], "")


@lru_cache
def available() -> bool:
    """Whether this machine's torch multiplies 8-bit integers, and exactly: processors without the instructions for it
    may add pairs of products in 16 bits and stop at the largest number there."""
    upper = torch.tensor([[255] * 8, [0] * 8, [255, 0] * 4, [130] * 8], dtype=torch.uint8).repeat(1, 8)  # (4, 64)
    lower = torch.full_like(upper, 255)  # (4, 64)
    digits = torch.tensor([[127], [-127], [3]], dtype=torch.int8).repeat(1, 64)  # (3, 64)
    whole = 256.0 * (upper.double() - 128) + lower  # (4, 64)
    try:
        found = _product(upper, lower, _packed(digits), torch.ones(3), torch.zeros(3, dtype=torch.long))
    except (RuntimeError, AttributeError):  # a torch without oneDNN, or whose oneDNN has no such product
        return False
    return torch.allclose(found.double(), whole @ digits.double().T, rtol=1e-6, atol=0)


def _check() -> None:
    if not available():
        raise NotMultiplied("this machine's torch does not multiply 8-bit integers exactly: give --precision fp32")
