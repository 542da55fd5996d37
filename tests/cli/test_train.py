"""``corit train`` end to end, with the embedded CLIP, then ``corit detect`` with what it made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from corit_cli.cli.app import app
from corit_cli.training.resume import State
from tests.cli.conftest import one_line_error
from tests.conftest import TINY, photograph, random_tower

#: What a training leaves in its folder.
MADE = ["config.json", "log.csv", "model.safetensors", "run.toml", "validation.png"]


def test_train_then_detect(corit, dataset: Path, tmp_path: Path) -> None:
    for path in sorted(dataset.rglob("*.png"))[::2]:  # half of each source and class is enough
        path.unlink()
    detector = tmp_path / "detector"
    arguments = ["train", dataset, "--out", detector, "--crop", "native", "--folds", 3, "--no-probe"]
    first = corit(*arguments)
    assert first.returncode == 0, first.stderr
    for words in ("On the validation images", "All images: 3 real, 3 fake", "equal error rate", "Verdicts: fake from"):
        assert words in first.stdout
    assert "Beside" not in first.stdout and first.stderr.count("head: loss ") == 1
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


def test_faults_of_the_data_are_told_before(corit, folder: Path, dataset: Path, tmp_path: Path) -> None:
    tiny = ["--backbone", folder / "tower.safetensors", "--native", "none", "--no-face", "--integrate", "2-3"]
    tiny += ["--spread", "none", "--cgp", "1-2", "--folds", 3, "--no-probe"]
    files = sorted(dataset.rglob("*.png"))
    rows = [f"{file},{file.parent.name},{'val' if i % 3 == 0 else 'train'}" for i, file in enumerate(files)]
    leak = [row.replace(",val", ",train") for row in rows if row.endswith(",val")]
    (tmp_path / "leak.csv").write_text("\n".join(["path,label,split", *rows, *leak]) + "\n")
    result = corit("train", tmp_path / "leak.csv", *tiny, "--out", tmp_path / "det")
    assert result.returncode == 0, result.stderr
    assert "16 of 16 images for validation are in training, too" in " ".join(result.stderr.split())
    assert "16 of these images were trained on" in result.stderr
    for kind in ("real", "fake"):
        (tmp_path / "constant" / kind).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (64, 64), "gray").save(tmp_path / "constant" / kind / f"{number}.png")
    one_line_error(corit("train", tmp_path / "constant", *tiny, "--out", tmp_path / "none"), "nothing to learn")
    assert not (tmp_path / "none").exists()


def test_a_detector_that_shows_where(corit, dataset: Path, folder: Path, tmp_path: Path) -> None:
    tiny = [
        "--backbone",
        folder / "tower.safetensors",
        "--spread",
        "1-2",
        "--native",
        "none",
        "--no-face",
        "--integrate",
        "2-3",
        "--cgp",
        "1-2",
        "--folds",
        3,
        "--no-probe",
    ]
    photo = next((dataset / "source0" / "real").iterdir())
    result = corit("train", dataset, *tiny, "--out", tmp_path / "plain")
    assert result.returncode == 0, result.stderr
    one_line_error(corit("detect", photo, "-c", tmp_path / "plain", "--heatmap", tmp_path / "maps"), "--local")
    result = corit(
        "train", dataset, *tiny, "--out", tmp_path / "det", "--local", "self_blend", "--local", "resample@part"
    )
    assert result.returncode == 0, result.stderr
    assert "Pixel AUC of the heatmap" in result.stdout
    result = corit("detect", photo, "-c", tmp_path / "det", "--heatmap", tmp_path / "maps")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "maps" / f"{photo.stem}.heatmap.png") as drawn:
        assert drawn.height > 48


def test_a_detector_without_contrasts_shows_where_too(corit, dataset: Path, tmp_path: Path) -> None:
    """Its heatmaps read contrasts of their own, of the tower as it was tuned."""
    deep = tmp_path / "deep"
    deep.mkdir()
    save_file(random_tower(replace(TINY, layers=6)).state_dict(), deep / "tower.safetensors")
    (deep / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    tiny = [
        "--backbone",
        deep / "tower.safetensors",
        "--integrate",
        "6",
        "--spread",
        "1-2",
        "--native",
        "none",
        "--no-face",
        "--no-cgp",
        "--no-probe",
        "--device",
        "cpu",
    ]
    tuning = ["--tune", "last:2", "--tune-epochs", 1, "--view", "blur:2", "--local", "self_blend"]
    result = corit("train", dataset, *tiny, *tuning, "--out", tmp_path / "det")
    assert result.returncode == 0, result.stderr
    assert "Pixel AUC of the heatmap" in result.stdout
    config = json.loads((tmp_path / "det" / "config.json").read_text())
    assert config["settings"]["cgp"] == []
    places = config["localizer"]["settings"]
    assert places["cgp"] == [4, 5, 6] and places["views"] == ["blur:2"] and places["integrate"] == []
    photo = next((dataset / "source0" / "real").iterdir())
    result = corit("detect", photo, "-c", tmp_path / "det", "--heatmap", tmp_path / "maps")
    assert result.returncode == 0 and len(list((tmp_path / "maps").iterdir())) == 1, result.stderr


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
        ([".", "--head", "forest"], ["a head is linear, mlp, mlp:WIDTH, rbf or rbf:LANDMARKS, not 'forest'"]),
        ([".", "--match-codec", "95-70"], ["--match-codec"]),
        ([".", "--optimizer", "adam"], ["optimizer must be"]),
        ([".", "--forge", "reconstruct"], ["needs autoencoder weights"]),
        ([".", "--degrade", "jpeg:200"], ["jpeg from 200"]),
        ([".", "--tune", "blocks"], ["--tune takes", "not 'blocks'"]),
        ([".", "--tune-lr", "1e-5"], ["--tune-lr", "ignored with --tune head"]),
        ([".", "--tune", "head", "--micro-batch", "4", "--folds", "5"], ["--micro-batch", "ignored"]),
        ([".", "--tune", "head", "--resume"], ["--resume", "--tune"]),
        ([".", "--tune", "ln", "--folds", "5"], ["--folds", "ignored with --tune ln"]),
        ([".", "--tune", "ln", "--precision", "fp64"], ["precision must be"]),
        ([".", "--tune", "ln", "--optimizer", "sgd"], ["--tune-lr"]),
        ([".", "--tune", "ln", "--resume"], ["no interrupted run"]),
        ([".", "--tune", "ln", "--resume", "--overwrite"], ["one of them"]),
        ([".", "--tune", "ln", "--more-windows", "1"], ["--more-windows", "--tune"]),
        ([".", "--degrade", "jpeg", "--copies", "0"], ["--copies 0 makes none"]),
        ([".", "--copies", "2"], ["say how with --degrade"]),
        ([".", "--degrade", "jpeg"], ["no images"]),  # nothing else is wrong with it
        ([".", "--mask", "none"], ["--inject-at"]),
        ([".", "--crop", "resize", "--native", "4-6"], ["--native", "--crop both"]),
        ([".", "--tune", "ln", "--face", "6"], ["--face", "--tune"]),
        ([".", "--no-cgp", "--view", "blur:2"], ["--view is compared with", "none of them is used"]),
        (["."], ["no images"]),
    ],
)
def test_mistakes_are_one_line(corit, arguments: list[str], words: list[str]) -> None:
    one_line_error(corit("train", *arguments), *words)


def tune_arguments(dataset: Path, folder: Path, out: Path, *more: object) -> list[str]:
    small = (
        "--backbone",
        folder / "tower.safetensors",
        "--view",
        "blur:1.0",
        "--cgp",
        "2,3",
        "--spread",
        "1-2",
        "--native",
        "none",
        "--integrate",
        "2,3",
    )
    arguments = (
        "train",
        dataset,
        "--out",
        out,
        "--tune",
        "last:1",
        "--tune-batch-size",
        8,
        *small,
        "--crop",
        "native",
        "--device",
        "cpu",
    )
    return [str(a) for a in (*arguments, *more)]


def test_tune_then_detect(corit, environment, dataset: Path, folder: Path, tmp_path: Path) -> None:
    """One process, then two that torchrun starts: these print and write once, and the same."""
    one_line_error(corit(*tune_arguments(dataset, folder, tmp_path / "x", "--tune", "most")), "--tune takes")
    more = ("--tune-epochs", 1, "--optimizer", "sgd", "--tune-lr", 1e-3)
    one = corit(*tune_arguments(dataset, folder, tmp_path / "one", *more))
    assert one.returncode == 0, one.stderr
    assert "Tuned last:1: the loss on training images set aside was" in one.stdout
    assert "which chose the epoch" in one.stdout
    assert "Beside linear probe, last layer: 12 images" in one.stdout
    assert "epoch 1 of 1: loss" in one.stderr
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["training"]["tune"]["scope"] == "last:1" and config["training"]["tune"]["precision"] == "fp32"
    assert all(name.startswith("blocks.2.") for name in config["tuned"]) and len(config["tuned"]) == 12

    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "corit_cli"]
    command = [sys.executable, *launch, *tune_arguments(dataset, folder, tmp_path / "two", *more)]
    environment = environment | {"OMP_NUM_THREADS": "1"}
    two = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert two.returncode == 0, two.stderr
    assert two.stdout.splitlines()[:-1] == one.stdout.splitlines()[:-1]
    assert two.stderr.count("epoch 1 of 1") == two.stderr.count("Shortcuts") == 1
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)
    assert sorted(os.listdir(tmp_path / "two")) == MADE

    found = corit("detect", next(dataset.rglob("*.png")), "-c", tmp_path / "two", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["results"][0]["verdict"]


def test_an_interrupted_run_is_gone_on_with(
    dataset: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = tune_arguments(dataset, folder, out, "--tune-epochs", 2, "--no-probe", "--no-cache")
    save = State.save

    def interrupt(state: State, *arguments: object) -> None:
        if len(state.history) > 2:
            raise KeyboardInterrupt
        save(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(State, "save", interrupt)
        stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130 and "--resume to go on" in stopped.stderr
    assert sorted(os.listdir(out)) == ["log.csv", "resume.safetensors", "run.toml"]
    record = (out / "run.toml").read_text()
    assert "tune-epochs = 2\n" in record
    unclear = CliRunner().invoke(app, arguments)
    assert unclear.exit_code == 2 and "interrupted run" in unclear.stderr
    resumed = CliRunner().invoke(app, [*arguments, "--resume"])
    assert resumed.exit_code == 0 and "epoch 2 of 2" in resumed.stderr and "epoch 1 of 2" not in resumed.stderr
    assert sorted(os.listdir(out)) == MADE
    told = (out / "log.csv").read_text()
    assert [line.split(",")[3] for line in told.splitlines() if line.startswith("tune,")] == ["0", "1", "2"]
    assert (out / "run.toml").read_text() == record
    whole = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert whole.exit_code == 0 and (out / "log.csv").read_text() == told  # as if it had never stopped
