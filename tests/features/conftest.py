"""A tiny extractor, files for it, and a count of what reaches its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from corit_cli.data.settings import CropConfig
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings
from tests.conftest import photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(), integrate=(2, 3))
CROPS = CropConfig("both", 32, 2)


@pytest.fixture
def extractor() -> Extractor:
    return Extractor(Backbone(random_tower(), "tiny", "0" * 64), SETTINGS, CROPS)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        photograph(i, (70 + 5 * i, 50)).save(paths[-1])
    return paths


def counting(extractor: Extractor) -> list[int]:
    """The sizes of the batches that reach the model from now on."""
    sizes: list[int] = []
    for reader in extractor.readers:
        start = reader.corit.start
        reader.corit.start = lambda images, start=start: (sizes.append(len(images)), start(images))[1]
    return sizes
