"""Tiles of made-up photographs, each with a forgery that differs by a faint checkerboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import photograph


def make_tiles(folder: Path, photographs: int = 12, tiles: int = 2) -> Path:
    """A manifest of 32 px tiles and their forgeries, with columns as the shipped sample set has them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,label,source,video_id"]
    for p in range(photographs):
        for t in range(tiles):
            pixels = np.asarray(photograph(100 * p + t, (32, 32)), np.int16)
            checkerboard = 12 * (-1) ** np.indices((32, 32)).sum(0)[..., None]
            for kind, image in (("real", pixels), ("fake", pixels + checkerboard)):
                name = f"{p}-{t}-{kind}.png"
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
                rows.append(f"{name},{kind},photo{p},tile{p}-{t}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiles(tmp_path_factory.mktemp("tiles"))
