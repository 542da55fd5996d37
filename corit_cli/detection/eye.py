"""What the model is shown of a picture: the whole, its faces, its degraded copies, cut to windows. Needs no model."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from corit_cli.data.faces import SMALLEST, Face, align, finder
from corit_cli.data.images import ImageError, Source, read_image
from corit_cli.data.robustness import CHAINS
from corit_cli.data.urls import fetch, is_url
from corit_cli.data.variants import Variant
from corit_cli.data.windows import CropConfig, crop_with_face, face_window
from corit_cli.detection.verdicts import MILD
from corit_cli.features.stream import Picture

#: The faces of a picture, and the names of the degraded copies that could be made of it.
Seen = tuple[list[Face], list[str]]


@dataclass(frozen=True)
class Eye:
    """Cuts pictures to windows as ``crops`` says: the whole unless ``faces`` is ``only``, every face unless it is
    ``off``, and mildly degraded copies for ``stability``."""

    crops: CropConfig
    faces: str
    stability: bool = False

    def look(self, source: Source) -> tuple[list[Picture], Seen]:
        """The pictures of an image, in the order of its verdicts: the whole, its faces, its degraded copies. Raises
        ImageError when it cannot be read, or faces alone are wanted and there are none."""
        image = read_image(fetch(source) if isinstance(source, str) and is_url(source) else source)
        pictures, found = self.pictures(image)
        if self.faces == "only" and not found:
            size = f" of {SMALLEST} pixels or more" if self.crops.face else ""
            raise ImageError(f"no face{size} found")
        copies = []
        for name in MILD if self.stability else ():
            try:
                pictures.append(self._whole(Variant(chain=CHAINS[name]).apply(image)))
                copies.append(name)
            except ImageError:  # too large for that format
                continue
        return pictures, (found, copies)

    def pictures(self, image: Image.Image) -> tuple[list[Picture], list[Face]]:
        """The windows of the whole picture, unless faces only, and of every face; and the faces."""
        found, crops = [] if self.faces == "off" else finder()(image), self.crops
        pictures: list[Picture] = [] if self.faces == "only" else [self._whole(image)]
        if not crops.face:  # every face is then read as a picture
            return pictures + [crop_with_face(align(image, face), crops) for face in found], found
        found = [face for face in found if face.side >= SMALLEST]
        nothing = [None] * (len(crops.windows) - 1)
        return pictures + [[*nothing, face_window(image, face, crops.size)] for face in found], found

    def _whole(self, image: Image.Image) -> Picture:
        """The windows of a picture as a whole, in whose verdict no face has a part of its own."""
        return crop_with_face(image, self.crops, ())
