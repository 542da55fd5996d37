from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_topk_takes_the_largest() -> None:
    c = contrasts()
    mask = parse_mask("topk:0.25")(c).bool()
    e = energy(c)
    assert mask.sum(1).tolist() == [10, 10, 10]
    assert all(e[i][mask[i]].min() >= e[i][~mask[i]].max() for i in range(3))


def test_snr_prefers_patches_on_which_the_views_agree() -> None:
    c = contrasts(4)
    c[:, :, :10] = c[:1, :, :10] + 0.01 * c[:, :, :10]  # the same contrast in every view
    assert torch.equal(parse_mask("snr:0.25")(c)[:, :10], torch.ones(3, 10))
    with pytest.raises(ValueError, match="view"):
        parse_mask("snr:0.25")(c[:1])


def test_soft_mask_is_high_inside_the_band_and_low_outside() -> None:
    c = contrasts(1)
    soft, hard = parse_mask("soft:0.25-0.75")(c), parse_mask("quantile:0.25-0.75")(c).bool()
    assert soft[hard].min() > 0.45 and soft[hard].mean() > 0.6
    assert soft[~hard].max() < 0.55 and soft[~hard].mean() < 0.3


@settings(max_examples=40, deadline=None)
@given(spec=st.sampled_from(["none", "quantile", "soft", "topk", "snr"]), scale=st.floats(1e-3, 1e3))
def test_masks_are_weights_and_do_not_depend_on_scale(spec: str, scale: float) -> None:
    c = contrasts(3)
    mask = parse_mask(spec)(c)
    assert mask.shape == (3, 40)
    assert mask.min() >= 0 and mask.max() <= 1 and mask.sum() > 0
    torch.testing.assert_close(parse_mask(spec)(c * scale), mask, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "spec", ["", "all", "quantile:0.7-0.2", "quantile:0.2", "topk:0", "topk:2", "none:1", "soft:a-b", "quantile:0-2"]
)
def test_nonsense_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="understood"):
        parse_mask(spec)
