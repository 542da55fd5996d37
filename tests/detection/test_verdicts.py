from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from corit_cli.data.robustness import CHAINS
from corit_cli.detection.verdicts import (
    MILD,
    TRIM,
    FaceVerdict,
    Moment,
    Stability,
    VideoVerdict,
    flips,
    peak,
    settle,
    trimmed_mean,
)

VERDICTS = st.sampled_from(("real", "uncertain", "fake"))


@given(values=st.lists(st.floats(-50, 50), min_size=1, max_size=40), times=st.integers(1, 4))
def test_shares_of_time_are_repetitions(values: list[float], times: int) -> None:
    shares = [1 + i % times for i in range(len(values))]
    one_by_one = np.repeat(values, np.array(shares) * 50)
    assert trimmed_mean(values, shares) == pytest.approx(trimmed_mean(one_by_one), abs=1e-9)


def test_mild_degradations_exist() -> None:
    assert set(MILD) <= set(CHAINS)


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60))
def test_the_trimmed_mean_is_scipys(values: list[float]) -> None:
    assert trimmed_mean(values) == pytest.approx(float(trim_mean(values, TRIM)), abs=1e-9)


def test_a_few_odd_frames_decide_nothing() -> None:
    assert trimmed_mean([1.0] * 30 + [1e6, -1e9, 1e6]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("verdict", "others", "flipped"),
    [
        ("real", ["real", "real", "fake"], True),
        ("fake", ["fake", "real", "fake"], True),
        ("real", ["real", "uncertain", "real"], False),
        ("real", ["uncertain", "uncertain", "real"], True),
        ("uncertain", ["uncertain", "fake", "real", "uncertain"], False),
        ("fake", ["fake"] * 6, False),
    ],
)
def test_flips(verdict: str, others: list[str], flipped: bool) -> None:
    assert flips(verdict, others) is flipped


@settings(deadline=None)
@given(VERDICTS, st.lists(VERDICTS), st.booleans())
def test_other_evidence_never_makes_a_verdict_surer(verdict: str, faces: list[str], flipped: bool) -> None:
    settled = settle(verdict, faces, Stability({}, 0.0, flipped))
    assert settled in (verdict, "uncertain")
    assert settled == "uncertain" if flipped else settled == verdict or (verdict, "fake" in faces) == ("real", True)


def test_a_fake_face_in_a_real_picture_makes_it_uncertain() -> None:
    assert settle("real", ["real", "fake"]) == "uncertain"
    assert settle("real", ["real", "uncertain"]) == "real"
    assert settle("fake", ["real"]) == "fake"


def test_suspicious_moments_are_the_highest_in_order_of_time() -> None:
    face = FaceVerdict((0, 0, 9, 9), 0.9, 0.95, "fake", 0)
    rng = np.random.default_rng(0)
    moments = [Moment(i, i / 10, float(p)) for i, p in enumerate(rng.uniform(0, 0.9, 20))]
    moments[7] = Moment(7, 0.7, 0.1, (face,))
    moments[3] = Moment(3, 0.3, None)
    found = VideoVerdict(2.0, 10.0, tuple(moments), {0: 0.95}).suspicious(3)
    assert [m.frame for m in found] == sorted(m.frame for m in found) and 7 in [m.frame for m in found]
    rest = [peak(m) for m in moments if m not in found and peak(m) is not None]
    assert min(peak(m) for m in found) >= max(rest) and peak(moments[3]) is None
