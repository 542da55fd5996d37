"""Faults of labelled data that would make a training, or its figures, worth nothing: told before any image is
decoded."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from corit_cli.data.colours import is_flat
from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.opening import ImageError
from corit_cli.data.splits import LEARNED
from corit_cli.errors import CoritError
from corit_cli.files import content_sha256


@dataclass
class Faults:
    """What is told, a sentence each, and how many images for validation are ``leaked``: in training, too."""

    words: list[str] = field(default_factory=list)
    leaked: int = 0


def find_faults(samples: Sequence[Sample], train_part: Sequence[int], val_part: Sequence[int]) -> Faults:
    """The faults of ``samples`` as they are dealt to training and validation.

    Files of the same size are read, to see whether they are the same, and of each class images up to the first that
    shows something. Raises CoritError when every image of a class is one of the other, too, or is blank: nothing could
    be learned.
    """
    found = Faults()
    missing = [s.path for s in samples if not os.path.isfile(s.path)]
    if missing:
        found.words.append(f"{len(missing)} of the {len(samples)} files are missing: {_first(missing)}")
    dealt = {*train_part, *val_part}
    others = Counter(s.split for i, s in enumerate(samples) if i not in dealt and s.split not in (*LEARNED, "test"))
    for split, count in others.items():
        found.words.append(f"the split {split!r} is neither train, val nor test: its {count} images are left out")
    contents = _same(samples)
    both = [group for group in contents if len({samples[i].label for i in group}) > 1]
    mixed = {i for group in both for i in group}
    for label, kind in ((0, "real"), (1, "fake")):
        own = {i for i, s in enumerate(samples) if s.label == label}
        if own and own <= mixed:
            raise CoritError(f"every {kind} image is, byte for byte, in the other class too: there is nothing to learn")
        if _all_flat([samples[i] for i in sorted(own)]):
            raise CoritError(f"every {kind} image is blank, or nearly one flat colour: there is nothing to learn")
    if both:
        pairs = [" and ".join(str(samples[i].path) for i in group[:2]) for group in both]
        found.words.append(f"{len(both)} images stand in both classes: {_first(pairs)}")
    apart = [group for group in contents if len({samples[i].source for i in dealt & set(group)}) > 1]
    if apart:
        pairs = [" and ".join(sorted({samples[i].source or "no source" for i in group})) for group in apart]
        found.words.append(
            f"{len(apart)} images stand in several sources, so that none of these is unknown when it is held out: "
            f"{_first(list(dict.fromkeys(pairs)))}"
        )
    train, val = set(train_part), set(val_part)
    leaks = [[i for i in group if i in val] for group in contents if train & set(group)]
    leaked = [i for group in leaks for i in group]
    found.leaked = len(leaked)
    if leaked:
        names = _first([samples[i].path for i in leaked])
        found.words.append(
            f"{len(leaked)} of {len(val)} images for validation are in training, too, so that the figures are too "
            f"good: {names}"
        )
    return found


def _all_flat(samples: Sequence[Sample]) -> bool:
    """Whether none of the images that can be read shows anything, and some can be read."""
    readable = False
    for sample in samples:
        try:
            image = read_image(sample.path)
        except ImageError:
            continue
        if not is_flat(image):
            return False
        readable = True
    return readable


def _same(samples: Sequence[Sample]) -> list[list[int]]:
    """Sample numbers of each content that several samples share."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        try:
            sizes[os.stat(sample.path).st_size].append(i)
        except OSError:
            continue
    groups: dict[str, list[int]] = defaultdict(list)
    for i in (i for several in sizes.values() if len(several) > 1 for i in several):
        if digest := content_sha256(samples[i].path):
            groups[digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _first(names: Sequence[object]) -> str:
    """The first few names."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
