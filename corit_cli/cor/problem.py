"""What a sweep trains on: which images, split how, read how; and the models made ready for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corit_cli.cor.arms import HeadArm, Split, TunedArm
from corit_cli.cor.collapse import Criteria
from corit_cli.cor.curvature import Geometry, geometry
from corit_cli.cor.memory import give_back
from corit_cli.cor.settings import Optimization
from corit_cli.cor.tuned import Tuned
from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.data.splits import LEARNED, deal, thin, units_of
from corit_cli.data.windows import crop
from corit_cli.errors import CoritError
from corit_cli.features.cache import FeatureCache, Job, default_cache_path, extract
from corit_cli.features.extractor import Extractor
from corit_cli.features.stream import ahead, loaders
from corit_cli.files import content_sha256
from corit_cli.model.corit import CoRIT
from corit_cli.model.loading import Backbone
from corit_cli.model.precision import lowered
from corit_cli.model.scope import Scope, first_thawed
from corit_cli.model.settings import CoRITSettings
from corit_cli.progress import Advance, hush

#: Share of the independent images that is trained on; the others validate.
TRAINED_ON = 0.6
#: Independent images of each class, at least, to train on and to validate on.
FEWEST_UNITS = 2


class Problem:
    """Images to train and to validate on, at most ``most`` of them, whole units on one side; none of other splits.

    Files that turn out to be unreadable are left out and told to ``warn``. ``precision``, fp32, bf16 or int8, is that
    of the products of frozen blocks; what is trained is float32. With ``load``, which loads the backbone anew, it is
    let go where the last blocks are tuned, once images were run through the others. Raises CoritError when a class is
    missing, or when ``crops`` has windows of both kinds.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        backbone: Backbone,
        crops: CropConfig,
        optimization: Optimization,
        most: int,
        seed: int = 0,
        device: str = "cpu",
        warn: Callable[[str], None] = lambda _: None,
        precision: str = "fp32",
        load: Callable[[], Backbone] | None = None,
    ) -> None:
        if crops.mode == "both":
            raise CoritError("a sweep reads one kind of window: --crop native|resize")
        self.precision = precision
        self.samples = [s for s in samples if s.split in LEARNED]
        self._backbone: Backbone | None = backbone
        self._sha256, self._load = backbone.sha256, load
        self.crops, self.optimization, self.device, self.warn = crops, optimization, device, warn
        self._units = units_of(self.samples, photographs=True)
        self._train, self._val = self._deal(most, seed)
        self._wanted = sorted(self._train + self._val)
        self._used: list[int] | None = None  # positions of what can be read, known once it was read

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded anew where it was let go. Raises CoritError where that gives other weights."""
        if self._backbone is None:
            assert self._load is not None
            backbone = self._load()
            if backbone.sha256 != self._sha256:
                raise CoritError(f"the backbone {backbone.name} has other weights than when the sweep began")
            self._backbone = backbone
        return self._backbone

    def _deal(self, most: int, seed: int) -> tuple[list[int], list[int]]:
        """Positions to train on and to validate on."""
        samples, units = self.samples, self._units
        shares = {"train on": TRAINED_ON, "validate on": 1 - TRAINED_ON}
        sides = deal([s.label for s in samples], units, list(shares.values()), seed)
        for k, (name, share) in enumerate(shares.items()):
            sides[k] = chosen = thin(samples, units, sides[k], round(most * share), seed)
            if min(len({units[i] for i in chosen if samples[i].label == label}) for label in (0, 1)) < FEWEST_UNITS:
                raise CoritError(
                    f"too few images to {name}: give ten independent ones of each class, or more --samples"
                )
        return sides[0], sides[1]

    def _keep(self, errors: dict[int, str]) -> None:
        """Leave out the images at the positions ``errors``, once."""
        if self._used is not None:
            return
        for i, message in errors.items():
            self.warn(f"left out {self.samples[i].path}: {message}")
        self._used = [i for i in self._wanted if i not in errors]
        for part in (self._train, self._val):
            if len({self.samples[i].label for i in part if i not in errors}) < 2:
                raise CoritError("without the images that cannot be read, no real or no fake ones are left")

    @property
    def used(self) -> list[int]:
        """Positions, among the samples, of the images in use, which are read if nothing was before."""
        if self._used is None:
            _ = self.windows  # by then it is known
        assert self._used is not None
        return self._used

    @property
    def jobs(self) -> list[Job]:
        """The images to be read."""
        return [Job(self.samples[i].path) for i in self._wanted]

    @property
    def units(self) -> list[Hashable]:
        """What each image in use belongs together with."""
        return [self._units[i] for i in self.used]

    @cached_property
    def split(self) -> Split:
        """Labels of the images in use, and which of them are trained on."""
        place = {i: k for k, i in enumerate(self.used)}
        train, val = ([place[i] for i in part if i in place] for part in (self._train, self._val))
        return Split.of([self.samples[i].label for i in self.used], train, val)

    @property
    def criteria(self) -> Criteria:
        """When a run on these images has collapsed."""
        used = set(self.used)
        return self._criteria(*([i for i in part if i in used] for part in (self._train, self._val)))

    def _criteria(self, train: Sequence[int], val: Sequence[int]) -> Criteria:
        labels = [s.label for s in self.samples]
        return Criteria.of([labels[i] for i in train], [labels[i] for i in val], [self._units[i] for i in val])

    @cached_property
    def about(self) -> dict[str, Any]:
        """Sizes of the parts, and a digest of what is in the files, their labels and their part."""
        train = set(self._train)
        rows = [f"{content_sha256(self.samples[i].path)} {self.samples[i].label} {i in train}" for i in self.used]
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return {"train": len(self.split.train), "val": len(self.split.val), "fingerprint": digest}

    @cached_property
    def windows(self) -> Tensor:
        """One window of every image that can be read, (n, S, S, 3) uint8."""

        def load(i: int) -> np.ndarray | str:
            try:
                return crop(read_image(self.samples[i].path), self.crops)[0]
            except CoritError as error:
                return str(error)

        loaded = dict(zip(self._wanted, ahead(load, self._wanted, loaders(self.device), window=16), strict=True))
        self._keep({i: found for i, found in loaded.items() if isinstance(found, str)})
        return torch.from_numpy(np.stack([loaded[i] for i in self.used]))

    def features(self, settings: CoRITSettings, advance: Advance = hush) -> Tensor:
        """Features (n, F) of the images in use, from the cache where it has them."""
        cache = FeatureCache(default_cache_path(), warn=self.warn)
        try:
            extractor = Extractor(self.backbone, settings, self.crops, self.device, self.precision)
            z, errors = extract(extractor, self.jobs, cache, advance)
        finally:
            cache.close()
        self._keep({self._wanted[k]: message for k, message in errors.items()})
        return z[[k for k in range(len(z)) if k not in errors]].to(self.device)

    def check(self, settings: CoRITSettings, scope: Scope) -> None:
        """Raise CoritError where no :meth:`arm` can be had, or nothing said of one: settings or scope do not fit the
        backbone, a tower is to be tuned on several windows an image, or too few images are independent."""
        self._criteria(self._train, self._val).check()
        self._check_model(settings, scope)

    def _check_model(self, settings: CoRITSettings, scope: Scope) -> None:
        first_thawed(scope, CoRIT(self.backbone.tower, settings).end)
        if scope.kind != "head" and len(self.crops.windows) > 1:
            raise CoritError("where blocks are tuned, one window an image is read: leave out --crops")

    def arm(self, name: str, settings: CoRITSettings, scope: Scope, advance: Advance = hush) -> HeadArm | TunedArm:
        """A model, its frozen part run on all images. Raises CoritError as :meth:`check` does, but for how many of them
        are independent: a few serve to time it."""
        self._check_model(settings, scope)
        if scope.kind == "head":
            return HeadArm(name, self.features(settings, advance), self.split, self.optimization)
        tuned = Tuned(self.backbone.tower, settings, scope)
        prepared = tuned.prepare(self.windows, advance, lowered(self.backbone, self.precision))
        tuned.let_go()
        if self._load is not None and tuned.frozen_blocks > 0:  # else the arm has most of it itself
            self._backbone = None
            give_back()
        return TunedArm(name, tuned, prepared, self.split, self.optimization)

    def geometry(self, arm: HeadArm | TunedArm) -> Geometry:
        """Local geometry of the loss at the initial weights of an arm's first seed. Raises ValueError as
        :func:`~corit_cli.cor.curvature.geometry` does."""
        positions, units, labels = self.split.train.tolist(), self.units, self.split.labels.tolist()
        dealt = apart([units[k] for k in positions], [labels[k] for k in positions], self.optimization.batch_size)
        loss, params = arm.objective()
        return geometry(loss, params, [[positions[k] for k in batch] for batch in dealt], self.optimization.lr)


def apart(units: Sequence[Hashable], labels: Sequence[int], size: int) -> list[list[int]]:
    """Disjoint batches of one size, ``size`` at most, with as many of either class, no unit in two of them: positions.

    Only then do the products of two batches' gradients have the mean ||E g||^2 (``metrics/gsnr.py``). There are from
    3 to 16 batches, with two units each where there are enough. Raises ValueError where that cannot be.
    """
    count = max(3, min(16, len(units) // size, len(set(units)) // 2))
    batches = deal(labels, units, count)
    # Positions come in the manifest's order, by source as a rule: what is left over must come from anywhere in it.
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    classes = [[[i for i in order if i in own and labels[i] == label] for label in (0, 1)] for own in map(set, batches)]
    each = min(max(1, size // 2), *(len(own) for batch in classes for own in batch))
    if not each:
        raise ValueError("too few independent images of either class for three batches")
    return [sorted(real[:each] + fake[:each]) for real, fake in classes]
