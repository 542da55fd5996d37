"""``corit serve`` under load: throughput against ``corit detect``, clients that misbehave, memory over fuzzed files.

    python benchmarks/serve.py                 # 200 files sent at once, and the detector alone on the same, in turn
    python benchmarks/serve.py --misbehave     # the same, while other clients drip, vanish and send bombs
    python benchmarks/serve.py --fuzz 2000     # so many small files made to break decoders; memory on the way

The service runs in a process of its own, as installed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from corit_cli.data.images import read_image
from corit_cli.detection.detector import Detector

ROOT = Path(__file__).parent.parent
BOUNDARY = "9f3c1d"
CORIT = [sys.executable, "-m", "corit_cli"]


@contextmanager
def serving(*options: str) -> Iterator[tuple[int, int]]:
    """The port of a service, and its process' number; the last line tells how long it took to end."""
    command = [*CORIT, "serve", "--port", "0", "--queue", "4096", "--timeout", "1800", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr if line.startswith("corit serve: "))
    log: Counter[str] = Counter()
    without_time = (entry.split(" ", 2)[-1].rsplit(" ", 2)[0] for entry in process.stderr)
    reading = threading.Thread(target=lambda: log.update(without_time))
    reading.start()
    try:
        yield int(re.search(r":(\d+)/", line)[1]), process.pid
    finally:
        begun = time.monotonic()
        process.terminate()
        process.wait()
        print(f"ended {time.monotonic() - begun:.1f} s after SIGTERM, with {process.returncode}")
        reading.join()
        print("log:", ", ".join(f"{count} x {what}" for what, count in sorted(log.items())))


def body(files: Sequence[Path]) -> bytes:
    parts = []
    for path in files:
        opening = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
        parts.append(opening.encode() + path.read_bytes() + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def post(port: int, content: bytes) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2000)
    connection.request("POST", "/v1/detect", content, HEADERS)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def photographs(folder: Path, count: int) -> list[Path]:
    """Parts of the example images, no two alike, as JPEGs of 512 pixels a side."""
    rng = np.random.default_rng(0)
    sources = [read_image(p) for p in sorted((ROOT / "examples").rglob("*")) if p.suffix in (".jpg", ".png")]
    files = []
    for number, image in enumerate(islice(cycle(sources), count)):
        side = int(rng.integers(min(image.size) // 2, min(image.size)))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        part = image.crop((left, top, left + side, top + side)).resize((512, 512), Image.Resampling.BICUBIC)
        files.append(folder / f"{number:04}.jpg")
        part.save(files[-1], quality=int(rng.integers(80, 96)))
    return files


def resident(process: int) -> float:
    """Memory of a process, in MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


def load(count: int, rounds: int, misbehave: bool, checkpoint: Sequence[str]) -> None:
    """All files at once, each in a request of its own; then the detector of this process on the same files."""
    detector = Detector.load(*checkpoint[1:])
    with tempfile.TemporaryDirectory() as name, serving("--arrival", "10", *checkpoint) as (port, process):
        files = photographs(Path(name), count)
        bodies = [body([path]) for path in files]
        post(port, bodies[0])
        list(detector.predict(str(files[0])))
        times: dict[str, list[float]] = {"service": [], "detector": []}
        same, statuses = 0, Counter()
        for number in range(rounds):
            over = threading.Event()
            troubling = [threading.Thread(target=trouble, args=(port, bodies[0], over, seed)) for seed in range(30)]
            for thread in troubling if misbehave else ():
                thread.start()
            begun = time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                answers = list(pool.map(lambda content: post(port, content), bodies))
            times["service"].append(time.perf_counter() - begun)
            over.set()
            for thread in troubling if misbehave else ():
                thread.join()
            statuses.update(status for status, _ in answers)
            begun = time.perf_counter()
            expected = [p.probability for p in detector.predict(map(str, files))]
            times["detector"].append(time.perf_counter() - begun)
            found = [document["results"][0]["probability"] for _, document in answers]
            same += sum(a == b for a, b in zip(found, expected, strict=True))
            service, own = times["service"][-1], times["detector"][-1]
            print(
                f"round {number + 1}: service {service:.1f} s, detector {own:.1f} s, throughput {own / service:.2f} ",
                end="",
            )
            print(f"of the detector's; the service's memory {resident(process):.0f} MiB", flush=True)
        ratios = [d / s for s, d in zip(times["service"], times["detector"], strict=True)]
        print(f"{count} files at once: {count / statistics.median(times['service']):.2f} a second, throughput ", end="")
        print(f"{statistics.median(ratios):.2f} of the detector's (median of {rounds} rounds)")
        print(f"answers: {', '.join(f'{n} x {status}' for status, n in statuses.items())}; ", end="")
        print(f"{same} of {count * rounds} probabilities equal to the last digit")
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


def trouble(port: int, content: bytes, over: threading.Event, seed: int) -> None:
    """A client that sends a byte a second, or hangs up while it sends or waits, again and again."""
    rng = random.Random(seed)
    head = f"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: {HEADERS['Content-Type']}\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    while not over.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            if seed % 3 == 0:
                for byte in head.encode() + content:
                    client.sendall(bytes([byte]))
                    if over.wait(1):
                        break
            else:
                client.sendall(head.encode() + content[: rng.randrange(len(content)) if seed % 3 == 1 else None])
                over.wait(rng.uniform(0.2, 2))


def fuzz(count: int, checkpoint: Sequence[str]) -> None:
    """Small files made to break decoders, ten a request, four requests at once."""
    sys.path.insert(0, str(ROOT))
    from tests import hostile

    with tempfile.TemporaryDirectory() as name, serving(*checkpoint) as (port, process):
        files = hostile.write(Path(name), -(-count // len(hostile.KINDS)))[:count]
        random.Random(0).shuffle(files)
        bodies = [body(files[i : i + 10]) for i in range(0, len(files), 10)]
        outcome: Counter[str] = Counter()
        begun, memory = time.monotonic(), [resident(process)]
        for start in range(0, len(bodies), 25):
            with ThreadPoolExecutor(4) as pool:
                for status, document in pool.map(lambda content: post(port, content), bodies[start : start + 25]):
                    outcome[f"status {status}"] += 1
                    outcome.update("error" if row["error"] else "verdict" for row in document.get("results", ()))
            memory.append(resident(process))
        print(f"{len(files)} files in {time.monotonic() - begun:.0f} s: {dict(outcome)}")
        print(f"memory before, and after every 250 files: {', '.join(f'{m:.0f}' for m in memory)} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--misbehave", action="store_true")
    parser.add_argument("--fuzz", type=int, metavar="N")
    parser.add_argument("--checkpoint", help="another detector than the shipped one")
    arguments = parser.parse_args()
    detector = ["--checkpoint", arguments.checkpoint] if arguments.checkpoint else []
    if arguments.fuzz:
        fuzz(arguments.fuzz, detector)
    else:
        load(arguments.files, arguments.rounds, arguments.misbehave, detector)
