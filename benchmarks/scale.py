"""What bulk detection costs beside decoding and the model: ``python benchmarks/scale.py --part PART``.

``speed``: the plain command, ``--out``, and ``--ray`` with a worker a CPU, on the same pictures with the shipped
detector, one after the other, in this order and then in reverse. ``overhead``: time a file of ``--out`` beyond that of
the detector in Python, with a tiny random tower. ``many``, ``many-ray``: 100,000 tiny files with it; time to the
first row, and memory of the process over time. ``kills``: kill -9 at random moments, each gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conftest import photograph, save_tiny_detector  # noqa: E402

CORIT = [sys.executable, "-m", "corit_cli"]


def corit(*arguments: object, **how: object) -> float:
    """Run a command and return its seconds."""
    begun = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    settings = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, **how}
    done = subprocess.run([*CORIT, *map(str, arguments)], **settings)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return time.monotonic() - begun


def pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """A folder of made-up photographs, a hundred in each below it; every hundredth file is a new picture."""
    folder.mkdir()
    kept = []
    for i in range(count):
        here = folder / f"{i // 100:05}"
        here.mkdir(exist_ok=True)
        if i < 100:
            photograph(i, size).save(here / f"{i:07}.jpg", quality=90)
            kept.append((here / f"{i:07}.jpg").read_bytes())
        else:
            (here / f"{i:07}.jpg").write_bytes(kept[i % 100])
    return folder


def speed(root: Path, count: int) -> None:
    """Images a second of the three ways, less the time that each takes for a tenth of the pictures."""
    many, few = pictures(root / "many", count, (640, 480)), pictures(root / "few", count // 10, (640, 480))
    ways = {
        "plain": lambda folder, out: corit("detect", "-r", folder, "--jsonl"),
        "--out": lambda folder, out: corit("detect", "-r", folder, "--out", f"{out}.jsonl"),
        "--ray": lambda folder, out: corit("detect", "-r", folder, "--out", out, "--ray", "--num-cpus", "1"),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn, order in enumerate((list(ways), list(ways)[::-1])):
        for name in order:
            long, short = (ways[name](f, root / f"{turn}-{name}-{f.name}") for f in (many, few))
            took[name].append((count - count // 10) / (long - short))
            print(f"{name}: {count} pictures in {long:.1f} s, {count // 10} in {short:.1f} s", flush=True)
    rates = {name: sum(values) / len(values) for name, values in took.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.2f} images/s ({rate / rates['plain']:.2f} of plain)", took[name])


def overhead(root: Path, count: int) -> None:
    """Milliseconds a file that the table costs."""
    folder, checkpoint = pictures(root / "many", count, (48, 40)), save_tiny_detector(root / "tiny")
    from corit_cli.bulk.run import score
    from corit_cli.bulk.table import Table
    from corit_cli.detection.detector import Detector
    from corit_cli.progress import hush
    from corit_cli.report.document import as_dict

    detector = Detector.load(checkpoint, "cpu")
    paths = sorted(map(str, folder.rglob("*.jpg")))
    for turn in range(2):
        begun = time.monotonic()
        assert sum(1 for _ in detector.predict(paths)) == count
        plain = time.monotonic() - begun
        begun = time.monotonic()
        with Table(root / f"{turn}.jsonl", {}) as table:
            score(table, paths, detector.predict, as_dict, hush)
        bulk = time.monotonic() - begun
        each = 1000 * (bulk - plain) / count
        print(f"{count} files: {plain:.1f} s without, {bulk:.1f} s with a table: {each:.3f} ms a file more")
    begun = time.monotonic()
    with Table(root / "1.jsonl", {}, resume=True) as table:
        assert table.counts.total() == count
    size = (root / "1.jsonl").stat().st_size
    print(f"{count} rows taken up again in {time.monotonic() - begun:.2f} s; {size / count:.0f} bytes a row")


def many(root: Path, count: int, ray: bool) -> None:
    """Time to the first row, and the driver's memory, over a long list."""
    folder, checkpoint = pictures(root / "many", count, (48, 40)), save_tiny_detector(root / "tiny")
    out = root / ("out" if ray else "out.jsonl")
    command = [
        *CORIT,
        "detect",
        "-r",
        str(folder),
        "-c",
        str(checkpoint),
        "--out",
        str(out),
        *(["--ray"] if ray else []),
    ]
    begun = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"})
    first, memory, peak = None, [], 0
    while process.poll() is None:
        time.sleep(0.2)
        there = any(out.glob("parts/[!.]*.parquet")) if ray else out.exists() and out.stat().st_size > 0
        first = first or (there and time.monotonic() - begun) or None
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        resident = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0) / 1024
        peak = max(peak, resident)
        if time.monotonic() - begun >= 20 * (len(memory) + 1):
            memory.append(round(resident))
    print(f"{count} files, {'--ray' if ray else '--out'}: first row after {first:.1f} s, all after", end=" ")
    print(f"{time.monotonic() - begun:.0f} s; the driver's memory every 20 s, MiB: {memory}; peak {peak:.0f}")


def kills(root: Path, count: int, times: int) -> None:
    """Kill the command at random moments of its run, each time go on, and compare with an uninterrupted one."""
    folder, checkpoint = pictures(root / "many", count, (48, 40)), save_tiny_detector(root / "tiny")
    arguments = ["detect", "-r", str(folder), "-c", str(checkpoint), "--out"]
    whole, part = root / "whole.jsonl", root / "part.jsonl"
    took = corit(*arguments, whole)
    draw, same, landed = random.Random(0), 0, []
    for _ in range(times):
        for file in root.glob("part.jsonl*"):
            file.unlink()
        process = subprocess.Popen(
            [*CORIT, *arguments, str(part), "--resume"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
            stderr=subprocess.DEVNULL,
        )
        time.sleep(draw.uniform(0.3, 1.0) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed.append(part.read_bytes().count(b"\n") if part.exists() else 0)
        corit(*arguments, part, "--resume")
        same += part.read_bytes() == whole.read_bytes()
    print(f"{times} kills, with {landed} of {count} rows written: {same} tables equal to the uninterrupted one's bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "overhead", "many", "many-ray", "kills"), required=True)
    parser.add_argument("--count", type=int, help="files")
    parser.add_argument("--times", type=int, default=20, help="kills")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if asked.part == "speed":
            speed(root, asked.count or 200)
        elif asked.part == "overhead":
            overhead(root, asked.count or 5000)
        elif asked.part.startswith("many"):
            many(root, asked.count or 100_000, asked.part == "many-ray")
        else:
            kills(root, asked.count or 3000, asked.times)
    print(json.dumps({"cpus": os.cpu_count(), "python": sys.version.split()[0]}))


if __name__ == "__main__":
    main()
