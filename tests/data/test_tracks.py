from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from corit_cli.data.tracks import Box, distance, follow


@st.composite
def boxes(draw) -> Box:
    left, top = draw(st.floats(-500, 500)), draw(st.floats(-500, 500))
    return left, top, left + draw(st.floats(20, 200)), top + draw(st.floats(20, 200))


VIDEOS = st.lists(st.lists(boxes(), max_size=4), max_size=8)


def box(x: float, y: float = 100, side: float = 50) -> Box:
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


@settings(deadline=None)
@given(VIDEOS, st.floats(0.1, 3), st.integers(0, 3))
def test_tracks_partition_the_boxes(video: list[list[Box]], reach: float, patience: int) -> None:
    tracks = follow(video, reach=reach, patience=patience)
    assert [track.id for track in tracks] == list(range(len(tracks)))
    found = [position for track in tracks for position in track.positions]
    assert sorted(found) == [(f, i) for f, frame in enumerate(video) for i in range(len(frame))]
    for track in tracks:
        steps = list(zip(track.positions, track.positions[1:], strict=False))
        for (f, i), (g, j) in steps:
            assert 1 <= g - f <= patience + 1
            assert distance(video[f][i], video[g][j]) < reach


@settings(deadline=None)
@given(VIDEOS, st.randoms(use_true_random=False))
def test_the_order_of_faces_within_a_frame_does_not_matter(video: list[list[Box]], random) -> None:
    video = [list(dict.fromkeys(frame)) for frame in video]
    distances = [distance(a, b) for f in video for a in f for g in video for b in g if a is not b]
    if len(set(distances)) < len(distances) / 2:  # each pair counts twice
        return  # ties are broken by order
    orders = [random.sample(range(len(frame)), len(frame)) for frame in video]
    shuffled = [[frame[i] for i in order] for frame, order in zip(video, orders, strict=True)]
    plain = {frozenset(track.positions) for track in follow(video)}
    back = {frozenset((f, orders[f][i]) for f, i in track.positions) for track in follow(shuffled)}
    assert plain == back


@given(boxes(), boxes(), st.floats(0.1, 10), st.floats(-100, 100))
def test_distance_knows_no_unit_and_no_origin(a: Box, b: Box, scale: float, shift: float) -> None:
    moved_a, moved_b = (tuple(scale * v + shift for v in c) for c in (a, b))
    assert distance(a, a) == 0
    assert distance(a, b) == approx(distance(b, a))
    assert distance(moved_a, moved_b) == approx(distance(a, b), abs=1e-6)


def test_two_faces_that_drift_stay_apart() -> None:
    tracks = follow([[box(100 + 20 * t), box(400 - 20 * t)] for t in range(5)])
    assert [track.positions for track in tracks] == [[(t, 0) for t in range(5)], [(t, 1) for t in range(5)]]


def test_the_nearer_pair_is_linked_first() -> None:
    # The second face is 5 away from where the first was; the first has gone 45 away.
    (first, second) = follow([[box(100)], [box(145), box(105)]])
    assert first.positions == [(0, 0), (1, 1)]
    assert second.positions == [(1, 0)]


def test_a_face_twice_as_large_is_another_s_sooner_than_one_moved_a_little() -> None:
    (first, _) = follow([[box(100)], [box(100, side=100), box(110)]])
    assert first.positions == [(0, 0), (1, 1)]


def test_patience() -> None:
    video = [[box(100)], [], [], [box(100)]]
    assert [track.positions for track in follow(video, patience=2)] == [[(0, 0), (3, 0)]]
    assert [track.positions for track in follow(video, patience=1)] == [[(0, 0)], [(3, 0)]]


def test_nothing_gives_nothing() -> None:
    assert follow([]) == follow([[], []]) == []
