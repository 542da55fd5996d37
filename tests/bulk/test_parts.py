"""A folder of parts, on a disk and in a store of objects: each file has one row whatever was left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corit_cli.bulk import parts as module
from corit_cli.bulk.index import Seen
from corit_cli.bulk.parts import Parts, every_row
from corit_cli.bulk.run import with_stamp
from corit_cli.bulk.stamps import stamp
from corit_cli.errors import CoritError

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("pyarrow")


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "out")
    else:
        yield "memory://parts-test"
        fs = fsspec.filesystem("memory")
        if fs.exists("/parts-test"):
            fs.rm("/parts-test", recursive=True)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_text(f"{i}")
    return tmp_path


def row(files: Path, i: int, error: str | None = None, probability: float = 0.5) -> dict[str, Any]:
    said = {"path": f"{i}.jpg", "probability": None if error else probability, "verdict": None if error else "real"}
    return with_stamp(said | {"error": error}, stamp(str(files / f"{i}.jpg")))


def take_up(parts: Parts, files: Path, **how: bool) -> tuple[dict[str, Any], list[str]]:
    """What stands, and the files that are to be done."""
    with Seen() as seen:
        parts.take_up(seen, str(files), **how)
        left = [name for name in (f"{i}.jpg" for i in range(6)) if name not in seen]
    rows = list(every_row(parts))
    assert len({r["path"] for r in rows}) == len(rows)
    return {r["path"]: r for r in rows}, left


def test_what_stands_is_kept_and_the_rest_is_to_be_done(folder: str, files: Path) -> None:
    parts = Parts.begin(folder, {"by": "test"}, resume=False)
    parts.write([row(files, 0), row(files, 1, "bad")])
    parts.write([row(files, 2), row(files, 3)])
    (files / "3.jpg").write_text("changed")
    found, left = take_up(parts, files)
    assert set(found) == {"0.jpg", "1.jpg", "2.jpg"} and left == ["3.jpg", "4.jpg", "5.jpg"]
    found, left = take_up(parts, files, retry_errors=True)
    assert set(found) == {"0.jpg", "2.jpg"} and left[0] == "1.jpg"


def test_a_part_that_is_written_twice_is_one(folder: str, files: Path) -> None:
    parts = Parts.begin(folder, {}, resume=False)
    names = {parts.write([row(files, 0), row(files, 1)]) for _ in range(2)}
    assert parts.names() == sorted(names) and len(names) == 1


def test_parts_are_put_together_and_a_row_that_is_there_twice_is_dropped(
    folder: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MERGED", 4)
    parts = Parts.begin(folder, {}, resume=False)
    for some in ([0, 1], [1, 2], [3], [4], [5]):
        parts.write([row(files, i) for i in some])
    assert parts.merge() == {"real": 6}
    assert sorted(r["path"] for r in every_row(parts)) == [f"{i}.jpg" for i in range(6)]
    assert len(parts.names()) == 2
    before = parts.names()
    assert parts.merge() == {"real": 6} and len(parts.names()) <= len(before)


def test_a_merge_that_was_cut_off_leaves_no_row_twice(
    folder: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts.begin(folder, {}, resume=False)
    for i in range(3):
        parts.write([row(files, i)])

    def killed(self: Parts, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "_remove", killed)
        parts.merge()
    assert len(parts.names()) == 4
    found, left = take_up(parts, files)
    assert set(found) == {"0.jpg", "1.jpg", "2.jpg"} and len(left) == 3 and len(parts.names()) == 1


def test_what_was_begun_otherwise_is_refused(folder: str, files: Path) -> None:
    Parts.begin(folder, {"faces": "off"}, resume=False)
    with pytest.raises(CoritError, match="go on with it by --resume"):
        Parts.begin(folder, {"faces": "off"}, resume=False)
    with pytest.raises(CoritError, match="was begun with faces off, not auto"):
        Parts.begin(folder, {"faces": "auto"}, resume=True)
    assert Parts.begin(folder, {"faces": "off"}, resume=True).names() == []


def test_a_folder_of_other_files_is_left_alone(files: Path) -> None:
    with pytest.raises(CoritError, match="holds other files"):
        Parts.begin(str(files), {}, resume=True)
    assert len(os.listdir(files)) == 6
