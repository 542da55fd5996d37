"""What belongs together, and how images are dealt: to training and validation, to folds, to jackknife groups.

Whatever is dealt is dealt by :func:`deal`, in whole units.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from corit_cli.data.manifest import Sample

#: Sources of at most this many images on average are taken for single photographs; larger ones are collections, whose
#: images are independent of each other unless they share a video_id.
PHOTOGRAPH = 16
#: Independent units below which neither a fit nor a jackknife is worth trying.
FEWEST_UNITS = 3
#: What sources of fewer units are called together.
SMALL = "small sources"
#: Jackknife groups to use unless there are fewer units.
GROUPS = 16


def units_of(samples: Sequence[Sample], photographs: bool = False) -> list[Hashable]:
    """What each sample is resampled and held out together with: its video, else nothing but itself.

    With ``photographs`` sources as small as single photographs, of which tiles and forgeries are made, stay whole too.
    """
    if not photographs:
        return [_by_video(s) for s in samples]
    whole = tied([_by_source(s) for s in samples], [_by_video(s) for s in samples])
    count, named = len(set(whole)), all(s.source for s in samples)
    small = named and count >= 2 * FEWEST_UNITS and len(samples) <= PHOTOGRAPH * count
    return whole if small else [_by_video(s) for s in samples]


def tied(groups: Sequence[Hashable], units: Sequence[Hashable]) -> list[Hashable]:
    """``groups``, of which those that share one of ``units`` are made one: a video whose original is in one source and
    whose forgeries are in others makes these one to be dealt."""
    above: dict[Hashable, Hashable] = {}
    first: dict[Hashable, Hashable] = {}

    def top(group: Hashable) -> Hashable:
        while above.get(group, group) != group:
            above[group] = above.get(above[group], above[group])
            group = above[group]
        return group

    for group, unit in zip(groups, units, strict=True):
        above[top(group)] = top(first.setdefault(unit, group))
    return [top(group) for group in groups]


def sources_or_videos(
    labels: Sequence[int], sources: Sequence[Hashable], videos: Sequence[Hashable]
) -> Sequence[Hashable]:
    """What is dealt whole, so that nothing of a source is on two sides: sources, as one those that a video ties.

    Where ties leave more than half of a class in one, its videos are dealt by themselves; and so are all where a class
    comes from a single source.
    """
    whole = tied(sources, videos)
    members: dict[Hashable, set[Hashable]] = defaultdict(set)
    for unit, source in zip(whole, sources, strict=True):
        members[unit].add(source)
    held, total = Counter(zip(whole, labels, strict=True)), Counter(labels)
    apart = {unit for (unit, label), n in held.items() if len(members[unit]) > 1 and 2 * n > total[label]}
    units = [video if unit in apart else unit for unit, video in zip(whole, videos, strict=True)]
    return two_of_each(labels, units, videos)


def _by_source(sample: Sample) -> Hashable:
    return "source", sample.source


def _by_video(sample: Sample) -> Hashable:
    return ("video", sample.video_id) if sample.video_id else ("file", str(sample.path))


def _by_video_or_source(sample: Sample) -> Hashable:
    return _by_source(sample) if sample.source and not sample.video_id else _by_video(sample)


def deal(
    labels: Sequence[int], units: Sequence[Hashable], shares: int | Sequence[float], seed: int = 0
) -> list[list[int]]:
    """Deal whole units at random, the large ones first, each to the side that holds least of its classes (or of any
    other strata, numbered from 0) against its share: positions, side by side. ``shares`` may be a number of equal ones.
    """
    if isinstance(shares, int):
        shares = [1 / max(shares, 1)] * shares
    members: dict[Hashable, list[int]] = defaultdict(list)
    for position, unit in enumerate(units):
        members[unit].append(position)
    groups, labels = list(members.values()), np.asarray(labels, int)
    total = np.bincount(labels, minlength=2).clip(1)  # (classes,)
    target = np.outer(shares, total)  # (sides, classes)
    held = np.zeros_like(target)
    sides: list[list[int]] = [[] for _ in shares]
    order = np.random.default_rng(seed).permutation(len(groups))
    for group in sorted((groups[i] for i in order), key=len, reverse=True):
        counts = np.bincount(labels[group], minlength=len(total))
        lack = ((1 - held / target) * counts).sum(1)  # (sides,)
        side = max(range(len(sides)), key=lambda i: (lack[i], -len(sides[i])))
        sides[side] += group
        held[side] += counts
    return [sorted(side) for side in sides]


def jackknife_groups(
    units: Sequence[Hashable], labels: Sequence[int] | None = None, groups: int = GROUPS, seed: int = 0
) -> list[list[int]]:
    """Deal samples into at most ``groups`` random groups of nearly equal size: positions, group by group. With
    ``labels`` each group also gets much the same mix of classes, or of strata (see :func:`deal`).

    Samples of one unit (a photograph and its forgeries, frames of a video) stay together, since the jackknife takes
    the groups for independent.
    """
    return deal(labels or [0] * len(units), units, min(groups, len(set(units))), seed)


def source_strata(
    labels: Sequence[int], sources: Sequence[str], units: Sequence[Hashable]
) -> tuple[list[int], list[str]]:
    """The sources within each class as strata, numbered class by class: one number a sample, and what each is called.

    Sources of fewer than three units cannot be a stratum by themselves, without one jackknife group least of all: in
    either class they make up one stratum together, with the next smallest source where they are still too few; there,
    sources are taken for draws.
    """
    numbers, names = [0] * len(labels), []
    for label in sorted(set(labels)):
        members: dict[str, list[int]] = defaultdict(list)
        for i, source in enumerate(sources):
            if labels[i] == label:
                members[source].append(i)

        def many(positions: Sequence[int]) -> int:
            return len({units[i] for i in positions})

        left = sorted(members, key=lambda source: (many(members[source]), source))
        rest: list[int] = []
        while left and (many(members[left[0]]) < FEWEST_UNITS or 0 < many(rest) < FEWEST_UNITS):
            rest += members[left.pop(0)]
        strata = [(source or "unnamed", members[source]) for source in sorted(left)]
        for name, own in [*strata, *([(SMALL, rest)] if rest else [])]:
            for i in own:
                numbers[i] = len(names)
            names.append(f"{('real', 'fake')[label]}: {name}")
    return numbers, names


# --- training, validation, folds ------------------------------------------------------------------


#: The splits that are learned from: test, and names that say nothing here, are for evaluation.
LEARNED = ("train", "val", "")


def group_split(samples: Sequence[Sample], fraction: float = 0.3, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, sorted; both are the same for the same ``seed``.

    Samples of other splits than train and val, or none, are left out where there are any of these. Where both are named
    those are used, samples with no split train. Otherwise about ``fraction`` of each class is set aside, keeping whole
    videos, else sources, together; sources are split up only if some class has a single one.
    """
    train = [i for i, s in enumerate(samples) if s.split in ("train", "")]
    val = [i for i, s in enumerate(samples) if s.split == "val"]
    if train and val:
        return train, val
    pool = [i for i, s in enumerate(samples) if s.split in LEARNED] or list(range(len(samples)))
    chosen = [samples[i] for i in pool]
    units = [_by_video_or_source(s) for s in chosen]
    units = two_of_each([s.label for s in chosen], units, [_by_video(s) for s in chosen])
    train, val = _deal_samples(chosen, units, (1 - fraction, fraction), seed)
    return [pool[k] for k in train], [pool[k] for k in val]


def source_split(samples: Sequence[Sample], fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """As :func:`group_split`, whatever splits are named, by :func:`sources_or_videos`."""
    rest, aside = _deal_samples(samples, _wholes(samples), (1 - fraction, fraction), seed)
    return rest, aside


def group_folds(samples: Sequence[Sample], k: int, seed: int = 0) -> list[list[int]]:
    """At most ``k`` disjoint lists of indices that together hold every sample, for cross-fitting, by
    :func:`sources_or_videos`: no more than there are of these."""
    return _deal_samples(samples, _wholes(samples), k, seed)


def _wholes(samples: Sequence[Sample]) -> Sequence[Hashable]:
    return sources_or_videos(
        [s.label for s in samples], [_by_source(s) for s in samples], [_by_video(s) for s in samples]
    )


def _deal_samples(
    samples: Sequence[Sample], units: Sequence[Hashable], shares: int | Sequence[float], seed: int
) -> list[list[int]]:
    """Deal by ``units``, to no more sides than there are of these."""
    labels = [s.label for s in samples]
    if isinstance(shares, int):
        shares = min(shares, len(set(units)))
    return deal(labels, units, shares, seed)


def two_of_each(labels: Sequence[int], units: Sequence[Hashable], others: Sequence[Hashable]) -> Sequence[Hashable]:
    """``units`` where each class has at least two of them, else ``others``."""
    counts = [len({u for u, own in zip(units, labels, strict=True) if own == label}) for label in (0, 1)]
    return units if min(counts) >= 2 else others


def thin(
    samples: Sequence[Sample], units: Sequence[Hashable], positions: Sequence[int], count: int, seed: int
) -> list[int]:
    """About ``count`` of ``positions``, spread evenly over units first, and over classes as far as units allow.

    What shares a video_id is taken in pairs of a real and a fake image as far as there are both, so that a tile comes
    with its forgery.
    """
    seen: Counter[Hashable] = Counter()
    pairs: dict[Hashable, list[int]] = defaultdict(list)
    for i in positions:
        video, label = _by_video(samples[i]), samples[i].label
        pairs[video, seen[video, label]].append(i)
        seen[video, label] += 1
    clusters = list(pairs.values())
    turns: Counter[Hashable] = Counter()
    places: Counter[Hashable] = Counter()
    ranked = []
    for k in np.random.default_rng(seed).permutation(len(clusters)):
        unit, mix = units[clusters[k][0]], float(np.mean([samples[i].label for i in clusters[k]]))
        turn = turns[unit, mix]  # every unit gives one cluster of each mix before any gives another
        place = places[turn, mix]  # and within a turn the mixes take it in turns
        turns[unit, mix] += 1
        places[turn, mix] += 1
        ranked.append((turn, place, mix, clusters[k]))
    chosen: list[int] = []
    for *_, cluster in sorted(ranked):
        if len(chosen) + len(cluster) > count:
            break
        chosen += cluster
    return sorted(chosen)
