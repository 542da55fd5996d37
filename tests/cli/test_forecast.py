"""``--dry-run``: everything is told, and nothing is touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corit_cli.cli.app import app
from corit_cli.cli.forecast import span
from corit_cli.features.foresee import Cost
from corit_cli.model.precision import pick_precision
from tests.conftest import save_tiny_detector


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with size and time of change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob("*"))}


@pytest.fixture
def here(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs a command in this process, with empty caches."""
    for name in ("HOME", "XDG_CACHE_HOME", "COLUMNS"):
        monkeypatch.setenv(name, environment[name])
    pick_precision("auto", "cpu")  # measured once and kept, by whatever runs first
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def dry(here: Callable, tmp_path: Path) -> Callable[..., str]:
    """What a dry run prints; it must change nothing."""

    def run(*arguments: object) -> str:
        before = state(tmp_path)
        result = here(*arguments, "--dry-run")
        assert result.exit_code == 0, result.output
        assert state(tmp_path) == before
        assert "Nothing is done" in result.stdout and "May take: about" in result.stdout
        return result.stdout

    return run


def tiny(folder: Path) -> list[object]:
    return ["--backbone", folder / "tower.safetensors", "--integrate", "2-3", "--cgp", "1-2"]


def test_train(here, dry, folder: Path, dataset: Path, tmp_path: Path) -> None:
    arguments = ["train", dataset, *tiny(folder), "--native", "none", "--spread", "none", "--no-face", "--folds", 3]
    arguments += ["--degrade", "jpeg", "--out", tmp_path / "det", "--forge", "0.5*resample@native"]
    told = dry(*arguments)
    assert "48 images (24 real, 24 fake)" in told
    rows = int(re.search(r"features of (\d+) images or copies of them \(0 more", told)[1])
    trained = int(re.search(r"12 heads on (\d+) rows", told)[1])  # 2 readings and what tells copies, by 1 + 3 folds
    assert rows == trained + 12 and str(tmp_path / "det" / "model.safetensors") in told  # 12 validate, as they are
    assert here(*arguments).exit_code == 0
    lines = (tmp_path / "det" / "log.csv").read_text().splitlines()
    assert len(lines) == 1 + 12 * 20  # as many heads as were foreseen, in 20 epochs each
    told = dry(*arguments, "--overwrite")
    assert f"features of 0 images or copies of them ({rows} more are in the cache)" in told


def test_faults_of_the_data_are_told(here, folder: Path, dataset: Path, tmp_path: Path) -> None:
    images = sorted(dataset.rglob("*.png")) or sorted(dataset.rglob("*.jpg"))
    lines = [f"{path},{int('fake' in path.parts)},{'train' if k % 3 else 'val'}" for k, path in enumerate(images)]
    lines += [line.replace(",val", ",train") for line in lines if line.endswith(",val")][:1]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    reads = [*tiny(folder), "--native", "none", "--spread", "none", "--no-face"]
    result = here("train", tmp_path / "m.csv", *reads, "--out", tmp_path / "det", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "1 of 16 images for validation are in training, too" in " ".join(result.stderr.split())


def test_tuning(dry, folder: Path, dataset: Path, tmp_path: Path) -> None:
    arguments = ["train", dataset, *tiny(folder), "--native", "none", "--spread", "none", "--tune", "last:1"]
    arguments += ["--out", tmp_path / "det"]
    told = dry(*arguments, "--push-to-hub", "user/x")
    assert "parts of the backbone" in told and "user/x on the Hub" in told and "tuning at most" in told


def test_the_instruments(dry, folder: Path, dataset: Path) -> None:
    told = dry("cor-sweep", "--data", dataset, *tiny(folder), "--rho", "0.1,0.2", "--seeds", 2)
    assert "48 of 48 images" in told and "16 runs" in told  # 2 models, 2 seeds, 2 radii and 2 controls
    assert "12 runs" in dry(
        "cor-sweep", "--data", dataset, *tiny(folder), "--tune", "head", "--rho", "0.1", "--seeds", 2
    )
    told = dry("gsnr", "--data", dataset, *tiny(folder), "--samples", 8)
    assert "16 images at most" in told and "32 passes backwards" in told  # 2 models, 2 states of the head


def test_detect_and_evaluate(dry, corit, dataset: Path, tmp_path: Path) -> None:
    detector = save_tiny_detector(tmp_path / "tiny")
    (dataset / "notes.txt").write_text("no picture")
    told = dry("detect", "-r", dataset, "-c", detector, "--csv", tmp_path / "rows.csv")
    assert "48 images (" in told and f"{tmp_path / 'rows.csv'} (csv)" in told
    told = dry("evaluate", dataset, "-c", detector, "--robustness", "jpeg-75,jpeg-50", "--html", tmp_path / "r.html")
    assert f"{tmp_path / 'r.html.run.toml'} (configuration)" in told
    assert "features of 144 images or copies" in told
    fetched = corit("detect", dataset, "-r", "-c", "hf-hub:user/none", "--dry-run")
    assert fetched.returncode == 0 and "Hub repository user/none, which is fetched first" in fetched.stdout
    assert "May take: unknown" in fetched.stdout


def test_a_cost_is_all_of_its_parts() -> None:
    assert Cost(5, 2, reading=1.0, fitting=20.0, passes=300.0).seconds == 321


def test_spans() -> None:
    assert [span(s) for s in (0.4, 59, 61, 7200)] == ["0 s", "59 s", "0:01:01", "2:00:00"]
