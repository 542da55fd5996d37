from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from corit_cli.bulk.rows import Csv
from corit_cli.bulk.run import with_stamp
from corit_cli.bulk.sources import listed
from corit_cli.bulk.stamps import Stamp, stamp
from corit_cli.bulk.table import Present
from corit_cli.cli.inputs import collect
from corit_cli.data.images import ImageError
from corit_cli.data.urls import fetch
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


def names(*sources: str, recursive: bool = True) -> list[str]:
    return list(listed(sources, recursive, collect))


def test_folders_at_urls_are_listed_as_folders_are(memory: str, tmp_path: Path) -> None:
    found = names(memory)
    assert found == [f"memory:///archive/{name}" for name in ("1.jpg", "b/2.png", "b/c/4.webp")]
    assert names(memory, recursive=False) == ["memory:///archive/1.jpg"]
    fs = fsspec.filesystem("memory")
    fs.get("/archive", str(tmp_path / "copy"), recursive=True)
    assert [path.removeprefix(str(tmp_path / "copy")) for path in names(str(tmp_path / "copy"))] == [
        path.removeprefix("memory:///archive") for path in found
    ]


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
    with pytest.raises(CoritError, match="memory://archive cannot be listed: 503 Slow Down"):
        names(memory)


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


def test_of_what_a_server_refuses_nothing_is_known(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = fsspec.get_filesystem_class("memory")
    row = with_stamp({"path": f"{memory}/1.jpg", "error": None}, stamp(f"{memory}/1.jpg"))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("403 Forbidden\nand a page of it")

    for name in ("info", "cat_file"):
        monkeypatch.setattr(kind, name, refuse)
    assert stamp(row["path"]) is None and Present(checksum=False).stands(row)
    with pytest.raises(ImageError, match=r"^cannot be read \(403 Forbidden\)$"):
        fetch(row["path"])


def test_a_table_of_verdicts_is_a_list_of_the_files_as_they_are_called(tmp_path: Path) -> None:
    names = ["'quoted.jpg", "=1+1.jpg", "new\nline.jpg", "plain.jpg"]
    table = Csv().header() + b"".join(
        Csv().encode({"path": str(tmp_path / name), "verdict": "real", "error": None}) for name in names
    )
    (tmp_path / "verdicts.csv").write_bytes(table)
    assert list(listed([str(tmp_path / "verdicts.csv")], False, collect)) == [str(tmp_path / name) for name in names]
    (tmp_path / "other.csv").write_text("path\n'quoted.jpg\n")  # somebody else's apostrophe is part of the name
    assert list(listed([str(tmp_path / "other.csv")], False, collect)) == [str(tmp_path / "'quoted.jpg")]
