"""A table that can be gone on with: whatever was cut off, every file has one whole row at the end."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli.bulk.index import Seen
from corit_cli.bulk.run import Counting, score, with_stamp
from corit_cli.bulk.stamps import Shard, Stamp, stamp
from corit_cli.bulk.table import Table
from corit_cli.detection.verdicts import FaceVerdict, Prediction
from corit_cli.errors import CoritError
from corit_cli.progress import hush
from corit_cli.texts import uncell

ABOUT = {"detector": "d" * 64, "faces": "off"}
FORMS = ("jsonl", "csv", "parquet")
ODD = ("plain.jpg", "with,comma.jpg", 'with"quote.jpg', "with\nline.jpg", "ünïcode.jpg", "byte\udcff.jpg")


def describe(p: Prediction) -> dict[str, Any]:
    return {"path": p.path, "probability": p.probability, "verdict": p.verdict, "error": p.error}


def judge(paths: Any) -> Iterator[Prediction]:
    """A verdict that is read off the file's content: 0.25, or no number at all."""
    for path in paths:
        text = Path(path).read_text() if os.path.exists(path) else ""
        try:
            yield Prediction(path, float(text), "real", 0.0)
        except ValueError:
            yield Prediction(path, None, None, 0.0, f"no number, but {text!r}, in it")


def fill(root: Path, contents: dict[str, str]) -> list[str]:
    for name, text in contents.items():
        (root / name).write_text(text)
    return [str(root / name) for name in contents]


def run(table: Path, paths: list[str], about: dict[str, Any] = ABOUT, **options: bool) -> Counter[str]:
    with Table(table, about, **options) as open_table:
        score(open_table, paths, judge, describe, hush)
        return open_table.counts


def rows_of(table: Path) -> list[dict[str, Any]]:
    """The rows, read by other means than the table's own."""
    if table.suffix == ".jsonl":
        return [json.loads(line) for line in table.read_text().splitlines()]
    if table.suffix == ".csv":
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [{k: uncell(v) or None for k, v in row.items()} for row in csv.DictReader(file)]
        return [r | {"probability": r["probability"] and float(r["probability"])} for r in rows]
    rows = pytest.importorskip("pyarrow.parquet").read_table(table).to_pylist()
    return [row | json.loads(row["details"] or "{}") for row in rows]


def said(table: Path) -> dict[str, tuple[Any, Any]]:
    rows = rows_of(table)
    found = {row["path"]: (row["probability"], row["error"]) for row in rows}
    assert len(found) == len(rows), "a file has two rows"
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_row_that_is_to_be_made_anew_stays_until_its_file_is_listed(
    form: str, stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = describe
    faces = [{"probability": 0.5}, {"probability": 0.25}]  # of which a CSV file has their number alone
    monkeypatch.setitem(globals(), "describe", lambda p: plain(p) | {"faces": faces})
    a, b, bad, gone = paths = fill(tmp_path, {"a.jpg": "0.1", "b.jpg": "0.2", "bad.jpg": "none", "gone.jpg": "0.3"})
    table = tmp_path / f"out.{form}"
    run(table, paths)
    before = said(table)
    fill(tmp_path, {"b.jpg": "0.8"})
    os.remove(gone)
    if stopped:
        with pytest.raises(KeyboardInterrupt), Table(table, ABOUT, resume=True, retry_errors=True):
            raise KeyboardInterrupt
    counts = run(table, [a], resume=True, retry_errors=True)
    assert said(table) == {path: before[path] for path in (a, b, bad)} and counts == {"real": 2, "error": 1}
    assert run(table, [b, bad, a], resume=True, retry_errors=True) == {"real": 2, "error": 1}
    assert said(table)[b] == (0.8, None)


def test_a_file_has_one_row_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"a.jpg": "0.1", "b.jpg": "0.2"})
    table = tmp_path / "out.jsonl"
    run(table, ["a.jpg"])
    assert run(table, ["./a.jpg", ".//b.jpg", "b.jpg"], resume=True) == {"real": 2}
    assert list(said(table)) == ["a.jpg", ".//b.jpg"]
    with Seen() as seen:  # after a link .. may lead elsewhere
        assert [seen.add(path) for path in ("/a/b", "/a/./b", "a/b", "a/../a/b", "s3://x//y", "s3://x/y")] == [
            True, False, True, True, True, True,
        ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_file_has_a_row_and_finished_tables_stay(form: str, tmp_path: Path) -> None:
    paths = fill(tmp_path, {name: f"0.{k}5" for k, name in enumerate(ODD)} | {"bad.jpg": "none"})
    table = tmp_path / f"out.{form}"
    assert run(table, [*paths, paths[0]]) == {"real": len(ODD), "error": 1}
    found = said(table)
    assert list(found) == paths
    assert [found[path][0] for path in paths[:-1]] == [float(f"0.{k}5") for k in range(len(ODD))]
    assert found[paths[-1]] == (None, "no number, but 'none', in it")
    for row in rows_of(table):
        found_stat = os.stat(row["path"])
        assert (int(row["size"]), int(row["mtime_ns"])) == (found_stat.st_size, found_stat.st_mtime_ns)
    before = table.read_bytes()
    assert run(table, paths, resume=True) == {"real": len(ODD), "error": 1}
    assert table.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {*ODD, "bad.jpg", table.name, f"{table.name}.run.json"}


@pytest.mark.parametrize("form", FORMS)
def test_errors_are_kept_and_tried_again_when_asked(form: str, tmp_path: Path) -> None:
    good, bad = fill(tmp_path, {"good.jpg": "0.5", "bad.jpg": "none"})
    table = tmp_path / f"out.{form}"
    run(table, [good, bad])
    times = os.stat(bad)
    Path(bad).write_text("0.75")  # as many bytes, and the same time: not to be told apart
    os.utime(bad, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(table, [good, bad], resume=True)["error"] == 1
    assert run(table, [good, bad], resume=True, retry_errors=True) == {"real": 2}
    assert said(table) == {good: (0.5, None), bad: (0.75, None)}


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_file_is_scored_again_and_one_that_went_loses_its_row(form: str, tmp_path: Path) -> None:
    same, changed, gone = fill(tmp_path, {"same.jpg": "0.1", "changed.jpg": "0.2", "gone.jpg": "0.3"})
    table = tmp_path / f"out.{form}"
    run(table, [same, changed, gone])
    Path(changed).write_text("0.25")
    Path(gone).unlink()
    run(table, [same, changed], resume=True)
    assert said(table) == {same: (0.1, None), changed: (0.25, None)}


@pytest.mark.parametrize("form", FORMS)
def test_with_checksums_content_decides(form: str, tmp_path: Path) -> None:
    touched, changed = fill(tmp_path, {"touched.jpg": "0.1", "changed.jpg": "0.2"})
    table = tmp_path / f"out.{form}"
    how = {"about": ABOUT | {"checksum": True}, "checksum": True}
    run(table, [touched, changed], **how)
    times = os.stat(changed)
    Path(changed).write_text("0.3")
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(touched, ns=(1, 1))
    before = {row["path"]: row for row in rows_of(table)}
    run(table, [touched, changed], **how, resume=True)
    after = {row["path"]: row for row in rows_of(table)}
    assert after[touched] == before[touched] and len(after[touched]["sha256"]) == 64
    assert after[changed]["probability"] == 0.3 and after[changed]["sha256"] != before[changed]["sha256"]


@settings(max_examples=60)
@given(
    cut=st.floats(0, 1), form=st.sampled_from(FORMS), names=st.sets(st.sampled_from(ODD), min_size=1), data=st.data()
)
def test_a_table_cut_anywhere_becomes_the_uninterrupted_one(
    cut: float, form: str, names: set[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts = {name: data.draw(st.sampled_from(["0.5", "0.125", "none"])) for name in sorted(names)}
        paths = fill(root, texts)
        whole, part = root / f"whole.{form}", root / f"part.{form}"
        run(whole, paths)
        run(part, paths)
        file = part
        if form == "parquet":  # the rows were gathered in a file that goes when they have become Parquet
            file = part.with_name(part.name + ".rows.jsonl")
            file.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in _undetailed(rows_of(part))))
            if data.draw(st.booleans()):
                part.unlink()
        text = file.read_bytes()
        file.write_bytes(text[: round(cut * len(text))])
        run(part, paths, resume=True)
        assert rows_of(part) == rows_of(whole)
        if form != "parquet":
            assert part.read_bytes() == whole.read_bytes()
        assert not list(root.glob("*.rows.jsonl"))


def _undetailed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("details", "sha256")} for row in rows]


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_that_is_away_takes_no_row(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    paths = fill(tmp_path / "disk", {"a.jpg": "0.5", "b.jpg": "none"})
    table = tmp_path / f"out.{form}"
    run(table, [*paths, str(tmp_path / "disk" / "no.jpg")])
    before = table.read_bytes()
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(CoritError, match=r"not one file that .* has a row of is there"):
        run(table, [], resume=True)
    assert table.read_bytes() == before and not (tmp_path / f".out.{form}.new").exists()
    (tmp_path / "disk").symlink_to("disk")  # and as where a server does not answer: nothing can be known of a file
    assert run(table, [], resume=True) == {"real": 1, "error": 2}
    assert table.read_bytes() == before


def test_a_link_to_a_table_stays_one(tmp_path: Path) -> None:
    (path,) = fill(tmp_path, {"a.jpg": "0.5"})
    (tmp_path / "out.csv").symlink_to("there.csv")
    for _ in range(2):
        run(tmp_path / "out.csv", [path], resume=True)
    assert (tmp_path / "out.csv").is_symlink() and len(rows_of(tmp_path / "there.csv")) == 1


def test_a_full_disk_is_told_and_the_table_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = fill(tmp_path, {"a.jpg": "0.5"})
    table = tmp_path / "out.jsonl"
    run(table, [path])
    before = sorted(tmp_path.iterdir()), table.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(CoritError, match=f"cannot write {table}: No space left"):
        patch.setattr(os, "fsync", full)
        run(table, [path], resume=True)
    assert (sorted(tmp_path.iterdir()), table.read_bytes()) == before


@pytest.mark.parametrize("written", ["nothing", "some"])
def test_a_disk_that_is_full_at_a_row_names_the_table(tmp_path: Path, written: str) -> None:
    (path,) = fill(tmp_path, {"a.jpg": "0.5"})
    table = tmp_path / "out.jsonl"

    class Full:
        def write(self, record: bytes) -> int:
            if written == "nothing":
                raise OSError(28, "No space left on device")
            return len(record) - 1

    with Table(table, {}) as open_table, pytest.raises(CoritError, match=f"cannot write {table}: "):
        open_table._out = Full()
        open_table.add({"path": path, "verdict": "real", "error": None})


def test_a_full_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with Seen() as seen:
        seen._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(CoritError, match=r"cannot write to the temporary folder .*: database or disk is full"):
            for i in range(10_000):
                seen.add(f"{i}.jpg")


def test_lines_that_are_no_rows_are_dropped(tmp_path: Path) -> None:
    paths = fill(tmp_path, {"a.jpg": "0.5", "b.jpg": "0.25"})
    for form in ("jsonl", "csv"):
        table = tmp_path / f"out.{form}"
        run(table, paths)
        whole = table.read_bytes()
        first, *rest = whole.splitlines(keepends=True)
        table.write_bytes(first + b"\0\0\0\n" + b"[1, 2]\n" + b'{"path": "x"}\n' + b"".join(rest))
        run(table, paths, resume=True)
        assert table.read_bytes() == whole


def test_what_was_begun_otherwise_is_refused(tmp_path: Path) -> None:
    (path,) = fill(tmp_path, {"a.jpg": "0.5"})
    table = tmp_path / "out.csv"
    run(table, [path])
    with pytest.raises(CoritError, match="is there already: go on with it by --resume"):
        run(table, [path])
    with pytest.raises(CoritError, match="was begun with faces off, not auto"):
        run(table, [path], ABOUT | {"faces": "auto"}, resume=True)
    with pytest.raises(CoritError, match="was begun with rate None, not 2"):
        run(table, [path], ABOUT | {"rate": 2}, resume=True)
    before = table.read_bytes()
    (tmp_path / "out.csv.run.json").write_text("{")
    with pytest.raises(CoritError, match="does not say how it was begun"):
        run(table, [path], resume=True)
    assert table.read_bytes() == before
    with pytest.raises(CoritError, match=r"takes \.jsonl, \.csv, \.parquet"):
        run(tmp_path / "out.xlsx", [path])


def test_two_processes_do_not_write_to_one_table(tmp_path: Path) -> None:
    (path,) = fill(tmp_path, {"a.jpg": "0.5"})
    table = tmp_path / "out.jsonl"
    with Table(table, ABOUT), pytest.raises(CoritError, match="being written to by another process"):
        run(table, [path], resume=True)
    run(table, [path], resume=True)


def test_of_two_processes_that_begin_together_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins where the first has not written its table yet."""
    take_up, refused = Table._take_up, []

    def slow(self: Table) -> None:
        monkeypatch.setattr(Table, "_take_up", take_up)
        with pytest.raises(CoritError, match="being written to by another process") as error:
            Table(tmp_path / "out.jsonl", ABOUT, resume=True)
        refused.append(error)
        take_up(self)

    monkeypatch.setattr(Table, "_take_up", slow)
    run(tmp_path / "out.jsonl", fill(tmp_path, {"a.jpg": "0.5"}), resume=True)
    assert refused and len(rows_of(tmp_path / "out.jsonl")) == 1


def test_faces_and_flips_are_summed_up_in_csv(tmp_path: Path) -> None:
    faces = [FaceVerdict((0, 0, 9, 9), 0.9, p, "fake").__dict__ for p in (0.25, 0.75)]
    row = {"path": "a.jpg", "probability": 0.5, "verdict": "real", "error": None, "faces": faces}
    with Table(tmp_path / "out.csv", ABOUT) as table:
        table.add(with_stamp(row | {"stability": {"flips": True}}, Stamp(5, 7)))
    (found,) = rows_of(tmp_path / "out.csv")
    assert [found[k] for k in ("faces", "face_max", "flips", "size", "mtime_ns")] == ["2", "0.75", "1", "5", "7"]


@given(paths=st.sets(st.text(min_size=1), max_size=50), count=st.integers(1, 7))
def test_shards_are_parts_of_the_list(paths: set[str], count: int) -> None:
    paths = {path for path in paths if path.isprintable()}
    shards = [[path for path in paths if path in Shard(i + 1, count)] for i in range(count)]
    assert sorted(path for shard in shards for path in shard) == sorted(paths)


def test_shards_are_of_like_size() -> None:
    sizes = [sum(f"{i}.jpg" in Shard(k, 4) for i in range(4000)) for k in (1, 2, 3, 4)]
    assert sum(sizes) == 4000 and max(abs(size - 1000) for size in sizes) < 110  # four standard deviations


def test_how_many_are_left_is_not_known_where_rows_of_other_files_were_kept() -> None:
    for less, expected in ((1, 2), (5, None)):
        counting = Counting(range(3), less)
        counting.thread.join()
        assert counting.total() == expected


def test_a_missing_file_has_an_empty_stamp(tmp_path: Path) -> None:
    assert stamp(str(tmp_path / "nothing.jpg"), checksum=True) == Stamp() == stamp("a\0b")
