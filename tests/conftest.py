"""A tower small enough to run hundreds of times, and photographs-like images made on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

# Two processes test side by side, and each starts more: one thread apiece, or they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from safetensors.torch import save_file

from corit_cli.data.faces import Face
from corit_cli.data.settings import CropConfig
from corit_cli.detection.calibration import Calibration, Thresholds
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.detector import Detector
from corit_cli.features.extractor import Extractor
from corit_cli.model.backbone import TowerConfig, VisionTower
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.loading import load_backbone
from corit_cli.model.settings import CoRITSettings
from corit_cli.progress import Advance
from tests import prefork

if TYPE_CHECKING:
    from corit_cli.bulk.parts import Parts

# Examples are not timed: a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

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


CORIT = Path(sys.executable).parent / "corit"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers from torch, whatever ran before it."""
    torch.manual_seed(0)


class Told:
    """A progress that remembers every stage: its title, its total, and the counts and notes that came."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, list[int], list[str]]] = []

    def __call__(self, title: str, total: int | None = None) -> Advance:
        counts: list[int] = []
        notes: list[str] = []
        self.stages.append((title, total, counts, notes))

        def advance(count: int = 1, note: str = "") -> None:
            counts.append(count)
            notes.append(note)

        return advance

    @property
    def complete(self) -> bool:
        """Whether every stage came to its total."""
        return all(sum(counts) == total for _, total, counts, _ in self.stages)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home" / "cache"),
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture
def corit(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``corit("detect", path, ...)``; the result has ``returncode``, ``stdout`` and ``stderr``."""
    home = tmp_path / "cwd"
    home.mkdir()

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [str(CORIT), *map(str, arguments)]
        settings = {"cwd": home, "env": environment, "timeout": 300, **options}
        if not options.keys() - {"cwd", "env", "timeout", "input"} and prefork.fits(settings["env"]):
            with tempfile.TemporaryDirectory() as pipes:
                return prefork.run(command, pipes=Path(pipes), **settings)
        return subprocess.run(command, **{"capture_output": True, "text": True, **settings})

    return run


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As on a machine of two cores, where batches and runs are two at a time. Threads that begin later have both."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    found: list[int] = []
    for work in (lambda: found.append(torch.get_num_threads()), lambda: torch.set_num_threads(before)):
        thread = Thread(target=work)
        thread.start()
        thread.join()
    torch.set_num_threads(before)
    assert found == [2]


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


def make_tiles(folder: Path, photographs: int = 12, tiles: int = 2) -> Path:
    """A manifest of 32 px tiles of made-up photographs, each with a forgery that differs by a faint checkerboard; its
    columns are those of the shipped sample set."""
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


class OneFace:
    """Stands in for a face finder: one face of 70 pixels at (10, 5) in pictures wider than 90 pixels."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, image: Image.Image) -> list[Face]:
        self.asked += 1
        eyes = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)])
        return [Face((10.0, 5.0, 80.0, 75.0), 0.9, (10, 5) + 70 * eyes)] if image.width > 90 else []


@pytest.fixture
def one_face(monkeypatch: pytest.MonkeyPatch) -> OneFace:
    """``OneFace`` in place of the finder everywhere."""
    found = OneFace()
    for module in ("data.windows", "data.forge", "detection.detector", "detection.asked", "detection.eye"):
        monkeypatch.setattr(f"corit_cli.{module}.finder", lambda: found)
    return found


def random_head(extractor: Extractor, std: float = 1.0) -> FusedHead:
    """Random linear heads on everything that ``extractor`` reads."""
    torch.manual_seed(0)
    heads = {name: Head(width) for name, width in extractor.readings.items()}
    for head in heads.values():
        torch.nn.init.normal_(head.layers[0].weight, std=std)
    return FusedHead(heads)


def save_tiny_detector(folder: Path, seed: int = 0) -> Path:
    """A detector with a random tower of its own and random heads, as ``corit train`` leaves one: its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_tower(seed=seed).state_dict(), folder / "tower.safetensors")
    (folder / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    backbone = load_backbone(str(folder / "tower.safetensors"))
    settings = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(), integrate=(2, 3))
    extractor = Extractor(backbone, settings, CropConfig("both", TINY.image_size))
    named = {"name": backbone.name, "sha256": backbone.sha256, "activation": TINY.activation}
    head = random_head(extractor, std=0.05)
    checkpoint = Checkpoint(head, named, settings, extractor.crops, Calibration(1.0), Thresholds(0.45, 0.55))
    checkpoint.save(folder / "detector")
    return folder / "detector"


def tiny_detector(folder: Path) -> Detector:
    """The detector that :func:`save_tiny_detector` saves."""
    return Detector.load(save_tiny_detector(folder), "cpu")


def every_row(parts: Parts) -> list[dict[str, Any]]:
    """The rows of all parts."""
    return [row for name in parts.names() for row in parts.read(name)]
