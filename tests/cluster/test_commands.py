"""``--ray`` end to end, on a Ray that the command starts and stops."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from corit_cli.cli.app import app
from tests.cli.conftest import one_line_error
from tests.conftest import random_tower

pytest.importorskip("ray")
READS = ("--integrate", "2-3", "--cgp", "2-3")


@pytest.fixture
def options(tmp_path: Path, environment: dict[str, str]) -> list[str]:
    """A tiny backbone; one thread, as the workers have."""
    from safetensors.torch import save_file

    save_file(random_tower().state_dict(), tmp_path / "tower.safetensors")
    (tmp_path / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    environment["OMP_NUM_THREADS"] = "1"
    return ["--backbone", str(tmp_path / "tower.safetensors"), *READS]


def test_a_sweep_gives_the_same_bytes(corit, options: list[str], tiles: Path, tmp_path: Path) -> None:
    sweep = ["cor-sweep", "--data", tiles, *options, "--rho", "0.5", "--seeds", "1", "--epochs", "1", "--json"]
    here = corit(*sweep, "--resume", tmp_path / "here")
    there = corit(*sweep, "--resume", tmp_path / "there", "--ray", "--num-cpus", "1")
    assert here.returncode == there.returncode == 0, there.stderr
    assert here.stdout == there.stdout
    kept = [sorted((tmp_path / name / "runs.jsonl").read_text().splitlines()) for name in ("here", "there")]
    assert kept[0] == kept[1]  # runs are kept alike


def test_a_training_gives_the_same_weights(corit, options: list[str], dataset: Path, tmp_path: Path) -> None:
    training = [
        "train",
        dataset,
        *options,
        "--epochs",
        "2",
        "--no-face",
        "--native",
        "none",
        "--no-cache",
        "--no-probe",
    ]
    for name, more in (("here", ()), ("there", ("--ray", "--num-cpus", "1"))):
        done = corit(*training, "--out", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    here, there = (load_file(tmp_path / name / "model.safetensors") for name in ("here", "there"))
    assert here.keys() == there.keys() and all((here[name] == there[name]).all() for name in here)
    assert (tmp_path / "here/config.json").read_text() == (tmp_path / "there/config.json").read_text()


def test_mistakes_are_one_line(corit, tmp_path: Path, tiles: Path) -> None:
    (tmp_path / "a.png").touch()
    one_line_error(corit("detect", tmp_path / "a.png", "--ray"), "--ray goes with --out")
    one_line_error(corit("detect", tmp_path / "a.png", "--out", tmp_path / "a.csv", "--ray"), "a folder is written")
    one_line_error(corit("detect", tmp_path / "a.png", "--out", tmp_path / "o.csv", "--num-cpus", "2"), "with --ray")
    one_line_error(corit("cor-sweep", "--data", tiles, "--theory", "--ray"), "leave out --theory")
    one_line_error(corit("train", tiles, "--tune", "ln", "--ray", "--out", tmp_path / "o"), "torchrun")


def test_an_address_is_told_from_what_follows() -> None:
    """``--ray`` may be left alone before a source, an option, or the end."""
    from typer.main import get_command

    command = get_command(app).commands["detect"]
    for after, address, paths in (
        (["photos"], "local", ["photos"]),
        (["auto", "photos"], "auto", ["photos"]),
        (["10.0.0.1:6379", "photos"], "10.0.0.1:6379", ["photos"]),
        (["ray://head:10001", "a", "b"], "ray://head:10001", ["a", "b"]),
        (["s3://bucket/photos"], "local", ["s3://bucket/photos"]),
        (["--", "auto"], "local", ["auto"]),
    ):
        context = command.make_context("detect", ["--out", "o", "--ray", *after])
        assert (context.params["ray"], context.params["paths"]) == (address, paths)
