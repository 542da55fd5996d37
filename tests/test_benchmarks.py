"""Benchmarks are run by hand, so that nothing else would tell that one of them no longer fits the package. Their
imports are held against it here, and those maps of heatmap.py that no other code draws."""

from __future__ import annotations

import ast
import importlib
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


def imports(path: Path) -> list[tuple[str, str | None]]:
    """The modules of the package that a file imports, anywhere in it, each with a name that it takes from there."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "corit_cli"]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_of_the_package_is_there(path: Path) -> None:
    for module, name in imports(path):
        found = importlib.import_module(module)
        if name is not None and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")


def test_maps_without_a_head_are_of_contrasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
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
    away = np.abs(expected - np.median(expected))
    np.testing.assert_allclose(found["its distance from the median"], away, rtol=1e-3, atol=1e-6)
