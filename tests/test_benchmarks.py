"""Benchmarks are run by hand, so that nothing else would tell that one of them no longer fits the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from corit_cli.data.settings import CropConfig
from corit_cli.detection.heatmap import smooth
from corit_cli.features.extractor import Extractor
from corit_cli.model import cgp
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings
from tests.conftest import photograph, random_tower

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", ["benchmark"])


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_everything_that_a_benchmark_imports_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        assert importlib.import_module(name).__doc__
    except ModuleNotFoundError as error:
        assert error.name and not error.name.startswith("corit_cli") and not (FOLDER / f"{error.name}.py").exists()
        pytest.skip(f"{error.name} is not installed")


def test_maps_without_a_head_are_of_contrasts() -> None:
    settings = CoRITSettings(("blur:1.0", "blur:2.0"), cgp=(2, 3), integrate=(2, 3))
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig("native", 32, 1))
    corit, image = extractor.readers[-1].corit, photograph(3, (32, 32))
    found = importlib.import_module("heatmap").without_a_head(extractor, image)

    with torch.inference_mode():
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        tokens = [corit.tower.embed(one) for one in (pixels, *(view(pixels) for view in corit.views))]  # (1, N, d) each
        norms = []
        for block in corit.tower.blocks[:2]:
            tokens = [block(one) for one in tokens]
            norms.append(cgp.contrast(tokens[0], torch.stack(tokens[1:])).mean(0)[0, 1:].norm(dim=-1))  # (P,)
    expected = smooth(torch.stack(norms).mean(0).view(4, 4).numpy(), np.ones((4, 4), bool))
    np.testing.assert_allclose(found["contrast's norm"], expected, rtol=1e-4)
    assert set(found) == {"contrast's norm", "its distance from the median"}
