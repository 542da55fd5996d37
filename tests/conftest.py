"""A tower small enough to run hundreds of times, and photographs-like images made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corit_cli.model.backbone import TowerConfig, VisionTower

TINY = TowerConfig(
    image_size=32, patch_size=8, width=32, layers=4, heads=4, mlp_width=64, activation="quick_gelu", embed_dim=16
)


def random_tower(config: TowerConfig = TINY, seed: int = 0) -> VisionTower:
    """A tower with random weights, every parameter different from its neutral value."""
    torch.manual_seed(seed)
    tower = VisionTower(config)
    for name, parameter in tower.named_parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5)
        if name.split(".")[-2:-1] and name.split(".")[-2].startswith("ln_") and name.endswith("weight"):
            parameter.data += 1
    return tower


@pytest.fixture
def tower() -> VisionTower:
    return random_tower()


@pytest.fixture
def images() -> torch.Tensor:
    """(3, 3, 32, 32) in [0, 1], smooth with some texture."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(3, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
    return (smooth + 0.1 * torch.randn(3, 3, 32, 32, generator=generator)).clamp(0, 1)


def photograph(seed: int, size: tuple[int, int] = (64, 48), grain: float = 6.0) -> Image.Image:
    """A smooth random scene with sensor-like grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((pixels + grain * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of 24 real images and 24 fakes in four sources; the fakes bear a generator's checkerboard."""
    root = tmp_path / "data"
    for i in range(48):
        fake = i % 2
        folder = root / f"source{i // 2 % 4}" / ("fake" if fake else "real")
        folder.mkdir(parents=True, exist_ok=True)
        image = np.asarray(photograph(i), np.int16)
        y, x = np.indices(image.shape[:2])
        image = image + (fake * 20 * (-1) ** (x + y))[..., None]
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02}.png")
    return root
