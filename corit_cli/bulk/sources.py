"""The files that are to be looked at, as a stream: folders, globs, lists of them, and what lies at URLs."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from corit_cli.bulk import parquet
from corit_cli.data.images import IMAGE_SUFFIXES
from corit_cli.data.manifest import PATH_NAMES
from corit_cli.data.urls import file_system, is_url
from corit_cli.data.video import VIDEO_SUFFIXES
from corit_cli.errors import CoritError

SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
LISTS = (".csv", ".jsonl", ".parquet")

#: Lists the files that paths on this machine stand for: ``collect(paths, recursive)``.
Collect = Callable[[Sequence[str], bool], Iterable[str]]


def listed(sources: Sequence[str], recursive: bool, collect: Collect) -> Iterator[str]:
    """The files that ``sources`` stand for, one after the other, some perhaps twice.

    A source is a list of files (.csv, .jsonl or .parquet with a column that is called path, image, file or filename;
    relative paths start from the list's folder), a URL of a file, a folder, a glob or a list, or whatever ``collect``
    knows. Raises CoritError for a list that cannot be read.
    """
    for source in sources:
        if posixpath.splitext(source)[1].lower() in LISTS and (is_url(source) or os.path.isfile(source)):
            yield from _named_in(source)
        elif is_url(source):
            yield from _at_url(source, recursive)
        else:
            yield from collect([source], recursive)


def _named_in(file: str) -> Iterator[str]:
    folder = file.rpartition("/")[0]
    suffix = posixpath.splitext(file)[1].lower()
    try:
        with _opened(file) as stream:
            for path in {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[suffix](stream):
                yield path if is_url(path) or os.path.isabs(path) or not folder else f"{folder}/{path}"
    except (UnicodeDecodeError, csv.Error, ValueError, OSError) as error:
        raise CoritError(f"{file} is not a readable list of files: {error}") from None


def _opened(file: str) -> AbstractContextManager[IO[bytes]]:
    if not is_url(file):
        return Path(file).open("rb")
    fs, path = file_system(file)
    return fs.open(path, "rb")


def _csv(stream: IO[bytes]) -> Iterator[str]:
    reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""))
    column = _column(reader.fieldnames or ())
    return (row[column] for row in reader if row[column])


def _jsonl(stream: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            path = row[_column(row)]
            if not isinstance(path, str):
                raise ValueError(f"line {number} names no file")
            yield path


def _parquet(stream: IO[bytes]) -> Iterator[str]:
    pa = parquet.arrow()
    try:
        file = pa.parquet.ParquetFile(stream)
        column = _column(file.schema_arrow.names)
        for batch in file.iter_batches(parquet.GROUP, columns=[column]):
            yield from (str(path) for path in batch.column(0).to_pylist() if path)
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _column(names: Iterable[str]) -> str:
    """The one of ``names`` that holds paths."""
    known = {name.strip().lower(): name for name in names}
    found = next((known[name] for name in PATH_NAMES if name in known), None)
    if found is None:
        raise ValueError(f"it has no column called {', '.join(PATH_NAMES)}")
    return found


def _at_url(url: str, recursive: bool) -> Iterator[str]:
    fs, path = file_system(url)
    try:
        if any(character in path for character in "*?["):
            yield from (fs.unstrip_protocol(found) for found in sorted(fs.glob(path)) if fs.isfile(found))
        elif fs.isdir(path):
            yield from (fs.unstrip_protocol(found) for found in _folder(fs, path, recursive))
        else:
            yield url
    except OSError as error:
        raise CoritError(f"{url} cannot be listed: {error.strerror or error}") from None


def _folder(fs: Any, folder: str, recursive: bool) -> Iterator[str]:
    """As on this machine: in order, hidden names left out, and only what ends as images and videos do."""
    for here, folders, files in fs.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        for name in sorted(files):
            if not name.startswith(".") and posixpath.splitext(name)[1].lower() in SUFFIXES:
                yield f"{here.rstrip('/')}/{name}"
