"""The one door to OpenCV, which reads videos and finds faces.

It is imported when first needed: opencv-python links against libraries that bare servers lack, and images must be
judged without them.
"""

from __future__ import annotations

import os
from types import ModuleType

from corit_cli.errors import CoritError


def load_opencv() -> ModuleType:
    """The module ``cv2``, told to keep its own and FFmpeg's messages off stderr (unless the environment says otherwise,
    or it was imported before).

    Raises CoritError with a remedy when it or a library under it is missing.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # read at the import
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when the first video is opened
    try:
        import cv2
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise CoritError(
            f"OpenCV, which videos and faces need, cannot be loaded ({reason}): on Debian and Ubuntu run "
            "'apt-get install libgl1 libglib2.0-0', or replace opencv-python by opencv-python-headless"
        ) from None
    return cv2


def single_threaded() -> None:
    """Keep OpenCV to one thread in this process, where others work beside it."""
    load_opencv().setNumThreads(1)
