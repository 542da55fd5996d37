from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli.errors import CoritError
from corit_cli.model.cgp import energy
from corit_cli.model.mask import parse_mask


def contrasts(views: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(views, 3, 40, 8, generator=torch.Generator().manual_seed(seed))


def test_quantile_mask_equals_numpy() -> None:
    c = contrasts()
    mask = parse_mask("quantile:0.2-0.7")(c)
    for image, weights in zip(energy(c).numpy(), mask.numpy(), strict=True):
        low, high = np.quantile(image, [0.2, 0.7])
        np.testing.assert_array_equal(weights, (image >= low) & (image <= high))


@settings(max_examples=40, deadline=None)
@given(spec=st.sampled_from(["none", "quantile", "quantile:0-0.5"]), scale=st.floats(1e-3, 1e3))
def test_masks_are_weights_and_do_not_depend_on_scale(spec: str, scale: float) -> None:
    c = contrasts(3)
    mask = parse_mask(spec)(c)
    assert mask.shape == (3, 40)
    assert mask.min() >= 0 and mask.max() <= 1 and mask.sum() > 0
    torch.testing.assert_close(parse_mask(spec)(c * scale), mask, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "spec", ["", "all", "quantile:0.7-0.2", "quantile:0.2", "quantile:a-b", "quantile:0-2", "none:1", "topk:0.5"]
)
def test_nonsense_is_refused(spec: str) -> None:
    with pytest.raises(CoritError, match="understood"):
        parse_mask(spec)
