from __future__ import annotations

import pytest
import torch

from corit_cli.errors import CoritError
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind


def test_standardised_features_have_unit_norm_on_average() -> None:
    z = torch.randn(500, 40) * torch.rand(40) * 3 + torch.randn(40)
    head = Head(40)
    head.fit_standardiser(z)
    x = head.standardise(z)
    torch.testing.assert_close(x.square().sum(1).mean(), torch.tensor(1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.mean(0), torch.zeros(40), atol=1e-6, rtol=0)


def test_a_constant_feature_does_no_harm() -> None:
    z = torch.randn(10, 3)
    z[:, 1] = 7.0
    head = Head(3, HeadKind(hidden=4))
    head.fit_standardiser(z)
    assert head(z).isfinite().all() and head(z).shape == (10,)


def test_with_all_images_as_landmarks_the_kernel_is_exact() -> None:
    z = torch.randn(60, 5) * torch.rand(5) * 4
    head = Head(5, HeadKind(landmarks=60))
    head.fit_standardiser(z)
    head.choose_landmarks(z)
    x = head.standardise(z)
    expanded = head.expand(x)
    torch.testing.assert_close(expanded @ expanded.T, (-(torch.cdist(x, x) ** 2) / 2).exp(), atol=2e-3, rtol=0)


def test_landmarks_that_no_image_is_left_for_have_no_effect() -> None:
    torch.manual_seed(0)
    z = torch.randn(20, 3)
    head = Head(3, HeadKind(landmarks=50))
    head.fit_standardiser(z)
    head.choose_landmarks(z)
    expanded = head.expand(head.standardise(torch.randn(8, 3)))
    assert expanded.isfinite().all() and not expanded[:, 20:].any() and expanded[:, :10].any()


@pytest.mark.parametrize("text", ["linear", "mlp:64", "rbf:300"])
def test_kinds_of_heads_as_they_are_spelt(text: str) -> None:
    assert HeadKind.parse(text).spelling == text
    assert HeadKind.parse("mlp").spelling == "mlp:256" and HeadKind.parse("rbf").spelling == "rbf:512"


@pytest.mark.parametrize("text", ["", "forest", "mlp:x", "mlp:-1", "mlp:0", "linear:3", "rbf:1.5"])
def test_other_kinds_are_refused(text: str) -> None:
    with pytest.raises(CoritError, match="a head is linear"):
        HeadKind.parse(text)
