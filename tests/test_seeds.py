from __future__ import annotations

import typing

import torch

import corit_cli
from corit_cli.detection.detector import Detector
from corit_cli.seeds import undisturbed


def test_what_is_drawn_within_is_not_seen_outside() -> None:
    @undisturbed()
    def draw(count: int) -> torch.Tensor:
        """Some numbers."""
        torch.manual_seed(1)
        return torch.rand(count)

    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    assert torch.equal(draw(3), draw(3)) and draw.__doc__ == "Some numbers."
    assert torch.equal(torch.rand(2), expected)


def test_the_package_tells_its_names_and_types() -> None:
    assert {"Detector", "Prediction", "CoritError", "train", "evaluate"} <= set(dir(corit_cli))
    assert typing.get_type_hints(corit_cli.train)["return"].__name__ == "Trained"
    assert typing.get_type_hints(Detector.load)["return"] is Detector
