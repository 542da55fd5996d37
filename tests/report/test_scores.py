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
    styles = {line.get_label().partition(":")[0]: line.get_linestyle() for line in axes.lines}
    assert styles["this detector"] == "-" and styles["linear probe, last layer"] == "--"


def test_histograms_count_every_image() -> None:
    found = scored()
    with draw((4, 4)) as (_, axes):
        draw_probabilities(axes, found)
    assert sum(bar.get_height() for container in axes.containers for bar in container) == 80
    fake, real = (container[0] for container in axes.containers)
    assert real.get_hatch() and not fake.get_hatch()  # where colours cannot be told apart
    assert fake.get_fill() and real.get_facecolor()[3] == 0
    assert fake.get_edgecolor()[3] == real.get_edgecolor()[3] == 1


def test_reliability_sets_what_is_said_against_what_is() -> None:
    found = scored(200, fake=0.25)
    with draw((4, 4)) as (_, axes):
        draw_reliability(axes, found)
    points = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    p, weights = found.probabilities[0], np.where(found.labels == 1, 3, 1)  # the classes weigh the same
    bins = np.minimum((10 * p).astype(int), 9)
    expected = [
        [np.average(values[bins == b], weights=weights[bins == b]) for values in (p, found.labels)]
        for b in np.unique(bins)
    ]
    np.testing.assert_allclose(points, expected)
