"""Heads trained anew, as a checkpoint's was, with one source or one generator held out at a time.

What a detector is worth on what it has never met is not in a validation split of the sources it was trained on. Each
group's images are scored by a head that saw neither them nor anything made of them, and beside it by a linear probe of
the tower's last block, trained on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corit_cli import metrics
from corit_cli.config import restored
from corit_cli.data.forge import parse_forge
from corit_cli.data.manifest import Sample
from corit_cli.data.splits import deal, units_of
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.detector import Detector
from corit_cli.errors import CoritError
from corit_cli.evaluation.groups import MINIMUM, Group, groups_by
from corit_cli.features.cache import FeatureCache, Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.metrics.intervals import Estimate
from corit_cli.metrics.resampling import Sampled
from corit_cli.model.fusion import FusedHead
from corit_cli.model.settings import baseline
from corit_cli.progress import Advance, Progress, hush, quiet
from corit_cli.training.plan import Planned, features_of, plan
from corit_cli.training.rows import TrainingSet
from corit_cli.training.run import of_probe
from corit_cli.training.settings import Recipe, TrainSettings

PROTOCOLS = ("leave-source-out", "leave-generator-out")
#: Share of the real images that is held out with a generator whose sources have none.
BORROWED = 1 / 3


@dataclass(frozen=True)
class HeldOut:
    """One group's AUC by heads that never saw it, and their paired difference; ``against`` names its real images."""

    name: str
    real: int
    fake: int
    ours: Estimate
    probe: Estimate
    difference: Estimate
    against: str = ""


@dataclass(frozen=True)
class Protocol:
    """All groups, the means over them, groups that were passed over and forgeries that no head here was taught by,
    each with the reason.

    The means' intervals draw the images of these groups anew. Those of ``as_groups_vary`` (of ``ours``, ``probe`` and
    ``difference``) are for the mean over all groups that these are a sample of, and those of ``one_new_group`` for one
    more of them. Where groups ``share_images``, both allow for what these have in common, and are wider than need be.
    """

    name: str
    groups: list[HeldOut]
    ours: Estimate
    probe: Estimate
    difference: Estimate
    as_groups_vary: dict[str, Estimate]
    one_new_group: dict[str, Estimate]
    share_images: bool
    passed_over: dict[str, str]
    untaught: tuple[str, ...] = ()


def recipe_of(checkpoint: Checkpoint) -> tuple[TrainSettings, Recipe]:
    """How a checkpoint's head was trained. Raises CoritError where it does not say, or was tuned with its tower."""
    if checkpoint.tuned:
        raise CoritError("this detector's tower was tuned with its head: heads alone cannot be trained as it was")
    try:
        kept = checkpoint.training
        settings, recipe = restored(TrainSettings, kept["settings"]), restored(Recipe, kept["recipe"])
    except (KeyError, TypeError, CoritError) as error:
        raise CoritError(f"the checkpoint does not say how it was trained ({error}): train it again") from None
    # A checkpoint from before there was such a head does not say that it has none.
    return replace(settings, degradation_aware=checkpoint.head.degradation is not None), recipe


def check(checkpoint: Checkpoint, samples: Sequence[Sample], names: Sequence[str]) -> None:
    """Raise CoritError when a protocol is unknown, has nothing to hold out, or the head cannot be trained anew."""
    for name in names:
        if name not in PROTOCOLS:
            raise CoritError(f"unknown protocol {name!r}: give {' or '.join(PROTOCOLS)}")
        groups, passed_over = leave_out(samples, name, seed=0)
        if not groups:
            reason = next((f"{g}: {why}" for g, why in passed_over.items()), f"no image names its {name.split('-')[1]}")
            raise CoritError(f"{name} finds nothing to hold out ({reason})")
    if names:
        recipe_of(checkpoint)


def at_hand(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """``recipe`` without the forgeries whose autoencoder cannot be had here; these, each with the reason."""
    kept, missing = [], []
    for spec in recipe.forge:
        try:
            parse_forge(spec).check()
            kept.append(spec)
        except CoritError as error:
            missing.append(f"{spec} ({error})")
    return replace(recipe, forge=tuple(kept)), tuple(missing)


def leave_out(samples: Sequence[Sample], name: str, seed: int) -> tuple[dict[str, Group], dict[str, str]]:
    """The groups that a protocol holds out in turn, and those it cannot, with the reason.

    A source is held out whole. A generator's fakes are held out with the real images of their sources, or, where these
    sources hold other generators' fakes too, with a third of them: else what is left of the sources is all fake, and a
    head learns the source. Where there are none, or none would be left to train on, a third of all real images takes
    their place. Nothing of a video that is judged is trained on; where that would cost more than what is judged, most
    of its fakes being of videos that others forged, too, or whose originals are elsewhere or were to be trained on,
    a third of its videos is judged and its other fakes are seen by nobody. Thirds are drawn by whole videos.
    """
    labels, sources = np.array([s.label for s in samples]), np.array([s.source for s in samples])
    numbers: dict[Hashable, int] = {}
    videos = np.array([numbers.setdefault(unit, len(numbers)) for unit in units_of(samples)])
    found = groups_by(samples, name.removeprefix("leave-").removesuffix("-out"))
    groups, passed_over = {}, {}
    for group, given in found.items():
        fakes, own = given.mask & (labels == 1), given.mask & (labels == 0)
        withheld = given.mask
        if name == "leave-generator-out":
            withheld = fakes
            its_own = np.isin(sources, np.unique(sources[fakes]))
            borrowed = given.against != "its sources" or own.sum() == (labels == 0).sum()
            others = (labels == 1) & ~fakes & (its_own | np.isin(videos, videos[own]))
            same = np.isin(videos, videos[fakes]) & ~fakes
            originals = (own & its_own) | (same & (labels == 0))
            lost = same & ((labels == 1) | ~its_own | borrowed | others.any())
            part = np.zeros(len(labels), bool)
            if np.isin(videos[fakes], videos[lost]).mean() > 0.5:
                part = _third(labels, videos, fakes | (originals if originals.any() else labels == 0), seed)
            if np.bincount(labels[part], minlength=2).min() >= MINIMUM:
                given = Group(part, "a third of its videos")
            elif borrowed:
                given = Group(fakes | _third(labels, videos, labels == 0, seed), "a third of all real images")
            elif others.any():
                given = Group(fakes | _third(labels, videos, own, seed), "a third of its sources")
        withheld = withheld | np.isin(videos, videos[given.mask])
        held = np.bincount(labels[given.mask], minlength=2)
        left = np.bincount(labels[~withheld], minlength=2)
        if held.min() < MINIMUM:
            passed_over[group] = f"{held[0]} real and {held[1]} fake images, fewer than {MINIMUM} of a class"
        elif left.min() == 0:
            passed_over[group] = f"without it there are no {('real', 'fake')[int(left.argmin())]} images to train on"
        else:
            groups[group] = replace(given, withheld=withheld)
    return groups, passed_over


def _third(labels: np.ndarray, videos: np.ndarray, some: np.ndarray, seed: int) -> np.ndarray:
    """A mask (n,) of about a third of the images ``some`` (n,), of either class, whole ``videos`` (n,) together."""
    numbers = np.flatnonzero(some)
    chosen, _ = deal(labels[numbers].tolist(), videos[numbers].tolist(), (BORROWED, 1 - BORROWED), seed)
    mask = np.zeros(len(labels), bool)
    mask[numbers[chosen]] = True
    return mask


def heads_without(
    data: TrainingSet, settings: TrainSettings, groups: Mapping[str, NDArray], advance: Advance = hush
) -> dict[str, FusedHead]:
    """For each group, the samples under its mask (n,), a head trained on the rows of all other samples. ``advance`` is
    told of every epoch of a reading's heads, which are trained at once, on the same batches."""
    owners = np.array([row.sample for row in data.rows])
    keeps = [torch.from_numpy(~mask[owners]) for mask in groups.values()]
    return dict(zip(groups, data.fit_each(settings, keeps, advance), strict=True))


@torch.inference_mode()
def held_out_logits(heads: Mapping[str, FusedHead], z: Tensor, groups: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Logits (n,) of each group's samples by its head, NaN elsewhere; ``z`` (n, F) are the samples' features."""
    found = {}
    for name, mask in groups.items():
        found[name] = np.full(len(z), np.nan)
        found[name][mask] = heads[name](z[torch.from_numpy(mask)]).double().numpy()
    return found


def run(
    detector: Detector,
    samples: Sequence[Sample],
    names: Sequence[str],
    cache: FeatureCache | None = None,
    progress: Progress = quiet,
) -> list[Protocol]:
    """The protocols ``names`` (of ``PROTOCOLS``) on readable ``samples``, with the checkpoint's settings and recipe.

    Held-out images are scored as they are. Raises CoritError as :func:`check` does.
    """
    check(detector.checkpoint, samples, names)
    settings, recipe = recipe_of(detector.checkpoint)
    recipe, untaught = at_hand(recipe)
    plans = {name: leave_out(samples, name, settings.seed) for name in names}
    rows = plan(samples, range(len(samples)), recipe, detector.extractor)
    every = rows + [Planned(i, Job(s.path), s.label) for i, s in enumerate(samples)]
    ours = detector.extractor
    last = baseline(ours.backbone.tower.config.layers)

    def read(extractor: Extractor, title: str) -> tuple[Tensor, dict[int, str]]:
        return features_of(every, extractor, lambda part, jobs: extract(part, jobs, cache, progress(title, len(jobs))))

    z, failed = read(ours, "features")
    if not ours.settings.inject_at and set(last.integrate) <= set(ours.settings.integrate):
        z_probe = ours.select(z, last)
    else:  # two passes: one for both would compute again what the cache holds from scoring
        z_probe, _ = read(ours.with_settings(last), "linear probe")
    kept = [k for k in range(len(rows)) if k not in failed]
    rows, clean = [rows[k] for k in kept], slice(len(rows), None)
    kinds = {
        "ours": (TrainingSet.of(samples, rows, z[kept], ours.readings), z[clean], settings),
        "probe": (TrainingSet.of(samples, rows, z_probe[kept]), z_probe[clean], of_probe(settings)),
    }
    epochs = sum(len(how.fitted(data.readings, recipe)) * how.epochs for data, _, how in kinds.values())
    found = [_run(name, samples, *plans[name], kinds, progress(name, epochs)) for name in names]
    return [replace(protocol, untaught=untaught) for protocol in found]


def _run(
    name: str,
    samples: Sequence[Sample],
    groups: Mapping[str, Group],
    passed_over: dict[str, str],
    kinds: Mapping[str, tuple[TrainingSet, Tensor, TrainSettings]],
    advance: Advance,
) -> Protocol:
    masks = {group: held.mask for group, held in groups.items()}
    withheld = {group: held.mask if held.withheld is None else held.withheld for group, held in groups.items()}
    scores = {
        kind: held_out_logits(heads_without(data, settings, withheld, advance), clean, masks)
        for kind, (data, clean, settings) in kinds.items()
    }
    return summed(name, samples, groups, passed_over, scores)


def summed(
    name: str,
    samples: Sequence[Sample],
    groups: Mapping[str, Group],
    passed_over: dict[str, str],
    scores: Mapping[str, Mapping[str, NDArray]],
) -> Protocol:
    """What held-out ``scores`` come to: (n,) for each group, of ``ours`` and of the ``probe``."""
    labels, masks = np.array([s.label for s in samples]), {group: held.mask for group, held in groups.items()}
    found = metrics.bootstrap_groups(labels, scores, masks, units_of(samples))

    def triple(of: Sequence[str]) -> dict[str, Sampled]:
        ours, probe = (Sampled.mean([found[kind, group] for group in of]) for kind in ("ours", "probe"))
        return {"ours": ours, "probe": probe, "difference": ours - probe}

    def estimates(of: Sequence[str]) -> dict[str, Estimate]:
        return {figure: s.estimate for figure, s in triple(of).items()}

    table = []
    for group, held in groups.items():
        real, fake = (int((labels[held.mask] == c).sum()) for c in (0, 1))
        table.append(HeldOut(group, real, fake, **estimates([group]), against=held.against))
    means, share_images = triple(list(groups)), bool((sum(mask.astype(int) for mask in masks.values()) > 1).any())

    def over(interval: Callable[..., Estimate]) -> dict[str, Estimate]:
        found = {}
        for figure, mean in means.items():
            each = np.array([getattr(held, figure).value for held in table])
            shared = float(mean.draws.var()) if share_images else 0.0
            found[figure] = interval(each, shared, (-1.0 if figure == "difference" else 0.0, 1.0))
        return found

    return Protocol(
        name,
        table,
        **estimates(list(groups)),
        as_groups_vary=over(metrics.mean_interval),
        one_new_group=over(metrics.prediction_interval),
        share_images=share_images,
        passed_over=passed_over,
    )
