"""Rows that are read back are those that can be counted and whose file can be looked for; all others are as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corit_cli.bulk.rows import COLUMNS, Csv, JsonLines, flat
from corit_cli.bulk.table import Table

ROW = {"path": "a.jpg", "probability": 0.5, "verdict": "real", "error": None, "declared": None}
ABOUT = {"detector": "d" * 64}


@pytest.mark.parametrize("form", [JsonLines(), Csv()], ids=["jsonl", "csv"])
@pytest.mark.parametrize(
    "told", [{}, {"path": "byte\udcff\n.jpg"}, {"verdict": None, "error": "cut off"}, {"declared": "ai-generated"}]
)
def test_what_is_written_is_read_back(form: JsonLines | Csv, told: dict) -> None:
    found = form.decode(form.encode(ROW | told))
    assert all(found[name] == (ROW | told)[name] for name in ("path", "verdict", "error", "declared"))


def test_what_of_a_video_could_not_be_read_is_a_note() -> None:
    film = {"tracks": {}, "incomplete": "only 4 of 10 seconds can be read"}
    assert flat(ROW | {"video": film, "notes": ["cut off"]})["notes"] == "cut off; only 4 of 10 seconds can be read"
    assert flat(ROW | {"video": film | {"incomplete": None}})["notes"] is None


@pytest.mark.parametrize(
    "told",
    [
        {"verdict": [1]},
        {"verdict": "forged"},
        {"verdict": 7},
        {"declared": {"kind": "camera"}},
        {"declared": ["camera"]},
        {"path": "\ud800"},
        {"path": ["a.jpg"]},
        {"path": None},
    ],
    ids=str,
)
def test_rows_of_json_that_are_none(told: dict) -> None:
    assert JsonLines().decode(json.dumps(ROW | told).encode()) is None


@pytest.mark.parametrize("depth", [900, 985, 200_000])
def test_lines_of_any_depth(depth: int) -> None:
    assert JsonLines().decode(b"[" * depth) is None
    found = JsonLines().decode(json.dumps(ROW)[:-1].encode() + b', "more": ' + b"[" * depth + b"]" * depth + b"}")
    assert found is None or found["path"] == "a.jpg"


@pytest.mark.parametrize(
    ("column", "text"),
    [("notes", "x" * 131_073), ("path", "'\\ud800"), ("path", ""), ("verdict", "forged"), ("size", "9" * 5000)],
    ids=["long", "surrogate", "nameless", "verdict", "digits"],
)
def test_rows_of_csv_that_are_none(column: str, text: str) -> None:
    cells = {"path": "a.jpg", "verdict": "real"}
    assert Csv().decode(",".join(cells.get(name, "") for name in COLUMNS).encode()) is not None
    assert Csv().decode(",".join((cells | {column: text}).get(name, "") for name in COLUMNS).encode()) is None


def test_a_header_is_no_row() -> None:
    assert Csv().decode(Csv().header()) is None


def test_a_table_with_such_rows_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("0.5")
    table = tmp_path / "out.jsonl"
    with Table(table, ABOUT):
        pass
    spoilt = [json.dumps(ROW | told) for told in ({"verdict": [1]}, {"path": "\ud800"}, {"declared": {}})]
    table.write_text("\n".join([*spoilt, "[" * 200_000]) + "\n")
    with Table(table, ABOUT, resume=True) as taken_up:
        assert not taken_up.counts
    assert table.read_bytes() == b""
