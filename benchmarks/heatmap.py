"""Do heatmaps point at what was forged? Pixel AUCs of the map inside the masks of local forgeries made on the spot.

    python benchmarks/heatmap.py [IMAGES] [--forge self_blend --forge reconstruct@part:FOLDER ...] [--limit N]

IMAGES is a folder of photographs, or a manifest or labelled folder, whose real images are used. Of each the middle
384 x 384 pixels are taken, forged in one region, and searched. An AUC is the chance that a patch inside the region gets
a higher value than one outside: 0.5 is chance. "Energy" is the patch contrast's norm alone, which asks nothing of the
head; "window's logit" is what the detector makes of each window as a whole. ``minus the original's map`` is out of
anybody's reach but ours, who have the original: it shows what noise and content cost. Means over images, with 95%
bootstraps.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from corit_cli import metrics
from corit_cli.data.forge import MAX_SIDE, Forge, parse_forge
from corit_cli.data.images import IMAGE_SUFFIXES, crop, read_image
from corit_cli.data.manifest import load_samples
from corit_cli.engine.evidence import SMOOTHING, smooth, tile
from corit_cli.engine.features import Extractor
from corit_cli.engine.predict import Detector
from corit_cli.errors import CoritError
from corit_cli.model import cgp

Maps = dict[str, np.ndarray]


@dataclass
class Search:
    """Everything about an image's patches that a map could be made of, over all layers that the streams run through."""

    detector: Detector
    layers: list[int]

    def __call__(self, image: Image.Image) -> Maps:
        """Maps by name, each (rows, columns) on the grid of cells that ``evidence`` uses, unsmoothed."""
        extractor = self.detector.extractor
        tiling = tile(extractor, image.size)
        *others, reader = extractor.readers
        readings = extractor([crop(image, extractor.crops)])[0]
        before = torch.cat([r.mean(0) for r in readings[: len(others)]]) if others else torch.zeros(0)
        sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(tiling.shape))
        count = np.zeros(tiling.shape)
        grid = reader.corit.tower.config.grid
        for row, column in tiling.corners:
            pixels = torch.from_numpy(tiling.window(image, row, column).copy()).permute(2, 0, 1)[None].float() / 255
            here = np.s_[row : row + grid, column : column + grid]
            count[here] += 1
            for name, values in self.window(pixels, before).items():
                sums[name][here] += values.view(grid, grid).numpy()
        return {name: total / count for name, total in sums.items()}

    def window(self, pixels: Tensor, before: Tensor) -> dict[str, Tensor]:
        """Maps (P,) of one window (1, 3, S, S)."""
        corit = self.detector.extractor.readers[-1].corit
        with torch.enable_grad():
            state = corit.start(pixels)
            state = replace(state, x=state.x.detach().requires_grad_(), views=state.views.detach().requires_grad_())
            x, views = [], []
            for layer in range(corit.end):
                x.append(state.x)
                views.append(state.views)
                state = corit.run(state, layer + 1)
            logit = self.detector.head(torch.cat([before[None], corit.read(state).z], 1))  # (1,)
            gradients = torch.autograd.grad(logit.sum(), x + views)
        contrast = [
            cgp.contrast(a, b.unflatten(0, (-1, 1))).mean(0)[0, 1:].detach() for a, b in zip(x, views, strict=True)
        ]
        of_x = [g[0, 1:] for g in gradients[: len(x)]]
        of_views = [g[:, 1:].sum(0) for g in gradients[len(x) :]]
        used = {layer: (contrast[layer] * of_x[layer]).sum(-1) for layer in range(len(x))}  # (P,) each

        def mean(values: Callable[[int], Tensor], layers: list[int] = self.layers) -> Tensor:
            return torch.stack([values(layer) for layer in layers]).mean(0)

        every = list(range(len(x)))
        return {
            "evidence": mean(used.__getitem__),
            "energy ||c||": mean(lambda i: contrast[i].norm(dim=-1)),
            "window's logit": logit.detach().expand(len(contrast[0])),
            "positive layers only (relu)": mean(lambda i: used[i].clamp_min(0)),
            "size only (abs)": mean(lambda i: used[i].abs()),
            "from layer 0 on": mean(used.__getitem__, every),
            "before any is read": mean(used.__getitem__, [i for i in every if i < self.layers[0]]),
            "deepest layer alone": used[self.layers[-1]],
            "gradients of both streams": mean(lambda i: (contrast[i] * (of_x[i] - of_views[i])).sum(-1) / 2),
            "direction of c only": mean(lambda i: used[i] / contrast[i].norm(dim=-1)),
            "cosine of c and gradient": mean(lambda i: torch.cosine_similarity(contrast[i], of_x[i], dim=-1)),
            "size of the gradient": mean(lambda i: of_x[i].norm(dim=-1)),
        }


def photographs(images: Path) -> list[Path]:
    """The real images of a manifest or labelled folder, or every image of a plain folder."""
    try:
        return [sample.path for sample in load_samples(images) if sample.label == 0]
    except CoritError:
        return sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def middle(path: Path, smallest: int) -> Image.Image | None:
    """The part that every kind of forgery can use, None where a window does not fit."""
    image = read_image(path)
    left, top = (max(0, (side - MAX_SIDE) // 2) for side in image.size)
    image = image.crop((left, top, left + min(image.width, MAX_SIDE), top + min(image.height, MAX_SIDE)))
    return image if min(image.size) >= smallest else None


def patch_mask(mask: np.ndarray, box: tuple[float, float, float, float], shape: tuple[int, int]) -> np.ndarray:
    """Which cells (rows, columns) are forged by at least half."""
    cells = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.BOX, box)
    return np.asarray(cells) >= 0.5


def variants(maps: Maps, original: Maps) -> Maps:
    """What the table's rows are made of: smoothed as ``evidence`` is, unless the name says otherwise."""
    everywhere = np.ones_like(maps["evidence"], bool)
    out = {name: smooth(values, everywhere) for name, values in maps.items()}
    energy = out["energy ||c||"]
    out["energy, distance from the median"] = np.abs(energy - np.median(energy))
    out["evidence, not smoothed"] = maps["evidence"]
    out["evidence minus the original's map"] = smooth(maps["evidence"] - original["evidence"], everywhere)
    return out


def measure(
    detector: Detector, paths: list[Path], forges: list[Forge], limit: int
) -> dict[tuple[str, str], list[float]]:
    """AUCs by (map's name, forgery's name), one an image."""
    from corit_cli.engine.evidence import layers_used

    extractor: Extractor = detector.extractor
    corit = extractor.readers[-1].corit
    search = Search(detector, list(layers_used(corit)))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    used = 0
    for number, path in enumerate(paths):
        image = middle(path, extractor.crops.size)
        if image is None or used == limit:
            continue
        used += 1
        original = search(image)
        for forge in forges:
            forged = forge.forge(image, np.random.default_rng(number))
            tiling = tile(extractor, forged.image.size)
            mask = patch_mask(forged.mask, tiling.box, tiling.shape)
            if not mask.any() or mask.all():
                continue
            for name, values in variants(search(forged.image), original).items():
                found[name, forge.name].append(metrics.auc(mask.ravel().astype(int), values.ravel()))
        print(f"\r{used} images ", end="", file=sys.stderr, flush=True)
    return found


def report(found: dict[tuple[str, str], list[float]]) -> None:
    """Print the table as Markdown."""
    names, forges = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    rng = np.random.default_rng(0)
    print(f"\n{len(found[names[0], forges[0]])} photographs; smoothed over {SMOOTHING} patches\n")
    print("| map | " + " | ".join(forges) + " | mean |")
    print("|---|" + "---|" * (len(forges) + 1))
    for name in names:
        cells = []
        for forge in forges:
            values = np.array(found[name, forge])
            means = rng.choice(values, (2000, len(values))).mean(1)
            low, high = np.quantile(means, (0.025, 0.975))
            cells.append(f"{values.mean():.3f} [{low:.3f}, {high:.3f}]")
        mean = np.mean([np.mean(found[name, forge]) for forge in forges])
        print(f"| {name} | " + " | ".join(cells) + f" | {mean:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?", default=Path(__file__).parent.parent / "examples" / "real")
    parser.add_argument("--forge", action="append", default=[])
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    specs = arguments.forge or ["self_blend", "recompress@part", "resample@part"]
    detector = Detector.load(arguments.checkpoint)
    report(measure(detector, photographs(arguments.images), [parse_forge(s) for s in specs], arguments.limit))
