from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from corit_cli.bulk import stamps
from corit_cli.bulk.rows import Csv
from corit_cli.bulk.run import with_stamp
from corit_cli.bulk.sources import listed
from corit_cli.bulk.stamps import Stamp, stamp
from corit_cli.bulk.table import STANDS, Present, Table
from corit_cli.cli.inputs import Left, collect
from corit_cli.data.opening import ImageError
from corit_cli.data.urls import changed, fetch
from corit_cli.errors import CoritError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's file system that lives in this process."""
    fs = fsspec.filesystem("memory")
    for name in ("b/2.png", "b/.hidden.png", "1.jpg", "notes.txt", ".thumbs/3.jpg", "b/c/4.webp"):
        fs.pipe_file(f"/archive/{name}", name.encode())
    yield "memory://archive"
    fs.rm("/archive", recursive=True)


def names(*sources: str, recursive: bool = True, left: Left | None = None) -> list[str]:
    return list(listed(sources, recursive, collect, left or Left()))


def test_folders_at_urls_are_listed_as_folders_are(memory: str, tmp_path: Path) -> None:
    found = names(memory)
    assert found == [f"memory:///archive/{name}" for name in ("1.jpg", "b/2.png", "b/c/4.webp")]
    assert names(memory, recursive=False) == ["memory:///archive/1.jpg"]
    fs = fsspec.filesystem("memory")
    fs.get("/archive", str(tmp_path / "copy"), recursive=True)
    assert [path.removeprefix(str(tmp_path / "copy")) for path in names(str(tmp_path / "copy"))] == [
        path.removeprefix("memory:///archive") for path in found
    ]


def test_what_is_left_out_of_folders_at_urls_is_counted(memory: str) -> None:
    left = Left()
    names(memory, recursive=False, left=left)
    assert left.kinds == {".txt": 1} and left.hidden == 1 and left.folders == 1 and not left.searched
    fs, left = fsspec.filesystem("memory"), Left()
    fs.mv("/archive/1.jpg", "/archive/b/1.jpg")
    assert len(names(memory, recursive=False, left=left)) == 3  # where a folder has none itself, those below it
    assert left.searched == [memory] and left.folders == 0 and left.hidden == 2


def test_what_lies_in_an_archive_keeps_the_archive_in_its_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.jpg", b"1")
        archive.writestr("b/c.png", b"2")
    inside = f"zip://{{}}::{tmp_path}/x.zip"
    assert names(inside.format("")) == [inside.format("a.jpg"), inside.format("b/c.png")]
    assert names(f"zip://::{tmp_path}/none.zip", "/a.jpg") == [f"zip://::{tmp_path}/none.zip", "/a.jpg"]
    assert names(inside.format("*/*.png")) == [inside.format("b/c.png")] and fetch(inside.format("b/c.png")) == b"2"


def test_globs_and_files_at_urls(memory: str) -> None:
    assert "memory:///archive/b/2.png" in names(f"{memory}/b/*.png") and names(f"{memory}/*.png") == [f"{memory}/*.png"]
    fsspec.filesystem("memory").pipe_file("/archive/p[1].jpg", b"a name like a pattern")
    assert names(f"{memory}/p[1].jpg") == [f"{memory}/p[1].jpg"]
    assert names(f"{memory}/notes.txt") == [f"{memory}/notes.txt"]  # what is named is taken
    assert names("memory://nowhere/a.jpg") == ["memory://nowhere/a.jpg"]  # becomes an error row


def test_a_folder_at_a_url_that_cannot_be_listed_becomes_an_error(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = fsspec.get_filesystem_class("memory")
    ls = kind.ls

    def faulty(self: object, path: str, *how: object, **more: object) -> object:
        if path.rstrip("/").endswith(broken):
            raise RuntimeError("503 Slow Down")  # of whatever kind its client raises
        return ls(self, path, *how, **more)

    monkeypatch.setattr(kind, "ls", faulty)
    broken = "/b"
    assert names(memory) == ["memory:///archive/1.jpg", "memory:///archive/b"]
    broken = "/archive"
    assert names(memory, f"{memory}/1.jpg") == [memory, f"{memory}/1.jpg"]  # and what else was named is looked at


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_lists_name_files_from_their_folder_on(suffix: str, tmp_path: Path, memory: str) -> None:
    paths = ["a.jpg", "/elsewhere/b.jpg", "deeper/c,d.png", "s3://bucket/e.jpg"]
    file = tmp_path / f"list.{suffix}"
    write(file, [{"id": k, "Image": path} for k, path in enumerate(paths)])
    expected = [f"{tmp_path}/a.jpg", "/elsewhere/b.jpg", f"{tmp_path}/deeper/c,d.png", "s3://bucket/e.jpg"]
    assert names(str(file)) == expected
    with fsspec.open(f"{memory}/list.{suffix}", "wb") as there:
        there.write(file.read_bytes())
    assert names(f"{memory}/list.{suffix}")[0] == f"{memory}/a.jpg"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_lists_that_cannot_be_read_are_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"list.{suffix}"
    write(file, [{"id": 1, "address": "a.jpg"}])
    with pytest.raises(CoritError, match="no column called path, image, file, filename"):
        names(str(file))
    file.write_bytes(b"\xff\xfe\x00nothing" * 3)
    with pytest.raises(CoritError, match=f"list.{suffix} is not a readable list of files"):
        names(str(file))


def test_names_that_no_file_can_have_are_refused_and_bytes_are_names(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"path": "a.jpg"}\n{"path": "b\\ud800.jpg"}\n')
    with pytest.raises(CoritError, match=r"list.jsonl is not a readable list of files: file 2 of it has no name"):
        names(str(tmp_path / "list.jsonl"))
    for line in ('{"path":', '["path"]', "3"):
        (tmp_path / "list.jsonl").write_text(f'{{"path": "a.jpg"}}\n\n{line}\n')
        with pytest.raises(CoritError, match="line 3 is no JSON object"):
            names(str(tmp_path / "list.jsonl"))
    write(tmp_path / "list.parquet", [{"path": b"/a\xff.jpg"}])
    assert names(str(tmp_path / "list.parquet")) == ["/a\udcff.jpg"]


def write(file: Path, rows: Sequence[dict]) -> None:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".csv":
        cells = [list(rows[0]), *([f'"{cell}"' for cell in row.values()] for row in rows)]
        file.write_text("\n".join(",".join(row) for row in cells) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(list(rows)), file)


def test_what_lies_at_a_url_has_a_stamp(memory: str) -> None:
    first = stamp(f"{memory}/1.jpg", checksum=True)
    assert first.size == 5 and first.mtime_ns and len(first.sha256 or "") == 64
    fsspec.filesystem("memory").pipe_file("/archive/1.jpg", b"2.jpg")
    assert not first.same_file(stamp(f"{memory}/1.jpg", checksum=True))
    assert stamp(f"{memory}/nothing.jpg") == Stamp()


@pytest.mark.parametrize(
    ("cause", "gone"),
    [
        (None, True),
        (SimpleNamespace(status=404), True),
        (SimpleNamespace(status=410), True),
        (SimpleNamespace(status=503), False),
        (ConnectionRefusedError(), False),
        (TimeoutError(), False),
        (FileNotFoundError(), True),
        (type("ServerDisconnectedError", (Exception,), {"__module__": "aiohttp.client_exceptions"})(), False),
        (asyncio.TimeoutError(), False),
        (KeyError("NoSuchKey"), True),  # a client of a store of objects
    ],
)
def test_a_server_that_does_not_answer_is_no_missing_file(
    memory: str, monkeypatch: pytest.MonkeyPatch, cause: object, gone: bool
) -> None:
    if isinstance(cause, SimpleNamespace):
        cause = type("ResponseError", (Exception,), {"status": cause.status})()

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("https://host/a.jpg") from cause

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", missing)
    assert stamp(f"{memory}/1.jpg") == (Stamp() if gone else None)


def test_a_server_tells_when_a_file_was_changed() -> None:
    told = changed({"size": 3, "Last-Modified": "Fri, 27 Nov 2026 18:16:46 GMT"})
    assert told == changed({"LastModified": "2026-11-27T18:16:46Z"}) == 1795803406 * 10**9
    assert changed({"Last-Modified": "Friday, or so"}) is None


def test_a_file_whose_content_cannot_be_read_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    monkeypatch.setattr(stamps, "content_sha256", lambda path: None)
    assert stamp(str(tmp_path / "a.jpg"), checksum=True) is None
    assert stamp(str(tmp_path / "a.jpg")).size == 1 and stamp(str(tmp_path / "b.jpg"), checksum=True) == Stamp()


def test_of_what_a_server_refuses_nothing_is_known(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = fsspec.get_filesystem_class("memory")
    row = with_stamp({"path": f"{memory}/1.jpg", "error": None}, stamp(f"{memory}/1.jpg"))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("403 Forbidden\nand a page of it")

    for name in ("info", "cat_file"):
        monkeypatch.setattr(kind, name, refuse)
    assert stamp(row["path"]) is None and Present(checksum=False).state(row) == STANDS
    with pytest.raises(ImageError, match=r"^cannot be read \(403 Forbidden\)$"):
        fetch(row["path"])


def test_a_table_of_verdicts_is_a_list_of_the_files_as_they_are_called(tmp_path: Path) -> None:
    called = ["'quoted.jpg", "=1+1.jpg", "new\nline.jpg", "plain.jpg"]
    table = Csv().header() + b"".join(
        Csv().encode({"path": str(tmp_path / name), "verdict": "real", "error": None}) for name in called
    )
    (tmp_path / "verdicts.csv").write_bytes(table)
    assert names(str(tmp_path / "verdicts.csv")) == [str(tmp_path / name) for name in called]
    (tmp_path / "other.csv").write_text("path\n'quoted.jpg\n")  # somebody else's apostrophe is part of the name
    assert names(str(tmp_path / "other.csv")) == [str(tmp_path / "'quoted.jpg")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_names_in_a_table_of_verdicts_start_from_where_it_was_begun(suffix: str, tmp_path: Path) -> None:
    rows = [{"path": name, "probability": 0.5, "verdict": "real", "error": None} for name in ("a.jpg", "b\udcff.jpg")]
    out = tmp_path / "results" / f"v.{suffix}"
    with Table(out, {"folder": "/archive"}) as table:
        for row in rows:
            table.add(with_stamp(row, None))
        table.finish()
    assert names(str(out)) == ["/archive/a.jpg", "/archive/b\udcff.jpg"]
    link = tmp_path / f"link.{suffix}"
    link.symlink_to(out)
    assert names(str(link)) == names(str(out))
    if suffix == "parquet":  # as --ray leaves them
        part = tmp_path / "folder" / "parts" / "part-1.parquet"
        part.parent.mkdir(parents=True)
        part.write_bytes(out.read_bytes())
        (tmp_path / "folder" / "run.json").write_text('{"folder": "/elsewhere"}')
        assert names(str(part))[0] == "/elsewhere/a.jpg"
        other = tmp_path / "folder" / "lists" / "part-1.parquet"
        other.parent.mkdir()
        other.write_bytes(out.read_bytes())
        assert names(str(other))[0] == "a.jpg"
    (out.with_name(f"{out.name}.run.json")).unlink()
    assert names(str(out)) == ["a.jpg", "b\udcff.jpg"]
