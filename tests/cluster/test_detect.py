"""Bulk detection on a real cluster of two nodes: what one process says, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from corit_cli.bulk.parts import Parts, every_row
from corit_cli.cluster import detect as module
from corit_cli.cluster.detect import Plan, detect
from corit_cli.cluster.ledger import KILLED
from corit_cli.detection.detector import Asked, Detector
from corit_cli.detection.eye import Eye
from corit_cli.report.document import as_dict
from tests.cluster.eyes import Deadly, Fragile
from tests.conftest import CORIT, Told, photograph, tiny_detector

FILES = 150


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


class Run:
    """Detection on the cluster into a folder."""

    def __init__(self, ray: ModuleType, detector: Detector, archive: Path, folder: Path) -> None:
        self.ray, self.detector, self.archive, self.folder = ray, detector, archive, folder
        self.told = Told()

    def __call__(self, eye: Eye | None = None, retry_errors: bool = False) -> dict[str, dict[str, Any]]:
        archive = self.archive
        plan = Plan(lambda: (p.name for p in sorted(archive.glob("*.png"))), as_dict, Asked("off"), str(archive))
        parts = Parts.begin(str(self.folder), {"by": "test"}, resume=True)
        self.counts = detect(
            self.ray, self.detector, plan, parts, retry_errors=retry_errors, progress=self.told, eye=eye
        )
        rows = list(every_row(parts))
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


def test_the_rows_are_those_of_one_process(
    run: Run, archive: Path, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 32)
    rows = run()
    assert unstamped(rows) == expected and run.counts["error"] == 1
    (part,) = (run.folder / "parts").iterdir()  # the small ones became a large one
    assert part.name.startswith("merged-")
    for name, row in rows.items():
        found = os.stat(archive / name)
        assert (row["size"], row["mtime_ns"]) == (found.st_size, found.st_mtime_ns)
    (title, _, counts, notes) = run.told.stages[0]
    assert (title, sum(counts), notes[-1]) == ("detecting", FILES, "1 error")
    assert sorted(counts) == [22, 32, 32, 32, 32]  # a stream: parts came one by one
    nodes = {(node["NodeID"]) for node in run.ray.nodes() if node["Alive"]}
    assert len(nodes) == 2


def test_a_worker_that_is_killed_costs_no_row(run: Run, tmp_path: Path, expected: dict) -> None:
    crops = run.detector.extractor.crops
    rows = run(Fragile(crops, "off", mark=str(tmp_path / "killed")))
    assert (tmp_path / "killed").exists() and unstamped(rows) == expected


def test_a_file_that_kills_its_worker_twice_becomes_an_error(
    ray: ModuleType, detector: Detector, tmp_path: Path
) -> None:
    for i in range(40):
        photograph(i, (48, 40)).save(tmp_path / f"{i:03}.png")
    photograph(99, (48, 40)).save(tmp_path / "poison.png")
    run = Run(ray, detector, tmp_path, tmp_path / "out")
    rows = run(Deadly(detector.extractor.crops, "off"))
    assert rows["poison.png"]["error"] == KILLED and rows["poison.png"]["verdict"] is None
    assert run.counts["error"] == 1 and len(rows) == 41
    (whole,) = detector.predict(tmp_path / "poison.png")
    assert run(retry_errors=True)["poison.png"]["probability"] == whole.probability
    assert run.told.stages[-1][0] == "detecting (40 rows kept)"


def test_the_model_s_process_may_be_killed_too(
    run: Run, cluster, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    rows = run()
    killer.join()
    assert killed and unstamped(rows) == expected


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
    """The command itself, with a Ray of its own; and the output at a URL."""
    detector.checkpoint.save(tmp_path / "saved")
    out = tmp_path / "out"
    command = [
        str(CORIT),
        "detect",
        "*.png",
        "-c",
        str(tmp_path / "saved"),
        "--out",
        f"file://{out}",
        "--resume",
        "--ray",
    ]
    how = {"cwd": archive, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, start_new_session=True, **how)
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/*.parquet")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = subprocess.run(command, timeout=300, **how)
    assert done.returncode == 1, done.stderr
    rows = {row["path"]: row for row in every_row(Parts(str(out)))}
    assert unstamped(rows) == expected
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == FILES and summary["verdicts"]["error"] == 1
    assert summary["detector"] == detector.checkpoint.sha256
