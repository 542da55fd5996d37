"""Which files ``corit detect`` looks at, and which it leaves out: what a user named, and what lies in folders."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corit_cli.data.images import IMAGE_SUFFIXES
from corit_cli.data.kinds import HEAD, IMAGE, OTHER, kind_of, sniff
from corit_cli.data.video import VIDEO_SUFFIXES
from corit_cli.errors import CoritError

GLOB_CHARACTERS = frozenset("*?[")
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
#: How an image that comes on standard input is called.
STDIN = "-"
#: Control characters that no list of file names holds.
_BINARY = frozenset(range(32)) - set(b"\t\n\r\f\x1b")


@dataclass
class Left:
    """What was left out of folders: how many files of each kind, which with ``keep``, and folders not looked into."""

    keep: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    files: list[tuple[str, str]] = field(default_factory=list)
    folders: int = 0
    searched: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        suffix = os.path.splitext(path)[1].lower()
        self.kinds[suffix or "without suffix"] += 1
        if self.keep:
            kind = sniff(path)
            self.files.append((path, f"skipped: {kind.refusal if kind and kind.remedy else 'no image or video'}"))

    def lines(self) -> Iterator[str]:
        """What a user is told, a line each."""
        for folder in self.searched:
            yield f"{folder} itself holds no images or videos: looked into the folders below it, as --recursive does"
        if total := self.kinds.total():
            most = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common(5))
            rest = total - sum(count for _, count in self.kinds.most_common(5))
            more = f", {rest} others" if rest else ""
            files = "file that is no image or video" if total == 1 else "files that are no images or videos"
            yield f"skipped {total} {files}: {most}{more} (--list-skipped names them)"
        if self.folders:
            folders = "1 folder" if self.folders == 1 else f"{self.folders} folders"
            yield f"did not look into {folders} (--recursive does)"


def collect(paths: Sequence[str], recursive: bool, left: Left | None = None, null: bool = False) -> Iterator[str]:
    """The files that arguments stand for, each once, folders and globs sorted; what is left out of folders is told to
    ``left``.

    A file that is named is taken whatever it is. In folders those are taken that are images or videos by their first
    bytes or their suffix; hidden files are not. A folder that holds none itself is searched at any depth. One that
    cannot be read is given as if it were a file, to become an error. For ``-`` names are read from standard input,
    one a line or, with ``null``, with zero bytes between.
    """
    left = left or Left()
    seen: set[str] = set()
    several = len(paths) > 1 or STDIN in paths  # else no file comes twice, and none need be remembered
    for path in paths:
        if path == STDIN:
            found: Iterable[str] = _listed(null)
        elif os.path.isdir(path):
            found = _folder(path, recursive, left)
        elif not os.path.lexists(path) and GLOB_CHARACTERS & set(path):
            found = sorted(f for f in glob.iglob(path, recursive=True) if not os.path.isdir(f)) or [path]
        else:
            found = [path]
        for file in found:
            if file not in seen:
                if several:
                    seen.add(file)
                yield file


def _folder(folder: str, recursive: bool, left: Left) -> Iterator[str]:
    """Files of a folder; where there are none, of those below."""
    below = Left(left.keep)
    empty = True
    for file in _walked(folder, recursive, below):
        empty = False
        yield file
    if empty and below.folders:
        left.searched.append(folder)
        below = Left(left.keep)
        yield from _walked(folder, True, below)
    left.kinds += below.kinds
    left.files += below.files
    left.folders += below.folders


def _walked(folder: str, recursive: bool, left: Left) -> Iterator[str]:
    unreadable: list[str] = []
    for here, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(error.filename)):
        inside = sorted(f for f in folders if not f.startswith("."))
        left.folders += 0 if recursive else len(inside)
        folders[:] = inside if recursive else []
        for file in sorted(files):
            if file.startswith("."):
                continue
            path = os.path.join(here, file)
            if _wanted(path):
                yield path
            else:
                left.add(path)
        yield from unreadable
        unreadable.clear()
    yield from unreadable


def _wanted(path: str) -> bool:
    if Path(path).suffix.lower() in SUFFIXES:
        return True
    kind = sniff(path)
    return kind is not None and kind.media != OTHER


# --- standard input -------------------------------------------------------------------------------


def image_on_stdin(null: bool = False) -> bytes | None:
    """The bytes of an image that comes on standard input; None where file names come. Raises CoritError where neither
    does, or it is closed."""
    if sys.stdin is None or sys.stdin.closed:
        raise CoritError("standard input is closed: give files, or a list of them on standard input")
    try:
        head = sys.stdin.buffer.peek(HEAD)[:HEAD]
    except OSError as error:
        raise CoritError(f"standard input cannot be read: {error.strerror or error}") from None
    if null or not _BINARY & set(head):
        return None
    kind = kind_of(head)
    if kind is not None and kind.media == IMAGE:
        return sys.stdin.buffer.read()
    what = f"it is {kind.name}" if kind else "give --null for names with zero bytes between"
    raise CoritError(f"standard input holds no list of file names and no image: {what}")


def _listed(null: bool) -> Iterator[str]:
    decode: Callable[[bytes], str] = os.fsdecode  # file names are bytes, whatever the locale
    if null:
        yield from (decode(name) for name in _split(b"\0") if name)
    else:
        yield from (decode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())


def _split(end: bytes) -> Iterator[bytes]:
    rest = b""
    while block := sys.stdin.buffer.read1(1 << 16):
        *whole, rest = (rest + block).split(end)
        yield from whole
    yield rest
