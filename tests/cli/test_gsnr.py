from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from corit_cli.cli import gsnr as command
from corit_cli.cli.app import Commands
from corit_cli.data.manifest import load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import load_backbone, state_sha256
from corit_cli.model.settings import CoRITSettings
from corit_cli.training.run import Run, train_head
from corit_cli.training.settings import TrainSettings
from tests.conftest import make_tiles

app = typer.Typer(cls=Commands)
app.callback()(lambda: None)
app.command("gsnr")(command.gsnr)

READS = ("--integrate", "2-3", "--cgp", "2-3", "--inject-at", "1")


@pytest.fixture
def gsnr(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("CORIT_CACHE", str(tmp_path / "cache.sqlite"))

    def run(*arguments: object, reads: tuple[str, ...] = READS, backbone: bool = True) -> Any:
        weights = ["--backbone", str(folder / "tower.safetensors")] if backbone else []
        data = ["--data", str(folder / "tiles/manifest.csv")]
        return CliRunner().invoke(app, ["gsnr", *data, *weights, *reads, *map(str, arguments)])

    return run


def test_the_table_says_in_words_what_is_not_there(gsnr):
    result = gsnr("--samples", 12)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("GSNR on 12 images (6 fake) in 6 jackknife groups; heads fitted on 12 others")
    assert sum(line.split()[:1] == ["4"] for line in lines) == 3  # twice GSNR, once the probe
    for words in (
        "random head",
        "GSNR, fitted head",
        "corit - baseline",
        "not read",
        "probe AUC",
        "RRM at layer 1 lets",
    ):
        assert words in result.stdout
    for words in (
        "Random head, corit: ",
        "Fitted head, corit against baseline: ",
        "not distinguishable from zero at layer",
    ):
        assert words in result.stdout
    assert lines[-1] == "For a plot of GSNR against depth give --plot gsnr.svg."


def test_json_holds_what_it_takes_to_redo_it(gsnr, folder: Path):
    arguments = ("--samples", 12, "--layers", "0,2-3", "--head-state", "fitted", "--json")
    result = gsnr(*arguments)
    assert result.stdout == gsnr(*arguments).stdout
    found = json.loads(result.stdout)
    assert {row["layer"] for row in found["gsnr"]} == {"0", "2", "3"}
    for row in found["gsnr"]:
        assert row["low"] <= row["value"] <= row["high"] and row["n"] == 12
        assert (row["verdict"] == "above zero") == (row["low"] > 0)
    assert found["backbone"]["sha256"] == load_backbone(str(folder / "tower.safetensors")).sha256
    assert found["settings"]["seed"] == 0 and found["versions"]["torch"]
    assert [m["settings"]["inject_at"] for m in found["models"]] == [[], [1]]
    assert {row["layer"] for row in found["differences"]} == {"0", "2", "3"}
    assert found["proxy"]["corit"]["layers"]["2"]["norm"]["value"] > 0
    assert len(found["data"]["fingerprint"]) == 64
    assert found["data"]["strata"] == ["real: all", "fake: all"]
    assert len(found["reading"]) == 5 and found["reading"][0].startswith("Fitted head, baseline: ")


def test_csv_and_plot_are_written_besides(gsnr, tmp_path: Path):
    result = gsnr("--compare", "corit", "--samples", 12, "--head-state", "init")
    assert result.exit_code == 0 and "corit - baseline" not in result.stdout
    arguments = ("--by", "class", "--csv", tmp_path / "out.csv", "--plot", tmp_path / "out.svg", "--json")
    result = gsnr("--samples", 12, "--head-state", "fitted", *arguments)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    found = json.loads(result.stdout)["gsnr"]
    assert [float(row["value"]) for row in rows] == [row["value"] for row in found]
    assert {row["subset"] for row in rows} == {"all", "real", "fake"}
    assert "fitted head, real" in (tmp_path / "out.svg").read_text()


def test_heads_alone_are_shown_with_the_range_over_random_ones(gsnr, tmp_path: Path):
    result = gsnr("--samples", 12, "--wrt", "head", "--heads", 3, "--csv", tmp_path / "out.csv", reads=())
    assert result.exit_code == 0, result.output
    assert " 3 heads" in result.stdout and "Mean loss" not in result.stdout and "RRM" not in result.stdout
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert {len(row["draws"].split()) for row in rows if row["head"] == "initial"} == {3}
    assert {row["draws"] for row in rows if row["head"] == "fitted"} == {""}
    assert all(abs(float(row["independent_draws.value"])) < abs(float(row["value"])) for row in rows)  # more noise
    assert "GSNR under independent draws, as a share of these: 0." in result.stdout
    again = gsnr("--samples", 12, "--wrt", "head", "--heads", 3, reads=())
    assert again.stdout == result.stdout  # from the cache


def test_stages_of_training_and_sources_are_asked_for_and_shown(gsnr, tmp_path: Path):
    options = ("--samples", 12, "--head-state", "init,2", "--strata", "source", "--heads", 2, "--layers", "1,2")
    result = gsnr(*options, "--plot", tmp_path / "out.svg")
    assert result.exit_code == 0, result.output
    for words in ("GSNR, head after 2 epochs", "Head after 2 epochs, corit: ", " 2 heads"):
        assert words in result.stdout
    assert result.stdout.splitlines()[-1].startswith("A plot of GSNR against depth is in ")
    assert "Sources of fewer than 3 independent images make up one stratum" in result.stdout
    assert "head after 2 epochs" in (tmp_path / "out.svg").read_text()


def test_a_checkpoint_brings_its_own_head(gsnr, folder: Path):
    backbone = load_backbone(str(folder / "tower.safetensors"))
    settings = CoRITSettings(("blur:1.0",), cgp=(2,), inject_at=(), integrate=(2, 3))
    extractor = Extractor(backbone, settings, CropConfig("native", 32))
    samples = load_samples(folder / "tiles/manifest.csv")
    trained = train_head(Run(samples, extractor, TrainSettings(epochs=5, folds=3), probe=False))
    trained.checkpoint.save(folder / "detector")
    arguments = ("-c", folder / "detector", "--samples", 12, "--head-state", "fitted", "--json")
    result = gsnr(*arguments, reads=(), backbone=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["models"][1]["head_sha256"] == state_sha256(trained.checkpoint.head.state_dict())
    assert found["models"][1]["settings"]["cgp"] == [2]
    assert found["crops"]["mode"] == "native"
    assert "checkpoint" in found["notes"][0]
    refused = gsnr(*arguments)
    assert refused.exit_code == 2 and "checkpoint already says" in refused.stderr
    refused = gsnr(*arguments, "--crop", "resize", reads=(), backbone=False)
    assert refused.exit_code == 2 and "was fitted to --crop native" in refused.stderr
    more = json.loads(gsnr(*arguments, "--crops", 2, reads=(), backbone=False).stdout)
    assert more["crops"] == found["crops"] | {"crops": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "one"), "not a list of layers"),
        (("--layers", "9"), "no layer 9"),
        (("--wrt", "pixels"), "wrt must be params, tokens or head, not 'pixels'"),
        (("--by", "day"), "by must be one of"),
        (("--compare", "corit,other"), "--compare takes"),
        (("--head-state", "half"), "--head-state takes"),
        (("--head-state", "init,50"), "there is no epoch 50"),
        (("--strata", "video"), "strata must be class or source, not 'video'"),
        (("--plot", "plot.gif"), ".png or .svg"),
        (("--data", "nowhere"), "does not exist"),
        (("--crop", "middle"), "crop must be both, native or resize, not 'middle'"),
        (("--integrate", "2-9"), "integrate names layer 5"),
        (("--native", "2"), "that takes --crop both"),
        (("--wrt", "head"), "leave out --inject-at"),
        (("--face", "2"), "no face is read by itself here"),
    ],
)
def test_mistakes_are_one_line(gsnr, arguments: tuple[str, ...], words: str):
    result = gsnr(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert not result.stdout


def test_the_default_images_are_named_when_missing(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("corit_cli.files.weights_dir", lambda: tmp_path)
    result = CliRunner().invoke(app, ["gsnr", "--backbone", str(folder / "tower.safetensors")])
    assert result.exit_code == 2 and "give --data" in result.stderr
    make_tiles(tmp_path / "samples")
    result = CliRunner().invoke(
        app, ["gsnr", "--backbone", str(folder / "tower.safetensors"), *READS, "--samples", "6", "--head-state", "init"]
    )
    assert result.exit_code == 0 and result.stdout.startswith("GSNR on 6 images")


def test_help_gives_examples():
    result = CliRunner().invoke(app, ["gsnr", "--help"], env={"COLUMNS": "120"})
    assert "corit gsnr --layers all --plot gsnr.svg" in result.stdout
