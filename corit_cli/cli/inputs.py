"""Which files ``corit detect`` looks at, and which it leaves out: what a user named, and what lies in folders."""

from __future__ import annotations

import glob
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from corit_cli.data.kinds import HEAD, IMAGE, OTHER, SUFFIXES, kind_of, sniff
from corit_cli.errors import CoritError

GLOB_CHARACTERS = frozenset("*?[")
#: How an image that comes on standard input is called.
STDIN = "-"
#: Bytes of an image that may come there.
LARGEST = 1 << 29
#: Bytes by which images are known, and how those begin that hold a line's end among them.
ENOUGH = 16
_MAYBE_IMAGE = re.compile(rb"[\xff\x89\0-\x1f]|P[1-6f]\s")
#: Control characters that no list of file names holds.
_BINARY = frozenset(range(32)) - set(b"\t\n\r\f\x1b")


#: How names of heatmaps end.
HEATMAP = ".heatmap.png"


@dataclass
class Left:
    """What was left out of folders: how many files of each kind, which with ``keep``, heatmaps of earlier runs, folders
    not looked into, links to folders, and hidden files and folders."""

    keep: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    files: list[tuple[str, str]] = field(default_factory=list)
    folders: int = 0
    drawn: int = 0
    links: int = 0
    hidden: int = 0
    searched: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        suffix = os.path.splitext(path)[1].lower()
        self.kinds[suffix or "without suffix"] += 1
        if self.keep:
            kind = sniff(path)
            self.files.append((path, kind.refusal if kind and kind.remedy else "no image or video"))

    def add_drawn(self, path: str) -> None:
        """Count a heatmap that corit drew."""
        self.drawn += 1
        if self.keep:
            self.files.append((path, "a heatmap that corit drew"))

    def lines(self, hints: Sequence[str] = ("--recursive", "--list-skipped")) -> Iterator[str]:
        """What a user is told, a line each, with ``hints`` at options that are of use."""
        deeper = "--recursive" in hints
        for folder in self.searched:
            how = ", as --recursive does" if deeper else ""
            yield f"{folder} itself holds no images or videos: looked into the folders below it{how}"
        if total := self.kinds.total():
            most = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common(5))
            rest = total - sum(count for _, count in self.kinds.most_common(5))
            more = f", {rest} others" if rest else ""
            files = "file that is no image or video" if total == 1 else "files that are no images or videos"
            hint = " (--list-skipped names them)" if "--list-skipped" in hints and not self.keep else ""
            yield f"skipped {total} {files}: {most}{more}{hint}"
        if self.drawn:
            yield f"left out {self.drawn} {'heatmap' if self.drawn == 1 else 'heatmaps'} that corit drew"
        if self.folders:
            folders = "1 folder" if self.folders == 1 else f"{self.folders} folders"
            yield f"did not look into {folders}" + (" (--recursive does)" if deeper else "")
        if self.links:
            yield f"did not follow {self.links} {'link to a folder' if self.links == 1 else 'links to folders'}"
        if self.hidden:
            yield f"left out {self.hidden} hidden {'file or folder' if self.hidden == 1 else 'files or folders'}"

    def take(self, other: Left) -> None:
        """Count what ``other`` holds as well."""
        self.kinds += other.kinds
        self.files += other.files
        self.folders += other.folders
        self.drawn += other.drawn
        self.links += other.links
        self.hidden += other.hidden


def collect(
    paths: Sequence[str], recursive: bool, left: Left | None = None, null: bool = False, once: bool = True
) -> Iterator[str]:
    """The files that arguments stand for, each ``once``, folders and globs sorted; what is left out of folders is told
    to ``left``. Without ``once`` nothing is remembered of those that were given.

    A file that is named is taken whatever it is. In folders those are taken that are images or videos by their first
    bytes or their suffix; hidden files and heatmaps of earlier runs are not. A folder that holds none itself is
    searched at any depth. One that cannot be read is given as if it were a file, to become an error. For ``-`` names
    are read from standard input, one a line or, with ``null``, with zero bytes between.
    """
    left = left or Left()
    seen: set[str] = set()
    several = once and (len(paths) > 1 or STDIN in paths)  # else no file comes twice, and none need be remembered
    for path in paths:
        if path == STDIN:
            found: Iterable[str] = _listed(null)
        elif os.path.isdir(path):
            found = _folder(path, recursive, left)
        elif not os.path.lexists(path) and GLOB_CHARACTERS & set(path):
            found = _matched(path) or [path]
        else:
            found = [path]
        for file in found:
            if file not in seen:
                if several:
                    seen.add(file)
                yield file


def _matched(pattern: str, root: str = "") -> list[str]:
    """The files that a glob finds below ``root``; ``**`` is any folders but hidden ones and links, which may lead round
    in circles."""
    parts, found = pattern.split(os.sep), set()
    if "**" not in parts:
        files = (os.path.join(root, name) for name in glob.iglob(pattern, root_dir=root or None))
        return sorted(file for file in files if not os.path.isdir(file))
    at = parts.index("**")
    above, below = os.sep.join([*parts[:at], ""]), os.sep.join(filter(None, parts[at + 1 :])) or "*"
    for base in glob.iglob(above, root_dir=root or None) if at else [""]:
        base = os.path.join(root, base)
        for here, folders, _ in os.walk(base or os.curdir):
            folders[:] = [name for name in folders if not name.startswith(".")]
            within = os.path.relpath(here, base or os.curdir)
            found.update(_matched(below, base if within == os.curdir else os.path.join(base, within, "")))
    return sorted(found)


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
    left.take(below)


def _walked(folder: str, recursive: bool, left: Left) -> Iterator[str]:
    unreadable: list[str] = []
    for here, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(error.filename)):
        inside = sorted(f for f in folders if not f.startswith("."))
        left.hidden += len(folders) - len(inside) + sum(file.startswith(".") for file in files)
        left.folders += 0 if recursive else len(inside)
        left.links += sum(os.path.islink(os.path.join(here, f)) for f in inside) if recursive else 0
        folders[:] = inside if recursive else []
        for file in sorted(files):
            if file.startswith("."):
                continue
            path = os.path.join(here, file)
            if _drawn(path):
                left.add_drawn(path)
            elif _wanted(path):
                yield path
            else:
                left.add(path)
        yield from unreadable
        unreadable.clear()
    yield from unreadable


def _drawn(path: str) -> bool:
    """Whether it is a heatmap of an earlier run, which is nobody's evidence."""
    if not path.endswith(HEATMAP):
        return False
    from corit_cli.report.heatmap import is_overlay

    return is_overlay(Path(path))


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
        head = _looked_ahead()
    except OSError as error:
        raise CoritError(f"standard input cannot be read: {error.strerror or error}") from None
    if not head:
        raise CoritError("standard input is empty: give an image, or names of files")
    kind = kind_of(head)
    if null and kind is not None and (_BINARY - {0}) & set(head):
        raise CoritError(f"standard input holds no file names: it is {kind.name}; leave out --null")
    if null or not (_BINARY & set(head) or (kind is not None and _MAYBE_IMAGE.match(head))):
        return None
    if kind is not None and kind.media == IMAGE:
        data = sys.stdin.buffer.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise CoritError(f"an image on standard input may have up to {LARGEST >> 20} MB: save it first")
        return data
    unknown = "give --null for names with zero bytes between; a Targa image, which is known by its end, save first"
    what = f"it is {kind.name}" if kind else unknown
    raise CoritError(f"standard input holds no list of file names and no image: {what}")


class _Ahead(io.RawIOBase):
    """A stream whose first bytes have been looked at."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        block = self._head[: len(room)] or self._rest.read1(len(room))  # type: ignore[attr-defined]
        self._head = self._head[len(block) :]
        room[: len(block)] = block
        return len(block)


def _looked_ahead() -> bytes:
    """The first bytes on standard input, from which they can be read again: enough to know an image by, however slowly
    they come. A name is not kept waiting for the next one."""
    stream, head = sys.stdin.buffer, b""
    while len(head) < ENOUGH and not (b"\n" in head and not _MAYBE_IMAGE.match(head)):
        block = stream.read1(HEAD)
        if not block:
            break
        head += block
    sys.stdin = io.TextIOWrapper(io.BufferedReader(_Ahead(head, stream)))
    return head[:HEAD]


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
