from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.analysis.sampling import deal, thin, units_of
from corit_cli.data.manifest import Sample


def tiles(photographs: int, each: int) -> list[Sample]:
    """Tiles of photographs with a forgery of each, as the shipped sample set has them."""
    return [
        Sample(Path(f"{p}-{t}-{label}.png"), label, f"photo{p}", video_id=f"tile{p}-{t}")
        for p in range(photographs)
        for t in range(each)
        for label in (0, 1)
    ]


def test_tiles_of_a_photograph_belong_together_and_images_of_a_collection_do_not():
    assert len(set(units_of(tiles(8, 4)))) == 8
    frames = [Sample(Path(f"{i}.png"), i % 2, "collection", video_id=f"clip{i // 10}") for i in range(100)]
    assert len(set(units_of(frames))) == 10
    files = [Sample(Path(f"{i}.png"), i % 2, f"collection{i % 6}") for i in range(200)]
    assert len(set(units_of(files))) == 200
    few = [Sample(Path(f"{i}.png"), i % 2, f"photo{i % 4}") for i in range(40)]  # too few sources to split
    assert len(set(units_of(few))) == 40


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=2), st.integers(2, 5), st.integers(0, 9))
def test_dealing_keeps_units_whole_and_loses_nothing(rows, parts, seed):
    units, labels = zip(*rows, strict=True)
    dealt = deal(labels, units, parts, seed)
    assert sorted(i for part in dealt for i in part) == list(range(len(rows)))
    homes = [{units[i] for i in part} for part in dealt]
    assert sum(map(len, homes)) == len(set(units))
    assert max(map(len, homes)) - min(map(len, homes)) <= 1
    assert dealt == deal(labels, units, parts, seed)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_halves_of_single_files_have_the_same_share_of_fakes(reals, fakes, seed):
    labels = [0] * reals + [1] * fakes
    first, second = (sum(labels[i] for i in part) for part in deal(labels, range(len(labels)), 2, seed))
    assert abs(first - second) <= 1


@given(st.integers(2, 40), st.integers(0, 5))
def test_thinning_spreads_over_photographs_and_keeps_pairs(count, seed):
    samples = tiles(6, 4)
    positions = [i for i, s in enumerate(samples) if s.source != "photo5"]
    chosen = thin(samples, units_of(samples), positions, count, seed)
    assert len(chosen) == count - count % 2 and set(chosen) <= set(positions)
    assert set(Counter(samples[i].video_id for i in chosen).values()) == {2}
    by_photograph = Counter(samples[i].source for i in chosen)
    assert max(by_photograph.values()) - min([by_photograph[f"photo{p}"] for p in range(5)]) <= 2


def test_thinning_takes_videos_before_frames_and_classes_by_turns():
    samples = [Sample(Path(f"{v}/{f}.png"), int(v >= 8), "x", video_id=str(v)) for v in range(40) for f in range(30)]
    chosen = thin(samples, units_of(samples), range(len(samples)), 16, seed=0)
    assert len({samples[i].video_id for i in chosen}) == 16
    assert np.mean([samples[i].label for i in chosen]) == 0.5
    chosen = thin(samples, units_of(samples), range(len(samples)), 44, seed=0)
    assert len({samples[i].video_id for i in chosen}) == 40
