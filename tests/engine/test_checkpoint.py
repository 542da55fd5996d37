from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from corit_cli.data.images import CropConfig
from corit_cli.engine.checkpoint import Checkpoint, write_atomically
from corit_cli.engine.fit import Calibration, Thresholds
from corit_cli.errors import CoritError
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings


def checkpoint(hidden: int = 3) -> Checkpoint:
    torch.manual_seed(0)
    head = Head(12, hidden)
    head.fit_standardiser(torch.randn(20, 12))
    return Checkpoint(
        head,
        {"name": "tiny", "sha256": "abc", "activation": "gelu"},
        CoRITSettings(("jpeg:80",), cgp=(2,), inject_at=(1,), integrate=(2, 3)),
        CropConfig("native", 32, 3),
        Calibration(1.5, -0.25),
        Thresholds(0.2, 0.8),
        training={"seed": 1},
    )


@pytest.mark.parametrize("hidden", [0, 3])
def test_what_is_saved_is_loaded(hidden: int, tmp_path: Path) -> None:
    saved = checkpoint(hidden)
    saved.save(tmp_path / "det")
    loaded = Checkpoint.load(tmp_path / "det")
    z = torch.randn(5, 12)
    assert torch.equal(loaded.head(z), saved.head(z))
    for name in ("backbone", "settings", "crops", "calibration", "thresholds", "training", "sha256"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert sorted(os.listdir(tmp_path / "det")) == ["config.json", "model.safetensors"]


TUNED = {"blocks.1.fc.weight": torch.arange(6.0).view(2, 3), "class_embedding": torch.ones(4)}


def test_tuned_weights_stand_beside_the_head(tmp_path: Path) -> None:
    plain, saved = checkpoint(), checkpoint()
    saved.tuned = dict(TUNED)
    assert saved.sha256 != plain.sha256 and plain.tuned == {}
    saved.save(tmp_path / "det")
    loaded = Checkpoint.load(tmp_path / "det")
    assert set(loaded.tuned) == set(TUNED) and all(torch.equal(loaded.tuned[n], t) for n, t in TUNED.items())
    assert loaded.sha256 == saved.sha256
    z = torch.randn(5, 12)
    assert torch.equal(loaded.head(z), saved.head(z))


def test_a_checkpoint_from_before_there_was_tuning(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    config = json.loads((tmp_path / "det" / "config.json").read_text())
    del config["tuned"]
    (tmp_path / "det" / "config.json").write_text(json.dumps(config))
    assert Checkpoint.load(tmp_path / "det").tuned == {}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("tower.class_embedding", None, "not the tuned weights it names"),
        ("tower.ln_pre.weight", torch.ones(4), "not the tuned weights it names"),
        ("tower.class_embedding", torch.tensor([1.0, float("nan")]), "not finite"),
        ("head.weight", torch.ones(4), "does not fit"),
    ],
)
def test_damaged_tuned_weights_are_refused(
    name: str, tensor: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    saved = checkpoint()
    saved.tuned = dict(TUNED)
    saved.save(tmp_path / "det")
    tensors = load_file(tmp_path / "det" / "model.safetensors") | {name: tensor}
    save_file({n: t for n, t in tensors.items() if t is not None}, tmp_path / "det" / "model.safetensors")
    with pytest.raises(CoritError, match=message):
        Checkpoint.load(tmp_path / "det")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    with pytest.raises(CoritError, match="--overwrite"):
        checkpoint().save(tmp_path / "det")
    checkpoint().save(tmp_path / "det", overwrite=True)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "does not fit"),
        (lambda f: edit(f, format=99), "format 99"),
        (lambda f: edit(f, head={"features": 13, "hidden": 3}), "does not fit"),
        (lambda f: edit(f, head={"features": 12, "hidden": 0}), "does not fit"),
        (lambda f: edit(f, settings={"colour": "blue"}), "damaged"),
        (lambda f: edit(f, crops={"mode": "squash"}), "squash"),
    ],
)
def test_what_is_wrong_is_said(spoil, message: str, tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    spoil(tmp_path / "det")
    with pytest.raises(CoritError, match=message):
        Checkpoint.load(tmp_path / "det")


def test_a_missing_checkpoint_is_never_a_random_head(tmp_path: Path) -> None:
    with pytest.raises(CoritError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(CoritError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]
