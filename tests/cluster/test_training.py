"""Sweeps and the reading of images on a real cluster: to the last digit what one process finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from corit_cli.cluster.arms import far
from corit_cli.cluster.reading import FarReading
from corit_cli.cor.problem import Problem
from corit_cli.cor.settings import BLOCKS, HEADS
from corit_cli.cor.sweep import Arm, Journal, sweep
from corit_cli.data.manifest import load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.features.cache import Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import Backbone
from corit_cli.model.scope import parse_scope
from corit_cli.model.settings import CoRITSettings
from corit_cli.progress import Progress
from tests.conftest import photograph, random_tower

READS = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(), integrate=(2, 3))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers, which have a CPU each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tune", ["head", "last:1"])
def test_a_sweep_is_the_local_one(
    ray: ModuleType, one_thread: None, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: str
) -> None:
    monkeypatch.setenv("CORIT_CACHE", str(tmp_path / "features.sqlite"))
    recipe = replace(HEADS if tune == "head" else BLOCKS, epochs=2, batch_size=8)
    backbone = Backbone(random_tower(), "tiny", "0" * 64)
    problem = Problem(load_samples(tiles), backbone, CropConfig("native", 32), recipe, most=48)
    found = []

    def make(progress: Progress) -> Arm:
        return problem.arm("corit", READS, parse_scope(tune))

    for name, made in (("here", make), ("there", far(make, ray, threads=1))):
        journal = Journal(tmp_path / name, {"sweep": 1})
        found.append(sweep({"corit": made}, [0.05, 0.5, 5.0], [0, 1], problem.criteria, journal))
        kept = {line for line in (tmp_path / name / "runs.jsonl").read_text().splitlines()}
        assert len(kept) == len(journal.runs) >= 10
    assert repr(found[0].as_dict()) == repr(found[1].as_dict())  # NaN is equal to itself here
    assert asdict(found[0].found["corit"].runs[0])["model"] == "corit"


def test_images_are_read_as_here(ray: ModuleType, one_thread: None, tmp_path: Path) -> None:
    for i in range(150):
        photograph(i, (70 + i % 9, 50)).save(tmp_path / f"{i}.png")
    (tmp_path / "70.png").write_text("no picture")
    jobs = [Job(tmp_path / f"{i}.png") for i in range(150)]
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), READS, CropConfig("both", 32))
    here, there = extract(extractor, jobs), extract(extractor, jobs, read=FarReading(ray, threads=1))
    assert here[1] == there[1] and list(here[1]) == [70]
    assert torch.equal(here[0].nan_to_num(9), there[0].nan_to_num(9))
