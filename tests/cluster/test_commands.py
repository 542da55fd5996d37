"""``--ray`` end to end, on a cluster that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from corit_cli.cli.app import app, load_command
from tests.cli.conftest import one_line_error
from tests.conftest import random_tower, save_tiny_detector

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


def test_runs_of_a_sweep_are_kept_as_here(corit, cluster, options: list[str], tiles: Path, tmp_path: Path) -> None:
    """And what is made of them is the same; that they are, tests/cluster/test_training.py says."""
    sweep = ["cor-sweep", "--data", tiles, *options, "--rho", "0.5", "--seeds", "1", "--epochs", "1", "--json"]
    sweep += ["--compare", "baseline", "--tune", "head", "--resume", tmp_path / "runs"]
    there = corit(*sweep, "--ray", cluster.address, "--num-cpus", "1")
    assert there.returncode == 0, there.stderr
    kept = (tmp_path / "runs" / "runs.jsonl").read_text()
    here = corit(*sweep)
    assert kept and here.stdout == there.stdout and (tmp_path / "runs" / "runs.jsonl").read_text() == kept


def test_a_training_gives_the_same_weights(corit, cluster, options: list[str], dataset: Path, tmp_path: Path) -> None:
    training = [
        "train",
        dataset,
        *options,
        "--epochs",
        "2",
        "--no-face",
        "--spread",
        "1-2",
        "--native",
        "none",
        "--no-cache",
        "--no-probe",
    ]
    for name, more in (("here", ()), ("there", ("--ray", cluster.address, "--num-cpus", "1"))):
        done = corit(*training, "--out", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    here, there = (load_file(tmp_path / name / "model.safetensors") for name in ("here", "there"))
    assert here.keys() == there.keys() and all((here[name] == there[name]).all() for name in here)
    assert (tmp_path / "here/config.json").read_text() == (tmp_path / "there/config.json").read_text()


def test_a_mistake_is_one_line(corit, tmp_path: Path) -> None:
    one_line_error(corit("detect", tmp_path / "a.png", "--ray"), "--ray goes with --out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("detect", "a.png", "--out", "a.csv", "--ray"), "a folder is written"),
        (("detect", "a.png", "--out", "there", "--ray"), "a folder is written"),
        (("detect", "a.png", "--out", "o.csv", "--num-cpus", "2"), "goes with --ray"),
        (("detect", "empty", "--out", "o", "--ray"), "no images or videos in empty"),
        (("detect", "there", "--out", "o", "--ray", "--workers", "2"), "leave out --workers"),
        (("cor-sweep", "--theory", "--ray"), "leave out --theory"),
        (("train", "empty", "--tune", "ln", "--ray", "--out", "o"), "torchrun"),
    ],
)
def test_mistakes_are_told_before_a_cluster_is_looked_for(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    (tmp_path / "empty").mkdir()
    checkpoint = save_tiny_detector(tmp_path)
    more = ("-c", str(checkpoint)) if arguments[0] == "detect" else ()
    found = CliRunner().invoke(app, [*arguments, *more])
    assert found.exit_code == 2 and said in " ".join(found.output.split()), found.output


def test_an_address_is_told_from_what_follows() -> None:
    """``--ray`` may be left alone before a source, an option, or the end."""
    command = load_command("detect")
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
