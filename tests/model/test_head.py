from __future__ import annotations

import torch

from corit_cli.model.head import Head


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
    head = Head(3, hidden=4)
    head.fit_standardiser(z)
    assert head(z).isfinite().all() and head(z).shape == (10,)
