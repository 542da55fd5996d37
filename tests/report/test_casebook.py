from __future__ import annotations

import base64
import gc
import hashlib
import io
import os
import re
import shutil
import subprocess
import weakref
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from corit_cli.data.provenance import Finding, Provenance
from corit_cli.data.settings import CropConfig
from corit_cli.data.stored import state
from corit_cli.detection.calibration import Thresholds
from corit_cli.detection.verdicts import MILD, FaceVerdict, Moment, Prediction, Stability, VideoVerdict
from corit_cli.errors import CoritError
from corit_cli.model.settings import CoRITSettings
from corit_cli.report import casebook
from corit_cli.report.case import About, method_of
from corit_cli.report.casebook import Casebook
from corit_cli.report.drawn import CHANGED, draw
from corit_cli.report.meaning import meaning
from corit_cli.report.timeline import levels, thin, ticks
from corit_cli.report.words import clock, file_size, percent, posterior, share
from corit_cli.texts import printable
from tests.conftest import photograph

VOID = {"meta", "img", "link", "br", "hr", "input"}
HELD_OUT = {
    "real": 573,
    "fake": 500,
    "real_called_real": 0.4186,
    "real_called_uncertain": 0.5326,
    "real_called_fake": 0.0489,
    "fake_called_real": 0.0980,
    "fake_called_uncertain": 0.7298,
    "fake_called_fake": 0.1721,
}
ABOUT = About(
    backbone="a tower",
    backbone_sha256="b" * 64,
    detector_sha256="d" * 64,
    thresholds=Thresholds(0.35, 0.8),
    faces=Thresholds(0.35, 0.8),
    held_out=HELD_OUT,
    held_out_faces={},
    made=datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc),
    command="detect --html <report>",
    method="It <looks>.",
)
HOSTILE = 'a/"><script>alert(1)<' + "/script>\n\u202e'&{{7*7}}\udcff"


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps tags with attributes, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str, key: str) -> list[str | None]:
        return [attributes[key] for name, attributes in self.tags if name == tag and key in attributes]


def face(probability: float, verdict: str, box=(4, 4, 30, 30), track=None) -> FaceVerdict:
    return FaceVerdict(box, 0.97, probability, verdict, track)


def full(path: str = "folder/photo.jpg") -> Prediction:
    """A picture of which everything is known."""
    copies = dict(zip(MILD, (0.91, 0.92, 0.83, 0.84, 0.71, 0.72), strict=True))
    findings = (Finding("generator", "The file carries <settings>.", "ai-generated"), Finding("c2pa", "A manifest."))
    return Prediction(
        path=path,
        probability=0.9034,
        verdict="fake",
        seconds=1.5,
        faces=(face(0.6171, "uncertain"), face(0.2262, "real", box=(-20, 10, 20, 400))),
        stability=Stability(copies, 0.2034, False),
        provenance=Provenance("PNG", parameters={"prompt": "a cat, <b>large</b>"}, findings=findings),
    )


def film(frames: int = 6) -> Prediction:
    moments = tuple(
        Moment(i * 25, float(i), (i + 1) / 10, (face(0.9515 - i / 10, "fake", track=i % 2),)) for i in range(frames)
    )
    video = VideoVerdict(6.0, 25.0, moments, {0: 0.7373, 1: 0.3131}, "only 6.0 of 9.0 seconds can be read")
    return Prediction("clip.mp4", 0.4567, "uncertain", 1.0, video=video)


def written(path: Path, *cases: tuple, about: About = ABOUT) -> Page:
    """The page on ``cases``, each the arguments of ``add``."""
    with Casebook(path, about) as book:
        for case in cases:
            book.add(*case)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def test_what_was_left_out_of_folders_is_told(path: Path) -> None:
    with Casebook(path, ABOUT) as book:
        book.add(Prediction("a.jpg", 0.1, "real", 0.0))
        book.leave_out(iter(["skipped 1 file that is no image or video: 1 .pdf", "left out 1 hidden <file>"]))
    text = Page(path.read_text(encoding="utf-8")).text
    assert "Not looked at" in text and "1 .pdf" in text and "1 hidden <file>" in text
    assert "Not looked at" not in written(path, (Prediction("a.jpg", 0.1, "real", 0.0),)).text


@pytest.mark.parametrize(("kind", "words"), [
    ("video", "a video's probability comes from a mean over its frames"),
    ("animation", "an animation's probability comes from a mean over its frames"),
    ("pages", "a file's probability comes from a mean over its pages"),
])  # fmt: skip
def test_a_file_of_pages_is_called_no_video(path: Path, kind: str, words: str) -> None:
    film = VideoVerdict(0.0, 0.0, (Moment(0, 0.0, 0.1),), {}, "page 2 of 2 cannot be read", kind, 2)
    text = written(path, (Prediction("a.tif", 0.1, "real", 0.0, video=film),)).text
    assert words in text and ("this video" in text) == (kind == "video")


def everything(tmp_path: Path) -> list[tuple]:
    image, heatmap = photograph(1), photograph(2)
    file = tmp_path / "photo.png"
    image.save(file)
    clip = film()
    return [
        (full(str(file)), image, heatmap),
        (clip, image, None, {m.frame: image for m in clip.video.suspicious()}),
        (Prediction(HOSTILE, None, None, 0.0, "not an <image>"),),
        (Prediction("plain.jpg", 0.0123, "real", 1.0, faces=()), image),
    ]


# --- the page as a whole --------------------------------------------------------------------------


def test_nothing_outside_the_page_is_referred_to(tmp_path: Path, path: Path) -> None:
    page = written(path, *everything(tmp_path))
    assert page.all("img", "src") and all(src.startswith("data:image/jpeg;base64,") for src in page.all("img", "src"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    hrefs = [attributes[key] for _, attributes in page.tags for key in ("href", "xlink:href") if key in attributes]
    assert hrefs and all(href.startswith("#") and href[1:] in ids for href in hrefs)
    rest = re.sub('data:image/jpeg;base64,[^"]*', "", page.source)
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import|srcset|<link|<iframe|<object|<form", rest)


def test_the_policy_allows_the_page_s_own_script_only(tmp_path: Path, path: Path) -> None:
    page = written(path, *everything(tmp_path))
    scripts = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    assert len(scripts) == 1 == sum(tag == "script" for tag, _ in page.tags)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)


def test_hostile_names_and_metadata_stay_text(tmp_path: Path, path: Path) -> None:
    page = written(path, *everything(tmp_path))
    assert "<script>alert" not in page.source and "<settings>" not in page.source and "<b>large" not in page.source
    assert r"script>\n\u202e'&{{7*7}}\udcff" in page.text  # the last part of the path, spelled out
    assert not re.search("[\u202e\x00-\x09\x0b-\x1f]", page.source)
    assert "a cat, <b>large</b>" in page.text and "not an <image>" in page.text and "--html <report>" in page.text
    assert "It <looks>." in page.text


@settings(deadline=None, max_examples=40)
@given(name=st.text(st.characters(), min_size=1).filter(lambda name: name != "/"))
@example(name="longer than a file's name may be" * 9)
def test_any_name_makes_a_sound_page(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("any") / "report.html"
    page = written(path, (Prediction(name, 0.5, "uncertain", 0.0),), (Prediction("b", 0.5, "uncertain", 0.0),))
    values = page.all("th", "data-value")
    assert values[0] == printable(name) and len(values) == 2


def test_secrets_of_urls_are_left_out(tmp_path: Path) -> None:
    about = replace(ABOUT, command="detect https://me:hunter2@host/a.jpg?sig=s3cr3t --html r.html")
    case = Prediction(
        "https://me:hunter2@host/a.jpg?sig=s3cr3t", None, None, 0.0, error="https://me:hunter2@host/a.jpg: no"
    )
    page = written(tmp_path / "a.html", (case,), about=about)
    text = (tmp_path / "a.html").read_text()
    assert "hunter2" not in text and "s3cr3t" not in text and "https://…@host/a.jpg?…" in page.text


def test_one_file_has_no_index(path: Path) -> None:
    page = written(path, (full(),))
    assert not page.all("table", "id") and page.all("section", "id") == ["file-1"]
    assert "Report on photo.jpg" in page.text


def test_the_index_counts_and_lists_the_most_suspicious_first(tmp_path: Path, path: Path) -> None:
    cases = [(Prediction(f"{i}.jpg", p, v, 0.0),) for i, (p, v) in enumerate([(0.1, "real"), (0.85, "fake")])]
    cases += [(Prediction("2.jpg", None, None, 0.0, "truncated"),), (Prediction("3.jpg", 0.97, "fake", 0.0),)]
    cases += [(Prediction("4.jpg", 0.5, "uncertain", 0.0),)]
    page = written(path, *cases)
    assert page.all("th", "data-value") == ["3.jpg", "1.jpg", "4.jpg", "2.jpg", "0.jpg"]
    assert page.all("a", "href") == ["#file-4", "#file-2", "#file-5", "#file-3", "#file-1"]
    assert page.all("section", "id") == [f"file-{i}" for i in range(1, 6)]
    assert "2 fake 1 uncertain 1 could not be scored 1 real" in page.text
    cells = page.all("td", "data-value")  # number, verdict, probability, notes
    assert cells[:4] == ["4", "3", "0.97", "0"] and cells[12:16] == ["3", "0", "", "0"]
    assert page.all("th", "data-sort") == ["number", "text", "number", "number", "number"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    cases = everything(tmp_path)
    slower = [(replace(case[0], seconds=9.0), *case[1:]) for case in cases]
    first, second = tmp_path / "1.html", tmp_path / "2.html"
    written(first, *cases), written(second, *slower)
    assert first.read_bytes() == second.read_bytes()


def test_headings_descend_and_pictures_have_texts(tmp_path: Path, path: Path) -> None:
    page = written(path, *everything(tmp_path))
    heights = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert heights[0] == 1 and heights.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(heights))
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    for tag, attributes in page.tags:
        if tag == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_scrolls_is_reached_by_the_keyboard_and_named(path: Path) -> None:
    settings = {"workflow": "node " * 200, "seed": "7"}
    page = written(path, (replace(full(), provenance=replace(full().provenance, parameters=settings)),))
    scrolling = [attributes for tag, attributes in page.tags if tag == "code" and "tabindex" in attributes]
    assert scrolling == [{"role": "region", "tabindex": "0", "aria-label": "workflow"}]  # not what is short
    styles = (Path(casebook.__file__).parent / "casebook.css").read_text()
    assert re.findall(r"([^\n{]+) \{[^}]*overflow: auto", styles) == [".parameters code"]


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, by WCAG 2."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_enough_in_every_scheme() -> None:
    styles = (Path(casebook.__file__).parent / "casebook.css").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{3,6})", block)) for block in re.findall(r":root \{(.*?)\}", styles, re.S)
    ]
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        colours = {name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for name, c in scheme.items()}
        for name in ("ink", "quiet", "fake", "uncertain", "real", "error"):
            light, dark = sorted((luminance(colours[name]), luminance(colours["paper"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name


# --- one file -------------------------------------------------------------------------------------


def test_every_figure_of_a_picture_is_told(tmp_path: Path, path: Path) -> None:
    image, file = photograph(1), tmp_path / "photo.png"
    image.save(file)
    page = written(path, (full(str(file)), image, photograph(2)))
    for text in ("90.3%", "0.903400", "61.7%", "22.6%", "91.0%", "92.0%", "83.0%", "84.0%", "71.0%", "72.0%", "20.3"):
        assert text in page.text
    data = file.read_bytes()
    for text in (hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest(), f"{len(data):,} bytes", "64 × 48"):
        assert text in page.text
    for text in ("b" * 64, "d" * 64, "a tower", "2026-03-04 05:06:07 UTC", "PNG", "A manifest."):
        assert text in page.text
    for text in ("saved as JPEG, quality 90", "saved as WebP, quality", "shrunk to 50%", "blurred by 0.5 px"):
        assert text in page.text
    assert "found with a score of 0.97, from -20, 10 to 20, 400 px" in page.text


def test_verdicts_are_explained_by_the_rates_of_unknown_sources(path: Path) -> None:
    text = written(path, (Prediction("a.jpg", 0.9, "fake", 0.0),)).text
    assert "called 4.9% [3.4%, 7.0%] of 573 real images and 17% [14%, 21%] of 500 fakes fake." in text
    assert "3.5 times as common among fakes as among real images (2.3 to 5.3 by" in text  # around 0.1721 / 0.0489
    text = written(path, (Prediction("a.jpg", 0.1, "real", 0.0),)).text
    assert "called 42% [38%, 46%] of 573 real images and 9.8% [7.5%, 13%] of 500 fakes real." in text
    assert "4.3 times as common among real images as among fakes (3.2 to 5.7 by" in text  # around 0.4186 / 0.0980
    text = written(path, (Prediction("a.jpg", 0.5, "uncertain", 0.0),)).text
    assert "left 53% [49%, 57%] of 573 real images and 73% [69%, 77%] of 500 fakes uncertain." in text
    assert "times as common" not in text


def test_a_verdict_that_was_settled_says_why(path: Path) -> None:
    flipped = replace(full(), verdict="uncertain", stability=replace(full().stability, flips=True))
    text = written(path, (flipped,)).text
    assert "By its probability alone the file would be called fake. It is left uncertain, because the verdict" in text
    assert "times as common" not in text and "does not survive" in text
    odd = Prediction("a.jpg", 0.1, "uncertain", 0.0, faces=(face(0.9, "fake"),))
    video = VideoVerdict(1.0, 25.0, (Moment(0, 0.0, 0.1),), {1: 0.9})
    for case in (odd, replace(odd, faces=None, video=video)):
        text = written(path, (case,)).text
        assert "called real. It is left uncertain, because a face in it is called fake." in text


def test_rates_may_be_unknown(path: Path) -> None:
    text = written(path, (full(),), about=replace(ABOUT, held_out={})).text
    assert "is not on record" in text and "times as common" not in text


def test_an_error_is_told(path: Path) -> None:
    page = written(path, (Prediction("a.jpg", None, None, 0.0, "truncated"),))
    assert "Not scored" in page.text and "could not be scored: truncated." in page.text


def test_outlines_lie_where_the_faces_are(path: Path) -> None:
    image = photograph(1, (200, 100))
    faces = (face(0.9, "fake", box=(50, 20, 100, 60)), face(0.1, "real", box=(-50, -10, 20, 300)))
    page = written(path, (replace(full(), faces=faces), image))
    boxes = [
        tuple(attributes[key] for key in ("x", "y", "width", "height"))
        for tag, attributes in page.tags
        if tag == "rect" and re.fullmatch("outline (?!halo).*", attributes.get("class", ""))
    ]
    assert boxes == [("25.00%", "20.00%", "25.00%", "40.00%"), ("0.00%", "0.00%", "10.00%", "100.00%")]


def test_pictures_are_bounded_and_carry_nothing_along(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(1, (2000, 100))
    image.info["comment"] = b"a secret"
    monkeypatch.setattr(casebook, "LARGE_SECTIONS", 1)
    page = written(
        path, (Prediction("a", 0.5, "uncertain", 0.0), image, image), (Prediction("b", 0.5, "real", 0.0), image)
    )
    found = [base64.b64decode(src.partition(",")[2]) for src in page.all("img", "src")]
    assert sorted(Image.open(io.BytesIO(data)).size for data in found) == [
        (160, 8), (160, 8), (400, 20), (1280, 64), (1280, 64),
    ]  # fmt: skip
    assert not any(b"secret" in data for data in found)


def test_the_heatmap_is_drawn_at_the_picture_s_size(path: Path) -> None:
    page = written(path, (Prediction("a", 0.5, "uncertain", 0.0), photograph(1, (90, 60)), photograph(2, (300, 200))))
    sizes = list(zip(page.all("img", "width"), page.all("img", "height"), strict=True))
    assert sizes == [("90", "60"), ("90", "60")] and "pair" in page.all("div", "class")


def test_a_report_into_a_pipe_needs_no_room_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    asked: list[Path | None] = []
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: asked.append(dir) or io.BytesIO())
    for name in ("pipe", "report.html"):
        with pytest.raises(KeyboardInterrupt), Casebook(tmp_path / name, ABOUT):
            raise KeyboardInterrupt
    assert asked == [None, tmp_path]


def test_a_pipe_is_not_waited_on(tmp_path: Path, path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    page = written(path, (Prediction(str(tmp_path / "pipe"), None, None, 0.0, "not a regular file"),))
    assert "SHA-256" not in page.text.partition("Method and limits")[0]


# --- videos ---------------------------------------------------------------------------------------


def test_a_video_s_figures_and_moments_are_told(path: Path) -> None:
    clip = film()
    image = photograph(1)
    page = written(path, (clip, image, None, {m.frame: image for m in clip.video.suspicious()}))
    text = page.text
    for said in ("45.7%", "Face 1", "73.7%", "Face 2", "31.3%", "6 frames of 0:06.0 at 25 frames a second"):
        assert said in text
    assert "Only a part of this video could be read: only 6.0 of 9.0 seconds can be read." in text
    # The moments with the highest peaks: a face's 0.9515, 0.8515, 0.7515 in frames 0, 25, 50.
    for said in ("1: 0:00.0 95.2%", "2: 0:01.0 85.2%", "3: 0:02.0 75.2%", "as a whole 20.0%; face 2 85.2%"):
        assert said in text
    # 6 frames as dots over time, faces as marks: 3 of each in the plot, and one of each in the key.
    dots = [a for tag, a in page.tags if tag == "circle" and a.get("class") == "dot" and a["cx"].endswith("%")]
    assert [(d["cx"], d["cy"]) for d in dots][1:] == [
        (f"{100 * i / 6:.2f}%", f"{100 - 10 * (i + 1):.2f}%") for i in range(6)
    ]
    marks = page.all("use", "href")
    assert marks.count("#mark-1") == marks.count("#mark-2") == 4
    # The frame, a cut-out of each face, three moments.
    assert len(page.all("img", "src")) == 6


def test_a_video_without_scores_or_length_is_drawn(path: Path) -> None:
    video = VideoVerdict(0.0, 25.0, (Moment(0, 0.0, None),), {})
    page = written(path, (Prediction("clip.mp4", 0.5, "uncertain", 0.0, video=video),))
    assert "Over time" in page.text and "suspicious" not in page.text
    assert "1 frame from 0:00.0 to 0:00.0. The table" in label_of_timeline(page) and "0:00.0 – –" in page.text


def test_frames_that_last_no_time_have_no_axis(path: Path) -> None:
    """They are told by their numbers, from 1, like pages."""
    moments = (Moment(0, 0.0, 0.9), Moment(1, 0.0, 0.2))
    film = VideoVerdict(0.0, 0.0, moments, {}, kind="animation", frames=2)
    page = written(path, (Prediction("a.webp", 0.5, "uncertain", 0.0, video=film),))
    assert "Over time" not in page.text and "frame 1" in page.text and "frame 0" not in page.text
    timed = replace(film, duration=2.0, moments=(moments[0], replace(moments[1], seconds=1.0)))
    page = written(path, (Prediction("a.webp", 0.5, "uncertain", 0.0, video=timed),))
    assert "Over time" in page.text and "frame 1" in page.text and "frame 0" not in page.text


def label_of_timeline(page: Page) -> str:
    (label,) = (label for label in page.all("svg", "aria-label") if "against time" in label)
    return label


def test_a_table_holds_the_figures_of_a_timeline(path: Path) -> None:
    page = written(path, (film(),))
    label = "Probability of fake against time, 6 frames from 0:00.0 to 0:05.0: lowest 10.0%, highest 95.2%."
    assert label_of_timeline(page) == f"{label} The table below holds the figures."
    assert "The figures of 6 frames Probability of fake. timewhole framefaces" in page.text
    for row in ("0:00.0 10.0% face 1 95.2%", "0:03.0 40.0% face 2 65.1%", "0:05.0 60.0% face 2 45.1%"):
        assert row in page.text


def test_a_long_table_is_thinned_and_says_so(path: Path) -> None:
    peaks = {30, 631}
    moments = tuple(Moment(i, i / 10, 0.9 if i in peaks else 0.1) for i in range(1000))
    page = written(path, (replace(film(), video=VideoVerdict(100.0, 10.0, moments, {})),))
    assert "The figures of 1,000 frames, 300 of which are listed" in page.text and "Of neighbouring frames" in page.text
    assert "1,000 frames from 0:00.0 to 1:39." in label_of_timeline(page)
    rows = [time for time in re.findall(r'<tr><th scope="row">(\d+:\d\d\.\d)</th>', page.source)]
    assert len(rows) == 300 and {"0:03.0", "1:03.1"} <= set(rows)


def test_long_videos_are_thinned_to_their_peaks() -> None:
    points = [(i / 5000, (i * 7919 % 5000) / 5000) for i in range(5000)]
    few = thin(points, itemgetter(1), 100)
    assert len(few) == 100 and set(few) <= set(points) and few == sorted(few)
    assert max(few, key=lambda p: p[1]) == max(points, key=lambda p: p[1])
    assert thin(points[:7], itemgetter(1), 100) == points[:7]


# --- writing --------------------------------------------------------------------------------------


def test_no_picture_is_kept(path: Path) -> None:
    clip = film()
    with Casebook(path, ABOUT) as book:
        pictures = [photograph(i) for i in range(3)]
        book.add(replace(clip, faces=(face(0.9, "fake"),)), pictures[0], pictures[1], {0: pictures[2]})
        known = [weakref.ref(picture) for picture in pictures]
        del pictures
        gc.collect()
        assert [ref() for ref in known] == [None] * 3


def test_what_is_kept_in_memory_is_small(path: Path) -> None:
    with Casebook(path, ABOUT) as book:
        book.add(full(), photograph(1, (640, 480)))
        held = sum(len(str(value)) for value in vars(book).values())
    assert held < 5000 < path.stat().st_size


def test_an_interrupted_report_leaves_what_was_there(path: Path) -> None:
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), Casebook(path, ABOUT) as book:
        book.add(full())
        raise KeyboardInterrupt
    assert path.read_text() == "before" and [p.name for p in path.parent.iterdir()] == [path.name]


def test_nothing_stands_under_the_name_before_the_end(path: Path) -> None:
    with Casebook(path, ABOUT) as book:
        book.add(full())
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "report.html"):
        with pytest.raises(CoritError, match="cannot write"), Casebook(path, ABOUT):
            pytest.fail("should not have begun")


def test_about_is_read_from_a_checkpoint() -> None:
    checkpoint = SimpleNamespace(
        faces=None,
        face_readings=("cgp", "face"),
        tuned={},
        training={},
        head=SimpleNamespace(of_pictures=["hri", "cgp"], degradation=object()),
        backbone={"name": "tower", "sha256": "b" * 64},
        sha256="d" * 64,
        origin=f"hf-hub:user/name@{'0' * 40}",
        thresholds=Thresholds(0.2, 0.7),
        metrics={"held_out_sources": HELD_OUT, "held_out_degraded": {"real": 5}},
        settings=CoRITSettings(cgp=(4, 5, 6), integrate=(9,)),
        crops=CropConfig(),
    )
    east = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    about = About.of(checkpoint, east, "detect")
    assert (about.backbone, about.thresholds.fake, about.held_out) == ("tower", 0.7, HELD_OUT)
    assert about.held_out_degraded == {"real": 5} and not about.judged_by_others
    assert about.made.isoformat() == "2025-12-31T23:00:00+00:00" and about.detector == checkpoint.origin
    assert about.method == method_of(checkpoint.settings, checkpoint.crops, heads=2, degradation=True, pixels=True)
    assert "how degraded a picture looks" in about.method


def test_the_method_says_what_faces_are_judged_by() -> None:
    settings = CoRITSettings(cgp=(4, 5, 6), integrate=(9,), face=(6, 7))
    both = method_of(settings, CropConfig("both"), pixels=True)
    alone = method_of(settings, CropConfig("both"))
    own = "Another head weighs what the model sees in each face, at layers 6 and 7 of its network, and by this"
    assert f"{own}, weighed with what was read in a part of the picture at its own size, each face gets a" in both
    assert f"{own} each face gets a verdict of its own." in alone
    assert "each face" not in method_of(replace(settings, face=()), CropConfig("both"))


def test_who_speaks_for_what(tmp_path: Path) -> None:
    parts = {"hri": 1.25, "native": -0.5, "cgp": 0.031}
    text = written(tmp_path / "a.html", (Prediction("a.jpg", 0.9, "fake", 0.0, parts=parts),)).text
    assert (
        "What speaks for a fake: the picture as the model sees it (+1.25), what changes there with the finest "
        "detail (+0.03); for a real picture: its middle at its own size (-0.50) (log odds)." in text
    )
    alone = written(tmp_path / "b.html", (Prediction("a.jpg", 0.9, "fake", 0.0, parts={"hri": 1.25}),)).text
    assert "What speaks" not in alone


def test_a_degraded_picture_is_told_the_rates_of_degraded_copies() -> None:
    about = replace(ABOUT, held_out_degraded=HELD_OUT | {"real_called_fake": 0.05, "fake_called_fake": 0.35})
    picture = Prediction("a.jpg", 0.9, "fake", 0.0, parts={"hri": 1.0}, degraded=0.8)
    said = " ".join(meaning(picture, about))
    assert "of 500 fakes fake, all of them in degraded copies." in said and "7.0 times as common" in said
    for other in (replace(picture, degraded=0.2), replace(picture, degraded=None)):
        assert "3.5 times as common" in " ".join(meaning(other, about))
    assert "3.5 times as common" in " ".join(meaning(picture, ABOUT))  # nothing else is known


def test_what_thresholds_were_fitted_to_and_what_older_checkpoints_know_is_said(tmp_path: Path) -> None:
    old = {k: v for k, v in HELD_OUT.items() if "_called_" in k} | {"images": 1073}
    about = replace(ABOUT, judged_by_others=False, held_out=old)
    text = written(tmp_path / "a.html", (Prediction("a.jpg", 0.9, "fake", 0.0),), about=about).text
    assert "called 4.9% of real images and 17% of fakes fake. Both classes together were 1,073 images." in text
    assert text.count("fitted to these same scores") == 2 and "rackets hold" not in text
    now = written(tmp_path / "a.html", (Prediction("a.jpg", 0.9, "fake", 0.0),)).text
    assert "these same scores" not in now and now.count("rackets hold") == 2


def test_of_several_faces_no_ratio_and_no_odds_of_a_single_one_are_told(tmp_path: Path) -> None:
    about = replace(ABOUT, held_out_faces=HELD_OUT)
    one = Prediction("a.jpg", 0.9, "fake", 0.0, faces=(face(0.9, "fake"),))
    for file, alone in ((one, True), (replace(one, faces=one.faces * 2), False)):
        text = written(tmp_path / "a.html", (file,), about=about).text
        assert ("times as common" in text) == ("fakes in 100" in text) == alone
        assert ("judged by the one most like a fake" in text) != alone


@pytest.mark.parametrize("kind", ["video", "animation"])
def test_what_stands_out_of_a_film_is_why_it_is_uncertain(kind: str) -> None:
    moments = tuple(Moment(i, float(i), 0.9 if 3 <= i < 6 else 0.1) for i in range(20))
    film = VideoVerdict(20.0, 1.0, moments, {}, kind=kind, frames=20)
    said = meaning(Prediction("a", 0.1, "uncertain", 0.0, video=film), ABOUT)[0]
    assert ("a stretch of it" if kind == "video" else "a frame of it") in said and "called real" in said


def test_a_file_that_was_changed_meanwhile_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    photograph(1).save(file)
    judged = replace(full(str(file)), state=state(file))
    detector = SimpleNamespace(checkpoint=SimpleNamespace(localizer=None))
    assert draw(detector, judged, str(file), False, 1).image is not None
    assert hashlib.sha256(file.read_bytes()).hexdigest() in written(tmp_path / "a.html", (judged,)).text
    photograph(2).save(file)
    drawn = draw(detector, judged, str(file), False, 1)
    assert drawn.image is None and drawn.fault == CHANGED
    page = written(tmp_path / "b.html", (judged,)).text
    assert hashlib.sha256(file.read_bytes()).hexdigest() not in page and CHANGED in page


def test_it_is_said_of_a_picture_that_it_looks_degraded(tmp_path: Path) -> None:
    def said(degraded: float | None) -> str:
        return written(tmp_path / "a.html", (Prediction("a.jpg", 0.9, "fake", 0.0, degraded=degraded),)).text

    assert "looks saved again" in said(0.93) and "93% by the detector" in said(0.93)
    assert not any("looks saved again" in said(degraded) for degraded in (0.4, None))


def test_the_method_is_what_the_detector_reads() -> None:
    """Contrasts are read from native windows where there are any, all else from the resized one: features/extractor."""
    whole, native = "the whole picture, made small", "a part of the picture at its own size"
    layers, few = CoRITSettings((), cgp=(), integrate=(7, 8, 9, 12)), CoRITSettings(cgp=(4, 5, 6), integrate=())
    said = method_of(layers, CropConfig("both"))
    assert f"in {whole}, at layers 7, 8, 9 and 12 of its network. A small head" in said and "changes" not in said
    assert native in method_of(layers, CropConfig("native"))
    said = method_of(few, CropConfig("both"))
    assert (
        f"sees in {native} changes when its finest detail is taken away" in said
        and "at layers 4 to 6 of" in said
        and whole not in said
    )
    assert f"sees in {whole} changes when" in method_of(few, CropConfig("resize"))
    spread, depths = replace(layers, spread=(2, 3)), "at layers 2 and 3 of its network"
    assert f" and how much what it sees varies there, {depths}. A" in method_of(spread, CropConfig("both"))
    said = method_of(replace(spread, native=(4,), views=few.views, cgp=(5,)), CropConfig("both"))
    assert f", how much what it sees varies within either, {depths} and how what it sees in {native} changes" in said
    assert "varies" not in method_of(replace(few, spread=(2, 3)), CropConfig("both"))
    said = method_of(CoRITSettings(cgp=(4,), inject_at=(3,), integrate=(9,)), CropConfig("both"))
    assert whole in said and native in said and "at layer 9 of" in said and "were added" in said
    noisy = CoRITSettings(("noise:0.02", "jpeg:75"), cgp=(4,), integrate=())
    assert "changes when a little noise is added and when it is saved as JPEG" in method_of(noisy, CropConfig())
    assert "trained further" in method_of(layers, CropConfig(), tuned=True) and "trained further" not in said
    assert "3 parts of the picture at its own size" in method_of(few, CropConfig("both", crops=3))
    four = CoRITSettings(native=(5,), integrate=(9,), patches=True)
    said = method_of(four, CropConfig("both"), heads=4)
    assert (
        f"{whole}, at layer 9 of its network, what it sees in {native}, at layer 5" in said and "4 small heads" in said
    )


# --- numbers --------------------------------------------------------------------------------------


def test_numbers_read_well() -> None:
    assert [percent(p) for p in (0, 0.0004, 0.0005, 0.5, 0.9994, 0.9995, 1)] == [
        "<0.1%", "<0.1%", "0.1%", "50.0%", "99.9%", ">99.9%", ">99.9%",
    ]  # fmt: skip
    assert [share(r) for r in (0, 0.0489, 0.0994, 0.0996, 0.172, 1)] == ["0.0%", "4.9%", "9.9%", "10%", "17%", "100%"]
    assert [clock(s) for s in (0, 7.44, 59.96, 750, 3723.5)] == ["0:00.0", "0:07.4", "1:00.0", "12:30.0", "1:02:03.5"]
    assert [file_size(n) for n in (1, 999, 1500, 2_345_678)] == [
        "1 bytes", "999 bytes", "1,500 bytes (1.5 kB)", "2,345,678 bytes (2.3 MB)",
    ]  # fmt: skip


@settings(deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_posterior_is_bayes_rule(probability: float, prior: float) -> None:
    assert posterior(probability, 0.5) == pytest.approx(probability)
    odds = probability / (1 - probability) * prior / (1 - prior)
    assert posterior(probability, prior) == pytest.approx(odds / (1 + odds))


@settings(deadline=None)
@given(st.floats(0.05, 1e6))
def test_ticks_are_few_and_even(end: float) -> None:
    found = ticks(end)
    assert 1 <= len(found) <= 6 and found[0] == 0 and found[-1] <= end * (1 + 1e-6)
    assert len(found) >= 2 or end < 0.1


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_levels_leave_room(a: float, b: float) -> None:
    real, fake = sorted((a, b))
    found = levels(real, fake)
    assert fake in found and all(y - x >= 0.09 for x, y in pairwise(found))


# --- in a browser ---------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_it_without_complaint(tmp_path: Path, path: Path) -> None:
    written(path, *everything(tmp_path))
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --enable-logging=stderr --v=0"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr  # script errors and whatever the policy refused
    # The script ran: one pair slides, five columns sort.
    assert done.stdout.count('type="range"') == 1 and done.stdout.count('<button type="button">') == 5
