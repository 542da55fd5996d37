"""Files that commands write: told before any work is done that one cannot be written, or would destroy what is there.

A shell makes ``--csv *.jpg`` into a table over the first picture; evidence must not be lost to that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from corit_cli.data.kinds import OTHER, sniff
from corit_cli.errors import CoritError
from corit_cli.files import is_special, is_stdout, unwritable

#: What is written beside a report, as it is called where it would destroy something.
BESIDE = "the configuration beside --html"


def check_place(path: Path | None) -> Path | None:
    """``path``. Raises CoritError unless that, if any, can be a file to write."""
    if path is None:
        return None
    if str(path) == "-":
        raise CoritError("- is no file to write: name one; /dev/stdout is standard output")
    try:
        os.stat(path)
    except FileNotFoundError:
        parent = Path(os.path.realpath(path)).parent
        if not parent.is_dir():
            raise CoritError(f"cannot write {path}: there is no folder {path.parent}") from None
    except OSError as error:  # links in a circle
        raise unwritable(path, error) from None
    if path.is_dir():
        raise CoritError(f"cannot write {path}: it is a folder")
    return path


def check_file(path: Path | None) -> Path | None:
    """As :func:`check_place`, of what is no picture: none that is there is written over."""
    if check_place(path) is not None:
        kind = sniff(path)
        if kind is not None and kind.media != OTHER:
            raise CoritError(f"cannot write {path}: it is {kind.name}, and would be lost")
    return path


def on_stdout(outputs: Mapping[str, Path | None], printing: Mapping[str, bool]) -> bool:
    """Whether one of ``outputs``, by their flags, is standard output, where nothing else may go then. Raises CoritError
    where two are, and where an option is given that is ``printing`` there."""
    there = [flag for flag, path in outputs.items() if path is not None and is_stdout(path)]
    there += [flag for flag, given in printing.items() if given and there]
    if len(there) > 1:
        raise CoritError(f"{' and '.join(there)} would all go to standard output: name files")
    return bool(there)


def check_apart(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path]) -> None:
    """Raise CoritError where two ``outputs``, by their flags, are one file, or one is an input."""
    written: dict[str, str] = {}
    there: list[tuple[str, os.stat_result]] = []
    for flag, path in outputs.items():
        if path is None or is_special(path):
            continue
        other = written.setdefault(os.path.realpath(path), flag)
        if other != flag:
            raise CoritError(f"{other} and {flag} are the same file {path}: give two")
        with suppress(OSError):
            there.append((flag, os.stat(path)))
    for source in inputs if there else ():
        try:
            found = os.stat(source)
        except (OSError, ValueError):
            continue
        for flag, status in there:
            if os.path.samestat(found, status):
                raise CoritError(f"{flag} would write over {source}, which is to be read: name another file")
