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
    assert judged(real * 20 + fake * 2 + real + fake * 2 + real * 20, "video")[1] == "real"
    probability, verdict, film = judged(real * 20 + fake * 3 + real * 20, "video")
    assert verdict == "uncertain" and JUDGED.thresholds.verdict(probability) == "real"
    assert film.stands_out(JUDGED.thresholds)


def test_frames_of_an_animation_count_by_the_time_they_are_shown() -> None:
    seen = [Shown(Frame(0, 0.0, None), [], [-4.0]), Shown(Frame(1, 0.1, None), [], [0.1])]
    said = judge_film(seen, Reel("animation", 2, 10.0, 0.2), "off", JUDGED, JUDGED)
    assert said[0] == pytest.approx(torch.tensor(0.1).sigmoid().item(), abs=1e-4) and said[1] == "uncertain"
    evenly = judge_film(seen, Reel("animation", 2, 0.2, 10.0), "off", JUDGED, JUDGED)
    assert evenly[0] == pytest.approx(torch.tensor(-1.95).sigmoid().item(), abs=1e-4) and evenly[1] == "real"


def test_faces_alone_want_a_face() -> None:
    with pytest.raises(CoritError, match="no face"):
        judge_film([Shown(Frame(0, 0.0, None), [], [])], Reel("video", 1, 1.0, 1.0), "only", JUDGED, JUDGED)
