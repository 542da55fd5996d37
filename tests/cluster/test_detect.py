"""Bulk detection on a real cluster of two nodes: what one process says, whatever dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from corit_cli.bulk.index import Seen
from corit_cli.bulk.parts import Parts
from corit_cli.bulk.sources import listed
from corit_cli.cli.inputs import Left, collect
from corit_cli.cluster import detect as module
from corit_cli.cluster.arms import far
from corit_cli.cluster.detect import Plan, detect
from corit_cli.cluster.ledger import KILLED
from corit_cli.cluster.reading import FarReading
from corit_cli.cluster.session import room
from corit_cli.detection.asked import Asked
from corit_cli.detection.detector import Detector
from corit_cli.errors import CoritError
from corit_cli.report.document import as_dict
from tests.cluster.eyes import Deadly
from tests.conftest import CORIT, Told, every_row, photograph, tiny_detector

FILES = 70


@pytest.fixture(autouse=True)
def few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads a node, and one that writes: most of a test's time is spent on starting them."""
    monkeypatch.setattr(module, "READER", 0.2)
    monkeypatch.setattr(module, "WRITERS", 1)
    monkeypatch.setattr(module, "ROWS", 32)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return tiny_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    for i in range(FILES):
        photograph(i, (48 + i % 5, 40)).save(root / f"{i:03}.png")
    (root / "007.png").write_text("no picture")
    return root


def names(folder: Path) -> Iterator[str]:
    return (path.name for path in sorted(folder.glob("*.png")))


class Run:
    """Detection on the cluster into a folder."""

    def __init__(self, ray: ModuleType, detector: Detector, archive: Path, folder: Path) -> None:
        self.ray, self.detector, self.archive, self.folder = ray, detector, archive, folder
        self.told = Told()

    def __call__(self, cpus: float = 1, **how: Any) -> dict[str, dict[str, Any]]:
        plan = Plan(partial(names, self.archive), as_dict, Asked("off"), str(self.archive), cpus=cpus)
        with ExitStack() as stack:
            parts = Parts.begin(str(self.folder), {"by": "test"}, True, stack)
            self.counts = detect(self.ray, self.detector, plan, parts, progress=self.told, **how)
        rows = every_row(parts)
        assert len({row["path"] for row in rows}) == len(rows) == self.counts.total()
        return {row["path"]: row for row in rows}


@pytest.fixture
def run(ray: ModuleType, detector: Detector, archive: Path, tmp_path: Path) -> Run:
    return Run(ray, detector, archive, tmp_path / "out")


@pytest.fixture(scope="module")
def expected(detector: Detector, archive: Path) -> dict[str, dict[str, Any]]:
    """What one process says, as ``--jsonl`` has it, by the file's name."""
    paths = sorted(archive.glob("*.png"))
    rows = (json.loads(json.dumps(as_dict(found))) for found in detector.predict(paths))
    return {p.name: row | {"path": p.name} for p, row in zip(paths, rows, strict=True)}


def unstamped(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {k: v for k, v in row.items() if k not in ("size", "mtime_ns")} for name, row in rows.items()}


def test_the_rows_are_those_of_one_process(run: Run, archive: Path, expected: dict) -> None:
    rows = run()
    assert unstamped(rows) == expected and run.counts["error"] == 1
    (part,) = (run.folder / "parts").iterdir()  # the small ones became a large one
    assert part.name.startswith("merged-")
    for name, row in rows.items():
        found = os.stat(archive / name)
        assert (row["size"], row["mtime_ns"]) == (found.st_size, found.st_mtime_ns)
    (title, _, counts, notes) = run.told.stages[0]
    assert (title, sum(counts), notes[-1]) == ("detecting", FILES, "1 error")
    assert sorted(counts) == [6, 32, 32]  # a stream: parts came one by one


def test_whatever_is_killed_no_row_is_lost(run: Run, cluster, archive: Path, tmp_path: Path, expected: dict) -> None:
    """A process that reads, once; the one of the model, once; and two files in one group kill theirs each time."""
    run.archive = shutil.copytree(archive, tmp_path / "archive")
    poison = [f"poison-{i}.png" for i in range(2)]
    for name in poison:
        shutil.copy2(archive / "001.png", run.archive / name)
    raylets = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for pid in models(raylets):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    rows = run(eye=Deadly(run.detector.extractor.crops, "off", mark=str(tmp_path / "killed")))
    killer.join()
    assert killed and (tmp_path / "killed").exists()
    assert [rows.pop(name)["error"] for name in poison] == [KILLED, KILLED]
    assert unstamped(rows) == expected and run.counts["error"] == 3
    rows = run(retry_errors=True)
    assert [rows.pop(name)["probability"] for name in poison] == [expected["001.png"]["probability"]] * 2
    assert unstamped(rows) == expected
    assert run.told.stages[-1][0] == f"detecting ({FILES - 1} rows kept)"


def test_a_list_that_cannot_be_read_to_its_end_is_one_error(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.jsonl").write_text('{"path": "a.png"}\n' * 40 + "{\n")
    plan = Plan(partial(named_in, str(tmp_path / "list.jsonl")), as_dict, Asked("off"), str(tmp_path))
    with pytest.raises(CoritError, match=r"list\.jsonl is not a readable list of files") as told:
        detect(run.ray, run.detector, plan, Parts(str(tmp_path / "out")))
    assert str(told.value).count("\n") == 0 and capfd.readouterr() == ("", "")


def named_in(file: str) -> Iterator[str]:
    return listed([file], False, collect, Left())


def test_a_worker_that_fits_no_node_is_refused(run: Run) -> None:
    with pytest.raises(CoritError, match=r"no node of the cluster has 1.5 CPUs for a worker"):  # both together have 2
        run(cpus=1.5)
    assert room(run.ray, 0.5) == 4
    for refused in (lambda: far(None, run.ray, threads=2), lambda: next(FarReading(run.ray, threads=2)(None, []))):
        with pytest.raises(CoritError, match="no node of the cluster has 2 CPUs"):
            refused()


def test_files_without_a_row_get_another_pass(
    detector: Detector, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass loses rows until the last: what is there is kept, and errors are tried again once."""
    ray: Any = SimpleNamespace(put=lambda sent: sent)
    parts, passes = Parts(str(tmp_path / "out")), []
    plan = Plan(lambda: iter(["1.png", "2.png"]), as_dict, Asked("off"), str(archive))

    def once(ray: Any, shipped: Any, eye: Any, plan: Any, parts: Parts, known: str, advance: Any) -> bool:
        with Seen(known) as seen:
            todo = [path for path in plan.paths() if path not in seen]
        passes.append(todo)
        parts.write([{"path": todo[0], "verdict": None, "error": "bad", "size": None, "mtime_ns": None}])
        return len(todo) == 1

    monkeypatch.setattr(module, "_once", once)
    assert detect(ray, detector, plan, parts, retry_errors=True) == {"error": 2}
    assert passes == [["1.png", "2.png"], ["2.png"]]
    monkeypatch.setattr(module, "_once", lambda *_: False)
    with pytest.raises(CoritError, match="rows are still missing after 3 passes"):
        detect(ray, detector, plan, parts)


def models(raylets: set[int]) -> Iterator[int]:
    """Processes, started by these raylets, in which a model has been made ready."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if title.startswith(b"ray::MapWorker(MapBatches(_Model))") and parent in raylets:
                yield int(entry.name)


def test_killed_with_all_its_cluster_it_is_gone_on_with(
    detector: Detector, archive: Path, tmp_path: Path, environment: dict[str, str], expected: dict
) -> None:
    """The command itself, with a Ray of its own; and the output at a URL. More files are there the second time."""
    detector.checkpoint.save(tmp_path / "saved")
    files, out = tmp_path / "files", tmp_path / "out"
    shutil.copytree(archive, files, ignore=lambda *_: [f"{i:03}.png" for i in range(20, FILES)])
    command = [str(CORIT), "detect", "*.png", "-c", str(tmp_path / "saved"), "--out", f"file://{out}", "--resume"]
    command += ["--ray", "--num-cpus", "1.4"]  # on two, one worker of one thread
    how = {"cwd": files, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, start_new_session=True, **how)
    deadline = time.monotonic() + 120
    while not (parts := Parts(str(out))).names() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    shutil.copytree(archive, files, dirs_exist_ok=True)
    done = subprocess.run(command, timeout=300, **how)
    assert done.returncode == 1, done.stderr
    rows = {row["path"]: row for row in every_row(parts)}
    assert unstamped(rows) == expected
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == FILES and summary["verdicts"]["error"] == 1
    assert summary["detector"] == detector.checkpoint.sha256
