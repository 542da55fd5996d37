"""The pictures that a report shows of a file that was judged: the photograph, its heatmap, moments of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corit_cli.data.images import read_image
from corit_cli.data.opening import ImageError
from corit_cli.data.pages import sample_pages
from corit_cli.data.stored import Stored, state
from corit_cli.data.video import sample_frames
from corit_cli.errors import CoritError
from corit_cli.report.heatmap import paint

if TYPE_CHECKING:
    from PIL.Image import Image

    from corit_cli.detection.detector import Detector
    from corit_cli.detection.heatmap import Heatmap
    from corit_cli.detection.verdicts import Prediction

#: A report on so many files or fewer shows heatmaps without being asked: they take longer than the verdicts.
FEW = 8
CHANGED = "the file was changed while it was looked at: nothing of what is there now is shown"


@dataclass(frozen=True, eq=False)
class Drawn:
    """The RGB ``image``, or a frame of a video; the ``heatmap`` found in it; ``frames`` of a video by their number.
    ``no_heatmap`` says why there is none, ``fault`` what went wrong in drawing."""

    image: Image | None = None
    heatmap: Heatmap | None = None
    frames: Mapping[int, Image] = field(default_factory=dict)
    no_heatmap: str | None = None
    fault: str | None = None

    @property
    def painted(self) -> Image | None:
        """The heatmap over its photograph."""
        return None if self.image is None or self.heatmap is None else paint(self.image, self.heatmap)


def draw(
    detector: Detector,
    prediction: Prediction,
    source: Stored,
    mapped: bool,
    frames: int,
    rate: float | None = None,
    not_mapped: str = "",
) -> Drawn:
    """What there is to draw of the file ``source``, with a heatmap if it is to be ``mapped``, else ``not_mapped`` says
    why not. Of a video those of its ``frames``, or of ``rate`` a second, that are the most suspicious."""
    if prediction.error is not None:
        return Drawn()
    found = _drawn(detector, prediction, source, mapped, frames, rate, not_mapped)
    return Drawn(fault=CHANGED) if changed(prediction, source) else found


def changed(prediction: Prediction, source: Stored) -> bool:
    """Whether a file is no longer the one that was judged: what is read of it by then may be of another."""
    return prediction.state is not None and isinstance(source, str) and state(source) != prediction.state


def _drawn(
    detector: Detector,
    prediction: Prediction,
    source: Stored,
    mapped: bool,
    frames: int,
    rate: float | None,
    not_mapped: str,
) -> Drawn:
    if prediction.video is not None:
        return _film(prediction, source, frames, rate)
    try:
        image = read_image(source)
    except ImageError as error:  # it was there a moment ago
        return Drawn(fault=str(error))
    if detector.checkpoint.localizer is None:
        return Drawn(image, no_heatmap="this detector was not taught to draw any")
    if not mapped:
        return Drawn(image, no_heatmap=not_mapped)
    try:
        return Drawn(image, detector.heatmap(image))
    except CoritError as error:
        small = "the picture is smaller than the windows that the detector reads"
        return Drawn(image, no_heatmap=small, fault=str(error))


def _film(prediction: Prediction, source: Stored, frames: int, rate: float | None) -> Drawn:
    film = prediction.video
    wanted = {moment.frame for moment in film.suspicious()}
    try:
        of_video = film.kind == "video"
        sampled = sample_frames(source, frames, rate) if of_video else sample_pages(source, frames, rate)
        shown = {frame.number: frame.image for frame in sampled if frame.number in wanted}
    except CoritError as error:
        return Drawn(fault=str(error))
    first = next(iter(shown.values()), None)
    return Drawn(first, frames=shown, no_heatmap="heatmaps are drawn of still pictures alone")
