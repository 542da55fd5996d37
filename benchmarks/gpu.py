"""How much of a GPU's arithmetic the tower reaches, and whether folders of photographs wait for the model there.

    python benchmarks/gpu.py [--large 48] [--batch N ...] [--device cuda]

The tower in bf16 on windows of 224 px that lie on the device, run as it is, as a CUDA graph and through torch.compile,
whole and block by block: images a second, and the share of what a square product of bf16 matrices reaches. Then
photographs of 12 megapixels through ``corit detect``'s own path, by the number of decoding threads, beside the decoding
and the model alone. These are four files by turns: windows that are the same are read once a batch.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from detect import make_photograph, tower_operations
from torch import Tensor

from corit_cli.data.images import read_image
from corit_cli.data.windows import crop_with_face
from corit_cli.detection.detector import Detector
from corit_cli.features.stream import ahead
from corit_cli.model.backbone import VisionTower
from corit_cli.model.loading import load_backbone
from corit_cli.model.precision import lowered

ROUNDS = 7
#: Multiply-adds of the whole tower on one window: 12 blocks and the embedding of 196 patches.
WORK = tower_operations(197, 12) + 196 * 768 * 768


def seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Of one call, the median of ``ROUNDS`` times so many in a row, on a device that works on its own."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    taken = []
    for _ in range(1 + ROUNDS):  # the first warms up
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait()
        taken.append((time.perf_counter() - start) / repeats)
    return statistics.median(taken[1:])


def peak(device: str, side: int) -> float:
    """Multiply-adds a second of a product of two square bf16 matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return side**3 / seconds(lambda: a @ b, device, 10)


def graphed(tower: torch.nn.Module, x: Tensor) -> Callable[[], object]:
    """``tower`` on ``x`` as one recorded CUDA graph."""
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            tower(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tower(x)
    return graph.replay


def by_block(tower: VisionTower) -> VisionTower:
    """``tower`` whose blocks are compiled each by itself: what is made for the first serves all."""
    own = copy.deepcopy(tower, {id(p): p for p in tower.parameters()})
    for block in own.blocks:
        block.compile()
    return own


@torch.inference_mode()
def tower_alone(device: str, batches: list[int], side: int) -> None:
    tower = lowered(load_backbone("embedded", device=device), "bf16")
    fastest = peak(device, side)
    print(f"a product of {side} x {side} bf16 matrices: {2 * fastest / 1e12:.0f} TFLOP/s\n")
    print(f"{'':21}{'batch':>6}{'images/s':>10}{'share':>7}{'s to begin':>12}")
    for batch in batches:
        x = torch.rand(batch, 3, 224, 224, device=device)
        ways: dict[str, Callable[[], Callable[[], object]]] = {"as it is": lambda x=x: partial(tower, x)}
        if device == "cuda":
            ways["CUDA graph"] = lambda x=x: graphed(tower, x)
            ways["torch.compile"] = lambda x=x: partial(torch.compile(tower), x)
            ways["each block compiled"] = lambda x=x: partial(by_block(tower), x)
        for name, prepare in ways.items():
            start = time.perf_counter()
            run = prepare()
            run()
            begun = time.perf_counter() - start
            taken = seconds(run, device, max(1, 1024 // batch) if device == "cuda" else 1)
            share = WORK * batch / taken / fastest
            print(f"{name:21}{batch:>6}{batch / taken:>10.0f}{share:>7.0%}{begun:>12.1f}", flush=True)


def photographs(device: str, count: int) -> None:
    detector = Detector.load(device=device)
    images = sorted((Path(__file__).parent.parent / "examples").rglob("*.png"))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(4)]
        for number, file in enumerate(files):
            make_photograph(images[number % len(images)], file, number)
        crops = detector.extractor.crops
        cut = [crop_with_face(read_image(file), crops) for file in files]
        paths = (files * count)[:count]
        windows = (cut * count)[:count]
        batch = detector.extractor.batch

        def model() -> None:
            for start in range(0, count, batch):
                detector.extractor(windows[start : start + batch])

        def decode(workers: int) -> None:
            for _ in ahead(lambda file: crop_with_face(read_image(file), crops), paths, workers, 2 * batch):
                pass

        def timed(run: Callable[[], object]) -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        model()
        print(f"\n{count} photographs of 12 megapixels, {os.cpu_count()} cores; the model alone {timed(model):.2f} s")
        print(f"{'threads':>8}{'corit detect s':>16}{'decoding alone s':>18}{'ratio':>7}")
        for workers in (1, 4, 8, 16):
            list(detector.predict(paths[:workers], workers=workers))
            whole = timed(lambda w=workers: list(detector.predict(paths, workers=w)))
            alone = timed(lambda w=workers: decode(w))
            print(f"{workers:>8}{whole:>16.2f}{alone:>18.2f}{whole / alone:>7.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--large", type=int, default=48, metavar="N", help="photographs of 12 megapixels; 0: none")
    parser.add_argument("--batch", type=int, action="append", help="windows at once; repeatable, 0 for none")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices that peak is measured with")
    given = parser.parse_args()
    if given.device == "cuda":
        print(torch.cuda.get_device_name(), end=", ")
    print(f"torch {torch.__version__}")
    if batches := list(filter(None, given.batch or [64, 256, 1024])):
        tower_alone(given.device, batches, given.side)
    if given.large:
        photographs(given.device, given.large)
