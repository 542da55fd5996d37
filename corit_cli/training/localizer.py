"""Where a picture was changed: a linear head on patch contrasts, taught by forgeries whose masks are known.

The detector's own head hears of whole images and may read no contrast at all. So places have a head of their own:
w . c_p + b for a patch's contrasts c_p (:meth:`CoRIT.regional`), the logistic regression of "forged or not" over
patches of real photographs that were changed in one region by ``data/forge.py``. It is ours, not the paper's. Whether a
picture is called fake does not depend on it.

Contrasts also tell where in the window a patch stands, and forged regions mostly lie near the middle. A head could
learn that instead. So every forged window is taught together with the same window of the untouched photograph, and at
every place in the window forged and untouched patches have the same total weight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from corit_cli import metrics
from corit_cli.data.degrade import jpeg
from corit_cli.data.forge import Forge, middle
from corit_cli.data.images import inspect, read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.opening import ImageError
from corit_cli.data.settings import CropConfig
from corit_cli.detection.checkpoint import Localizer
from corit_cli.detection.heatmap import contrasted, smooth, tile
from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor, pixels
from corit_cli.features.stream import ahead
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings
from corit_cli.progress import Advance, Progress, hush, quiet

#: Layers whose contrasts tell places.
LAYERS = (4, 5, 6)
#: Photographs that the head learns from, and that it is tried on, taken from all sources in turn.
TAUGHT, TRIED = 400, 100
#: Patches of a window that are learned from: at most so many forged ones, and so many that nobody touched.
PATCHES = 24
#: JPEG qualities that every second pair of windows was saved at after the forging, as forged pictures mostly are.
QUALITY = (75, 98)
#: Share of a patch's pixels from which on it counts as forged, and up to which as untouched.
FORGED, UNTOUCHED = 0.5, 0.02
#: Weight of ||w||^2 / 2 beside the mean loss, for inputs of unit norm on average.
PENALTY = 2e-5
#: Shares of the patches of untouched photographs that exceed the two levels of a heatmap's scale.
SHARES = (0.1, 0.01)


def contrasts_for(extractor: Extractor) -> Extractor:
    """What reads the contrasts of places for the detector of ``extractor``: those of ``LAYERS`` in native windows, and
    of a tower too shallow for these the detector's own. Raises CoritError where it has none."""
    own, size = extractor.settings, extractor.crops.size
    if extractor.backbone.tower.config.layers < max(LAYERS) and own.cgp:
        settings = replace(own, integrate=(), native=(), face=(), patches=False)
        return Extractor(extractor.backbone, settings, extractor.crops, extractor.device.type)
    settings = CoRITSettings(own.views or CoRITSettings().views, cgp=LAYERS, integrate=())
    return Extractor(extractor.backbone, settings, CropConfig("native", size), extractor.device.type)


def localize(
    samples: Sequence[Sample],
    train_part: Sequence[int],
    val_part: Sequence[int],
    extractor: Extractor,
    kinds: Sequence[Forge],
    seed: int = 0,
    progress: Progress = quiet,
) -> tuple[Localizer, dict[str, Any]]:
    """A localizer taught by forgeries of the training part's real photographs, which must leave a part untouched.

    Also returns what it is worth on the validation part: how many photographs it was taught by and tried on, and for
    each kind of forgery the mean over photographs of the pixel AUC inside the masks, of the forged picture's map and of
    the untouched original's, which shows what content and place alone come to. Raises CoritError when the extractor
    reads no contrast, or no photograph of either part is large enough.
    """
    contrasted(extractor)
    size = extractor.crops.size
    taught = photographs(samples, train_part, TAUGHT, size, seed)
    tried = photographs(samples, val_part, TRIED, size, seed)
    if not taught or not tried:
        raise CoritError(
            f"--local needs real photographs of at least {size} px a side: there are {len(taught)} to train on and "
            f"{len(tried)} to validate on"
        )
    advance = progress("forged regions", len(taught) + len(tried))
    head = teach(pairs(taught, extractor, kinds, [seed, 0], advance), seed)

    aucs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    untouched = []
    for pair in pairs(tried, extractor, kinds, [seed, 1], advance):
        with torch.inference_mode():
            maps = (
                head(torch.stack([pair.forged, pair.original])).view(2, *pair.mask.shape).numpy()
            )  # (2, rows, columns)
        maps = [smooth(cells, np.ones(cells.shape, bool)) for cells in maps]
        untouched.append(maps[1].ravel())
        inside = pair.mask >= FORGED
        if 0 < inside.sum() < inside.size:
            aucs[pair.kind].append(tuple(metrics.auc(inside.ravel(), cells.ravel()) for cells in maps))
    common, rare = (float(np.quantile(np.concatenate(untouched), 1 - share)) for share in SHARES)
    figures = {}
    for kind, found in sorted(aucs.items()):
        forged, original = np.mean(found, 0).round(4).tolist()
        figures[kind] = {"photographs": len(found), "forged": forged, "original": original}
    about = {"taught_by": len(taught), "tried_on": len(tried), "pixel_auc": figures}
    spellings = tuple(kind.spelling for kind in kinds)
    return Localizer(head, extractor.settings, extractor.crops, common, max(rare, common + 1e-3), spellings), about


def teach(examples: Iterable[Pair], seed: int = 0) -> Head:
    """A head from some patches of every pair. Raises CoritError when no patch is forged by half."""
    rng = np.random.default_rng(seed)
    z, labels, places = [], [], []
    for pair in examples:
        share = pair.mask.ravel()
        forged, free = (
            rng.choice(chosen, min(PATCHES, len(chosen)), replace=False)
            for chosen in (np.flatnonzero(share >= FORGED), np.flatnonzero(share <= UNTOUCHED))
        )
        z += [pair.forged[forged], pair.original[forged], pair.forged[free]]
        labels += [np.ones(len(forged), int), np.zeros(len(forged) + len(free), int)]
        places += [forged, forged, free]
    if not any(part.any() for part in labels):
        raise CoritError("no forgery covers as much as half a patch of any photograph: give other kinds with --local")
    return fit(torch.cat(z), np.concatenate(labels), np.concatenate(places))


def fit(z: Tensor, labels: np.ndarray, places: np.ndarray) -> Head:
    """Logistic regression of ``labels`` (n,) on patches' contrasts ``z`` (n, F); ``places`` (n,) are patch numbers.

    At each place both labels get the same total weight; a place that has one of them only gets none.
    """
    from sklearn.linear_model import LogisticRegression

    counts = np.bincount(2 * places + labels, minlength=2 * (places.max() + 1)).reshape(-1, 2)  # (P, 2)
    weights = np.where((counts > 0).all(1)[places], counts.sum(1)[places] / counts[places, labels], 0.0)
    head = Head(z.shape[1])
    head.fit_standardiser(z)
    model = LogisticRegression(C=1 / (PENALTY * weights.sum()), max_iter=200)
    model.fit(head.standardise(z).numpy(), labels, weights)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.from_numpy(model.coef_))
        head.layers[0].bias.copy_(torch.from_numpy(model.intercept_))
    return head.eval()


@dataclass
class Pair:
    """A window of a forged photograph and the same window of the original: the contrasts of their patches (P, F) each,
    the share of each patch that was forged (rows, columns), and how it was."""

    forged: Tensor
    original: Tensor
    mask: np.ndarray
    kind: str


def pairs(
    samples: Sequence[Sample],
    extractor: Extractor,
    kinds: Sequence[Forge],
    seed: Sequence[int],
    advance: Advance = hush,
) -> Iterator[Pair]:
    """One pair of each photograph, forged in one of the ``kinds``, drawn by ``seed``."""
    corit = contrasted(extractor).corit
    work = [(sample, number) for number, sample in enumerate(samples)]
    prepare = partial(_prepare, extractor=extractor, kinds=kinds, seed=seed)
    for found in ahead(prepare, work, workers=2, window=4):
        if found is not None:
            windows, mask, kind = found
            with torch.inference_mode():
                seen = pixels(torch.from_numpy(windows), extractor.device)  # (2, 3, S, S)
                forged, original = corit.regional(seen).cpu()  # (P, F) each
            yield Pair(forged, original, mask, kind)
        advance()


def _prepare(
    item: tuple[Sample, int], extractor: Extractor, kinds: Sequence[Forge], seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """A pair's pixels (2, S, S, 3), mask of patches and kind; None where the photograph cannot be read."""
    sample, number = item
    try:
        image = middle(read_image(sample.path))
    except ImageError:  # reported when its features are taken
        return None
    rng = np.random.default_rng([*seed, number])
    kind = kinds[int(rng.integers(len(kinds)))]
    forged = kind.forge(image, rng)
    shown = [forged.image, image]
    if rng.random() < 0.5:
        quality = int(rng.integers(QUALITY[0], QUALITY[1] + 1))
        shown = [jpeg(one, quality) for one in shown]
    tiling = tile(extractor, image.size)
    cells, side = patch_mask(forged.mask, tiling.box, tiling.shape), tiling.side // tiling.patch
    masks = {corner: cells[corner[0] : corner[0] + side, corner[1] : corner[1] + side] for corner in tiling.corners}
    corner = min(masks, key=lambda c: abs(float((masks[c] >= FORGED).mean()) - 0.5))  # the nearest to half forged
    return np.stack([tiling.window(one, *corner) for one in shown]), masks[corner], kind.spelling


def patch_mask(mask: np.ndarray, box: tuple[float, float, float, float], shape: tuple[int, int]) -> np.ndarray:
    """What share of each cell of ``shape`` (rows, columns) side by side in ``box`` lies inside ``mask`` (H, W)."""
    return np.asarray(Image.fromarray(mask).resize(shape[::-1], Image.Resampling.BOX, box))


def photographs(samples: Sequence[Sample], part: Sequence[int], limit: int, size: int, seed: int = 0) -> list[Sample]:
    """At most ``limit`` real images of ``samples[part]`` with no side below ``size`` px, drawn by ``seed``, one of each
    source after the other."""
    drawn = np.random.default_rng(seed).permutation([i for i in part if samples[i].label == 0]).tolist()
    seen: dict[str | None, int] = defaultdict(int)
    ranked = []
    for sample in (samples[i] for i in drawn):
        try:
            info = inspect(sample.path)
        except ImageError:
            continue
        if min(info.width, info.height) >= size:
            ranked.append((seen[sample.source], sample))
            seen[sample.source] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [sample for _, sample in ranked[:limit]]
