"""What ``corit detect`` draws: a heatmap an image, and the report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from corit_cli.cli.console import warn
from corit_cli.cli.inputs import HEATMAP
from corit_cli.errors import CoritError
from corit_cli.report.drawn import FEW, draw
from corit_cli.report.heatmap import is_overlay_of, save_overlay

if TYPE_CHECKING:
    from corit_cli.detection.detector import Detector
    from corit_cli.detection.verdicts import Prediction

#: Bytes of an image's name that its heatmap's keeps; file systems take 255.
LONGEST_STEM = 200


class Illustrator(AbstractContextManager["Illustrator"]):
    """Heatmaps into ``folder`` and sections into the report ``html``, either of which may be None.

    Without a folder heatmaps are drawn only for ``few`` files, in the report. Videos are shown by their most suspicious
    moments of ``frames`` or ``rate``. No heatmap is written over one of the ``inputs``. Raises CoritError for a folder
    that cannot be made, and for a detector that was not taught to draw heatmaps.
    """

    def __init__(
        self,
        detector: Detector,
        folder: Path | None,
        html: Path | None,
        few: bool,
        frames: int,
        rate: float | None,
        inputs: Iterable[str] = (),
    ) -> None:
        taught = detector.checkpoint.localizer is not None
        if folder is not None and not taught:
            raise CoritError("this detector draws no heatmaps: take one that was trained with --local")
        self.detector, self.folder, self.html = detector, folder, html
        self.mapped = taught and (folder is not None or few)
        self.frames, self.rate = frames, rate
        self._taken = {_place(path) for path in inputs}

    def __enter__(self) -> Illustrator:
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CoritError(f"cannot make {self.folder}: {error.strerror or error}") from None
        self._stack, self._casebook = ExitStack(), None
        if self.html is not None:
            from corit_cli.report.casebook import About, Casebook

            command = shlex.join(["corit", *sys.argv[1:]])
            about = About.of(self.detector.checkpoint, datetime.now(timezone.utc), command)
            self._casebook = self._stack.enter_context(Casebook(self.html, about))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)

    def add(self, prediction: Prediction) -> None:
        """Draw what there is to draw of one file."""
        if prediction.video is not None and self.folder is not None:
            warn(f"{prediction.path}: no heatmap: they are drawn of still pictures alone")
        if prediction.video is not None and self._casebook is None:
            return
        why = f"they are drawn for up to {FEW} files that are named or found, looked at as a whole, or with --heatmap"
        drawn = draw(self.detector, prediction, prediction.path, self.mapped, self.frames, self.rate, why)
        if drawn.fault is not None:
            warn(f"{prediction.path}: {drawn.fault}")
        if self.folder is not None and drawn.heatmap is not None:
            path = heatmap_path(self.folder, prediction.path, self._taken)
            save_overlay(drawn.image, drawn.heatmap, prediction.probability, prediction.verdict, path, prediction.path)
            if path.name != Path(prediction.path).stem + HEATMAP:
                warn(f"the heatmap of {prediction.path} is {path}")
        if self._casebook is not None:
            self._casebook.add(prediction, drawn.image, drawn.painted, drawn.frames, drawn.no_heatmap)

    def leave_out(self, lines: Iterable[str]) -> None:
        """Have the report say what was left out of folders."""
        if self._casebook is not None:
            self._casebook.leave_out(lines)


def heatmap_path(folder: Path, image: str, taken: set[str]) -> Path:
    """``folder/NAME.heatmap.png`` for the image ``NAME.any``, numbered where that place is ``taken``, as it then is, or
    where something is that is no heatmap of this image."""
    stem, number = os.fsencode(Path(image).stem)[:LONGEST_STEM].decode(errors="ignore"), 1
    path = folder / f"{stem}{HEATMAP}"
    while _place(path) in taken or (os.path.lexists(path) and not is_overlay_of(path, image)):
        number += 1
        path = folder / f"{stem}-{number}{HEATMAP}"
    taken.add(_place(path))
    return path


def _place(path: str | Path) -> str:
    """Where a file lies, the same for two names of it; some file systems tell no capitals from small letters."""
    return os.path.realpath(path).casefold()
