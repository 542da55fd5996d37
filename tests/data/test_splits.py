from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from corit_cli.data.manifest import Sample
from corit_cli.data.splits import (
    deal,
    group_folds,
    group_split,
    jackknife_groups,
    source_split,
    source_strata,
    thin,
    tied,
    units_of,
)


def tiles(photographs: int, each: int) -> list[Sample]:
    """Tiles of photographs with a forgery of each, as the shipped sample set has them."""
    return [
        Sample(Path(f"{p}-{t}-{label}.png"), label, f"photo{p}", video_id=f"tile{p}-{t}")
        for p in range(photographs)
        for t in range(each)
        for label in (0, 1)
    ]


# --- units ----------------------------------------------------------------------------------------


def test_tiles_of_a_photograph_belong_together_and_images_of_a_collection_do_not():
    assert len(set(units_of(tiles(8, 4), photographs=True))) == 8
    assert len(set(units_of(tiles(8, 4)))) == 32
    frames = [Sample(Path(f"{i}.png"), i % 2, "collection", video_id=f"clip{i // 10}") for i in range(100)]
    files = [Sample(Path(f"{i}.png"), i % 2, f"collection{i % 6}") for i in range(200)]
    few = [Sample(Path(f"{i}.png"), i % 2, f"photo{i % 4}") for i in range(40)]  # too few sources to split
    for photographs in (True, False):
        assert len(set(units_of(frames, photographs))) == 10
        assert len(set(units_of(files, photographs))) == 200
        assert len(set(units_of(few, photographs))) == 40


def test_a_video_is_one_unit_even_across_sources() -> None:
    data = [
        Sample(Path("0.png"), 0, "a", video_id="1"),
        Sample(Path("1.png"), 1, "a", video_id="1"),
        Sample(Path("2.png"), 0, "b", video_id="1"),
        Sample(Path("3.png"), 0, "a"),
        Sample(Path("4.png"), 0, "a"),
    ]
    units = units_of(data)
    assert units[0] == units[1] == units[2] and len(set(units)) == 3


# --- dealing --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=2), st.integers(2, 5), st.integers(0, 9))
def test_dealing_keeps_units_whole_and_loses_nothing(rows, parts, seed):
    units, labels = zip(*rows, strict=True)
    dealt = deal(labels, units, parts, seed)
    assert len(dealt) == parts and sorted(i for part in dealt for i in part) == list(range(len(rows)))
    homes = [{units[i] for i in part} for part in dealt]
    assert sum(map(len, homes)) == len(set(units))
    assert sum(map(bool, homes)) == min(parts, len(set(units)))  # no side is empty that need not be
    assert dealt == deal(labels, units, parts, seed)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 9))
def test_equal_shares_differ_by_one_unit_at_most(units, parts, seed):
    sizes = [len(part) for part in deal([0] * len(units), units, parts, seed)]
    assert max(sizes) - min(sizes) <= max(Counter(units).values())


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_halves_of_single_files_have_the_same_share_of_fakes(reals, fakes, seed):
    labels = [0] * reals + [1] * fakes
    first, second = (sum(labels[i] for i in part) for part in deal(labels, range(len(labels)), 2, seed))
    assert abs(first - second) <= 1


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(1, 16), st.integers(0, 5))
def test_jackknife_groups_are_of_whole_units_and_none_is_empty(units, groups, seed):
    found = jackknife_groups(units, groups=groups, seed=seed)
    assert len(found) == min(groups, len(set(units))) and all(found)
    assert sorted(i for group in found for i in group) == list(range(len(units)))
    assert sum(len({units[i] for i in group}) for group in found) == len(set(units))
    if len(set(units)) == len(units):
        assert max(map(len, found)) - min(map(len, found)) <= 1


@given(st.floats(0.05, 0.95), st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_single_files_are_dealt_by_their_shares(share, reals, fakes, seed):
    labels = [0] * reals + [1] * fakes
    sides = deal(labels, range(len(labels)), (share, 1 - share), seed)
    assert sorted(chain(*sides)) == list(range(len(labels)))
    for label, count in ((0, reals), (1, fakes)):
        assert abs(sum(labels[i] == label for i in sides[0]) - share * count) <= 1


@given(st.integers(2, 40), st.integers(0, 5))
def test_thinning_spreads_over_photographs_and_keeps_pairs(count, seed):
    samples = tiles(6, 4)
    positions = [i for i, s in enumerate(samples) if s.source != "photo5"]
    chosen = thin(samples, units_of(samples, photographs=True), positions, count, seed)
    assert len(chosen) == count - count % 2 and set(chosen) <= set(positions)
    assert set(Counter(samples[i].video_id for i in chosen).values()) == {2}
    by_photograph = Counter(samples[i].source for i in chosen)
    assert max(by_photograph.values()) - min([by_photograph[f"photo{p}"] for p in range(5)]) <= 2


def test_thinning_takes_videos_before_frames_and_classes_by_turns():
    samples = [Sample(Path(f"{v}/{f}.png"), int(v >= 8), "x", video_id=str(v)) for v in range(40) for f in range(30)]
    chosen = thin(samples, units_of(samples, photographs=True), range(len(samples)), 16, seed=0)
    assert len({samples[i].video_id for i in chosen}) == 16
    assert np.mean([samples[i].label for i in chosen]) == 0.5
    chosen = thin(samples, units_of(samples, photographs=True), range(len(samples)), 44, seed=0)
    assert len({samples[i].video_id for i in chosen}) == 40


# --- training, validation, folds ------------------------------------------------------------------


def samples(*rows: tuple) -> list[Sample]:
    """One Sample for each (label, source, video_id, split), shorter rows allowed."""
    out = []
    for i, row in enumerate(rows):
        label, source, video, split = (*row, "", "", "")[:4]
        out.append(Sample(Path(f"{i}.jpg"), label, source=source, video_id=video, split=split))
    return out


def test_named_splits_are_used() -> None:
    rows = [(0, "", "", split) for split in ("train", "val", "test", "", "val", "holdout")]
    assert group_split(samples(*rows)) == ([0, 3], [1, 4])


def test_without_a_validation_split_the_test_files_still_stay_out() -> None:
    rows = [(i % 2, "", "", "test" if i < 4 else "train") for i in range(24)]
    train, val = group_split(samples(*rows))
    assert sorted(train + val) == list(range(4, 24))
    assert len(val) == 6


@pytest.mark.parametrize("name", ["test", "holdout", "test_unseen"])
def test_a_split_that_says_nothing_here_is_learned_from_as_little_as_test_is(name: str) -> None:
    rows = [(i % 2, f"s{i % 8}", "", name if i % 8 < 2 else "train") for i in range(32)]
    train, val = group_split(samples(*rows))
    assert sorted(train + val) == [i for i, row in enumerate(rows) if row[3] == "train"]
    rows = [(*row[:3], name) for row in rows]  # then there is nothing else
    assert sorted(chain(*group_split(samples(*rows)))) == list(range(32))


def test_plain_files_are_stratified_by_class() -> None:
    data = samples(*[(int(i < 10),) for i in range(100)])
    train, val = group_split(data, fraction=0.3, seed=1)
    assert sorted(train + val) == list(range(100))
    assert Counter(data[i].label for i in val) == {0: 27, 1: 3}


def test_sources_stay_together_when_both_classes_have_several() -> None:
    data = samples(*[(i % 2, f"s{i % 10 // 2}") for i in range(100)])  # five sources of both classes
    train, val = group_split(data)
    assert not {data[i].source for i in train} & {data[i].source for i in val}
    assert {data[i].label for i in val} == {0, 1}


def test_the_largest_source_does_not_overfill_the_validation_side() -> None:
    data = samples(*[(i % 2, "large") for i in range(60)], *[(i % 2, f"small{i // 20}") for i in range(40)])
    for seed in range(8):
        assert len(group_split(data, 0.3, seed)[1]) in (20, 40)


def test_sources_are_split_when_a_class_has_only_one() -> None:
    data = samples(*[(0, "camera")] * 20, *[(1, "sdxl")] * 10, *[(1, "flux")] * 10)
    for side in (*group_split(data), *group_folds(data, 2)):
        assert {data[i].label for i in side} == {0, 1}


def test_folds_are_no_more_than_sources() -> None:
    data = samples(*[(i % 2, f"s{i % 6 // 2}", f"v{i}") for i in range(60)])
    folds = group_folds(data, 5)
    assert sorted(sorted({data[i].source for i in fold}) for fold in folds) == [["s0"], ["s1"], ["s2"]]
    assert len(group_folds(data, 2)) == 2


def test_seed() -> None:
    data = samples(*[(i % 2,) for i in range(40)])
    assert group_split(data, seed=3) == group_split(data, seed=3)
    assert group_folds(data, 4, seed=3) == group_folds(data, 4, seed=3)
    assert len({tuple(group_split(data, seed=s)[1]) for s in range(5)}) > 1


row = st.tuples(st.integers(0, 1), st.sampled_from(["", "a", "b", "c"]), st.sampled_from(["", "u", "v", "w", "x"]))


@settings(deadline=None)
@given(
    rows=st.lists(row, min_size=2, max_size=40),
    seed=st.integers(0, 9),
    k=st.integers(1, 6),
    fraction=st.floats(0.05, 0.95),
)
def test_partitions_keep_videos_whole(rows: list[tuple], seed: int, k: int, fraction: float) -> None:
    data = samples(*rows)
    sides = group_split(data, fraction, seed)
    assert sorted(chain(*sides)) == list(range(len(data)))
    videos = [{data[i].video_id for i in side} - {""} for side in sides]
    assert not videos[0] & videos[1]

    folds = group_folds(data, k, seed)
    assert 1 <= len(folds) <= k
    assert sorted(chain(*folds)) == list(range(len(data)))
    assert all(folds)
    named = {s.source for s in data if s.video_id}
    by_source = all(len({s.source for s in data if s.label == c} - named) > 1 for c in (0, 1))
    for parts in (folds, source_split(data, fraction, seed)):
        homes: dict[tuple, set[int]] = {}
        for n, part in enumerate(parts):
            for s in (data[i] for i in part):
                if by_source and s.source not in named:  # those may be tied to others
                    homes.setdefault(("source", s.source), set()).add(n)
                if s.video_id:
                    homes.setdefault(("video", s.video_id), set()).add(n)
        assert all(len(places) == 1 for places in homes.values())


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30))
def test_what_shares_a_unit_is_tied_however_far(rows: list[tuple[int, int]]) -> None:
    found = tied([group for group, _ in rows], [unit for _, unit in rows])
    graph = coo_array((np.ones(len(rows)), ([g for g, _ in rows], [13 + u for _, u in rows])), shape=(26, 26))
    _, expected = connected_components(graph, directed=False)
    for (one, own), (other, its) in combinations(zip(rows, found, strict=True), 2):
        assert (own == its) == (expected[one[0]] == expected[other[0]])
    assert set(found) <= {group for group, _ in rows}


def test_sources_of_the_same_videos_are_no_sources_to_hold_out() -> None:
    """FaceForensics++ by method: every video is in all of them."""
    data = [
        Sample(Path(f"{source}{video}-{frame}"), int(source != "real"), source, video_id=f"v{video}")
        for source in ("real", "swap", "reenact")
        for video in range(10)
        for frame in range(3)
    ]
    folds = group_folds(data, 5)
    assert len(folds) == 5 and all({data[i].label for i in fold} == {0, 1} for fold in folds)
    some = [Sample(Path(f"other {i}"), i % 2, f"other {i % 4}") for i in range(40)]
    folds = group_folds([*data, *some], 5)  # beside them others are, which stay whole
    assert len(folds) == 5 and max(map(len, folds)) < 2 * min(map(len, folds))
    homes = {(s.source, n) for n, fold in enumerate(folds) for s in ([*data, *some][i] for i in fold)}
    assert Counter(source for source, _ in homes if source.startswith("other")) == {f"other {i}": 1 for i in range(4)}
    small = [replace(s, source=f"{s.source} {s.video_id}") for s in data]  # tiles of a photograph, forged elsewhere
    units = units_of(small, photographs=True)
    assert len(set(units)) == 10 and units == [units[i % 30] for i in range(90)]


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 1), min_size=4), seed=st.integers(0, 9), k=st.integers(2, 5))
def test_both_classes_reach_every_side_they_can(labels: list[int], seed: int, k: int) -> None:
    data = samples(*[(label,) for label in labels])
    for sides in (group_split(data, seed=seed), group_folds(data, k, seed)):
        for label in (0, 1):
            reached = sum(any(data[i].label == label for i in side) for side in sides)
            assert reached == min(len(sides), labels.count(label))


def test_source_split_keeps_sources_whole_though_videos_are_named() -> None:
    samples = [
        Sample(
            Path(f"{source}-{video}-{frame}.png"), label=video % 2, source=str(source), video_id=f"v{source}-{video}"
        )
        for source in range(6)
        for video in range(4)
        for frame in range(3)
    ]
    rest, aside = source_split(samples, 0.2)
    assert sorted(rest + aside) == list(range(len(samples))) and rest and aside
    assert not {samples[i].source for i in rest} & {samples[i].source for i in aside}
    assert source_split(samples, 0.2) == (rest, aside)


# --- strata ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abcdef")), min_size=6, max_size=60), st.integers(1, 3))
def test_strata_are_sources_of_three_units_within_a_class_and_the_rest(drawn: list[tuple[int, str]], size: int):
    labels, sources = [label for label, _ in drawn], [source for _, source in drawn]
    units = [f"{source}{label}{i // size}" for i, (label, source) in enumerate(drawn)]
    numbers, names = source_strata(labels, sources, units)
    assert sorted(set(numbers)) == list(range(len(names)))
    for stratum, name in enumerate(names):
        own = [i for i, n in enumerate(numbers) if n == stratum]
        assert len({labels[i] for i in own}) == 1
        of_class = len({units[i] for i, label in enumerate(labels) if label == labels[own[0]]})
        assert len({units[i] for i in own}) >= min(3, of_class)  # nothing smaller where the class has as many
        if not name.endswith("small sources"):
            source = name.split(": ")[1]
            assert own == [i for i, one in enumerate(drawn) if one == (labels[own[0]], source)]


def test_jackknife_groups_spread_every_stratum():
    strata = [0] * 40 + [1] * 5 + [2] * 3 + [3] * 32
    groups = jackknife_groups(range(80), strata)
    assert {len(group) for group in groups} <= {4, 5, 6}
    for stratum, most in ((0, 3), (1, 1), (2, 1), (3, 2)):
        assert max(sum(strata[i] == stratum for i in group) for group in groups) <= most
