from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from corit_cli.errors import CoritError
from corit_cli.gsnr.study import Row, Study
from corit_cli.metrics.gsnr import GSNREstimate
from corit_cli.report.figure import LOOKS
from corit_cli.report.gsnr_plot import SIZES, gsnr_plot


def row(model: str, layer: str, value: float, half: float = 0.005, state: str = "fitted", **other: str) -> Row:
    estimate = GSNREstimate(value, value + 0.02, value - half, value + half, half / 2, 48, value, 1.0)
    return Row(model, state, other.get("subset", "all"), other.get("part", "params"), layer, estimate, estimate)


def example(scale: float = 1.0, **other: str) -> Study:
    """A baseline of four layers and a head that fades, and a CoRIT of three that does not."""
    rows = [row("baseline", str(k), scale**k * 0.002 * k, **other) for k in range(5)]
    rows += [row("corit", str(k), 0.02, **other) for k in range(4)]
    return Study(rows=[*rows, row("baseline", "head", 0.03, **other)])


def svg(study: Study, folder: Path) -> str:
    gsnr_plot(study, folder / "plot.svg")
    return (folder / "plot.svg").read_text()


def test_an_svg_names_models_and_layers(tmp_path: Path):
    text = svg(example(), tmp_path)
    for words in ("CoRIT", "baseline", "not distinguishable from zero", "GSNR", "fitted head", ">head<", ">4<"):
        assert words in text


def test_heads_alone_are_named_for_what_they_read(tmp_path: Path):
    text = svg(
        Study(rows=[row(model, str(k), 0.02, part="head") for model in ("baseline", "corit") for k in (1, 2)]), tmp_path
    )
    assert ">class token<" in text and "class token's contrast" in text and "last layer" not in text


def test_points_within_reach_of_zero_are_hollow(tmp_path: Path):
    white = re.compile(r"fill: #ffffff; stroke: #(?:6b6b6b|c0392b)")
    assert len(white.findall(svg(example(), tmp_path))) == 3  # baseline layers 0 to 2: 0, .002, .004 give or take .005
    assert not white.findall(svg(Study(rows=[row("corit", str(k), 0.02) for k in range(3)]), tmp_path))


def test_models_are_told_apart_without_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Figure] = []
    monkeypatch.setattr("corit_cli.report.gsnr_plot.save", lambda figure, _: drawn.append(figure))
    gsnr_plot(example(), tmp_path / "plot.svg")
    shown = {
        name: {
            (line.get_linestyle(), line.get_marker()) for line in drawn[0].axes[0].lines if line.get_color() == colour
        }
        for name, colour in (("baseline", LOOKS[0].colour), ("corit", LOOKS[1].colour))
    }
    assert {("-", "None"), ("-", "o")} <= shown["baseline"] and {("--", "None"), ("--", "s")} <= shown["corit"]


def test_a_wide_range_is_drawn_on_a_logarithmic_axis(tmp_path: Path):
    assert "10^" not in svg(example(), tmp_path) and "mathdefault" not in svg(example(), tmp_path)
    wide = svg(example(scale=20.0), tmp_path)
    assert "10^" in wide or "mathdefault" in wide


def test_a_vast_interval_runs_off_the_panel(tmp_path: Path):
    """The same points, one of them with an interval a hundred times as long, stay legible."""

    def highest_tick(rows: list[Row]) -> float:
        labels = re.findall(r"<text[^>]*>\s*(\d\.\d+)\s*</text>", svg(Study(rows=rows), tmp_path))
        return max(map(float, labels))

    rows = example().rows
    assert highest_tick(rows) < 0.1
    assert highest_tick([*rows, row("corit", "4", 0.02, half=2.0)]) < 0.1


def test_the_same_study_gives_the_same_bytes(tmp_path: Path):
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        gsnr_plot(example(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_png_has_a_panel_for_every_state_and_subset(tmp_path: Path):
    gsnr_plot(example(), tmp_path / "one.png")
    panels = [example(state=state, subset=subset) for state in ("initial", "fitted") for subset in ("all", "real")]
    gsnr_plot(Study(rows=[row for panel in panels for row in panel.rows]), tmp_path / "four.PNG")
    one, four = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "four.PNG")
    assert four.width > 1.5 * one.width and four.height > 1.5 * one.height
    assert np.asarray(one.convert("L")).std() > 5


def test_tokens_are_told_apart(tmp_path: Path):
    rows = example(part="cls").rows + example(part="patches").rows
    text = svg(Study(rows=rows), tmp_path)
    assert "CoRIT, class token" in text and "CoRIT, patches" in text
    assert SIZES["cls"] != SIZES["patches"]


def test_other_suffixes_are_refused_and_leave_nothing(tmp_path: Path):
    with pytest.raises(CoritError, match=r"\.png or \.svg"):
        gsnr_plot(example(), tmp_path / "plot.gif")
    assert not list(tmp_path.iterdir())
