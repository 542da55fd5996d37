"""Which files are looked at, and that none vanishes without a word."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from corit_cli.cli.inputs import Left, collect, image_on_stdin
from corit_cli.detection.heatmap import Heatmap
from corit_cli.errors import CoritError
from corit_cli.report.heatmap import save_overlay
from tests.cli.conftest import one_line_error
from tests.conftest import photograph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and videos by content, others, and some below."""
    root = tmp_path / "mixed"
    (root / "below").mkdir(parents=True)
    photograph(0).save(root / "a.jpg")
    data = (root / "a.jpg").read_bytes()
    for name in ("b.jpe", "c.jpg_large", "no-suffix", "=1+1.jpg", "below/d.jpg", "фото 日本.jpg"):
        (root / name).write_bytes(data)
    (root / "d.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    (root / "e.pdf").write_bytes(b"%PDF-1.4\n")
    (root / "notes.txt").write_text("not looked at")
    (root / "sound").write_bytes(b"ID3\x04" + bytes(20))
    (root / ".hidden.jpg").write_bytes(data)
    return root


def found(path: Path, recursive: bool = False, keep: bool = False) -> tuple[list[str], Left]:
    left = Left(keep)
    return [Path(f).name for f in collect([str(path)], recursive, left)], left


def test_heatmaps_of_an_earlier_run_are_no_evidence(folder: Path) -> None:
    source, maps = folder / "a.jpg", folder / "maps"
    maps.mkdir()
    with Image.open(source) as image:
        box = (0, 0, *image.size)
        heatmap = Heatmap(np.zeros((4, 4), np.float32), np.ones((4, 4), bool), box, image.size, 0.0, 1.0)
        save_overlay(image.convert("RGB"), heatmap, 0.5, "uncertain", maps / "a.heatmap.png", str(source))
    photograph(1).save(maps / "mine.heatmap.png")  # somebody's picture
    names, left = found(maps, keep=True)
    assert names == ["mine.heatmap.png"]
    assert list(left.lines()) == ["left out 1 heatmap that corit drew"]
    assert left.files == [(str(maps / "a.heatmap.png"), "a heatmap that corit drew")]
    assert list(collect([str(maps / "a.heatmap.png")], recursive=False)) == [
        str(maps / "a.heatmap.png")
    ]  # named, it is taken


def test_a_glob_goes_round_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "sub"
    below.mkdir()
    photograph(0).save(below / "a.png")
    for name in ("up", "over", "beyond"):  # more ways round than can be gone
        (below / name).symlink_to("..")
    (below / "b.png").symlink_to("a.png")  # another name of the same file is a name
    (tmp_path / "[1]").mkdir()
    shutil.copy(below / "a.png", tmp_path / "[1]" / "c.png")
    every = [str(tmp_path / "[1]" / "c.png"), str(below / "a.png"), str(below / "b.png")]
    for pattern in ("**/*.png", "**", "*/*.png", "**/**/*.png", "*/**", "**//*.png", "**/"):
        assert list(collect([str(tmp_path / pattern)], recursive=False)) == every
    assert list(collect([str(below / "u*" / "[[]1]" / "*")], recursive=False)) == [str(below / "up" / "[1]" / "c.png")]
    monkeypatch.chdir(tmp_path)
    assert list(collect(["**/a.png"], recursive=False)) == ["sub/a.png"]
    assert list(collect(["**"], recursive=False)) == ["[1]/c.png", "sub/a.png", "sub/b.png"]


def test_what_is_in_a_file_counts_and_the_rest_is_counted(folder: Path) -> None:
    names, left = found(folder, keep=True)
    assert names == ["=1+1.jpg", "a.jpg", "b.jpe", "c.jpg_large", "d.HEIC", "no-suffix", "фото 日本.jpg"]
    assert left.kinds == {".pdf": 1, ".txt": 1, "without suffix": 1} and left.folders == 1
    assert [(Path(path).name, reason[:5]) for path, reason in left.files] == [
        ("e.pdf", "a PDF"), ("notes.txt", "no im"), ("sound", "a sou"),
    ]  # fmt: skip
    skipped, folders, hidden = left.lines()
    assert hidden == "left out 1 hidden file or folder"
    assert (
        skipped.startswith("skipped 3 files that are no images or videos: 1 .pdf") and "--list-skipped" not in skipped
    )
    assert "(--list-skipped names them)" in next(found(folder)[1].lines())
    assert not any("--" in line for line in found(folder)[1].lines(()))
    assert folders == "did not look into 1 folder (--recursive does)"
    names, left = found(folder, recursive=True)
    assert "d.jpg" in names and left.folders == 0 and left.files == []


def test_links_and_hidden_folders_are_counted(folder: Path, tmp_path: Path) -> None:
    (folder / ".thumbs").mkdir()
    photograph(1).save(folder / ".thumbs" / "a.jpg")
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    names, left = found(folder, recursive=True)
    assert "d.jpg" in names and left.links == 1 and left.hidden == 2
    assert list(left.lines())[1:] == ["did not follow 1 link to a folder", "left out 2 hidden files or folders"]


def test_a_folder_without_images_of_its_own_is_searched_below(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "mixed")
    names, left = found(tmp_path / "outer")
    assert len(names) == 8 and "d.jpg" in names and left.kinds.total() == 3
    assert "looked into the folders below" in next(left.lines())


def test_a_folder_that_cannot_be_read_becomes_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: str, scandir=os.scandir):
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    names, _ = found(folder, recursive=True)
    assert names.count("below") == 1 and "a.jpg" in names


def test_a_folder_too_deep_for_its_path_becomes_an_error(corit, tmp_path: Path) -> None:
    photograph(0).save(tmp_path / "a.jpg")
    here, name = os.getcwd(), "d" * 200
    try:
        os.chdir(tmp_path)
        for _ in range(22):  # 4,400 characters
            os.mkdir(name)
            os.chdir(name)
    finally:
        os.chdir(here)
    names, _ = found(tmp_path, recursive=True)
    assert names[0] == "a.jpg" and names[1] == name  # the folder that could not be opened


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content)), closed=False))


def test_nothing_on_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for null in (False, True):
        stdin(monkeypatch, b"")
        with pytest.raises(CoritError, match="standard input is empty"):
            image_on_stdin(null)


def test_names_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for content, null, names in (
        (b"a.jpg\r\n\n  b c.jpg\nBM.bmp", False, ["a.jpg", "  b c.jpg", "BM.bmp"]),
        (b"two\nlines.jpg\0\xff.jpg\0\0", True, ["two\nlines.jpg", "\udcff.jpg"]),
        (b"\xff.jpg\n", False, ["\udcff.jpg"]),
    ):
        stdin(monkeypatch, content)
        assert image_on_stdin(null) is None
        assert list(collect(["-"], False, null=null)) == names


class Dripping(io.RawIOBase):
    """A pipe from which one byte comes at a time."""

    def __init__(self, content: bytes) -> None:
        self.content, self.read_so_far = content, 0

    def readable(self) -> bool:
        return True

    def readinto(self, room) -> int:
        block = self.content[self.read_so_far : self.read_so_far + 1]
        self.read_so_far += len(block)
        room[: len(block)] = block
        return len(block)


def drip(monkeypatch: pytest.MonkeyPatch, content: bytes) -> Dripping:
    pipe = Dripping(content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(pipe), closed=False))
    return pipe


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "AVIF"])
def test_an_image_on_a_slow_pipe(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = io.BytesIO()
    photograph(1).save(data, kind)
    drip(monkeypatch, data.getvalue())
    assert image_on_stdin() == data.getvalue()


def test_a_name_does_not_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = drip(monkeypatch, b"a.jpg\nb.jpg\n")
    assert image_on_stdin() is None and pipe.read_so_far == len("a.jpg\n")
    names = collect(["-"], False)
    assert next(names) == "a.jpg" and pipe.read_so_far == len("a.jpg\n")
    assert list(names) == ["b.jpg"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_an_image_is_no_list_with_zero_bytes(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = io.BytesIO()
    photograph(1).save(data, kind)
    stdin(monkeypatch, data.getvalue())
    with pytest.raises(CoritError, match=r"holds no file names: it is a .* image"):
        image_on_stdin(null=True)


def test_standard_input_is_not_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corit_cli.cli.inputs.LARGEST", 1000)
    stdin(monkeypatch, b"\xff\xd8\xff\xe0" + bytes(1000))
    with pytest.raises(CoritError, match="save it first"):
        image_on_stdin()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_an_image_on_standard_input(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = io.BytesIO()
    photograph(1).save(data, kind)
    stdin(monkeypatch, data.getvalue())
    assert image_on_stdin() == data.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\x1aE\xdf\xa3\0\0", "a Matroska video"), (b"%PDF-1.4\n\0", "a PDF"), (b"a\0b\0", "--null")],
)
def test_what_else_comes_on_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes, words: str) -> None:
    stdin(monkeypatch, content)
    with pytest.raises(CoritError, match=words):
        image_on_stdin()


def test_nothing_vanishes_end_to_end(corit, folder: Path, tmp_path: Path) -> None:
    """A name in another script under an encoding that lacks it, a cell that a spreadsheet would run, what was
    skipped."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONIOENCODING": "cp1252"}
    result = corit("detect", folder, "--csv", tmp_path / "a.csv", env=environment, text=False)
    assert result.returncode == 1 and b"Traceback" not in result.stderr
    lines = result.stdout.decode("cp1252").splitlines()
    assert len(lines) == 7 and any("\\u0444\\u043e" in line for line in lines)
    assert b"skipped 3 files" in result.stderr and b"1 error" in result.stderr
    cells = [line.split(",")[0] for line in (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()]
    assert f"{folder}/фото 日本.jpg" in cells
    result = corit("detect", "=1+1.jpg", "--csv", tmp_path / "b.csv", cwd=folder)
    assert result.returncode == 0 and "\n'=1+1.jpg," in (tmp_path / "b.csv").read_text()
    rows = json.loads(corit("detect", folder, "--json", "--list-skipped").stdout)["results"]
    skipped = [row for row in rows if row["verdict"] is row["error"] is None]
    assert [Path(row["path"]).name for row in skipped] == ["e.pdf", "notes.txt", "sound"]
    assert "PDF document" in skipped[0]["notes"][0]


def test_standard_input_end_to_end(corit, folder: Path) -> None:
    with (folder / "a.jpg").open("rb") as file:
        piped = corit("detect", "-", "--jsonl", stdin=file)
    (row,) = map(json.loads, piped.stdout.splitlines())
    named = json.loads(corit("detect", folder / "a.jpg", "--jsonl").stdout)
    assert row == {**named, "path": "-"}
    closed = corit("detect", "-", preexec_fn=lambda: os.close(0))
    one_line_error(closed, "standard input is closed")
