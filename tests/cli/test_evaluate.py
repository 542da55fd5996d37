"""``corit evaluate`` with a tiny detector, in this process, and once as installed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from corit_cli.cli import evaluate as command
from corit_cli.cli.app import Commands
from corit_cli.data.manifest import load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import load_backbone
from corit_cli.model.settings import CoRITSettings
from corit_cli.training.run import Run, train_head
from corit_cli.training.settings import TrainSettings

app = typer.Typer(cls=Commands)
app.callback()(lambda: None)
app.command("evaluate")(command.evaluate)


@pytest.fixture(scope="module")
def detector(folder: Path) -> Path:
    backbone = load_backbone(str(folder / "tower.safetensors"))
    settings = CoRITSettings(("blur:1.0",), cgp=(2,), inject_at=(), integrate=(2, 3))
    extractor = Extractor(backbone, settings, CropConfig("native", 32))
    samples = load_samples(folder / "tiles/manifest.csv")
    trained = train_head(Run(samples, extractor, TrainSettings(epochs=5, folds=3), probe=False))
    trained.checkpoint.save(folder / "detector", overwrite=True)
    return folder / "detector"


@pytest.fixture
def evaluate(detector: Path, dataset: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs on a folder of 24 real and 24 fake images of four sources, with a cache of the test's own."""

    def run(*arguments: object, data: Path = dataset, weights: Path = detector) -> Any:
        cache = ["--cache", str(tmp_path / "cache.sqlite")]
        return CliRunner().invoke(app, ["evaluate", str(data), "-c", str(weights), *cache, *map(str, arguments)])

    return run


def test_tables(evaluate) -> None:
    result = evaluate()
    assert result.exit_code == 0, result.output
    for words in ("Verdicts: fake from", "All images: 24 real, 24 fake", "equal error rate", "By source", "source3"):
        assert words in result.stdout
    assert "By generator" in result.stdout and "Robustness" not in result.stdout
    assert "By source" not in evaluate("--by", "generator").stdout
    assert "By generator" not in evaluate("--by", "none").stdout


def test_json_has_everything_and_the_same_bytes(evaluate, dataset: Path, tmp_path: Path) -> None:
    for i in range(2):  # two sources of twelve and twelve
        shutil.copytree(dataset / f"source{i + 2}", dataset / f"source{i}", dirs_exist_ok=True)
        shutil.rmtree(dataset / f"source{i + 2}")
    peer = tmp_path / "peer.csv"
    rows = [f"{s.path.relative_to(dataset)},{s.label * 0.5 + i % 3 / 10}" for i, s in enumerate(load_samples(dataset))]
    peer.write_text("\n".join(["path,score", *rows[1:]]))
    arguments = ("--json", "--robustness", "jpeg-50,crop", "--protocol", "leave-generator-out", "--scores", peer)
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == evaluate(*arguments).stdout
    found = json.loads(result.stdout)
    assert (found["data"]["real"], found["data"]["fake"], found["data"]["unreadable"]) == (24, 24, [])
    assert set(found["overall"]["figures"]) >= {"auc", "eer", "tpr_at_fpr_0.01", "ece", "fpr", "balanced_accuracy"}
    assert [t["by"] for t in found["tables"]] == ["source", "generator"] and found["videos"] is None
    names = [c["name"] for c in found["robustness"]["chains"]]
    assert names == ["jpeg-50", "crop-0.9", "crop-0.75", "crop-0.5", "crop-0.3"]
    assert found["peers"][0]["name"] == "peer" and found["peers"][0]["missing"] == 1
    assert found["peers"][0]["difference"]["low"] < found["peers"][0]["difference"]["high"]
    (protocol,) = found["protocols"]
    assert protocol["name"] == "leave-generator-out" and len(protocol["groups"]) == 2 and protocol["passed_over"] == {}
    for kind in ("as_groups_vary", "one_new_group"):
        assert set(protocol[kind]) == {"ours", "probe", "difference"}
    assert protocol["share_images"] is False and found["overall"]["as_sources_vary"] == {}


def test_csv_and_page_are_written_besides(evaluate, tmp_path: Path) -> None:
    result = evaluate("--robustness", "jpeg-50", "--csv", tmp_path / "o.csv", "--html", tmp_path / "o.html")
    assert result.exit_code == 0, result.output
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert list(rows[0]) == [
        "path", "label", "source", "generator", "video_id", "probability", "verdict", "jpeg-50",
    ]  # fmt: skip
    assert {r["label"] for r in rows} == {"real", "fake"} and {r["source"] for r in rows} == {
        f"source{i}" for i in range(4)
    }
    assert all(0 <= float(r["probability"]) <= 1 and r["probability"] != r["jpeg-50"] for r in rows)
    assert "</html>" in (tmp_path / "o.html").read_text()
    # What was written can be a peer: the same detector differs from itself by nothing.
    found = json.loads(evaluate("--scores", tmp_path / "o.csv", "--json").stdout)
    assert abs(found["peers"][0]["difference"]["value"]) < 1e-3 and found["peers"][0]["images"] == 48


def test_unreadable_images_are_left_out_and_counted(evaluate, dataset: Path) -> None:
    bad = next(dataset.rglob("*.png"))
    bad.write_text("not a picture")
    result = evaluate("--json")
    assert result.exit_code == 0
    assert f"left out {bad}" in result.stderr.replace("\n", "")
    found = json.loads(result.stdout)
    assert found["data"]["real"] + found["data"]["fake"] == 47
    assert found["data"]["unreadable"] == [{"path": str(bad), "error": "not an image that can be read"}]


def test_a_split(evaluate, dataset: Path, tmp_path: Path) -> None:
    for i in range(3):
        shutil.move(dataset / f"source{i}", tmp_path / "split" / ("val" if i else "train") / f"source{i}")
    result = evaluate("--split", "val", "--json", data=tmp_path / "split")
    assert json.loads(result.stdout)["data"]["real"] == 12
    result = evaluate("--split", "test", data=tmp_path / "split")
    assert result.exit_code == 2 and "(there: train, val)" in result.stderr


def test_one_class(evaluate, dataset: Path) -> None:
    for folder in dataset.glob("*/fake"):
        shutil.rmtree(folder)
    result = evaluate()
    assert result.exit_code == 0, result.output
    assert "all 24 images are real" in result.stdout and "real images called fake" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--by", "day"), "--by takes"),
        (("--robustness", "sepia"), "unknown robustness test 'sepia'"),
        (("--protocol", "leave-one-out"), "unknown protocol"),
        (("--protocol", "leave-source-out"), "fewer than 8 of a class"),
        (("--scores", "nowhere.csv"), "does not exist"),
        (("--scores", "a/x.csv", "--scores", "b/x.csv"), "the same name"),
        (("--csv", "no/where.csv"), "there is no folder no"),
        (("--html", "no/where.html"), "there is no folder no"),
        (("--csv", "."), "cannot write .: it is a folder"),
    ],
)
def test_mistakes_are_one_line(evaluate, arguments: tuple[str, ...], words: str) -> None:
    result = evaluate(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert not result.stdout


def test_a_folder_without_images(evaluate, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    result = evaluate(data=tmp_path / "nothing")
    assert result.exit_code == 2 and "no images" in result.stderr


def test_it_is_listed(corit) -> None:
    assert "evaluate" in corit("--help").stdout
    assert "--robustness" in corit("evaluate", "--help").stdout
