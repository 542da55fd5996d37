"""What a verdict means, and what to do next, in words: the same for the report and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from corit_cli.data.declared import CAMERA
from corit_cli.report.rates import KINDS, THE_SAME, in_words, independent, rate, times
from corit_cli.report.words import share

if TYPE_CHECKING:
    from corit_cli.detection.verdicts import Prediction
    from corit_cli.report.case import About

#: From where on it is likelier than not that a picture was degraded, and the report says so.
DEGRADED = 0.5
#: Why a film that would be called real is not, by its kind.
_STANDS_OUT = {
    "video": "a stretch of it is called fake",
    "animation": "a frame of it is called fake",
    "pages": "a page of it is called fake",
}
#: What each reading looks at, for a reader of reports.
_READINGS = {
    "hri": "the picture as the model sees it",
    "native": "its middle at its own size",
    "cgp": "what changes there with the finest detail",
}


def meaning(p: Prediction, about: About) -> list[str]:
    """Sentences on what the verdict on a file is worth."""
    if p.probability is None or p.verdict is None:
        return []
    by_score = (about.faces if p.of_faces else about.thresholds).verdict(p.probability)
    sentences = []
    if p.verdict != by_score:
        sentences.append(_settled(p, about, by_score))
    elif p.verdict == "uncertain":
        sentences.append("The detector does not decide. This says neither that the file is real nor that it is fake.")
    if p.parts and len(p.parts) > 1:
        sentences.append(_speakers(p.parts))
    if p.degraded is not None and p.degraded >= DEGRADED:
        sentences.append(
            f"The picture looks saved again, shrunk or otherwise degraded ({share(p.degraded)} by the detector's "
            "estimate); the likelier that is, the more it is weighed as such pictures are."
        )
    return sentences + _errs(p, about, by_score)


def _settled(p: Prediction, about: About, by_score: str) -> str:
    """Why a verdict is not what the probability alone would make it."""
    reasons = []
    if p.stability is not None and p.stability.flips:
        reasons.append("the verdict does not survive mild changes of the picture")
    faces = [face.verdict for face in p.faces or ()]
    if p.video is not None:
        faces += map(about.faces.verdict, p.video.tracks.values())
    if p.verdict == "uncertain" and by_score == "real" and "fake" in faces:
        reasons.append("a face in it is called fake")
    if p.video is not None and by_score == "real" and p.video.stands_out(about.thresholds):
        reasons.append(_STANDS_OUT[p.video.kind])
    because = f", because {' and '.join(reasons)}" if reasons else ""
    return f"By its probability alone the file would be called {by_score}. It is left {p.verdict}{because}."


def _errs(p: Prediction, about: About, by_score: str) -> list[str]:
    """How often the detector calls real images and fakes what it calls this file by its score."""
    rates, copies = about.held_out_faces if p.of_faces else about.held_out, ""
    if not p.of_faces and p.degraded is not None and p.degraded >= DEGRADED and about.held_out_degraded:
        rates, copies = about.held_out_degraded, ", all of them in degraded copies"
    if any(rate(rates, kind, by_score) is None for kind in KINDS):
        return ["How often this detector errs on files from unknown sources is not on record."]
    call = "left" if by_score == "uncertain" else "called"
    real, fake = (in_words(rates, kind, by_score) for kind in KINDS)
    said = [f"Of sources that were held out, the detector {call} {real} and {fake} {by_score}{copies}."]
    if all(independent(rates, kind) for kind in KINDS):
        said.append("Brackets hold what chance allows for so many images; sources differ by more.")
    elif "images" in rates:  # older checkpoints have one number
        said.append(f"Both classes together were {rates['images']:,.0f} images.")
    sentences = [" ".join(said if about.judged_by_others else [*said, THE_SAME])]
    if of_several_faces(p):
        sentences.append(
            "These are shares of single faces. This file shows several and is judged by the one most like a fake, so a "
            "real file is called fake more often than that."
        )
    decided = p.verdict == by_score != "uncertain" and not of_several_faces(p)
    ratio = times(rates, by_score) if decided else None
    if ratio is not None and ratio.low > 1:
        whose, others = ("fakes", "real images") if by_score == "fake" else ("real images", "fakes")
        sentences.append(
            f"To be called {by_score} was {ratio.value:,.1f} times as common among {whose} as among {others} "
            f"({ratio.low:,.1f} to {ratio.high:,.1f} by chance alone, and sources differ by more): evidence to be "
            "weighed with all else that is known of the file."
        )
    if p.video is not None:
        whole = any(moment.probability is not None for moment in p.video.moments)
        what = {"video": "a video", "animation": "an animation", "pages": "a file"}[p.video.kind]
        unit = "pages" if p.video.kind == "pages" else "frames"
        parts = f"its {unit}" if whole else f"the {unit} of the face most like a fake"
        sentences.append(
            f"These rates were measured on single images; {what}'s probability comes from a mean over {parts}, "
            "without the most extreme ones."
        )
    return sentences


def of_several_faces(p: Prediction) -> bool:
    """Whether a file's probability is the highest of several faces', of which error rates and odds of single ones do
    not hold."""
    tracks = p.video.tracks if p.video is not None else {}
    return p.of_faces and max(len(p.faces or ()), len(tracks)) > 1


def _speakers(parts: Mapping[str, float]) -> str:
    """Which readings speak for a fake and which against, the loudest first, in log odds."""
    sides = []
    for side, sign in (("for a fake", 1), ("for a real picture", -1)):
        said = sorted(((sign * share, name) for name, share in parts.items() if sign * share > 0), reverse=True)
        if said:
            sides.append(f"{side}: " + ", ".join(f"{_READINGS.get(n, n)} ({sign * s:+.2f})" for s, n in said))
    return f"What speaks {'; '.join(sides)} (log odds)." if sides else "No reading speaks either way."


def next_steps(p: Prediction) -> list[str]:
    """What to do next with a file, the most telling first."""
    steps = []
    if p.verdict is None:
        return [_mend(p.error)] if p.error else []
    if p.declared is not None and p.declared.kind != CAMERA:
        steps.append(
            "Follow up what the file declares: who signed it, where it was published first, what its maker says. "
            "Such data can be forged either way."
        )
    steps += {
        "fake": ["Don't call it fake on this alone: some real pictures are called so, too."],
        "uncertain": ["Take it as not yet examined: the pixels settle nothing."],
        "real": ["Don't call it genuine on this alone: some fakes are called real, and a real picture can mislead."],
    }[p.verdict]
    steps += [
        "Ask for the original file, not a copy that was sent on: it keeps traces and metadata that copies lose.",
        "Look for the earliest copy, by a reverse image search, and for other pictures of the same scene.",
    ]
    if p.stability is None and p.video is None and not p.of_faces:
        steps.append("See whether the verdict survives small changes: corit detect --stability.")
    return steps


def _mend(error: str) -> str:
    """What to do about a file that could not be scored."""
    if error == "no such file":
        return "Check the name: there is no such file."
    if error.startswith("nothing to judge"):
        return "Look at the picture: where there is nothing to see, no detector can say anything."
    if error.startswith("no face"):
        return "Judge the picture as a whole: leave out --faces only."
    if "too small to judge" in error:
        return "Get a larger copy of the picture, best the original: so few pixels hold no evidence."
    if "megapixels" in error:
        return "Make a smaller copy, or cut out what matters, and say so with the verdict."
    return "Get another copy of the file, best the original, in a format that is read."


def footer(about: About, card: Path | None) -> str:
    """One line under a table: what uncertain means, how often the detector is wrong, where to read on: what to do, and
    in the model ``card`` what the detector cannot."""
    accused, missed = rate(about.held_out, "real", "fake"), rate(about.held_out, "fake", "real")
    wrong = "How often it errs on unknown sources is not on record."
    if accused is not None and missed is not None:
        real, fake = share(accused.value), share(missed.value)
        wrong = f"Of sources held out it called {real} of real files fake and {fake} of fakes real."
    limits = f"; limits: {card}" if card else ""
    return f"uncertain: the detector does not decide. {wrong} What to do next: --explain, or --html report.html{limits}"
