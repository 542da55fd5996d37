from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image, ImageOps
from typer.testing import CliRunner

from corit_cli.cli import cor_sweep as command
from corit_cli.cli.app import Commands
from corit_cli.model import loading
from tests.cli.conftest import one_line_error
from tests.conftest import CORIT

app = typer.Typer(cls=Commands)
app.callback()(lambda: None)
app.command("cor-sweep")(command.cor_sweep)

READS = ("--integrate", "2-3", "--cgp", "2-3")
QUICK = ("--rho", "0.05,0.5", "--seeds", "2", "--epochs", "2", "--batch-size", "8")


@pytest.fixture
def arguments(folder: Path) -> list[str]:
    return ["cor-sweep", "--backbone", str(folder / "tower.safetensors"), "--data", str(folder / "tiles/manifest.csv")]


@pytest.fixture
def sweep(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("CORIT_CACHE", str(tmp_path / "cache" / "features.sqlite"))

    def run(*more: object) -> Any:
        return CliRunner().invoke(app, [*arguments, *READS, *map(str, more)])

    return run


@pytest.mark.parametrize("tune", ["head", "last:1"])
def test_it_says_what_was_trained_and_what_was_found(sweep, tmp_path: Path, tune: str) -> None:
    result = sweep(*QUICK, "--tune", tune, "--plot", tmp_path / "cor.png")
    assert result.exit_code == 0, result.output
    what = "a head on frozen features" if tune == "head" else "last:1 tuned with a head"
    assert result.stdout.startswith(f"Trained: {what}, adamw")
    for words in ("COR of baseline:", "COR of corit:", "0, shuffled", "Collapsed: validation AUC at most"):
        assert words in result.stdout
    assert ("local COR" in result.stdout) == (tune == "head")
    assert (tmp_path / "cor.png").stat().st_size > 10_000


def test_no_frozen_block_is_kept_while_others_are_trained(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    towers: list[weakref.ref] = []
    alive = []

    def load(*how: object) -> loading.Backbone:
        alive.append([tower() is not None for tower in towers])
        found = load_backbone(*how)
        towers.append(weakref.ref(found.tower))
        return found

    load_backbone = loading.load_backbone
    monkeypatch.setattr(loading, "load_backbone", load)
    assert sweep(*QUICK, "--tune", "last:1").exit_code == 0
    assert alive == [[], [False]]  # one model after the other, each with a backbone of its own


def test_the_same_command_gives_the_same_bytes_from_kept_runs(sweep, tmp_path: Path) -> None:
    first, second = (sweep(*QUICK, "--json", "--compare", "baseline,hri", "--tune", "head") for _ in range(2))
    assert first.stdout == second.stdout
    found = json.loads(first.stdout)
    assert set(found["found"]) == {"baseline", "hri"} and found["optimization"]["epochs"] == 2
    runs = found["found"]["hri"]["runs"]
    assert {(r["rho"], r["seed"], r["shuffled"]) for r in runs} >= {
        (rho, seed, False) for rho in (0, 0.05, 0.5) for seed in (0, 1)
    } | {(0, 0, True), (0, 1, True)}
    assert found["models"]["hri"]["cgp"] == [] and found["geometry"]["hri"]["smoothness"] > 0
    (kept,) = (tmp_path / "cache" / "cor-sweep").glob("*/runs.jsonl")
    assert len(kept.read_text().splitlines()) == sum(len(f["runs"]) for f in found["found"].values())


def test_frozen_blocks_multiply_as_asked_and_the_journal_knows(sweep, tmp_path: Path) -> None:
    asked = (*QUICK, "--compare", "baseline", "--json", "--resume", tmp_path / "mine")
    found = json.loads(sweep(*asked, "--tune", "last:1", "--precision", "bf16").stdout)
    assert found["precision"] == "bf16"
    refused = sweep(*asked, "--tune", "last:1", "--precision", "fp32")
    assert refused.exit_code == 2 and "precision differ" in refused.stderr
    # where no block is frozen there is nothing to multiply so
    none = sweep(*QUICK, "--compare", "baseline", "--json", "--tune", "ln")
    assert json.loads(none.stdout)["precision"] == "fp32"
    refused = sweep(*QUICK, "--tune", "ln", "--precision", "bf16")
    assert refused.exit_code == 2 and "--tune ln leaves none" in refused.stderr


def test_runs_of_another_sweep_are_refused(sweep, tmp_path: Path) -> None:
    assert sweep(*QUICK, "--tune", "head", "--compare", "baseline", "--resume", tmp_path / "mine").exit_code == 0
    result = sweep(*QUICK, "--tune", "head", "--compare", "baseline", "--resume", tmp_path / "mine", "--lr", "0.5")
    assert result.exit_code == 2 and "holds runs of another sweep (optimization differ)" in result.stderr


def test_other_images_under_the_same_names_are_trained_anew(sweep, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tiles", tmp_path / "tiles")
    for file in (tmp_path / "tiles").rglob("*.png"):
        ImageOps.invert(Image.open(file).convert("RGB")).save(file)
    given = (*QUICK, "--tune", "head", "--compare", "baseline", "--json")
    here, there = sweep(*given), sweep(*given, "--data", tmp_path / "tiles/manifest.csv")
    first, second = (json.loads(result.stdout)["found"]["baseline"]["runs"] for result in (here, there))
    assert first != second and [r["rho"] for r in first][:3] == [r["rho"] for r in second][:3]


def test_unreadable_files_are_left_out_and_named(sweep, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tiles", tmp_path / "tiles")
    broken = next((tmp_path / "tiles").rglob("*.png"))
    broken.write_text("no picture")
    for tune in ("head", "last:1"):
        result = sweep(*QUICK, "--tune", tune, "--compare", "baseline", "--data", tmp_path / "tiles/manifest.csv")
        assert result.exit_code == 0 and f"left out {broken}" in result.stderr.replace("\n", "")


def test_theory_measures_both(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from corit_cli.cor import theory

    monkeypatch.setenv("CORIT_CACHE", str(tmp_path / "cache" / "features.sqlite"))
    monkeypatch.setattr(theory, "RADII", (0.1, 1.0))
    given = ["--theory", "--seeds", "2", "--epochs", "2", "--plot", str(tmp_path / "theory.svg")]
    result = CliRunner().invoke(app, [*arguments, *given])
    document = CliRunner().invoke(app, [*arguments, *given[:5], "--json"])
    json.loads(document.stdout, parse_constant=pytest.fail)
    refused = CliRunner().invoke(app, [*arguments, "--theory", "--cgp", "2"])
    assert refused.exit_code == 2 and "--cgp" in refused.stderr
    assert result.exit_code == 0, result.output
    assert "feature noise" in result.stdout and "Spearman's correlation of COR with GSNR, all:" in result.stdout
    assert (tmp_path / "theory.svg").exists()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (("--rho", "0.5:0.1"), "LO:HI"),
        (("--rho", "nonsense"), "LO:HI"),
        (("--rho", "0:0.5"), "above zero"),
        (("--tune", "some"), "last:K"),
        (("--tune", "last:9"), "blocks"),
        (("--compare", "corit,other"), "--compare takes baseline, hri, corit"),
        (("--optimizer", "adam"), "adamw or sgd"),
        (("--m-sharpness", "3", "--batch-size", "8"), "parts of 3"),
        (("--friendly", "2"), "friendly"),
        (("--plot", "cor.gif"), ".png or .svg"),
        (("--crop", "both"), "--crop"),
    ],
)
def test_mistakes_are_one_line(sweep, wrong: tuple[str, ...], word: str) -> None:
    result = sweep(*wrong)
    assert result.exit_code == 2, result.output
    assert word in result.stderr and result.stderr.count("\n") == 1


def test_too_few_images_are_refused(corit, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("path,label\n")
    one_line_error(corit("cor-sweep", "--data", tmp_path / "few.csv"))


def test_an_interrupted_sweep_leaves_a_folder_and_a_plot(
    arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    command_line = [str(CORIT), *arguments, *READS, "--rho", "0.01:0.5:40", "--seeds", "5", "--resume", str(kept)]
    command_line += ["--epochs", "10", "--batch-size", "4"]
    process = subprocess.Popen(command_line, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    runs = kept / "runs.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (runs.exists() and runs.read_text().count("\n") >= 12):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert "finished runs are kept in" in stderr and (kept / "partial.png").exists()
    assert "seeds = 5\n" in (kept / "run.toml").read_text()
    before = runs.read_text()
    assert before.endswith("\n") and all(json.loads(line)["model"] == "baseline" for line in before.splitlines())
