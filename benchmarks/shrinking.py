"""What it changes that large pictures are averaged over whole blocks before they are resampled.

    python benchmarks/shrinking.py MANIFEST

The images whose shorter side is six times that of the model's window or more, judged as they are and with plain bicubic
resampling: how far pixels of the resized window lie apart, in levels, and probabilities; and how many verdicts change.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from corit_cli.data import faces, windows
from corit_cli.data.images import inspect, read_image
from corit_cli.data.manifest import load_samples
from corit_cli.detection.detector import Detector


def plain(image: Image.Image, size: tuple[int, int], filter: Image.Resampling = Image.Resampling.BICUBIC):
    """The image at another size, by bicubic resampling alone."""
    return image.resize(size, filter)


def main(manifest: Path) -> None:
    detector = Detector.load(precision="fp32")
    crops = detector.extractor.crops
    every = [str(sample.path) for sample in load_samples(manifest)]
    sides = {path: (info.width, info.height) for path in every for info in [inspect(path)]}
    large = [path for path in every if min(sides[path]) >= 6 * crops.size]

    def seen() -> tuple[list, np.ndarray]:
        cut = np.stack([windows.crop(read_image(path), crops)[0] for path in large]).astype(int)  # (n, S, S, 3)
        return list(detector.predict(large)), cut

    ours, cut = seen()
    with patch.object(windows, "resampled", plain), patch.object(faces, "resampled", plain):
        theirs, whole = seen()
    apart = np.abs(cut - whole)
    changed = sum(a.verdict != b.verdict for a, b in zip(ours, theirs, strict=True))
    largest = max(abs(a.probability - b.probability) for a, b in zip(ours, theirs, strict=True))
    print(f"{len(large)} of {len(every)} images: pixels lie {apart.mean():.2f} levels apart, at most {apart.max()}")
    print(f"{changed} verdicts change, a probability by at most {largest:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    main(parser.parse_args().manifest)
