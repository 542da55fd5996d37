"""The report of ``corit detect``: one self-contained HTML page on one file or on many.

Files come one at a time. What is said of each is written to an unnamed temporary file at once, so that memory stays
flat, and the page is put together at the end, all or nothing. Its pictures, styles and script stand in the page; a
content security policy forbids it to fetch anything or to run any script but its own, whatever a file's name or
metadata may hold. The same input gives the same bytes.

A page takes up to 1 MB for each of the first ``LARGE_SECTIONS`` files, about 100 kB for every further one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from corit_cli.data.stored import Stored
from corit_cli.errors import CoritError
from corit_cli.files import is_special, unwritable, write_atomically
from corit_cli.report import rates
from corit_cli.report.case import About, details, notes, split_path
from corit_cli.report.pictures import THUMBNAIL, picture
from corit_cli.report.timeline import MARKS
from corit_cli.report.words import at, clock, percent, share
from corit_cli.texts import printable, without_secrets

if TYPE_CHECKING:
    from jinja2 import Environment

    from corit_cli.detection.verdicts import Prediction

LARGE_SECTIONS = 50  # files whose pictures are shown large
#: In the order in which an index lists them.
VERDICTS = ("fake", "uncertain", "error", "real")


class Casebook:
    """A report under way; the page appears at ``path`` when the block is left, and not if it is left by an exception.

    >>> with Casebook(Path("report.html"), About.of(checkpoint, datetime.now(timezone.utc), "--html")) as casebook:
    ...     for prediction in detector.predict(files):
    ...         casebook.add(prediction, image)

    Raises CoritError when ``path`` cannot be written, if possible before any file has been looked at.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about

    def __enter__(self) -> Casebook:
        if self.path.is_dir():
            raise CoritError(f"cannot write {self.path}: it is a folder")
        try:
            beside = None if is_special(self.path) else Path(os.path.realpath(self.path)).parent
            self._kept: IO[bytes] = tempfile.TemporaryFile(dir=beside)
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._page = Page(self.about, self._kept)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._kept:
            if kind is None:
                write_atomically(self.path, self._write)

    def add(self, *what: Any, **more: Any) -> None:
        """Write down what is said of one file: see :meth:`Page.add`."""
        try:
            self._page.add(*what, **more)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def leave_out(self, lines: Iterable[str]) -> None:
        """Say what was found and not looked at, a sentence each."""
        self._page.left_out += lines

    def _write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(self._page.pieces())


class Page:
    """What a report says of each file, written to ``kept`` at once, and the page that is made of it."""

    def __init__(self, about: About, kept: IO[bytes]) -> None:
        self.about, self._kept = about, kept
        self._environment = _environment()
        self._counts: Counter[str] = Counter()
        self.left_out: list[str] = []
        self._first = ""
        self._sections: list[_Span] = []
        self._rows: list[tuple[tuple[int, float, int], _Span]] = []

    def add(
        self,
        prediction: Prediction,
        image: Image.Image | None = None,
        heatmap: Image.Image | None = None,
        frames: Mapping[int, Image.Image] | None = None,
        no_heatmap: str | None = None,
        file: Stored | None = None,
    ) -> None:
        """Write down what is said of one file, whose bytes are read once more for their checksums; ``file`` is where
        they are, if not at the prediction's path.

        ``image`` is the RGB picture at full size, upright, or any frame of a video. ``heatmap`` shows the evidence over
        the whole of it, without a margin, at any size. ``frames`` holds the pictures of some of a video's moments by
        their number, best those of ``VideoVerdict.suspicious()``. None of the pictures is kept. ``no_heatmap`` says
        why there is no heatmap where a reader may miss it.
        """
        number = len(self._sections) + 1
        kind = prediction.verdict or "error"
        folder, name = split_path(prediction.path)
        self._first = self._first or name
        shared = {"p": prediction, "number": number, "kind": kind, "name": name, "folder": folder}
        shown = details(
            prediction, self.about, image, heatmap, frames or {}, number <= LARGE_SECTIONS, no_heatmap, file
        )
        section = self._environment.get_template("casebook-file.html.j2").render(**shared, **shown)
        row = self._environment.get_template("casebook-row.html.j2").render(
            **shared, thumbnail=None if image is None else picture(image, THUMBNAIL), notes=notes(prediction)
        )
        self._sections.append(self._keep(section))
        key = VERDICTS.index(kind), -(prediction.probability or 0.0), number
        self._rows.append((key, self._keep(row)))
        self._counts[kind] += 1

    def pieces(self) -> Iterator[str]:
        """The page on all files so far, in order."""
        script = _source(self._environment, "casebook.js")
        return self._environment.get_template("casebook.html.j2").generate(
            about=self.about,
            rates=rates.rows(self.about.held_out),
            same=rates.THE_SAME,
            counts=[(kind, self._counts[kind]) for kind in VERDICTS],
            total=len(self._sections),
            left_out=self.left_out,
            name=self._first,
            rows=self._recall(span for _, span in sorted(self._rows)),
            sections=self._recall(self._sections),
            styles=_source(self._environment, "casebook.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            marks=MARKS,
        )

    def _keep(self, text: str) -> _Span:
        data = text.encode()
        start = self._kept.seek(0, io.SEEK_END)
        self._kept.write(data)
        return _Span(start, len(data))

    def _recall(self, spans: Iterable[_Span]) -> Iterator[str]:
        for span in spans:
            self._kept.seek(span.start)
            yield self._kept.read(span.length).decode()


@dataclass(frozen=True)
class _Span:
    start: int
    length: int


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corit_cli", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Everything that a file brings along passes through here; markup of our own does not.
        finalize=lambda value: printable(without_secrets(value)) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, share=share, clock=clock, at=at)
    return environment


def _source(environment: Environment, name: str) -> str:
    return environment.loader.get_source(environment, name)[0]  # type: ignore[union-attr]
