from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.report.rates import FEWEST, in_words, rate, rows, times

RATES = {"real": 400, "fake": 200, "real_called_fake": 0.05, "fake_called_fake": 0.5, "fake_called_real": 0.0}


def test_a_rate_has_the_interval_of_its_number_of_images() -> None:
    found = rate(RATES, "real", "fake")
    assert found is not None and found.value == pytest.approx(0.05) and found.low < 0.05 < found.high
    assert in_words(RATES, "real", "fake") == "5.0% [3.3%, 7.6%] of 400 real images"
    assert in_words(RATES, "fake", "real") == "0.0% [0.0%, 1.9%] of 200 fakes"


def test_what_is_not_on_record_is_not_said() -> None:
    assert rate(RATES, "real", "uncertain") is None
    assert in_words({"real_called_fake": 0.05}, "real", "fake") == "5.0% of real images"  # older checkpoints
    assert rows({}) == []
    assert rows(RATES)[1] == ("200 fakes", ["0.0% [0.0%, 1.9%]", "–", "50% [43%, 57%]"])


def test_frames_of_a_video_widen_what_chance_allows() -> None:
    frames = RATES | {"independent_real": 20.0}
    few, many = rate(frames, "real", "fake"), rate(RATES, "real", "fake")
    assert few is not None and many is not None and few.high > many.high
    assert "of 400 real images" in in_words(frames, "real", "fake") and times(frames, "fake") is None


def test_how_many_times_as_common_a_verdict_was() -> None:
    found = times(RATES, "fake")
    assert found is not None and found.value == pytest.approx(10) and found.low < 10 < found.high
    assert times(RATES, "real") is None and times({"real_called_fake": 0.05, "fake_called_fake": 0.5}, "fake") is None


@given(st.integers(0, 30), st.integers(0, 30))
def test_few_images_tell_no_ratio(accused: int, caught: int) -> None:
    found = times({"real": 30, "fake": 30, "real_called_fake": accused / 30, "fake_called_fake": caught / 30}, "fake")
    assert (found is None) == (min(accused, caught) < FEWEST)
