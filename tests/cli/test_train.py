"""``corit train`` end to end, with the embedded CLIP, then ``corit detect`` with what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from corit_cli.cli.train import _hidden, _quality_range
from tests.cli.conftest import one_line_error
from tests.conftest import photograph


def test_train_then_detect(corit, dataset: Path, tmp_path: Path) -> None:
    detector = tmp_path / "detector"
    arguments = ["train", dataset, "--out", detector, "--crop", "native", "--folds", 3, "--no-probe"]
    first = corit(*arguments)
    assert first.returncode == 0, first.stderr
    assert "Validation" in first.stdout and "CoRIT" in first.stdout
    with Image.open(detector / "validation.png") as plot:
        assert plot.width > 1000
    config = json.loads((detector / "config.json").read_text())
    assert config["backbone"]["name"] == "embedded" and config["crops"]["mode"] == "native"
    assert len(config["data"]["sources"]) == 4

    one_line_error(corit(*arguments), "already exists")
    weights = (detector / "model.safetensors").read_bytes()
    second = corit(*arguments, "--overwrite")
    assert second.returncode == 0 and second.stdout == first.stdout
    assert (detector / "model.safetensors").read_bytes() == weights

    files = sorted((dataset / "source0").rglob("*.png"))
    rows = [json.loads(line) for line in corit("detect", *files, "-c", detector, "--jsonl").stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(f) for f in files]
    fake, real = ([r["probability"] for r in rows if f"/{kind}/" in r["path"]] for kind in ("fake", "real"))
    assert sum(fake) / len(fake) > sum(real) / len(real) + 0.2


def test_shortcuts_are_reported_first(corit, tmp_path: Path) -> None:
    for i in range(30):
        for kind, suffix in (("real", "jpg"), ("fake", "png")):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            photograph(i, (40, 40)).save(tmp_path / "data" / kind / f"{i}.{suffix}")
    result = corit("train", tmp_path / "data", "--out", tmp_path / "out", "--device", "abacus")
    assert "Shortcuts" in result.stderr and "format" in result.stderr and "--match-codec" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere", "does not exist"]),
        ([".", "--cgp", "4", "--no-cgp"], ["not both"]),
        ([".", "--integrate", "a-b"], ["not a list of layers"]),
        ([".", "--head", "forest"], ["head must be"]),
        ([".", "--match-codec", "95-70"], ["--match-codec"]),
        ([".", "--optimizer", "adam"], ["optimizer must be"]),
        ([".", "--forge", "reconstruct"], ["needs autoencoder weights"]),
        ([".", "--degrade", "jpeg:200"], ["jpeg from 200"]),
        (["."], ["no images"]),
    ],
)
def test_mistakes_are_one_line(corit, arguments: list[str], words: list[str]) -> None:
    one_line_error(corit("train", *arguments), *words)


def test_small_parsers() -> None:
    assert (_hidden("linear"), _hidden("mlp"), _hidden("mlp:64")) == (0, 256, 64)
    assert (_quality_range("75-95"), _quality_range("80"), _quality_range(None)) == ((75, 95), (80, 80), None)
