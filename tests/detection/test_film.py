from __future__ import annotations

import pytest

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


def test_faces_alone_want_a_face() -> None:
    with pytest.raises(CoritError, match="no face"):
        judge_film([Shown(Frame(0, 0.0, None), [], [])], Reel("video", 1, 1.0, 1.0), "only", JUDGED, JUDGED)
