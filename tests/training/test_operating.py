from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli.detection.calibration import fewest, strict_threshold
from corit_cli.training.operating import OperatingPoint

TARGETS = (0.05, 0.05)


def point(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, units: list[int] | None = None) -> OperatingPoint:
    return OperatingPoint.fit(
        torch.from_numpy(scores),
        torch.from_numpy(labels),
        [f"source {fold}" for fold in folds],
        list(range(len(labels))) if units is None else units,
        torch.from_numpy(folds),
        torch.zeros(len(labels), dtype=torch.bool),
        TARGETS,
    )


def test_within_one_source_thresholds_hold_for_new_videos() -> None:
    """Frames of ten videos each: where they passed for independent, more of a new video's would be called fake."""
    rng = np.random.default_rng(1)
    targets, called = (0.05, 0.05), {"videos": [], "frames": []}
    for _ in range(40):
        of_video, units = rng.standard_normal(20).repeat(32), np.arange(20).repeat(32)
        labels = units % 2
        scores, folds = 1.0 * labels + of_video + 0.3 * rng.standard_normal(640), units // 2 % 5
        new = rng.standard_normal(500).repeat(4) + 0.3 * rng.standard_normal(2000)
        for name, own in (("videos", units.tolist()), ("frames", list(range(640)))):
            rest = (["one source"] * 640, own, torch.from_numpy(folds), torch.zeros(640, dtype=torch.bool), targets)
            verdicts = OperatingPoint.fit(torch.from_numpy(scores), torch.from_numpy(labels), *rest).verdicts
            p = verdicts.calibration(torch.from_numpy(new)).numpy()
            called[name].append((p >= verdicts.thresholds.fake).mean())
    videos, frames = np.mean(called["videos"]), np.mean(called["frames"])
    assert videos < frames - 0.01


def test_a_fold_is_judged_by_thresholds_that_it_had_no_part_in() -> None:
    rng = np.random.default_rng(0)
    labels, folds = np.arange(400) % 2, np.arange(400) // 100
    scores = 2.0 * labels + rng.standard_normal(400)
    odd = scores + 3 * ((labels == 0) & (folds == 0))  # real images of one fold look like fakes
    everything = torch.ones(400, dtype=torch.bool)
    first = torch.from_numpy(folds == 0)
    plain, told = (point(s, labels, folds).rates(everything) for s in (scores, odd))
    assert point(scores, labels, folds).judged_by_others
    assert plain["real"] == plain["fake"] == plain["independent_real"] == 200 and plain["real_called_fake"] < 0.1
    assert told["real_called_fake"] > 0.15  # nearly all of that fold's, of which its own threshold would let 5% pass
    assert point(odd, labels, folds).rates(first)["real"] == 50
    for kind in ("real", "fake"):
        assert sum(told[f"{kind}_called_{v}"] for v in ("real", "uncertain", "fake")) == pytest.approx(1)


def test_strict_thresholds_accuse_fewer_and_miss_as_many() -> None:
    rng = np.random.default_rng(1)
    labels, folds = np.arange(4000) % 2, rng.integers(0, 8, 4000)
    found = point(labels + rng.standard_normal(4000), labels, folds)
    everything = torch.ones(4000, dtype=torch.bool)
    usual, strict = found.rates(everything), found.rates(everything, strict=True)
    assert strict["real_called_fake"] < 0.02 < usual["real_called_fake"]
    assert strict["fake_called_real"] == usual["fake_called_real"]


def test_where_a_fold_has_all_of_a_class_all_images_set_its_thresholds() -> None:
    labels, folds = np.array([0, 0, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 2])
    found = point(np.array([0.0, 0.1, 2.0, 2.1, 0.2, 0.3]), labels, folds)
    assert found.without[1] == found.verdicts.thresholds and not found.judged_by_others
    assert found.rates(torch.ones(6, dtype=torch.bool))["fake_called_fake"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([20, 40, 100]), st.sampled_from([0.05, 0.1]))
def test_new_images_exceed_a_threshold_no_more_often_than_promised(seed: int, count: int, target: float) -> None:
    # Uniform scores: the chance of a new one to reach the threshold is 1 - threshold.
    drawn = np.random.default_rng(seed).random((200, count))
    one = np.repeat("a", count)
    chances = np.array([1 - strict_threshold(scores, one, target) for scores in drawn])
    assert chances.mean() <= target + 4 * chances.std() / len(chances) ** 0.5 + 1e-9
    assert count >= fewest(target)


def test_copies_and_frames_of_one_unit_count_as_one() -> None:
    labels, folds = np.tile([0, 1], 40), np.repeat([0, 1], 40)
    found = point(labels + np.linspace(0, 0.5, 80), labels, folds, units=[k // 4 for k in range(80)])
    rates = found.rates(torch.ones(80, dtype=torch.bool))
    assert rates["real"] == 40 and rates["independent_real"] == rates["independent_fake"] == 20


def test_how_many_images_a_promise_takes() -> None:
    assert [fewest(target) for target in (0.5, 0.05, 0.01)] == [1, 19, 99]
