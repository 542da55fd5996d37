"""A folder of parts, on a disk and in a store of objects: each file has one row whatever was left behind."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli.bulk import parts as module
from corit_cli.bulk.index import Aside, Seen
from corit_cli.bulk.parts import Parts
from corit_cli.bulk.run import with_stamp
from corit_cli.bulk.stamps import stamp
from corit_cli.errors import CoritError
from tests.conftest import every_row

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


def begin(folder: str, about: dict[str, Any] | None = None, resume: bool = False) -> Parts:
    """Begun by a driver that has ended."""
    with ExitStack() as stack:
        return Parts.begin(folder, about or {}, resume, stack)


def row(files: Path, i: int, error: str | None = None, probability: float = 0.5) -> dict[str, Any]:
    said = {"path": f"{i}.jpg", "probability": None if error else probability, "verdict": None if error else "real"}
    return with_stamp(said | {"error": error}, stamp(str(files / f"{i}.jpg")))


def take_up(parts: Parts, files: Path, **how: bool) -> tuple[dict[str, Any], list[str]]:
    """What stands, and the files that are to be done."""
    with Seen() as seen:
        parts.take_up(seen, str(files), **how)
        left = [name for name in (f"{i}.jpg" for i in range(6)) if name not in seen]
    rows = every_row(parts)
    assert len({r["path"] for r in rows}) == len(rows)
    return {r["path"]: r for r in rows}, left


def test_what_stands_is_kept_and_the_rest_is_to_be_done(folder: str, files: Path) -> None:
    parts = begin(folder)
    parts.write([row(files, 0), row(files, 1, "bad")])
    parts.write([row(files, 2), row(files, 3)])
    (files / "3.jpg").write_text("changed")
    found, left = take_up(parts, files)
    assert set(found) == {"0.jpg", "1.jpg", "2.jpg"} and left == ["3.jpg", "4.jpg", "5.jpg"]
    found, left = take_up(parts, files, retry_errors=True)
    assert set(found) == {"0.jpg", "2.jpg"} and left[0] == "1.jpg"


def test_a_row_that_is_to_be_made_anew_stays_until_its_file_is_listed(folder: str, files: Path) -> None:
    parts = begin(folder)
    parts.write([row(files, 0), row(files, 1, "bad"), row(files, 2), row(files, 3)])
    (files / "2.jpg").write_text("changed")
    (files / "3.jpg").write_text("changed, too")
    with Seen() as seen, Aside() as aside:
        parts.take_up(seen, str(files), retry_errors=True, aside=aside)
        parts.write([row(files, 3, probability=0.9)])  # the one that was listed
        assert parts.merge(aside) == {"real": 3, "error": 1}
    rows = {r["path"]: (r["probability"], r["error"]) for r in every_row(parts)}
    assert rows == {"0.jpg": (0.5, None), "1.jpg": (None, "bad"), "2.jpg": (0.5, None), "3.jpg": (0.9, None)}
    assert take_up(parts, files)[1] == ["2.jpg", "4.jpg", "5.jpg"]


def test_a_part_that_is_written_twice_is_one(folder: str, files: Path) -> None:
    parts = begin(folder)
    names = {parts.write([row(files, 0), row(files, 1)]) for _ in range(2)}
    assert parts.names() == sorted(names) and len(names) == 1


def test_parts_are_put_together_and_a_row_that_is_there_twice_is_dropped(
    folder: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MERGED", 4)
    parts = begin(folder)
    for some in ([0, 1], [1, 2], [3], [4], [5]):
        parts.write([row(files, i) for i in some])
    assert parts.merge() == {"real": 6}
    assert sorted(r["path"] for r in every_row(parts)) == [f"{i}.jpg" for i in range(6)]
    assert len(parts.names()) == 2
    before = parts.names()
    assert parts.merge() == {"real": 6} and len(parts.names()) <= len(before)


def test_a_large_part_stays_when_another_only_repeats_it(folder: str, files: Path) -> None:
    parts = begin(folder)
    for some in ([0, 1], [0], [1]):
        parts.write([row(files, i) for i in some])
        assert parts.merge() == {"real": 2}
    assert len(every_row(parts)) == 2


def test_a_merge_that_was_cut_off_leaves_no_row_twice(
    folder: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = begin(folder)
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
    begin(folder, {"faces": "off"})
    with pytest.raises(CoritError, match="go on with it by --resume"):
        begin(folder, {"faces": "off"})
    with pytest.raises(CoritError, match="was begun with faces off, not auto"):
        begin(folder, {"faces": "auto"}, resume=True)
    assert begin(folder, {"faces": "off"}, resume=True).names() == []


def test_a_folder_on_a_disk_has_one_driver(tmp_path: Path) -> None:
    with ExitStack() as stack:
        Parts.begin(str(tmp_path / "out"), {}, False, stack)
        with pytest.raises(CoritError, match="being written to by another process"):
            begin(f"file://{tmp_path}/out", resume=True)
    begin(str(tmp_path / "out"), resume=True)


def test_a_folder_of_other_files_is_left_alone(files: Path) -> None:
    with pytest.raises(CoritError, match="holds other files"):
        begin(str(files), resume=True)
    assert len(os.listdir(files)) == 6


class Killed(BaseException):
    """The process is killed."""


class Mortal(Parts):
    """Is killed before it changes the folder for the ``life`` + 1-th time."""

    life = 0

    def _spend(self) -> None:
        Mortal.life -= 1
        if Mortal.life < 0:
            raise Killed

    def _put(self, name: str, data: bytes) -> None:
        self._spend()
        super()._put(name, data)

    def _remove(self, name: str) -> None:
        self._spend()
        super()._remove(name)


STEPS = st.one_of(
    st.tuples(st.just("run"), st.integers(1, 3), st.integers(0, 4)),  # groups of how many; killed after how many
    st.tuples(st.just("run"), st.integers(1, 3), st.just(1000)),
    st.tuples(st.just("change"), st.integers(4, 5), st.just(0)),
    st.tuples(st.just("again"), st.integers(0, 5), st.just(0)),
)


@settings(max_examples=60)
@given(steps=st.lists(STEPS, max_size=12), large=st.sampled_from([2, 3, 100]))
def test_no_row_is_lost_whatever_is_done_and_wherever_it_is_killed(
    steps: list[tuple[str, int, int]], large: int
) -> None:
    """Runs that take a folder up, write groups of files that have no row yet, and merge, each killed after some changes
    of the folder or not at all; a part written a second time, as by a task that is done again; and files that change.
    """
    with tempfile.TemporaryDirectory() as name, patch.object(module, "MERGED", large):
        files, written, ever = Path(name), [], set()
        for i in range(6):
            (files / f"{i}.jpg").write_text(f"{i}")
        parts = Mortal(f"memory://{name}")

        def run(size: int) -> None:
            with Seen() as seen:
                parts.take_up(seen, str(files))
                assert {i for i in ever if i < 4} <= {i for i in range(6) if f"{i}.jpg" in seen}
                rows = Counter(row["path"] for row in every_row(parts))
                assert set(rows.values()) <= {1} and all(path in seen for path in rows)
                assert all(f"{i}.jpg" in rows for i in range(6) if f"{i}.jpg" in seen)
                todo = [i for i in range(6) if f"{i}.jpg" not in seen]
            for group in (todo[k : k + size] for k in range(0, len(todo), size)):
                written.append([row(files, i) for i in group])
                parts.write(written[-1])
                ever.update(group)
            parts.merge()
            assert sorted(row["path"] for row in every_row(parts)) == [f"{i}.jpg" for i in range(6)]

        for number, (what, how, life) in enumerate([*steps, ("run", 2, 1000)]):
            Mortal.life = life if what == "run" else 1000
            if what == "run":
                with suppress(Killed):
                    run(how)
            elif what == "again" and written:
                parts.write(written[how % len(written)])
            elif what == "change":
                (files / f"{how}.jpg").write_text("changed" * (1 + number))


def test_an_archive_that_is_away_takes_no_row(folder: str, files: Path) -> None:
    parts = begin(folder)
    parts.write([row(files, 0)])
    parts.write([row(files, 1), with_stamp({"path": "no.jpg", "verdict": None, "error": "no such file"}, None)])
    before = parts.names()
    with Seen() as seen, pytest.raises(CoritError, match=r"not one file that .* has a row of is there"):
        parts.take_up(seen, str(files / "elsewhere"))
    assert parts.names() == before
    found, _ = take_up(parts, files)
    assert set(found) == {"0.jpg", "1.jpg", "no.jpg"}


def test_parts_that_other_processes_wrote_are_seen(files: Path) -> None:
    """Where a file system remembers listings, as those of s3:// and gs:// do."""
    remembering = type("Remembering", (fsspec.get_filesystem_class("memory"),), {
        "protocol": "hf", "store": {}, "pseudo_dirs": [""], "kept": {},
        "ls": lambda self, path, detail=True, **more: self.kept.setdefault(
            (path, detail), fsspec.get_filesystem_class("memory").ls(self, path, detail, **more)
        ),
        "invalidate_cache": lambda self, path=None: self.kept.clear(),
    })  # fmt: skip
    fsspec.register_implementation("hf", remembering, clobber=True)
    parts = begin("hf://out")
    parts.write([row(files, 0)])
    assert len(parts.names()) == 1
    parts.write([row(files, 1)])
    assert parts.merge() == {"real": 2} and len(parts.names()) == 1
