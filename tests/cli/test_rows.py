"""A row of a file is one line, whatever the file is called and says."""

from __future__ import annotations

import contextlib
import csv
import io
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.bulk.rows import COLUMNS, Csv
from corit_cli.cli import rows
from corit_cli.cli.rows import _plain_row
from corit_cli.data.declared import Declared
from corit_cli.data.provenance import Provenance
from corit_cli.detection.verdicts import FaceVerdict, Moment, Prediction, Stability, VideoVerdict
from corit_cli.report.document import as_dict
from corit_cli.report.meaning import next_steps

NOBODY = VideoVerdict(1.0, 1.0, (Moment(0, 0.0, 0.1),), {})
TEXTS = st.one_of(st.text(), st.sampled_from(["zzz://a/\nreal\t0.0001\t0.1\tforged.jpg", "\x1b[31mred", "\u202egpj"]))
PREDICTIONS = st.builds(
    lambda path, error, note, ground: Prediction(
        path, None, None, 0.0, error, (note,),
        provenance=Provenance("PNG", declared=Declared("ai-generated", None, ground, False)),
    ),
    TEXTS, TEXTS, TEXTS, TEXTS,
)  # fmt: skip


@given(PREDICTIONS)
def test_a_row_in_a_pipe_is_one_line_of_eight_printable_cells(prediction: Prediction) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        _plain_row(prediction)
    line, rest = out.getvalue().split("\n")
    cells = line.split("\t")
    assert rest == "" and len(cells) == 8 and all(cell.isprintable() for cell in cells)


@given(PREDICTIONS)
def test_a_row_of_a_table_obeys_no_file(prediction: Prediction) -> None:

    with pytest.MonkeyPatch.context() as patch:
        out = rows.out.__class__(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
        patch.setattr(rows, "out", out)
        rows._table_row(prediction)
    shown = out.file.getvalue()
    assert all(line.isprintable() for line in shown.split("\n"))
    assert len(shown.splitlines()) == 1 + len(rows.details(prediction))


def test_what_to_do_about_an_error_depends_on_it() -> None:
    steps = [
        next_steps(Prediction("a", None, None, 0.0, e))[0].split()[0]
        for e in ("no such file", "nothing to judge: x", "truncated", "no face found", "400 megapixels, more than 200")
    ]
    assert steps == ["Check", "Look", "Get", "Judge", "Make"]
    (step,) = next_steps(Prediction("a", None, None, 0.0, "1 x 1 px is too small to judge: give at least 32 px"))
    assert step.startswith("Get a larger copy")


def test_small_changes_are_suggested_for_whole_pictures_only() -> None:
    whole = Prediction("a", 0.5, "uncertain", 0.0, parts={"hri": 0.1})
    face = Prediction("a", 0.5, "uncertain", 0.0, faces=(FaceVerdict((0, 0, 80, 80), 0.9, 0.5, "uncertain"),))
    assert any("--stability" in step for step in next_steps(whole))
    assert not any("--stability" in step for step in next_steps(face))


def test_a_row_in_a_pipe_tells_what_was_found() -> None:
    face = FaceVerdict((1, 2, 80, 90), 0.9, 0.99, "fake")
    found = Prediction("a", 0.5, "uncertain", 0.0, faces=(face,), stability=Stability({"jpeg-75": 0.9}, 0.4, True))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        _plain_row(found)
    last = out.getvalue().rstrip("\n").split("\t")[-1]
    assert "face at 1,2 to 80,90: fake, 99.0%" in last and "the verdict flips" in last


def test_persons_are_numbered_as_in_reports() -> None:
    film = VideoVerdict(1.0, 1.0, (Moment(0, 0.0, 0.1),), {0: 0.2, 1: 0.7})
    said = rows.findings(Prediction("a.mp4", 0.1, "real", 0.0, video=film))
    assert [line for line in said if line.startswith("person")] == ["person 1: 20.0%", "person 2: 70.0%"]


def test_csv_has_the_persons_of_a_video_as_its_faces(tmp_path: Path) -> None:
    film = VideoVerdict(1.0, 1.0, (Moment(0, 0.0, 0.1),), {1: 0.2, 2: 0.7})
    found = [Prediction("a.mp4", 0.1, "real", 0.0, video=film), Prediction("b.mp4", 0.1, "real", 0.0, video=NOBODY)]
    with ExitStack() as stack:
        write = rows.csv_writer(SimpleNamespace(identity={}), tmp_path / "x.csv", stack)
        for prediction in found:
            write(prediction)
    first, second = csv.DictReader((tmp_path / "x.csv").open(newline=""))
    assert (first["faces"], first["face_max"], second["faces"], second["face_max"]) == ("2", "0.7", "", "")
    for prediction, row in zip(found, (first, second), strict=True):  # a table of many files has the same
        cells = next(csv.reader([Csv().encode(as_dict(prediction)).decode()]))
        assert [cells[COLUMNS.index(name)] for name in ("faces", "face_max")] == [row["faces"], row["face_max"]]
