"""Files that lie elsewhere, named by URLs such as ``s3://bucket/a.jpg``: read through fsspec and its file systems."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any

from corit_cli.errors import CoritError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: Stores that URLs may name, and what may be read within a file there, as in ``zip://a.jpg::s3://bucket/b.zip``. No
#: others: a list of files may come from anywhere, and fsspec knows kinds of URLs that run what they are told to.
STORES = (
    *("file", "local", "memory", "http", "https", "ftp", "sftp"),
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "ssh", "hdfs", "webhdfs"),
)
WITHIN = ("zip", "tar", "simplecache")
#: What file systems call the time of the last change.
_CHANGED = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


def is_url(path: str) -> bool:
    """Whether ``path`` names a file by its URL."""
    return bool(_URL.match(path))


def reason(error: Exception) -> str:
    """What went wrong, in a line. A file system is foreign code, which may raise anything."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.splitlines()), type(error).__name__)


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of ``url``, and the path in it. Raises CoritError where it is not installed, known or among
    ``STORES`` and what is ``WITHIN`` them."""
    for link in url.split("::"):
        kind = (re.match(r"[^:/]*(?=:)", link) or re.match(r"[\w+.-]*$", link) or [""])[0].lower()
        if kind not in ("", *STORES, *WITHIN):
            known = ", ".join(STORES + WITHIN)
            raise CoritError(f"{url} cannot be opened: URLs of kind {kind} are not; there are {known}")
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except Exception as error:
        missing = "; download the file first, or install that" if isinstance(error, ImportError) else ""
        raise CoritError(f"{url} cannot be opened: {reason(error)}{missing}") from None


def changed(info: dict[str, Any]) -> int | None:
    """When a file was changed, in ns, by what its file system says of it; None where it does not tell."""
    found = next((info[name] for name in _CHANGED if info.get(name)), None)
    if isinstance(found, str):
        try:
            found = (
                parsedate_to_datetime(found) if "," in found else datetime.fromisoformat(found.replace("Z", "+00:00"))
            )
        except ValueError:
            return None
    seconds = found.timestamp() if isinstance(found, datetime) else found
    return None if seconds is None else round(seconds * 1e6) * 1000


def is_gone(error: Exception) -> bool:
    """Whether a file system's ``error`` says that a file is not there, and not that nobody answered: fsspec tells of
    either as a missing file where it speaks HTTP."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return status in (404, 410)
    silent = type(cause).__module__.startswith(("aiohttp", "asyncio")) or isinstance(cause, OSError | TimeoutError)
    return not silent or is_gone(cause)


def fetch(url: str) -> bytes:
    """A file's bytes. Raises ImageError when they cannot be had."""
    from corit_cli.data.opening import ImageError

    fs, path = file_system(url)
    try:
        return fs.cat_file(path)
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except Exception as error:
        raise ImageError(f"cannot be read ({reason(error)})") from None


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A path that programs which know no URLs, and no names but text, can open: ``path`` itself, or that of a copy, or
    of a link, for the time being."""
    if not is_url(path) and path.encode(errors="replace").decode() == path:
        yield path
        return
    suffix = PurePosixPath(path).suffix
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"copy{suffix if suffix.isascii() else ''}"
        if is_url(path):
            copy.write_bytes(fetch(path))
        else:
            copy.symlink_to(Path(path).absolute())
        yield str(copy)
