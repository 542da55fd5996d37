from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.texts import Table, cell, printable, uncell, without_secrets

#: Any text that a file's name may decode to, undecodable bytes among it, often with what is dangerous at the front.
NAMES = st.builds(
    str.__add__,
    st.sampled_from(["", *"=+-@＝＋－＠'", "\ufeff=", " =", "a;=", "a| =", "\t", "\r\n", "\x1b[31m", "\\", "\udcff"]),
    st.text(st.characters(), max_size=20),
)


@given(NAMES)
def test_a_cell_is_safe_and_gives_its_text_back(text: str) -> None:
    written = cell(text)
    assert uncell(written) == text
    for cell_of_some_spreadsheet in re.split("[;|]", written):
        assert cell_of_some_spreadsheet.strip()[:1] not in tuple("=+-@＝＋－＠")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\ufeff" for c in written)
    written.encode()  # valid UTF-8


@given(NAMES, NAMES)
def test_different_texts_have_different_cells(a: str, b: str) -> None:
    assert (cell(a) == cell(b)) == (a == b)


def test_ordinary_names_stay_as_they_are() -> None:
    for name in (
        "a.jpg",
        "dir/фото 日本.jpg",
        "Screenshot 1.00.00\u202fPM.png",
        "a 'b'.png",
        "",
        "C:\\x.png",
        "a;b - c.jpg",
    ):
        assert cell(name) == name
    assert cell("=1+1.jpg") == "'=1+1.jpg" and cell("-\\\n") == r"'-\\\n"
    assert cell("a;=1+1.jpg") == r"'a\x3b=1+1.jpg"


@given(st.lists(st.tuples(NAMES, st.one_of(st.none(), st.floats(allow_nan=False), st.integers())), max_size=5))
def test_a_table_is_read_back_by_the_standard_library(rows: list[tuple[str, float | None]]) -> None:
    file = io.StringIO(newline="")
    table = Table(file, ("path", "value"))
    for path, value in rows:
        table.write({"path": path, "value": value})
    found = list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))
    assert [uncell(row["path"]) for row in found] == [path for path, _ in rows]
    assert [row["value"] for row in found] == ["" if value is None else str(value) for _, value in rows]


@given(NAMES)
def test_what_is_printed_holds_no_control_characters(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://user:word@host:1/a.jpg?sig=secret", "ftp://…@host:1/a.jpg?…"),
        ("detect 'https://u:p@h/a?x=1' b --html r", "detect 'https://…@h/a?…' b --html r"),
        ("zip://a.jpg::s3://k:s@b/c.zip?q=1", "zip://a.jpg::s3://…@b/c.zip?…"),
        ("file:///tmp/what?.jpg", "file:///tmp/what?.jpg"),
        ("ftp://u:p@ss@h/a", "ftp://…@h/a"),
        ("https://h/a?sig=a'b c", "https://h/a?… c"),
        ("://a" * 100_000, "://a" * 100_000),
        ("who@example.org: what? no URL", "who@example.org: what? no URL"),
    ],
)
def test_secrets_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
