from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.errors import CoritError
from corit_cli.model.head import Head
from corit_cli.training.head import fit_head
from corit_cli.training.log import COLUMNS, Epoch, EpochLog
from corit_cli.training.sam import Step
from corit_cli.training.settings import TrainSettings


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@given(st.lists(st.tuples(st.integers(1, 9), *[st.floats(-9, 9)] * 4), min_size=1, max_size=9))
def test_an_epoch_is_the_mean_over_its_images(steps: list[tuple]) -> None:
    epoch = Epoch(0.1)
    for images, *seen in steps:
        epoch.add(Step(*seen), images)
    total = sum(images for images, *_ in steps)
    for k, name in enumerate(("loss", "perturbed", "gradient_norm", "cosine"), 1):
        assert epoch.means[name] == pytest.approx(sum(s[0] * s[k] for s in steps) / total)
    assert epoch.means["lr"] == 0.1


def test_a_head_tells_what_sam_saw() -> None:
    """One full batch an epoch: the first row is the gradient and the ascent at the initial weights, by autograd."""
    torch.manual_seed(1)
    z, y = torch.randn(12, 3), torch.arange(12) % 2
    settings, rows = TrainSettings(epochs=3, batch_size=12, rho=0.4, lr=0.05), []
    fit_head(z, y, torch.ones(12), settings, log=lambda **row: rows.append(row))
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[0]["lr"] == 0.05 > rows[1]["lr"] > rows[2]["lr"]

    torch.manual_seed(settings.seed)
    head = Head(3)
    head.fit_standardiser(z)
    x, weights = head.standardise(z), list(head.layers.parameters())

    def loss() -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(head.layers(x).squeeze(-1), y.float())

    def flat(values: tuple) -> torch.Tensor:
        return torch.cat([value.flatten() for value in values])

    gradient = torch.autograd.grad(loss(), weights)
    norm = flat(gradient).norm()
    before = loss().item()
    with torch.no_grad():
        for w, g in zip(weights, gradient, strict=True):
            w += settings.rho * g / norm
    there = torch.autograd.grad(loss(), weights)
    expected = [before, loss().item(), norm.item(), torch.cosine_similarity(flat(gradient), flat(there), 0).item()]
    assert [rows[0][name] for name in COLUMNS[4:8]] == pytest.approx(expected, rel=1e-4)
    assert rows[0]["perturbed"] > rows[0]["loss"]


def test_without_sam_both_points_are_one() -> None:
    rows = []
    z, y = torch.randn(8, 2), torch.arange(8) % 2
    fit_head(z, y, torch.ones(8), TrainSettings(epochs=1, rho=0), log=lambda **row: rows.append(row))
    assert rows[0]["loss"] == rows[0]["perturbed"] and rows[0]["cosine"] == 1 and rows[0]["gradient_norm"] > 0


def test_the_file_has_every_row(tmp_path: Path) -> None:
    log = EpochLog(tmp_path / "out" / "log.csv")
    log(stage="head", reading="cgp", fold=2, epoch=1, loss=0.5, lr=0.1)
    log(stage="tune", epoch=1, loss=0.25, held_out=0.75)
    assert not (tmp_path / "out").exists()  # a checkpoint is not begun by its log
    (tmp_path / "out").mkdir()
    log(stage="head", reading="cgp", epoch=2)
    assert not (tmp_path / "out" / "log.csv").exists()
    log(stage="tune", epoch=2, held_out=1 / 3)
    rows = read(tmp_path / "out" / "log.csv")
    assert [(row["stage"], row["reading"], row["fold"], row["epoch"]) for row in rows] == [
        ("head", "cgp", "2", "1"),
        ("tune", "", "", "1"),
        ("head", "cgp", "", "2"),
        ("tune", "", "", "2"),
    ]
    assert rows[0]["loss"] == "0.5" and rows[3]["held_out"] == "0.333333" and rows[3]["loss"] == ""
    assert tuple(rows[0]) == COLUMNS


def test_without_tensorboard_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CoritError, match="not installed: pip install tensorboard"):
        EpochLog(log_dir=tmp_path / "runs")


def test_tensorboard_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EpochLog(log_dir=tmp_path)
    for epoch in (1, 2):
        log(stage="head", reading="cgp", fold=3, epoch=epoch, loss=1 / epoch)
    log(stage="tune", epoch=1, held_out=0.5)
    log.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == {"head/cgp/fold-3/loss", "tune/held_out"}
    assert [(e.step, e.value) for e in found.Scalars("head/cgp/fold-3/loss")] == [(1, 1.0), (2, 0.5)]
