"""``corit detect --out`` end to end: tables that can be gone on with, whatever stopped the run before."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from corit_cli.cli.bulk import Found, Many
from corit_cli.detection.detector import Detector
from corit_cli.errors import CoritError, NotMultiplied
from tests.cli.conftest import one_line_error
from tests.conftest import CORIT, photograph, save_tiny_detector

FILES = 90


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in three folders, some of them bad."""
    root = tmp_path_factory.mktemp("archive")
    for i in range(FILES):
        (root / f"{i % 3}").mkdir(exist_ok=True)
        photograph(i, (48 + i % 5, 40)).save(root / f"{i % 3}" / f"{i:03}.png")
    (root / "0" / "000.png").write_text("no picture")
    return root


@pytest.fixture
def detect(corit, detector: Path, archive: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *more: corit("detect", "-r", archive, "-c", detector, *more)


def test_rows_are_those_of_jsonl_with_what_resuming_needs(detect, archive: Path, tmp_path: Path) -> None:
    result = detect("--out", tmp_path / "out.jsonl")
    assert result.returncode == 1 and result.stdout == "", result.stderr
    assert result.stderr.splitlines()[-1].endswith("1 error")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    plain = [json.loads(line) for line in detect("--jsonl").stdout.splitlines()]
    assert len(rows) == FILES
    for row, other in zip(rows, plain, strict=True):
        found = os.stat(row["path"])
        assert (row.pop("size"), row.pop("mtime_ns")) == (found.st_size, found.st_mtime_ns)
        assert row == other


def test_killed_at_any_moment_it_is_gone_on_with(
    detect, detector: Path, archive: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert detect("--out", whole).returncode == 1
    command = [str(CORIT), "detect", "-r", str(archive), "-c", str(detector), "--out", str(part), "--resume"]
    killed = []
    for enough in sorted(random.Random(0).sample(range(1, FILES - 20), 3)):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if part.exists() and part.read_bytes().count(b"\n") >= enough:
                process.send_signal(signal.SIGKILL)
                process.wait()
        killed.append(process.wait(timeout=60) == -signal.SIGKILL)
    assert any(killed), "it was done before it could be killed"
    assert detect("--out", part, "--resume").returncode == 1
    assert part.read_bytes() == whole.read_bytes()


def test_an_interrupt_says_how_to_go_on(
    detect, detector: Path, archive: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "out.csv"
    names = "\n".join(str(path) for path in sorted(archive.rglob("*.png")))
    process = subprocess.Popen(
        [str(CORIT), "detect", "-", "-c", str(detector), "--out", str(out)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdin.write(names + "\n")  # and the list does not end: some files wait for others to fill a batch
    process.stdin.flush()
    deadline = time.monotonic() + 120
    while (not out.exists() or out.read_text().count("\n") < 10) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert f"rows are kept in {out}: repeat the command with --resume" in said
    assert detect("--out", out, "--resume").returncode == 1
    with out.open(newline="") as file:
        assert sorted(row["path"] for row in csv.DictReader(file)) == sorted(names.splitlines())


def test_shards_together_are_the_whole(detect, archive: Path, tmp_path: Path) -> None:
    paths: list[str] = []
    for i in (1, 2):
        out = tmp_path / f"{i}.jsonl"
        assert detect("--out", out, "--shard", f"{i}/2").returncode in (0, 1)
        rows = [json.loads(line)["path"] for line in out.read_text().splitlines()]
        assert len(rows) > FILES / 4
        paths += rows
    assert sorted(paths) == sorted(map(str, archive.rglob("*.png")))
    one_line_error(detect("--out", tmp_path / "1.jsonl", "--shard", "2/2", "--resume"), "begun with shard 1/2, not 2/2")


def test_lists_of_files_are_sources(corit, detector: Path, archive: Path, tmp_path: Path) -> None:
    photograph(1).save(tmp_path / "beside.png")
    (tmp_path / "list.csv").write_text(f"id,File\n1,beside.png\n2,{archive}/1/001.png\n")
    out = tmp_path / "out.jsonl"
    assert corit("detect", tmp_path / "list.csv", "-c", detector, "--out", out).returncode == 0
    rows = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    assert rows == [str(tmp_path / "beside.png"), f"{archive}/1/001.png"]


def test_relative_sources_are_those_of_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a table depends on says which: rows hold paths as they were given."""
    monkeypatch.chdir(tmp_path)
    assert Found(("/archive", "s3://bucket/archive"), True, False).folder("/archive/a.jpg") is None
    assert Found(("/archive", "-"), True, False).folder("/archive/a.jpg") == str(
        tmp_path
    )  # names there may be relative
    assert Found(("/lists/own.csv",), True, False).folder("a.jpg") == str(tmp_path)
    assert Found(("/lists/own.csv",), True, False).folder("/lists/a.jpg") is None
    assert Found(("/archive", "/lists/own.csv"), True, False).folder("/archive/a.jpg") == str(tmp_path)
    assert Found(("-",), True, False).folder("s3://bucket/a.jpg") is None
    assert Found(("-",), True, False).folder("a.jpg") == str(tmp_path)
    assert Found(("/archive", "list.csv"), True, False).folder("/archive/a.jpg") == str(tmp_path)


def test_names_on_standard_input_are_those_of_one_folder(
    detector: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(CORIT), "detect", "-", "-c", str(detector), "--out", str(tmp_path / "out.jsonl"), "--resume"]
        return subprocess.run(command, cwd=folder, env=environment, input="a.png\n", capture_output=True, text=True)

    for number in (0, 1):
        (tmp_path / f"{number}").mkdir()
        photograph(number).save(tmp_path / f"{number}" / "a.png")
    assert run(tmp_path / "0").returncode == 0
    one_line_error(run(tmp_path / "1"), "was begun with folder")
    assert run(tmp_path / "0").returncode == 0


def test_a_bad_line_of_a_list_costs_no_row_before_it(corit, detector: Path, archive: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"path": str(path)}) for path in sorted(archive.rglob("*.png"))[1:20]]
    (tmp_path / "list.jsonl").write_text("\n".join([*lines, '{"path":', *lines]))
    result = corit("detect", tmp_path / "list.jsonl", "-c", detector, "--out", tmp_path / "out.jsonl")
    assert result.returncode == 2 and "line 20 is no JSON object" in " ".join(result.stderr.split())
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(lines)


def test_arithmetic_that_cannot_be_had_here_is_told_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(checkpoint: object, device: str, precision: str) -> None:
        raise NotMultiplied(f"no {precision}")

    monkeypatch.setattr(Detector, "load", load)
    (tmp_path / "out.csv.run.json").write_text('{"precision": "int8"}')
    many = Many(str(tmp_path / "out.csv"), True, False, False, None, None, None, "cpu")
    with pytest.raises(CoritError, match=r"out\.csv was begun with --precision int8: no int8"):
        many.load(None, "cpu", "auto")
    with pytest.raises(CoritError, match=r"^no bf16"):
        many.load(None, "cpu", "bf16")


def test_a_table_that_is_gone_on_with_keeps_its_arithmetic(tmp_path: Path) -> None:
    def many(out: object, resume: bool) -> Many:
        return Many(str(out), resume, False, False, None, None, None, "cpu")

    assert replace(many(tmp_path / "out", True), ray="").precision_of("auto") == "fp32"  # machines may differ
    (tmp_path / "out.csv.run.json").write_text('{"precision": "bf16"}')
    assert many(tmp_path / "out.csv", True).precision_of("auto") == "bf16"
    assert many(tmp_path / "out.csv", True).precision_of("fp32") == "fp32"
    assert many(tmp_path / "out.csv", False).precision_of("auto") == "auto"
    for text in ("", "[]", '{"precision": "fp7"}'):
        (tmp_path / "out.csv.run.json").write_text(text)
        assert many(tmp_path / "out.csv", True).precision_of("auto") == "auto"
    assert many(tmp_path / "other.csv", True).precision_of("auto") == "auto"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"precision": "fp32"}')  # by --ray
    assert many(tmp_path / "out", True).precision_of("auto") == "fp32"
    assert many(f"file://{tmp_path}/out", True).precision_of("auto") == "fp32"
    (tmp_path / "link.csv").symlink_to("out.csv")
    (tmp_path / "out.csv.run.json").write_text('{"precision": "bf16"}')
    assert many(tmp_path / "link.csv", True).precision_of("auto") == "bf16"


def test_mistakes_are_one_line(detect, corit, detector: Path, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    one_line_error(detect("--resume"), "--resume goes with --out")
    one_line_error(detect("--out", out, "--json"), "--json does not go with --out")
    one_line_error(detect("--out", out, "--retry-errors"), "--retry-errors goes with --resume")
    one_line_error(detect("--out", out, "--shard", "3/2"), "--shard takes I/N")
    one_line_error(detect("--out", tmp_path / "out.xlsx"), ".jsonl, .csv, .parquet")
    one_line_error(detect("--out", tmp_path / "nowhere" / "out.csv"), "no folder")
    one_line_error(detect("--out", out, "--faces", "everybody"), "faces must be one of")
    assert not list(tmp_path.glob("out*"))
    (tmp_path / "empty").mkdir()
    for more in ([], ["--shard", "1/4"]):
        nothing = corit("detect", tmp_path / "empty", "-c", detector, "--out", out, *more)
        one_line_error(nothing, "no images or videos in")
    one_line_error(detect("--out", "s3://bucket/out.csv"), "at a URL a folder of parts is written, by --ray")
    assert not list(tmp_path.glob("out*"))  # the next try begins anew
    assert detect("--out", tmp_path / "there.csv").returncode == 1
    one_line_error(detect("--out", tmp_path / "there.csv"), "go on with it by --resume")
    other = save_tiny_detector(tmp_path / "other", seed=1)
    resumed = corit("detect", "-r", archive, "-c", other, "--out", tmp_path / "there.csv", "--resume")
    one_line_error(resumed, "was begun with backbone")
