"""What may be looked at, and what it is called: files by their paths or bytes, and pictures in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from corit_cli.data.images import held
from corit_cli.data.opening import Source
from corit_cli.data.stored import State, state
from corit_cli.data.video import is_video
from corit_cli.errors import CoritError


@dataclass(frozen=True)
class Named:
    """A source and what it is called; the ``state`` of its file before it is read, where it has a path."""

    name: str
    source: Source
    state: State | None = None

    @property
    def is_video(self) -> bool:
        return isinstance(self.source, str) and is_video(self.source)


def named(sources: Source | Iterable[Source]) -> Iterator[Named]:
    """Every source with its name. Raises CoritError for what is none, of a single one at once."""
    one = isinstance(sources, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    if one or (isinstance(sources, np.ndarray) and sources.ndim != 4):
        return iter([_name(sources, 1)])
    if not isinstance(sources, Iterable) or hasattr(sources, "read"):  # an open file is a row of lines
        raise _no_source(sources)
    return (_name(source, number) for number, source in enumerate(sources, 1))


def _name(source: object, number: int) -> Named:
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)  # given back as it was given: Path() would drop a leading ./
        return Named(path, path, state(path))
    if isinstance(source, np.ndarray) and (source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3):
        raise _no_source(f"an array {source.shape} of {source.dtype}")
    if not isinstance(source, bytes | bytearray | memoryview | Image.Image | np.ndarray):
        raise _no_source(source)
    return Named(f"<image {number}>", _kept(source))


def _kept(source: Source) -> Source:
    """A source that whoever gave it may change, reuse or close from now on: it is looked at later, in a thread."""
    if isinstance(source, Image.Image):
        return held(source)
    return source.copy() if isinstance(source, np.ndarray) else bytes(source)


def _no_source(given: object) -> CoritError:
    what = given if isinstance(given, str) else type(given).__name__
    return CoritError(
        "predict takes paths, bytes of image files, Pillow images and RGB arrays (H, W, 3) of uint8, one or an "
        f"iterable of them, not {what}"
    )
