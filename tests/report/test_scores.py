from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from corit_cli.errors import CoritError
from corit_cli.report.figure import as_svg, draw
from corit_cli.report.scores import draw_probabilities, draw_reliability, draw_roc, validation_picture
from tests.evaluation.test_figures import scored


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_validation_picture_shows_scores_and_probe(tmp_path: Path) -> None:
    found = scored()
    probe = np.random.default_rng(3).normal(size=80)
    for name, values in (("a", None), ("b", None), ("c", probe)):
        validation_picture(found, values, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plain, beside = pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png")
    width = plain.shape[1] // 3
    assert plain.shape == beside.shape and plain.shape[1] > 1000
    changed = (plain != beside).any(axis=(0, 2))
    assert changed[:width].any() and not changed[-width:].any()  # the ROC panel, and not the last
    with pytest.raises(CoritError, match="no folder"):
        validation_picture(found, None, tmp_path / "missing" / "a.png")


def test_curves_bear_their_area() -> None:
    found = scored()
    probe = np.random.default_rng(3).normal(size=80)
    with draw((4, 4)) as (figure, axes):
        draw_roc(axes, found, probe)
    text = as_svg(figure, "roc")
    for name, values in (("this detector", found.logits[0]), ("linear probe, last layer", probe)):
        assert f"{name}: {roc_auc_score(found.labels, values):.3f}" in text
    called = found.verdicts[0] == "fake"
    point = [float(called[found.labels == label].mean()) for label in (0, 1)]
    assert any(line.get_xydata().tolist() == [point] for line in axes.lines)


def test_histograms_count_every_image() -> None:
    found = scored()
    with draw((4, 4)) as (_, axes):
        draw_probabilities(axes, found)
    assert sum(bar.get_height() for container in axes.containers for bar in container) == 80


def test_reliability_sets_what_is_said_against_what_is() -> None:
    found = scored(200)
    with draw((4, 4)) as (_, axes):
        draw_reliability(axes, found)
    points = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    p = found.probabilities[0]
    bins = np.minimum((10 * p).astype(int), 9)
    assert points == [[p[bins == b].mean(), found.labels[bins == b].mean()] for b in np.unique(bins)]
