"""Which images are measured and which ones heads are fitted on: whole photographs apart, classes alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from corit_cli.data.manifest import Sample

#: Sources of at most this many images on average are taken for single photographs and kept whole; larger ones are
#: collections, whose images are independent of each other unless they share a video_id.
PHOTOGRAPH = 16
#: Independent units below which neither a fit nor a jackknife is worth trying.
FEWEST_UNITS = 3


def units_of(samples: Sequence[Sample]) -> list[Hashable]:
    """What each sample must stay together with: its photograph, else its video, else nothing but itself."""
    sources = {s.source for s in samples}
    if "" not in sources and len(sources) >= 2 * FEWEST_UNITS and len(samples) <= PHOTOGRAPH * len(sources):
        return [s.source for s in samples]
    return [_video(s) for s in samples]


def _video(sample: Sample) -> str:
    return sample.video_id or str(sample.path)


def deal(labels: Sequence[int], units: Sequence[Hashable], parts: int, seed: int) -> list[list[int]]:
    """Deal whole units at random into ``parts`` lists of positions of much the same mix of classes."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for position, unit in enumerate(units):
        members[unit].append(position)
    groups = list(members.values())
    shuffled = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    shuffled.sort(key=lambda group: np.mean([labels[i] for i in group]))  # stable, so random within a mix
    return [sorted(i for group in shuffled[part::parts] for i in group) for part in range(parts)]


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
        video, label = _video(samples[i]), samples[i].label
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
