"""Speed of detection against a plain open_clip forward pass, on this machine, in one run.

    python benchmarks/detect.py [--rounds 15] [--images examples] [--cold]

Everything is interleaved, round by round, and the median of the per-round ratios is printed: absolute times drift on a
shared machine, ratios much less. The unit is one forward pass of open_clip's ViT-B-16-quickgelu image tower in float32
for one image, at the same batch size and with the same threads.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from corit_cli.engine.predict import Detector
from corit_cli.model.corit import CoRIT
from corit_cli.model.settings import METHOD

BATCH = 8


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def matmul_peak() -> float:
    """Multiply-adds a second in a float32 product of the tower's own shape (tokens, 768 to 3072), best of 20."""
    a, b = torch.rand(BATCH * 197, 768), torch.rand(768, 3072)
    return a.shape[0] * 768 * 3072 / min(seconds(lambda: a @ b) for _ in range(20))


def tower_operations(tokens: float, blocks: float) -> float:
    """Multiply-adds of ``blocks`` ViT-B blocks on ``tokens`` tokens of one image, attention included."""
    d = 768
    return blocks * (12 * tokens * d * d + 2 * tokens * tokens * d)


@torch.inference_mode()
def compare(rounds: int, images: list[Path]) -> None:
    import open_clip

    plain = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).visual.eval()
    normal = Detector.load()
    fast = Detector.load(fast=True)
    corit = CoRIT(normal.extractor.backbone.tower, METHOD).eval()  # both views, and all that is read from them
    windows = torch.rand(BATCH, 3, 224, 224)
    files = (images * (2 * BATCH))[: 2 * BATCH]
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "open_clip forward, one image": (lambda: plain(windows), BATCH),
        "CoRIT, one window": (lambda: corit(windows), BATCH),
        "corit detect, one image": (lambda: list(normal.predict(files)), len(files)),
        "corit detect --fast, one image": (lambda: list(fast.predict(files)), len(files)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, (run, count) in runs.items():
            taken = seconds(run) / count
            if i:  # the first round warms up
                times[name].append(taken)
    unit = times["open_clip forward, one image"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds, batches of {BATCH}\n")
    print(f"{'':34}{'median s':>10}{'x open_clip':>13}{'quartiles':>16}")
    for name, taken in times.items():
        ratios = sorted(t / u for t, u in zip(taken, unit, strict=True))
        quartiles = f"{ratios[len(ratios) // 4]:.2f}-{ratios[3 * len(ratios) // 4]:.2f}"
        print(f"{name:34}{statistics.median(taken):>10.3f}{statistics.median(ratios):>13.2f}{quartiles:>16}")
    peak = matmul_peak()
    share = (tower_operations(197, 12) + 196 * 768 * 768) / statistics.median(unit) / peak
    print(f"\nmatrix-multiply peak {2 * peak / 1e9:.0f} GFLOP/s; open_clip's forward reaches {share:.0%} of it", end="")
    # Both streams run whole to the last layer but one; there only keys, values and the class token are computed.
    s = corit.settings
    ends = [max((*s.integrate, *s.cgp)), *[max(s.cgp)] * len(corit.views)]
    work = sum(tower_operations(197, end - 1) + 2 * 197 * 768 * 768 + 196 * 768 * 768 for end in ends)
    share = work / statistics.median(times["CoRIT, one window"]) / peak
    print(f", CoRIT's {share:.0%}")


def cold_start(rounds: int, image: Path) -> None:
    """Whole processes: one image from a cold start against importing torch and open_clip."""
    detect = [sys.executable, "-c", "from corit_cli.cli.app import main; main()", "detect", str(image)]
    imports = [sys.executable, "-c", "import torch, open_clip"]
    help_ = [sys.executable, "-c", "from corit_cli.cli.app import main; main()", "--help"]
    times: dict[str, list[float]] = {"corit detect, one image": [], "import torch, open_clip": [], "corit --help": []}
    for i in range(rounds + 1):
        for name, command in zip(times, (detect, imports, help_), strict=True):
            taken = seconds(lambda c=command: subprocess.run(c, capture_output=True, check=True))
            if i:
                times[name].append(taken)
    for name, taken in times.items():
        print(f"{name:34}{statistics.median(taken):>10.2f} s   ({min(taken):.2f}-{max(taken):.2f})")
    pairs = zip(times["corit detect, one image"], times["import torch, open_clip"], strict=True)
    print(f"detect / imports: {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=Path, default=Path(__file__).parent.parent / "examples")
    parser.add_argument("--cold", action="store_true", help="whole processes from a cold start instead")
    arguments = parser.parse_args()
    found = sorted(p for p in arguments.images.rglob("*") if p.suffix in (".jpg", ".png"))
    if arguments.cold:
        cold_start(arguments.rounds, found[0])
    else:
        compare(arguments.rounds, found)
