"""Taking frames out of videos of any length, a few at a time.

Containers lie: about how many frames there are, how long they run, where one can jump to. So the end of a video is
looked at before frames are spread over it, and where a frame lies in time is read from its own time stamp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from corit_cli.data.kinds import VIDEO, VIDEO_SUFFIXES, sniff
from corit_cli.data.opencv import load_opencv
from corit_cli.data.opening import check_file, too_large
from corit_cli.errors import CoritError
from corit_cli.progress import Stop, never

MAX_PIXELS = 100_000_000  # of a frame; the largest cameras give 80 million, and decoding takes 20 bytes for each
FAR = 3.0  # seconds; a jump costs what decoding one (key frames every half second) to five (every ten) does
#: Where a pixel is shown wider or higher than by this, frames are stretched to the shape that viewers see.
_SQUARE = 1.03
#: Codecs that OpenCV may lack, by the name in the container.
_CODECS = {"AV01": "AV1", "av01": "AV1", "hev1": "HEVC", "hvc1": "HEVC", "vvc1": "VVC", "VP90": "VP9", "ap4h": "ProRes"}
_TOLERANCE = 1.0  # seconds by which a header may be wrong about the end


def is_video(path: str) -> bool:
    """By the first bytes, else, where these say nothing, by the name."""
    kind = sniff(path)
    return Path(path).suffix.lower() in VIDEO_SUFFIXES if kind is None else kind.media == VIDEO


class VideoError(CoritError):
    """One file cannot be used as a video; the message is a short reason and does not name the file."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds: ``frames``, frames a second, seconds, and the size of a frame in pixels, turned upright. Of a
    video with a variable frame rate ``fps`` is nominal and ``frames`` may be an estimate. ``warning`` says what is
    wrong with a video of which only a part can be read."""

    frames: int
    fps: float
    duration: float
    width: int
    height: int
    warning: str | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame as RGB, upright; ``number`` counts from 0, ``seconds`` is its time stamp. Where the frame rate varies
    the number is an estimate, the time is not. ``shown`` is for how long one of an animated picture stays."""

    number: int
    seconds: float
    image: Image.Image
    shown: float = 0.0


def inspect(path: str | Path, stop: Stop = never) -> VideoInfo:
    """Read a video's header and look at its last second.

    If the video ends more than a second before or after the end that the header promises, or the header promises none,
    all frames are decoded to find out. Raises VideoError when not one frame can be read, and on ``stop``.
    """
    with _Reader(path, stop) as reader:
        promised = reader.promised
        if promised is not None and promised > 2 * _TOLERANCE:
            reader.jump(promised - _TOLERANCE)
        end = reader.drain(math.inf if promised is None else promised + _TOLERANCE)
        sound = promised is not None and end is not None and abs(end - promised) <= _TOLERANCE
        if not sound:
            reader.rewind()
            end = reader.drain(math.inf)
        if end is None:
            raise VideoError(f"no frame of it can be read{reader.codec_hint}")
        warning = None
        if promised is not None and end < promised - _TOLERANCE:
            warning = f"only {end:.1f} of {promised:.1f} seconds can be read"
        return VideoInfo(reader.number + 1, reader.fps, end, *reader.size, warning)


def sample_frames(
    path: str | Path, frames: int = 32, rate: float | None = None, info: VideoInfo | None = None, stop: Stop = never
) -> Iterator[Frame]:
    """Frames spread evenly over a video, in order, each read when it is asked for.

    The duration is divided into ``frames`` equal parts and the frame shown in the middle of each is taken; a video with
    fewer frames gives each of them once. With ``rate`` it is a frame every 1 / ``rate`` seconds instead, from 0 on.
    Only one frame is held at a time. ``info`` is what :func:`inspect` said, if that is known. Raises VideoError as it
    does.
    """
    if frames < 1:
        raise CoritError("the number of frames must be at least 1")
    if rate is not None and not 0 < rate < math.inf:
        raise CoritError("the number of frames a second must be above 0")
    info = info or inspect(path, stop)
    if rate is None:
        moments: Iterable[float] = ((i + 0.5) * info.duration / frames for i in range(frames))
    else:
        moments = takewhile(lambda moment: moment < info.duration, (i / rate for i in count()))
    # A time stamp may be rounded, so a frame counts as shown a quarter of a frame before its time.
    return _frames_at(path, (moment - 0.75 / info.fps for moment in moments), stop)


def _frames_at(path: str | Path, moments: Iterable[float], stop: Stop) -> Iterator[Frame]:
    """The first frame after each of the rising ``moments``, none twice."""
    with _Reader(path, stop) as reader:
        for moment in moments:
            if moment <= reader.seconds:
                continue
            if not reader.advance(moment):
                return
            image = reader.image()
            if image is not None:
                yield Frame(reader.number, reader.seconds, image)


class _Reader:
    """A video opened for reading forward. ``number`` and ``seconds`` are those of the frame decoded last."""

    def __init__(self, path: str | Path, stop: Stop) -> None:
        self._cv2, self._stop = load_opencv(), stop
        _check(path)
        self._path = str(Path(path).absolute())  # a relative one with a colon would be taken for a URL
        self._may_jump = True
        self._capture = None
        self.rewind()
        self.fps = self._get("FPS")
        if not 0 < self.fps < math.inf:
            self.fps = 25.0
        frames = self._get("FRAME_COUNT")
        self.promised = frames / self.fps if 0 < frames < math.inf else None  # seconds
        self.size = self._shown()
        pixels = max(self.size[0] * self.size[1], int(self._get("FRAME_WIDTH")) * int(self._get("FRAME_HEIGHT")))
        if pixels > MAX_PIXELS:
            self._capture.release()
            raise VideoError(f"frames of {too_large(pixels, MAX_PIXELS)}")

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def _shown(self) -> tuple[int, int]:
        """The size at which a frame is shown, upright: pixels need not be square."""
        width, height = int(self._get("FRAME_WIDTH")), int(self._get("FRAME_HEIGHT"))
        across, up = self._get("SAR_NUM"), self._get("SAR_DEN")
        if not (across > 0 and up > 0):
            return width, height
        wide = up / across if self._get("ORIENTATION_META") % 180 else across / up
        if 1 / _SQUARE <= wide <= _SQUARE or not 1 / 16 <= wide <= 16:
            return width, height
        return max(1, round(width * wide)), height

    @property
    def codec_hint(self) -> str:
        """Which codec a video has that cannot be decoded, and what to do."""
        code = int(self._get("FOURCC")).to_bytes(4, "little", signed=True).decode("latin-1")
        name = _CODECS.get(code, code.strip() if code.isascii() and code.isprintable() else "") or "an unknown codec"
        return f": it is coded as {name}; convert it first, for example with ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4"

    def rewind(self) -> None:
        """Back to before the first frame, by opening the file again."""
        if self._capture is not None:
            self._capture.release()
        self._capture = self._cv2.VideoCapture(self._path, self._cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise VideoError("not a video that can be read")
        self.number, self.seconds = -1, -math.inf

    def drain(self, until: float) -> float | None:
        """Decode to the end of the video, or to a frame after ``until``. Returns when the last frame ends, None when
        there was no frame."""
        while self.seconds <= until and self._grab():
            pass
        return None if self.number < 0 else self.seconds + 1 / self.fps

    def advance(self, moment: float) -> bool:
        """Decode up to the first frame at or after ``moment``; False when the video ends before it."""
        if self._may_jump and moment - max(self.seconds, 0) > FAR:
            self.jump(moment)
        while self.seconds < moment:
            if not self._grab():
                return False
        return True

    def jump(self, moment: float) -> None:
        """To a frame shortly before ``moment``, or back to the start for good where a video does not let one jump."""
        before = self.seconds
        self._capture.set(self._cv2.CAP_PROP_POS_MSEC, 1000 * max(0, moment - 1 / self.fps))
        self.seconds = -math.inf
        landed = self._grab()
        self.number = int(self._get("POS_FRAMES")) - 1
        if not landed or self.seconds <= before:
            self._may_jump = False
            self.rewind()

    def image(self) -> Image.Image | None:
        """The frame decoded last, if it can be converted."""
        done, pixels = self._capture.retrieve()  # (H, W, 3), BGR
        if not done:
            return None
        image = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
        return image if image.size == self.size else image.resize(self.size, Image.Resampling.BICUBIC)

    def _grab(self) -> bool:
        if self._stop():
            raise VideoError("given up")
        if not self._capture.grab():
            return False
        self.number += 1
        seconds = self._get("POS_MSEC") / 1000
        # A frame without a time stamp, or with one in the past, comes when the frame before it ends.
        self.seconds = seconds if seconds > self.seconds else self.seconds + 1 / self.fps
        return True

    def _get(self, name: str) -> float:
        return self._capture.get(getattr(self._cv2, f"CAP_PROP_{name}"))


def _check(path: str | Path) -> None:
    try:
        check_file(path, VideoError)
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("no such file") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
