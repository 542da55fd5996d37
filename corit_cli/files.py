"""Files: told apart by what is in them, written all or nothing; devices and pipes are written into, never replaced."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from corit_cli.errors import CoritError


def weights_dir() -> Path:
    """The folder ``weights/``: inside the installed package, or at the root of a source checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / "clip-vit-b16" / "config.json").is_file():
            return folder
    raise CoritError("the package's weights/ folder is missing: install corit again, or give --backbone")


def cache_dir() -> Path:
    """Where what can be had again is kept: ``corit`` in the user's cache folder. Of a user without a home it is a place
    where nothing can be kept."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corit"
    except RuntimeError:  # no $HOME, and a user whom the system does not know
        return Path(os.devnull) / "corit"


def model_card() -> Path | None:
    """What the shipped detector can and cannot do, in words; None where that was not installed."""
    package = Path(__file__).resolve().parent
    places = (package / "model-card.md", package.parent / "docs" / "model-card.md")
    return next((place for place in places if place.is_file()), None)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: a reader never sees half a file.

    A link stays, and the file that it leads to is replaced, by one that the same people may read. What is there and no
    regular file, such as a device or a pipe, stays too, and what was written is copied into it; what is standard
    output by another name goes behind what that was told before. Raises CoritError when
    the disk is full or the folder cannot be written; ``path`` is then as it was.
    """
    if not is_stream(path):
        write_together({path: write})
        return
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / f"content{path.suffix}"
        try:
            write(content)
            with content.open("rb") as source, opened_stdout() if is_stdout(path) else path.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, SafetensorError) as error:
            raise unwritable(path, error) from None


def is_stdout(path: Path) -> bool:
    """Whether standard output leads to what is at ``path``, which opening anew would empty. The null device is
    nobody's output."""
    if sys.stdout is None:  # closed: descriptor 1 may be anything by now
        return False
    try:
        found = os.stat(path)
        return os.path.samestat(found, os.fstat(1)) and not os.path.samestat(found, os.stat(os.devnull))
    except (OSError, ValueError):
        return False


def opened_stdout() -> IO[bytes]:
    """Standard output, to be closed by itself."""
    sys.stdout.flush()
    return os.fdopen(os.dup(1), "wb")


def is_special(path: Path) -> bool:
    """Whether something is there that is neither a regular file nor a folder, links followed."""
    return path.exists() and not path.is_file() and not path.is_dir()


def is_stream(path: Path) -> bool:
    """Whether what is written to ``path`` goes into what is there, which is never replaced: a device, a pipe, or
    standard output by any name."""
    return is_special(path) or is_stdout(path)


def unwritable(path: Path | str, error: Exception) -> CoritError:
    """The error of an output that cannot be written."""
    return CoritError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """:func:`write_atomically` for files that belong together: all of them are replaced, or none.

    Raises CoritError when one cannot be written; all are then as they were.
    """
    new: dict[Path, Path] = {}
    path = next(iter(writers))
    try:
        resolved = {Path(os.path.realpath(path)): write for path, write in writers.items()}  # a link stays one
        for path, write in resolved.items():
            if path.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if is_special(path) or path.is_dir():
                raise CoritError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'no regular file'}")
            new[path] = _temporary(path)
            write(new[path])
            new[path].chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
        if len(new) == 1:
            new[path].replace(path)
        else:
            _swap(new)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from None
    finally:
        for temporary in new.values():
            temporary.unlink(missing_ok=True)


def _swap(new: Mapping[Path, Path]) -> None:
    """Put temporary files in their places. The last file goes first and comes last: even a process killed in between
    leaves no mixture, but a last file missing, and what was there beside it under the suffix ``.old``."""
    old = {path: temporary.with_suffix(".old") for path, temporary in new.items()}
    try:
        for path in reversed(new):
            if path.exists():
                path.replace(old[path])
        for path, temporary in new.items():
            temporary.replace(path)
    except BaseException:
        for path, temporary in new.items():
            if old[path].exists():
                old[path].replace(path)
            elif not temporary.exists():
                path.unlink(missing_ok=True)
        raise
    for kept in old.values():
        kept.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """An empty file beside ``path``."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def content_sha256(path: Path) -> str | None:
    """SHA-256 of a file's bytes, or None when it cannot be read."""
    digest = hashlib.sha256()
    try:
        if not path.is_file():  # a pipe might never give a byte
            return None
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
