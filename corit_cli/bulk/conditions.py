"""How a table of verdicts was begun: a file beside it says on which conditions its rows depend.

That of ``NAME`` is called ``NAME.run.json``, that of a folder of parts lies in it as ``run.json``. A process that
writes to the table holds it, so that no other does.
"""

from __future__ import annotations

import fcntl
import json
import os
import posixpath
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from corit_cli.data.urls import fetch, is_url
from corit_cli.errors import CoritError
from corit_cli.files import unwritable

#: Of a folder of parts.
OF_PARTS = "run.json"


def beside(table: Path) -> Path:
    """Where a table's conditions stand."""
    return table.with_name(f"{table.name}.{OF_PARTS}")


def begun(table: str) -> dict[str, Any]:
    """The conditions under which a table, a folder of parts or a part of one, on a disk or at a URL, was begun; empty
    where they are not known."""
    place = table if is_url(table) else os.path.realpath(table)
    parts = posixpath.dirname(place)
    folders = [place, posixpath.dirname(parts)] if posixpath.basename(parts) == "parts" else [place]
    for file in (f"{place}.{OF_PARTS}", *(f"{folder}/{OF_PARTS}" for folder in folders)):
        if not is_url(file) and not os.path.isfile(file):  # a pipe would be waited for
            continue
        with suppress(OSError, ValueError, RecursionError, CoritError):
            found = json.loads(fetch(file) if is_url(file) else Path(file).read_bytes())
            if isinstance(found, dict):
                return found
    return {}


def hold(conditions: Path, table: object, stack: ExitStack) -> IO[bytes]:
    """The file of conditions of a table, made if need be, for this process alone until ``stack`` closes. Raises
    CoritError where another process has it, it cannot be made, or something else is called so."""
    try:
        conditions.parent.mkdir(parents=True, exist_ok=True)
        if conditions.is_symlink():
            raise CoritError(f"{conditions}, which is to say how {table} was begun, is a link: name another table")
        handle = os.open(conditions, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        file = stack.enter_context(os.fdopen(handle, "a+b"))
    except OSError as error:
        raise unwritable(conditions, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CoritError(f"{table} is being written to by another process") from None
    except OSError:  # a file system without locks
        pass
    file.seek(0)
    if file.read(1) not in (b"", b"{"):
        raise CoritError(f"{conditions}, which is to say how {table} was begun, is another file: name another table")
    file.seek(0)
    return file


def write(held: IO[bytes], conditions: Path, about: dict[str, Any]) -> None:
    """Fill the file ``conditions`` that :func:`hold` gave; it stays the same one, by which others know that it is held.
    Raises CoritError where that cannot be done."""
    try:
        held.truncate(0)
        held.write(text(about))
        held.flush()
    except OSError as error:
        raise unwritable(conditions, error) from None


def text(about: dict[str, Any]) -> bytes:
    return json.dumps(about, indent=1).encode() + b"\n"


def check(name: object, kept: bytes, about: dict[str, Any]) -> None:
    """Raise CoritError unless the text ``kept`` beside a table says that it was begun under the same ``about``."""
    told = json.loads(json.dumps(about))
    try:
        found = dict(json.loads(kept))
    except (ValueError, TypeError, RecursionError):
        raise CoritError(
            f"{name} does not say how it was begun (its .run.json is missing or damaged): name another"
        ) from None
    differing = [key for key in {**found, **told} if found.get(key) != told.get(key)]
    if differing:
        key = differing[0]
        raise CoritError(
            f"{name} was begun with {key} {found.get(key)}, not {told.get(key)}: repeat what it was begun with, or "
            "name another"
        )
