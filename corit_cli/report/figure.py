"""Figures drawn without a display, the same bytes for the same figure."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from corit_cli.errors import CoritError
from corit_cli.files import write_atomically

REAL, FAKE, GREY = "#2a7f62", "#c0392b", "#888888"
#: Of texts: grey that is dark enough to be read.
QUIET = "#595959"
SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class Look:
    """What tells a series from others: its colour, and where colours cannot be told apart its line and its mark."""

    colour: str
    line: str
    mark: str


#: Of the series of one chart, in order.
LOOKS = (Look("#6b6b6b", "-", "o"), Look("#c0392b", "--", "s"), Look("#2a7f62", "-.", "D"), Look("#2c5f9e", ":", "P"))


def check_suffix(path: Path) -> None:
    """Raise CoritError unless ``path`` says which kind of picture it is to be, in a folder that is there."""
    if path.suffix.lower() not in SUFFIXES:
        raise CoritError(f"{path}: a plot is written as {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise CoritError(f"{path}: there is no folder {path.parent}")


@contextmanager
def draw(size: tuple[float, float], rows: int = 1, columns: int = 1, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of ``size`` in inches and its axes, as matplotlib's ``subplots`` gives them, to draw in."""
    with _settings({"font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, **subplots)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, dpi: int = 200) -> None:
    """Write a figure to ``path``, all or nothing. Raises CoritError when it cannot be written."""
    check_suffix(path)
    # Both formats would hold the date or the version.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
    with _settled("corit"):
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi, metadata=metadata))


def as_svg(figure: Figure, salt: str) -> str:
    """A figure as an SVG element without the XML header; ids of different ``salt`` differ, as one page needs."""
    buffer = io.StringIO()
    with _settled(salt):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _settled(salt: str) -> AbstractContextManager[Any]:
    """Ids in an SVG are random unless a salt settles them."""
    return _settings({"svg.hashsalt": salt, "svg.fonttype": "none"})


def _settings(own: dict[str, Any]) -> AbstractContextManager[Any]:
    """Matplotlib's own settings but for ``own``, whatever a ``matplotlibrc`` says: one may lie in the folder where a
    command is run, among files of others. (To ask for its backend would be to look for one.)"""
    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    return matplotlib.rc_context(plain | own)
