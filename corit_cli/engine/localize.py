"""Where a picture was changed: a linear head on patch contrasts, taught by forgeries whose masks are known.

The detector's own head hears of whole images, and its gradient says nothing of places (docs/results.md). So places have
a head of their own: w . c_p + b for a patch's contrasts c_p (:meth:`CoRIT.regional`), the logistic regression of
"forged or not" over patches of real photographs that were changed in one region by ``data/forge.py``. It is ours,
not the paper's. Whether a picture is called fake does not depend on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from corit_cli import metrics
from corit_cli.data.degrade import jpeg
from corit_cli.data.forge import Forge, middle, parse_forge
from corit_cli.data.images import ImageError, read_image
from corit_cli.data.manifest import Sample
from corit_cli.engine.checkpoint import Localizer
from corit_cli.engine.evidence import contrasted, smooth, tile
from corit_cli.engine.features import Extractor, ahead
from corit_cli.errors import CoritError
from corit_cli.model.head import Head

#: Photographs that the head learns from, and that it is tried on, taken from all sources in turn.
TAUGHT, TRIED = 300, 80
#: Patches drawn from a window, half of them forged where it has so many.
PATCHES = 48
#: JPEG qualities that every second window was saved at after it was forged, as forged pictures mostly are.
QUALITY = (75, 98)
#: Share of a patch's pixels from which on it counts as forged, and up to which as untouched.
FORGED, UNTOUCHED = 0.5, 0.02
#: Weight of ||w||^2 / 2 beside the mean loss, for inputs of unit norm on average.
PENALTY = 2e-5


def localize(
    samples: Sequence[Sample],
    train_part: Sequence[int],
    val_part: Sequence[int],
    extractor: Extractor,
    forges: Sequence[str],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Localizer, dict]:
    """A localizer taught by forgeries (``data/forge.py`` spells them) of the training part's real photographs.

    Also returns what it is worth on the validation part: photographs taught by and tried on, and the mean over
    windows of the pixel AUC inside the masks, by forgery. ``progress`` is told how many photographs are done, of how
    many.
    Raises CoritError when the detector reads no contrast, a forgery cannot be made, or no photograph is large enough.
    """
    contrasted(extractor)
    kinds = [parse_forge(spec) for spec in forges]
    for kind in kinds:
        kind.check()
    taught, tried = photographs(samples, train_part, TAUGHT), photographs(samples, val_part, TRIED)
    total = len(taught) + len(tried)
    head = teach(windows(taught, extractor, kinds, seed, lambda n: progress(n, total)), seed)
    if head is None:
        size = extractor.crops.size
        raise CoritError(f"--local needs real training photographs of at least {size} px a side: there is none")

    aucs: dict[str, list[float]] = defaultdict(list)
    untouched = [np.zeros(0, np.float32)]
    for window in windows(tried, extractor, kinds, seed, lambda n: progress(len(taught) + n, total)):
        with torch.inference_mode():
            cells = head(window.contrasts).numpy().reshape(window.mask.shape)
        cells = smooth(cells, np.ones(cells.shape, bool))
        if window.kind is None:
            untouched.append(cells.ravel())
        elif 0 < (inside := window.mask >= FORGED).sum() < inside.size:
            aucs[window.kind].append(metrics.auc(inside.ravel(), cells.ravel()))
    seen = np.concatenate(untouched)
    unusual = float(np.quantile(seen, 0.99)) if seen.size else 1.0
    figures = {kind: round(float(np.mean(found)), 4) for kind, found in sorted(aucs.items())}
    about = {"taught_by": len(taught), "tried_on": len(tried), "pixel_auc": figures}
    return Localizer(head, max(unusual, 1e-6), tuple(forges)), about


def teach(examples: Iterable[Window], seed: int = 0) -> Head | None:
    """A head from some patches of every window; None where they are not of both kinds."""
    rng = np.random.default_rng(seed)
    z, y = [], []
    for window in examples:
        for patches, forged in _drawn(window, rng):
            z.append(window.contrasts[patches])
            y.append(np.full(len(patches), forged))
    labels = np.concatenate(y) if y else np.zeros(0)
    return fit(torch.cat(z), labels) if len(np.unique(labels)) == 2 else None


def fit(z: Tensor, labels: np.ndarray) -> Head:
    """Logistic regression of ``labels`` (n,) on patches' contrasts ``z`` (n, F), both classes of the same weight."""
    from sklearn.linear_model import LogisticRegression

    head = Head(z.shape[1])
    head.fit_standardiser(z)
    model = LogisticRegression(C=1 / (PENALTY * len(z)), class_weight="balanced", max_iter=200)
    model.fit(head.standardise(z).numpy(), labels)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.from_numpy(model.coef_))
        head.layers[0].bias.copy_(torch.from_numpy(model.intercept_))
    return head.eval()


@dataclass
class Window:
    """One window's patch contrasts (P, F), the share of each patch that was forged (rows, columns), and how."""

    contrasts: Tensor
    mask: np.ndarray
    kind: str | None


def windows(
    samples: Sequence[Sample], extractor: Extractor, kinds: Sequence[Forge], seed: int, progress: Callable[[int], None]
) -> Iterator[Window]:
    """Of each photograph an untouched window and two forged ones, of one kind after the other."""
    reader = contrasted(extractor)
    work = [(sample, number) for number, sample in enumerate(samples)]
    prepare = partial(_prepare, extractor=extractor, kinds=kinds, seed=seed)
    for done, found in enumerate(ahead(prepare, work, workers=2, window=4), 1):
        if found:
            pixels = torch.from_numpy(np.stack([pixels for pixels, _, _ in found])).to(extractor.device)
            with torch.inference_mode():
                contrasts = reader.corit.regional(pixels.permute(0, 3, 1, 2).float() / 255).cpu()  # (w, P, F)
            for rows, (_, mask, kind) in zip(contrasts, found, strict=True):
                yield Window(rows, mask, kind)
        progress(done)


def _prepare(
    item: tuple[Sample, int], extractor: Extractor, kinds: Sequence[Forge], seed: int
) -> list[tuple[np.ndarray, np.ndarray, str | None]]:
    """Pixels, mask of patches and kind of each window of one photograph; none where it is unreadable or too small."""
    sample, number = item
    try:
        image = middle(read_image(sample.path))
    except ImageError:  # reported when its features are taken
        return []
    if min(image.size) < extractor.crops.size:
        return []
    rng = np.random.default_rng([seed, number])
    found = []
    for kind in (None, *(kinds[(number + k) % len(kinds)] for k in range(min(2, len(kinds))))):
        shown, mask = image, np.zeros((image.height, image.width), np.float32)
        if kind is not None:
            forged = kind.forge(image, rng)
            shown, mask = forged.image, forged.mask
        if rng.random() < 0.5:
            shown = jpeg(shown, int(rng.integers(QUALITY[0], QUALITY[1] + 1)))
        found.append((*_fullest(shown, mask, extractor), None if kind is None else kind.name))
    return found


def _fullest(image: Image.Image, mask: np.ndarray, extractor: Extractor) -> tuple[np.ndarray, np.ndarray]:
    """Of the windows over ``image`` the one nearest to half forged: its pixels, and its patches' shares of ``mask``."""
    tiling = tile(extractor, image.size)
    cells = patch_mask(mask, tiling.box, tiling.shape)
    side = tiling.side // tiling.patch

    def part(corner: tuple[int, int]) -> np.ndarray:
        return cells[corner[0] : corner[0] + side, corner[1] : corner[1] + side]

    corner = min(tiling.corners, key=lambda c: abs(float((part(c) >= FORGED).mean()) - 0.5))
    return tiling.window(image, *corner), part(corner)


def patch_mask(mask: np.ndarray, box: tuple[float, float, float, float], shape: tuple[int, int]) -> np.ndarray:
    """What share of each cell of ``shape`` (rows, columns) side by side in ``box`` lies inside ``mask`` (H, W)."""
    return np.asarray(Image.fromarray(mask).resize(shape[::-1], Image.Resampling.BOX, box))


def _drawn(window: Window, rng: np.random.Generator) -> list[tuple[np.ndarray, int]]:
    """Patches to learn from, (numbers, forged or not): as many forged as untouched; half as many in all of a window
    that nobody touched."""
    share = window.mask.ravel()
    forged, untouched = np.flatnonzero(share >= FORGED), np.flatnonzero(share <= UNTOUCHED)
    if window.kind is None:
        return [(rng.choice(untouched, min(PATCHES // 2, len(untouched)), replace=False), 0)]
    return [
        (rng.choice(chosen, min(PATCHES // 2, len(chosen)), replace=False), label)
        for label, chosen in ((1, forged), (0, untouched))
    ]


def photographs(samples: Sequence[Sample], part: Sequence[int], limit: int) -> list[Sample]:
    """At most ``limit`` real images of ``samples[part]``, one of each source after the other."""
    seen: dict[str | None, int] = defaultdict(int)
    ranked = []
    for sample in (samples[i] for i in part if samples[i].label == 0):
        ranked.append((seen[sample.source], sample))
        seen[sample.source] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [sample for _, sample in ranked[:limit]]
