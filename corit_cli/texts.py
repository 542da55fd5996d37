"""Foreign text, such as file names and metadata, made safe to write: one rule for what people see, one for CSV."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any

_URL = re.compile(r"://\S*")
_USER = re.compile(r"://[^/?#]*@")
#: What a spreadsheet takes for the beginning of a formula, wide or not.
_FORMULA = "=+\\-@＝＋－＠"
#: Control characters, line ends and turns of direction of any kind, byte order marks, bytes that are no UTF-8, and what
#: some spreadsheets take for the end of a cell, where the rest would be a formula.
_UNSAFE = re.compile(
    f"[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]|[;|](?=\\W*[{_FORMULA}])"
)
#: An apostrophe or, behind blanks and characters that cannot be seen, a formula.
_BEGINNING = re.compile(f"'|[\\s\u00ad\u180e\u200b-\u200d\u2060-\u2064]*[{_FORMULA}]")
_SPELLED = re.compile(r"\\(?:\\|u[0-9a-f]{4}|x[0-9a-f]{2}|[nrt])")


def printable(text: str) -> str:
    """``text`` with control characters, bidirectional overrides and undecodable bytes spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cell(text: str) -> str:
    """``text`` as it may stand in a cell of CSV, valid UTF-8 that no spreadsheet runs and no terminal obeys.

    A text that begins with =, +, - or @, in any width, or holds control characters or undecodable bytes, or a semicolon
    with a formula behind it, is written after an apostrophe and with these, and backslashes, spelled out as in Python;
    so is one that begins with an apostrophe. All others stay as they are. :func:`uncell` gives the text back.
    """
    if not _BEGINNING.match(text) and not _UNSAFE.search(text):
        return text
    return "'" + _UNSAFE.sub(lambda found: _spelled(found[0]), text.replace("\\", "\\\\"))


def _spelled(character: str) -> str:
    return repr(character)[1:-1] if character not in ";|" else f"\\x{ord(character):02x}"


def uncell(text: str) -> str:
    """The text that :func:`cell` wrote."""
    if not text.startswith("'"):
        return text
    return _SPELLED.sub(lambda found: found[0].encode().decode("unicode_escape"), text[1:])


class Table:
    """Rows of CSV with the given columns, its texts made safe by :func:`cell`."""

    def __init__(self, file: IO[str], columns: Iterable[str]) -> None:
        self._writer = csv.DictWriter(file, list(columns))
        self._writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        """One row; what is missing, or None, is left empty."""
        plain = (int, float, type(None))
        self._writer.writerow({k: v if isinstance(v, plain) else cell(str(v)) for k, v in row.items()})


def forgive_encodings() -> None:
    """Let what an output's encoding lacks be spelled out instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")


def without_secrets(text: str) -> str:
    """A text whose URLs have "…" for user, password and, but for those of files here, query, which may be secret."""

    def cut(url: re.Match[str]) -> str:
        shown = _USER.sub("://…@", url[0])
        here = text[max(0, url.start() - 5) : url.start()].endswith(("file", "local"))
        head, mark, query = shown.partition("?")
        if here or not mark:
            return shown
        return f"{head}?…{query[-1:] if query[-1:] in chr(39) + chr(34) else ''}"  # a quote around it stays

    return _URL.sub(cut, text)
