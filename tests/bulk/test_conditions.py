"""What a table was begun under is found from the table, a folder of parts, or one of the parts."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from corit_cli.bulk.conditions import begun, beside, check, hold, write
from corit_cli.errors import CoritError

ABOUT = {"precision": "fp32", "folder": "/here"}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Where conditions stand, by what they are asked of."""
    table, folder = tmp_path / "table.csv", tmp_path / "parts" / "parts"
    (folder / "parts").mkdir(parents=True)
    (tmp_path / "link.csv").symlink_to("table.csv")
    of_parts = folder / "run.json"
    return {
        str(table): beside(table),
        str(tmp_path / "link.csv"): beside(table),
        f"file://{table}": beside(table),
        str(folder): of_parts,
        f"{folder}/": of_parts,
        f"file://{folder}": of_parts,
        str(folder / "parts" / "part-1.parquet"): of_parts,
    }


def test_they_are_found(places: dict[str, Path]) -> None:
    for asked, file in places.items():
        assert begun(asked) == {}
        file.write_text(json.dumps(ABOUT))
        assert begun(asked) == ABOUT
        for damage in ("", "[]", "{", "\x00", "[" * 200_000):
            file.write_text(damage)
            assert begun(asked) == {}
        file.unlink()
        if not asked.startswith("file://"):
            os.mkfifo(file)
            assert begun(asked) == {}
            file.unlink()


def test_one_process_holds_them(tmp_path: Path) -> None:
    place = beside(tmp_path / "table.csv")
    with ExitStack() as stack:
        write(hold(place, "the table", stack), place, ABOUT)
        with pytest.raises(CoritError, match="the table is being written to"), ExitStack() as other:
            hold(place, "the table", other)
    with ExitStack() as stack:
        check("the table", hold(place, "the table", stack).read(), ABOUT)
        with pytest.raises(CoritError, match="does not say how it was begun"):
            check("the table", b"[" * 200_000, ABOUT)
        with pytest.raises(CoritError, match="was begun with precision fp32, not bf16"):
            check("the table", place.read_bytes(), {**ABOUT, "precision": "bf16"})


def test_what_is_called_so_and_is_something_else_is_kept(tmp_path: Path) -> None:
    place = beside(tmp_path / "table.csv")
    for make in (
        lambda: place.write_bytes(b"\x89PNG"),
        lambda: place.symlink_to(tmp_path / "precious"),
        place.mkdir,
        lambda: os.mkfifo(place),
    ):
        (tmp_path / "precious").write_text("{}")
        make()
        with pytest.raises(CoritError, match=r"table\.csv"), ExitStack() as stack:
            hold(place, tmp_path / "table.csv", stack)
        assert (tmp_path / "precious").read_text() == "{}"
        if place.is_dir():
            place.rmdir()
        else:
            assert place.is_fifo() or place.is_symlink() or place.read_bytes() == b"\x89PNG"
            place.unlink()
