from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from corit_cli.cor.collapse import COR, Criteria, Run, critical_radius
from corit_cli.cor.sweep import Found, Sweep
from corit_cli.cor.theory import Condition, Theory
from corit_cli.errors import CoritError
from corit_cli.metrics.correlation import Correlation
from corit_cli.metrics.gsnr import Moments, estimate
from corit_cli.report.cor_plot import cor_plot, theory_plot
from corit_cli.report.figure import LOOKS

CRITERIA = Criteria(math.log(2), 0.6)


def sweep_of(*names: str, cliff: float = 0.2) -> Sweep:
    """Arms that collapse from ``cliff`` on, but for the last, which never does."""
    out = Sweep(CRITERIA)
    for name in names:
        at = math.inf if name == names[-1] else cliff
        runs = [
            Run(name, rho, seed, False, 0.69 if rho >= at else 0.2, 0.5 if rho >= at else 0.9, 1.0, 0.5)
            for rho in (0.0, 0.05, 0.1, 0.2, 0.4)
            for seed in range(3)
        ]
        runs.append(Run(name, 0.4, 9, False, math.nan, math.nan, math.nan, math.nan))
        out.found[name] = Found(name, runs, critical_radius(runs, CRITERIA), True, False)
    return out


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_sweep_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cor_plot(sweep_of("baseline", "corit"), (tmp_path / name).with_suffix(suffix), "title")
    assert (tmp_path / "a").with_suffix(suffix).read_bytes() == (tmp_path / "b").with_suffix(suffix).read_bytes()


def test_it_says_the_radii_and_bounds(tmp_path: Path) -> None:
    found = sweep_of("baseline", "corit")
    cor_plot(found, tmp_path / "cor.svg", "a title")
    text = (tmp_path / "cor.svg").read_text()
    for words in ("a title", str(found.found["baseline"].cor), "above 0.4", "random guessing", "validation AUC"):
        assert words in text


def figure_of(draw: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure that ``draw`` would save."""
    drawn: list[Figure] = []
    monkeypatch.setattr("corit_cli.report.cor_plot.save", lambda figure, _: drawn.append(figure))
    draw(folder / "a.png")
    return drawn[0]


def test_models_are_told_apart_without_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = figure_of(partial(cor_plot, sweep_of("baseline", "hri", "corit")), tmp_path, monkeypatch)
    looks = [(look.colour, look.line, look.mark) for look in LOOKS[:3]]
    named = [line for line in figure.axes[0].lines if "COR" in line.get_label()]
    assert [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in named] == looks
    for axes in figure.axes:
        marks = {(line.get_markeredgecolor(), line.get_marker()) for line in axes.lines}
        assert {mark for mark in marks if mark[1] not in ("x", "None")} == {(look[0], look[2]) for look in looks}


def test_another_sweep_looks_different(tmp_path: Path) -> None:
    cor_plot(sweep_of("baseline", "corit"), tmp_path / "a.png")
    cor_plot(sweep_of("baseline", "corit", cliff=0.1), tmp_path / "b.png")
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert a.shape == b.shape and (a != b).any()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CoritError, match=r"\.png or \.svg"):
        cor_plot(sweep_of("corit"), tmp_path / "cor.gif")
    assert not list(tmp_path.iterdir())


def theory_of(*kinds: str) -> Theory:
    """Of each kind a radius that is known, and one below and one above all that were tried."""
    rng = np.random.default_rng(0)
    gsnr = [estimate(Moments.of([4] * 8, [40.0] * 8, rng.normal(m, 1, (8, 10)))) for m in (0.1, 0.5, 1.0)]
    shares = critical_radius([Run("m", r, 0, False, 0.1, 0.9, 1, 1) for r in (0.1, 1.0)], CRITERIA).shares
    cors = [COR(None, 0.0, 0.1, shares, "below"), COR(0.5, 0.1, 1.0, shares), COR(None, 1.0, math.inf, shares, "above")]
    conditions = [Condition(kind, k, g, c) for kind in kinds for k, (g, c) in enumerate(zip(gsnr, cors, strict=True))]
    correlation = Correlation(1.0, 0.02, 5)
    return Theory(conditions, correlation, dict.fromkeys(kinds, correlation))


def test_theory_is_drawn_with_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = theory_of("layer")
    theory_plot(found, tmp_path / "t.svg")
    text = (tmp_path / "t.svg").read_text()
    assert str(found.correlation) in text and "GSNR" in text
    (axes,) = figure_of(partial(theory_plot, found), tmp_path, monkeypatch).axes
    assert [np.sign(arrow.xyann[1]) for arrow in axes.texts] == [-1, 1]  # below, above


def test_every_kind_of_theory_has_a_look_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("label noise", "feature noise", "data size", "layer")
    (axes,) = figure_of(partial(theory_plot, theory_of(*kinds)), tmp_path, monkeypatch).axes
    named = [line for line in axes.lines if line.get_label().startswith(kinds)]
    assert [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in named] == [
        (look.colour, look.line, look.mark) for look in LOOKS
    ]
