"""A row of a file is one line, whatever the file is called and says."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.cli import rows
from corit_cli.cli.rows import _plain_row
from corit_cli.data.declared import Declared
from corit_cli.data.provenance import Provenance
from corit_cli.detection.verdicts import FaceVerdict, Prediction
from corit_cli.report.meaning import next_steps

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
        next_steps(Prediction("a", None, None, 0.0, e)) for e in ("no such file", "nothing to judge: x", "truncated")
    ]
    assert [step.split()[0] for (step,) in steps] == ["Check", "Look", "Get"]


def test_small_changes_are_suggested_for_whole_pictures_only() -> None:
    whole = Prediction("a", 0.5, "uncertain", 0.0, parts={"hri": 0.1})
    face = Prediction("a", 0.5, "uncertain", 0.0, faces=(FaceVerdict((0, 0, 80, 80), 0.9, 0.5, "uncertain"),))
    assert any("--stability" in step for step in next_steps(whole))
    assert not any("--stability" in step for step in next_steps(face))
