"""What a detector is asked for beside the verdict on a picture as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from numbers import Integral

from corit_cli.data.faces import finder
from corit_cli.errors import CoritError

#: What to do about faces: leave them, score them beside the whole picture, or score nothing else.
FACES = ("off", "auto", "only")


@dataclass(frozen=True)
class Asked:
    """What :meth:`~corit_cli.detection.detector.Detector.predict` is asked for."""

    faces: str
    stability: bool = False
    provenance: bool = True
    frames: int = 32
    rate: float | None = None
    workers: int | None = None

    def check(self) -> None:
        """Raise CoritError for what contradicts itself, and where faces are wanted and none can be found."""
        if self.faces not in FACES:
            raise CoritError(f"faces must be one of {', '.join(FACES)}, not {self.faces!r}")
        for name, value in (("frames", self.frames), ("workers", 1 if self.workers is None else self.workers)):
            if not isinstance(value, Integral) or value < 1:
                raise CoritError(f"{name} must be a whole number from 1 on, not {value!r}")
        if self.rate is not None and not (isfinite(self.rate) and self.rate > 0):
            raise CoritError(f"rate must be a number above 0, not {self.rate!r}")
        if self.stability and self.faces == "only":
            raise CoritError("stability is that of the whole picture: it does not go with faces only")
        if self.faces != "off":
            finder()
