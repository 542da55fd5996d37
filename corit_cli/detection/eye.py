"""What the model is shown of a picture: the whole, its faces, its degraded copies, cut to windows. Needs no model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from PIL import Image

from corit_cli.data.colours import is_flat
from corit_cli.data.faces import SMALLEST, Face, align, finder
from corit_cli.data.images import decode
from corit_cli.data.opening import ImageError, Source
from corit_cli.data.pages import Pages, sample_pages
from corit_cli.data.provenance import Provenance, read_provenance
from corit_cli.data.robustness import CHAINS
from corit_cli.data.settings import CropConfig
from corit_cli.data.stored import Buffer
from corit_cli.data.urls import fetch, is_url
from corit_cli.data.variants import Variant
from corit_cli.data.video import Frame
from corit_cli.data.windows import crop_with_face, face_window
from corit_cli.detection.verdicts import MILD
from corit_cli.errors import CoritError
from corit_cli.features.stream import Picture

NOTHING = "nothing to judge: the picture is blank, or nearly one flat colour"


@dataclass
class Seen:
    """What an :class:`Eye` saw: of a picture its ``faces`` and the names of the degraded ``copies`` that could be
    made of it; of an animated picture or several pages the frames, and the faces of each. ``notes`` are on the file,
    ``provenance`` is what it says of itself."""

    faces: list[Face] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    pages: Pages | None = None
    each: list[tuple[Frame, list[Face]]] = field(default_factory=list)
    provenance: Provenance | None = None


def provenance_of(source: Source) -> Provenance | None:
    """What a file says of itself; None for what is no file, or has no such data."""
    if not isinstance(source, str | Buffer):
        return None
    try:
        return read_provenance(source)
    except CoritError:
        return None


@dataclass(frozen=True)
class Eye:
    """Cuts pictures to windows as ``crops`` says: the whole unless ``faces`` is ``only``, every face unless it is
    ``off``, with its picture's windows unless ``face_alone``, and mildly degraded copies for
    ``stability``. Of an animated picture as many ``frames``, or ``rate`` a second. With ``provenance`` it reads what
    the file says of itself, too."""

    crops: CropConfig
    faces: str
    stability: bool = False
    provenance: bool = False
    frames: int = 32
    rate: float | None = None
    face_alone: bool = False

    def look(self, source: Source) -> tuple[list[Picture], Seen]:
        """The pictures of an image, in the order of its verdicts: the whole, its faces, its degraded copies; or of each
        frame the whole and its faces. Raises ImageError when it cannot be read, when it is blank, and when faces alone
        are wanted and there are none."""
        source = fetch(source) if isinstance(source, str) and is_url(source) else source
        pictures, seen = self._look(source)
        seen.provenance = provenance_of(source) if self.provenance else None
        return pictures, seen

    def _look(self, source: Source) -> tuple[list[Picture], Seen]:
        decoded = decode(source)
        if decoded.several:
            notes = decoded.notes
            del decoded  # one picture is held at a time
            return self._leaf(source, notes)
        if is_flat(decoded.image):
            raise ImageError(NOTHING)
        image = decoded.image
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
        return pictures, Seen(found, copies, decoded.notes)

    def _leaf(self, source: Source, notes: tuple[str, ...]) -> tuple[list[Picture], Seen]:
        """The pictures of all frames that show something."""
        found: list[tuple[Frame, list[Face], list[Picture]]] = []
        pages = Pages()
        for frame in sample_pages(source, self.frames, self.rate, pages):
            if not is_flat(frame.image):
                pictures, faces = self.pictures(frame.image)
                found.append((replace(frame, image=None), faces, pictures))  # it waits for the model without its pixels
            del frame
        if not found:
            raise ImageError(NOTHING)
        found.sort(key=lambda one: one[0].number)
        pictures = [picture for *_, own in found for picture in own]
        return pictures, Seen(notes=notes, pages=pages, each=[(frame, faces) for frame, faces, _ in found])

    def glance(self, frame: Frame) -> tuple[list[Picture], tuple[Frame, list[Face]] | None]:
        """The pictures of a frame of a video, and, with its faces, the frame without its pixels; nothing, and None,
        where it shows nothing."""
        if is_flat(frame.image):
            return [], None
        pictures, faces = self.pictures(frame.image)
        return pictures, (replace(frame, image=None), faces)

    def pictures(self, image: Image.Image) -> tuple[list[Picture], list[Face]]:
        """The windows of the whole picture, unless faces only, and of every face; and the faces."""
        found, crops = [] if self.faces == "off" else finder()(image), self.crops
        pictures: list[Picture] = [] if self.faces == "only" else [self._whole(image)]
        if not crops.face:  # every face is then read as a picture
            return pictures + [crop_with_face(align(image, face), crops) for face in found], found
        found = [face for face in found if face.side >= SMALLEST]
        if found:
            whole: Picture = [None] * (len(crops.windows) - 1)
            if not self.face_alone:
                *whole, _ = pictures[0] if pictures else self._whole(image)
            pictures += [[*whole, face_window(image, face, crops.size)] for face in found]
        return pictures, found

    def _whole(self, image: Image.Image) -> Picture:
        """The windows of a picture as a whole, in whose verdict no face has a part of its own."""
        return crop_with_face(image, self.crops, ())
