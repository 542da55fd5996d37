"""What the arithmetic of the model's products costs in time, and changes in verdicts, in one run.

    python benchmarks/precision.py [--rounds 15] [--images examples] [--on MANIFEST]

float32, bf16, and 8-bit integers, in which the weights are stored, with activations of two such digits and, for
comparison, of one: time, in forward passes of open_clip's ViT-B-16-quickgelu image tower in float32, interleaved round
by round; and how many verdicts, and by how much probabilities, come out otherwise than in float32, of the images or of
a manifest's validation images. Of sources with enough images of both classes the AUC is compared, too.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path

import numpy as np
import torch
from detect import BATCH, seconds

from corit_cli import metrics
from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.windows import crop_with_face
from corit_cli.detection.detector import Detector
from corit_cli.detection.verdicts import Prediction
from corit_cli.evaluation.groups import MINIMUM
from corit_cli.model.precision import pick_precision


class OneDigit(torch.nn.Linear):
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


def in_one_digit(detector: Detector) -> Detector:
    """The same detector whose blocks multiply activations of 8 bits."""
    e = copy.deepcopy(detector.extractor)
    for layer in e.readers[0].corit.tower.blocks.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = OneDigit
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
def main(rounds: int, images: list[Path], samples: list[Sample]) -> None:
    """Print the table."""
    import open_clip

    plain = open_clip.create_model_and_transforms("ViT-B-16-quickgelu", pretrained=None)[0].visual.eval()
    detectors = {name: Detector.load(precision=name) for name in ("fp32", "bf16", "int8")}
    detectors["one digit"] = in_one_digit(detectors["fp32"])
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
    backbone = detectors["fp32"].extractor.backbone
    print(f"auto is {pick_precision('auto', 'cpu', backbone)} here; verdicts on {len(paths)} images, {rounds} rounds\n")
    print(f"{'':10}{'s an image':>12}{'x open_clip':>13}{'verdicts changed':>18}{'real to fake':>15}", end="")
    print(f"{'largest change':>16}{'of an AUC':>16}")
    for name, taken in times.items():
        ratio = statistics.median(t / u for t, u in zip(taken, times["open_clip"], strict=True))
        print(f"{name:10}{statistics.median(taken):>12.3f}{ratio:>13.2f}", end="")
        if name in found:
            print(changes(samples, found["fp32"], found[name]), end="")
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=Path, default=Path(__file__).parent.parent / "examples")
    parser.add_argument("--on", type=Path, metavar="MANIFEST", help="verdicts on its validation images")
    arguments = parser.parse_args()
    found = sorted(p for p in arguments.images.rglob("*") if p.suffix in (".jpg", ".png"))
    samples = [Sample(path, 0) for path in found]
    if arguments.on:
        samples = [sample for sample in load_samples(arguments.on) if sample.split == "val"]
        if not samples:
            parser.error(f"{arguments.on} has no validation images")
    main(arguments.rounds, found, samples)
