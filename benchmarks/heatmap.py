"""Do heatmaps point at what was forged? Pixel AUCs of the map inside the masks of local forgeries made on the spot.

    python benchmarks/heatmap.py IMAGES [--forge self_blend --forge reconstruct@part:FOLDER] [--limit N]
        [--teach MANIFEST]

IMAGES is a folder of photographs, or a manifest or labelled folder, whose real images are used (of the validation
split, where it names one). Of each the middle 384 x 384 pixels are taken, forged in one region, saved, and searched. An
AUC is the chance that a patch inside the region gets a higher value than one outside. 0.5 is chance only for a map that
knows nothing of places, as regions lie near the middle: "the original" is the heatmap of the same picture before it was
forged, inside the same masks, and "a blob in the middle" what one gets by looking at no picture at all. The rows below
are what one might have drawn without a head for places: the contrast's norm and its distance from the image's median.
With --teach the heatmap's head is also taught on that manifest's training split without the very forgery it is then
tried on. Means over images, with 95% bootstraps.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from corit_cli import metrics
from corit_cli.cli.console import Bars
from corit_cli.data.degrade import parse_degradation
from corit_cli.data.forge import Forge, middle, parse_forge
from corit_cli.data.images import read_image
from corit_cli.data.kinds import IMAGE_SUFFIXES
from corit_cli.data.manifest import load_samples
from corit_cli.data.splits import group_split
from corit_cli.detection.checkpoint import Localizer
from corit_cli.detection.detector import Detector
from corit_cli.detection.heatmap import contrasted, heatmap, smooth, tile
from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor
from corit_cli.model import cgp
from corit_cli.training.localizer import FORGED, TAUGHT, pairs, patch_mask, photographs, teach

Maps = dict[str, np.ndarray]
#: What forged images go through before they are searched.
SAVED = {"as forged": (), "JPEG 90": ("jpeg:90",), "JPEG 75": ("jpeg:75",), "resized to 80%": ("resize:0.8",)}


@torch.inference_mode()
def without_a_head(extractor: Extractor, image: Image.Image) -> Maps:
    """Maps (rows, columns) that need no head for places, on the same grid and as smooth as the heatmap."""
    tiling, corit = tile(extractor, image.size), contrasted(extractor).corit
    total, count, grid = np.zeros(tiling.shape), np.zeros(tiling.shape), corit.tower.config.grid
    for row, column in tiling.corners:
        pixels = torch.from_numpy(tiling.window(image, row, column).copy()).permute(2, 0, 1)[None].float() / 255
        state, norms = corit.start(pixels), []
        for layer in range(1, max(corit.settings.cgp)):  # deeper down a contrast has its class token only
            state = corit.run(state, layer)
            contrast = cgp.contrast(state.streams[:1], state.streams[1:].unflatten(0, (-1, 1))).mean(0)  # (1, N, d)
            norms.append(contrast[0, 1:].norm(dim=-1))  # (P,)
        here = np.s_[row : row + grid, column : column + grid]
        total[here] += torch.stack(norms).mean(0).view(grid, grid).numpy()
        count[here] += 1
    energy = smooth(total / count, np.ones(tiling.shape, bool))
    return {"contrast's norm": energy, "its distance from the median": np.abs(energy - np.median(energy))}


def blob(shape: tuple[int, int]) -> np.ndarray:
    """What falls off from the middle, (rows, columns)."""
    rows, columns = (np.linspace(-1, 1, cells) for cells in shape)
    return -(rows[:, None] ** 2 + columns**2)


def real_images(images: Path) -> list[Path]:
    """The real images of a manifest's validation split or labelled folder, or every image of a plain folder."""
    try:
        samples = [s for s in load_samples(images) if s.label == 0]
    except CoritError:
        return sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    chosen = photographs(samples, range(len(samples)), len(samples), 0)
    return [s.path for s in chosen if s.split in ("", "val")]


def taught_without(manifest: Path, extractor: Extractor, forges: Sequence[Forge]) -> dict[str, Localizer]:
    """By forgery a localizer that was taught by all the others."""
    samples = load_samples(manifest)
    part, _ = group_split(samples, 0.3, 0)
    taught = photographs(samples, part, TAUGHT, extractor.crops.size)
    with Bars() as bars:
        seen = list(pairs(taught, extractor, forges, [0, 0], bars("taught by", len(taught))))
    heads = {f.spelling: teach(p for p in seen if p.kind != f.spelling) for f in forges}
    return {name: Localizer(head, extractor.settings, extractor.crops, 0.0, 1.0) for name, head in heads.items()}


def measure(
    detector: Detector, paths: list[Path], forges: list[Forge], limit: int, others: dict[str, Localizer]
) -> dict[tuple[str, str], list[float]]:
    """AUCs by (row, forgery's name), one an image."""
    extractor = detector.contrasts
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    localizer, used = detector.checkpoint.localizer, 0
    for number, path in enumerate(paths):
        image = middle(read_image(path))
        if min(image.size) < extractor.crops.size or used == limit:
            continue
        used += 1
        original = heatmap(extractor, localizer, image).map
        for forge in forges:
            forged = forge.forge(image, np.random.default_rng(number))
            for saved, chain in SAVED.items():
                shown = forged.image
                for spec in chain:
                    shown = parse_degradation(spec).apply(shown, np.random.default_rng(number))
                if min(shown.size) < extractor.crops.size:
                    continue
                mask = np.asarray(Image.fromarray(forged.mask).resize(shown.size, Image.Resampling.BOX))
                maps = {f"**heatmap**, {saved}": heatmap(extractor, localizer, shown).map}
                if forge.spelling in others:
                    maps[f"taught without it, {saved}"] = heatmap(extractor, others[forge.spelling], shown).map
                tiling = tile(extractor, shown.size)
                if not chain:
                    maps["the original"] = original
                    maps["a blob in the middle"] = blob(tiling.shape)
                    maps |= without_a_head(extractor, shown)
                inside = patch_mask(mask, tiling.box, tiling.shape) >= FORGED
                if inside.any() and not inside.all():
                    for name, values in maps.items():
                        found[name, forge.spelling].append(metrics.auc(inside.ravel().astype(int), values.ravel()))
        print(f"\r{used} images ", end="", file=sys.stderr, flush=True)
    return found


def report(found: dict[tuple[str, str], list[float]]) -> None:
    """Print the table as Markdown. Exits where there is nothing to print."""
    if not found:
        sys.exit("no photograph is as large as a window")
    names, forges = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    rng = np.random.default_rng(0)

    def cell(values: Sequence[float], mean: Callable = np.mean) -> str:
        low, high = np.quantile(rng.choice(np.array(values), (2000, len(values))).mean(1), (0.025, 0.975))
        return f"{mean(values):.3f} [{low:.3f}, {high:.3f}]"

    print(f"\n{max(len(values) for values in found.values())} photographs\n")
    print("| map | " + " | ".join(forges) + " | mean |")
    print("|---|" + "---|" * (len(forges) + 1))
    for name in sorted(names, key=lambda n: (not n.startswith("**"), not n.startswith("taught"))):
        mean = np.mean([np.mean(found[name, forge]) for forge in forges])
        print(f"| {name} | " + " | ".join(cell(found[name, forge]) for forge in forges) + f" | {mean:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--forge", action="append", default=[])
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--teach", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    kinds = [parse_forge(s) for s in arguments.forge or ["self_blend", "recompress@part", "resample@part"]]
    found_detector = Detector.load(arguments.checkpoint, "cpu")
    if found_detector.contrasts is None:
        sys.exit("this detector draws no heatmaps")
    without = taught_without(arguments.teach, found_detector.contrasts, kinds) if arguments.teach else {}
    report(measure(found_detector, real_images(arguments.images), kinds, arguments.limit, without))
