"""Products of 8-bit integers that keep the digits of float32.

The embedded tower's weights are stored in 8 bits, with a scale for each output channel. Rounding activations to 8 bits
as well costs verdicts; here they have 16, as two digits of 8 bits, and a scale for each token: a product is two
products of integers, whose sums are exact. Processors with instructions for such products (VNNI, AMX) do four and more
of them in the time of one in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: The largest activation of a token becomes this: the upper of its two digits, rounded, is below 128.
LARGEST = 32639.0
_SMALLEST = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Linear):
    """``layer`` with its products from ``digits`` (out, in) int8 and ``scale`` (out,), whose product is its weight.

    ``gain`` multiplies what the weights give, ``shift`` the bias. The float32 ``weight`` stays that of ``layer``, for
    who multiplies by parts of it. There are no gradients. Raises RuntimeError where torch was built without oneDNN.
    """

    def __init__(self, layer: nn.Linear, digits: Tensor, scale: Tensor, gain: float = 1.0, shift: float = 1.0) -> None:
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
        super().__setstate__({**state, "_digits": _packed(state["_digits"])})

    def forward(self, x: Tensor) -> Tensor:
        """Activations (..., in) float32 to (..., out)."""
        rows = x.reshape(-1, self.in_features)  # (n, in)
        largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
        step = largest.div_(LARGEST).clamp_min_(_SMALLEST)  # (n, 1)
        whole = (rows / step).round_().to(torch.int16)  # 256 * upper + lower
        lower = whole.to(torch.uint8)  # its last 8 bits, 0 to 255
        upper = whole.bitwise_right_shift_(8).to(torch.uint8).bitwise_xor_(128)  # -128 to 127, counted from 128
        y = self._product(upper, 256.0, 128)
        y = self._product(lower, 1.0, 0, y)
        return torch.addcmul(self._shift, y, step, out=y).view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor, scale: float, zero: int, added: Tensor | None = None) -> Tensor:
        """``scale`` (``x`` - ``zero``) times the weights, of digits ``x`` (n, in) uint8, plus ``added``, which is
        overwritten: (n, out) float32."""
        weights, result = (self._digits, self._scale, self._zero), (None, 1.0, 0, torch.float32)
        multiply = torch.ops.onednn.qlinear_pointwise
        if added is None:
            return multiply(x, scale, zero, *weights, *result, "none", [], "")
        return multiply.binary(x, scale, zero, *weights, added, *result, 1.0, 0, "sum", 1.0, "none", [], "")


def _packed(digits: Tensor) -> Tensor:
    """Digits (out, in) int8 as oneDNN reads them, (in, out)."""
    return digits.t().contiguous().to_mkldnn()
