from __future__ import annotations

import pytest
import torch

from corit_cli.data.video import Frame
from corit_cli.detection.calibration import Calibration, Thresholds, Verdicts
from corit_cli.detection.film import Reel, Shown, judge_film
from corit_cli.detection.verdicts import VideoVerdict
from corit_cli.errors import CoritError

JUDGED = Verdicts(Calibration(1.0), Thresholds(0.45, 0.55))


def judged(logits: list[float], kind: str) -> tuple[float, str, VideoVerdict]:
    seen = [Shown(Frame(number, float(number), None), [], [logit]) for number, logit in enumerate(logits)]
    return judge_film(seen, Reel(kind, len(logits), 0.0, 0.0), "off", JUDGED, JUDGED)


@pytest.mark.parametrize(
    ("logits", "video", "other"),
    [
        ([-3] * 5, "real", "real"),
        ([-3] * 9 + [3], "real", "uncertain"),  # one page among real ones
        ([-3] + [3] * 5, "fake", "fake"),  # one clean frame before five fakes
        ([-3, -3, 0.0], "real", "real"),
    ],
)
def test_a_fake_page_makes_a_file_less_sure_and_a_fake_frame_a_video_not(
    logits: list[float], video: str, other: str
) -> None:
    for kind, expected in (("video", video), ("animation", other), ("pages", other)):
        probability, verdict, film = judged(logits, kind)
        assert verdict == expected and film.kind == kind and film.frames == len(logits)
        assert probability == judged(logits, "video")[0]
        assert [m.frame for m in film.moments] == list(range(len(logits)))


def test_frames_in_a_row_that_are_called_fake_leave_a_video_uncertain() -> None:
    fake, real = [3.0], [-3.0]
    assert judged(real * 12 + fake * 2 + real + fake * 2 + real * 12, "video")[1] == "real"
    probability, verdict, film = judged(real * 15 + fake * 3 + real * 14, "video")
    assert verdict == "uncertain" and JUDGED.thresholds.verdict(probability) == "real"
    assert film.stands_out(JUDGED.thresholds)
    for count, verdict in ((11, "real"), (12, "uncertain")):  # of 128 frames: their neighbours are more alike
        assert judged(real * 60 + fake * count + real * (68 - count), "video")[1] == verdict


@pytest.mark.parametrize(
    ("logits", "verdict"),
    [
        ([-3, -3, -3, 3], "real"),  # one frame means nothing
        ([-4, -4, 1, 1], "uncertain"),
        ([-4] * 5 + [1.2] * 2, "uncertain"),
        ([-4] * 8 + [1.2] * 2, "real"),
        ([-4] * 7 + [1.2] * 3, "uncertain"),
        ([-4] * 17 + [1.2] * 3, "uncertain"),
    ],
)
def test_of_few_frames_a_quarter_in_a_row_leaves_a_video_uncertain(logits: list[float], verdict: str) -> None:
    probability, found, _ = judged(logits, "video")
    assert found == verdict and JUDGED.thresholds.verdict(probability) == "real"


def test_frames_of_an_animation_count_by_the_time_they_are_shown() -> None:
    for shown, logit, verdict in (((0.1, 9.9), 0.1, "uncertain"), ((0.1, 0.1), -1.95, "real"), ((0, 0), -1.95, "real")):
        times = zip((-4.0, 0.1), shown, strict=True)
        seen = [Shown(Frame(i, float(i), None, time), [], [said]) for i, (said, time) in enumerate(times)]
        probability, found, _ = judge_film(seen, Reel("animation", 2, 10.0, 0.2), "off", JUDGED, JUDGED)
        assert probability == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=1e-4) and found == verdict


def test_faces_alone_want_a_face() -> None:
    with pytest.raises(CoritError, match="no face"):
        judge_film([Shown(Frame(0, 0.0, None), [], [])], Reel("video", 1, 1.0, 1.0), "only", JUDGED, JUDGED)
