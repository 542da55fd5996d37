from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from corit_cli.evaluation.peers import Scores, compare
from corit_cli.evaluation.protocols import HeldOut, Protocol
from corit_cli.evaluation.summary import Evaluation, summarise
from corit_cli.metrics.intervals import Estimate
from corit_cli.report.evaluation import grids, number, percent
from corit_cli.report.evaluation_page import page, write_page
from tests.evaluation.test_figures import checkpoint, scored

NAN = float("nan")


def example(name: str = "rival") -> Evaluation:
    """An evaluation with everything in it."""
    images = scored(chains=("jpeg-75", "messenger-640"), frames=2)
    found = summarise(checkpoint(), images)
    scores = images.logits[0] + np.random.default_rng(1).normal(size=80)
    scores[0] = np.nan
    found.peers = [compare(images, Scores(name, images.samples, scores, None, 2))]
    e = Estimate(0.75, 0.5, 0.875)
    varying = {"ours": e, "probe": e, "difference": Estimate(0.125, -0.5, 0.75)}
    group = HeldOut("gan", 9, 8, e, e, Estimate(0.125, -0.25, 0.5), "a third of all real images")
    new = {**varying, "ours": Estimate(0.75, 0.25, 1.0)}
    passed_over = {"vae": "too few"}
    found.protocols = [Protocol("leave-generator-out", [group, group], e, e, e, varying, new, True, passed_over)]
    return found


class Page(HTMLParser):
    """Tags that are opened and closed in order, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "path", "use", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_figures_as_text() -> None:
    assert number(Estimate(0.9, 0.85, 0.9456)) == "0.900 [0.850, 0.946]"
    assert number(Estimate(0.01, -0.02, 0.04), signed=True) == "+0.010 [-0.020, +0.040]"
    assert percent(Estimate(0.125, 0.04, 0.301)) == "12.5% [4, 30]"
    assert number(Estimate(NAN, NAN, NAN)) == percent(Estimate(NAN, NAN, NAN)) == "–"
    assert number(Estimate(0.5, NAN, NAN)) == "0.500 [–]" and percent(Estimate(0.5, NAN, NAN)) == "50.0% [–]"


def test_every_table_is_rectangular_and_there() -> None:
    found = grids(example())
    titles = [g.title for g in found]
    assert [t.split(":")[0] for t in titles] == [
        "All images", "Whole videos", "By source", "By generator", "Robustness", "Beside rival", "Leave generator out",
    ]  # fmt: skip
    for grid in found:
        assert grid.rows and all(len(row) == len(grid.columns) for row in grid.rows), grid.title
    notes = " ".join(note for grid in found for note in grid.notes)
    for words in ("Mean AUC of the 2 groups", "1 images have no score", "2 of its rows", "Not held out: vae (too few)"):
        assert words in notes
    assert "Against a third of all real images, held out as well: gan" in notes
    assert found[4].rows[1][0] == "jpeg-75" and found[4].rows[1][2][0] in "+-"
    assert [row[0] for row in found[6].rows[2:]] == ["mean of 2", "the same, as groups vary", "one new generator"]
    assert found[6].rows[3][3:] == ["0.500 to 0.875", "0.500 to 0.875", "-0.500 to +0.750"]
    assert found[6].rows[4][3] == "0.250 to 1.000" and "Groups share real images" in notes


def test_figures_as_sources_vary_have_a_column() -> None:
    assert grids(example())[0].columns == ["figure", "value [95% interval]"]
    found = summarise(checkpoint(), scored(sources="abcdef"))
    grid = grids(found)[0]
    assert grid.columns[2] == "as sources vary" and "a sample of" in grid.notes[0]
    cells = {row[0]: row[2] for row in grid.rows}
    auc, fpr = (found.overall.as_sources_vary[name] for name in ("auc", "fpr"))
    assert cells["AUC"] == f"{auc.low:.3f} to {auc.high:.3f}"
    said = "–" if np.isnan(fpr.low) else f"{100 * fpr.low:.0f} to {100 * fpr.high:.0f}%"  # where no source has a hit
    assert cells["real images called fake (FPR)"] == said
    assert cells["TPR at 1% FPR"] == "–"


def test_a_page_holds_all_of_it_and_asks_for_nothing() -> None:
    text = page(example(), "Detector on pictures")
    parsed = Page(text)
    assert not parsed.open
    assert parsed.tags.count("svg") == 4 and parsed.tags.count("table") == 8
    assert parsed.tags.count("main") == 1 and 'scope="row"' in text and text.count('role="region" tabindex="0"') == 8
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    loaded = re.findall(r"""(?:src|href)\s*=\s*["'](?!#)([^"']*)|url\((?!#)([^)]*)\)|@import""", text)
    assert not loaded
    for grid in grids(example()):
        for cells in grid.rows:
            assert all(cell in parsed.text for cell in cells)
    assert "ROC curve: AUC" in text and "medians real" in text
    assert "width=device-width" in text and "@media print" in text


def test_names_cannot_break_the_page() -> None:
    text = page(example("<b>& 'rival'"), "<script>alert(1)</script>")
    assert "<script" not in text and "<b>&" not in text and "&lt;b&gt;&amp;" in text


def test_the_same_evaluation_gives_the_same_page(tmp_path: Path) -> None:
    write_page(example(), tmp_path / "a.html", "t")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page(example(), "t")


def test_one_class_still_makes_a_page() -> None:
    parsed = Page(page(summarise(checkpoint(), scored(20, fake=0.0)), "t"))
    assert parsed.tags.count("svg") == 1 and "nothing to rank them against" in parsed.text
