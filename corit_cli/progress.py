"""How long work tells what it is doing, and is told to leave off: one shape of callback for all of it.

A function that takes long takes a :class:`Progress` and calls it with a title and, where it is known, with how many
items there are; it gets back an :class:`Advance`, which it tells of every item that is done. A :data:`Stop` it asks
now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

#: How many items a stage has: None where nobody knows, a function where it may become known on the way.
Total = int | None | Callable[[], int | None]
#: Asked between two pieces of work; where it says true, nobody wants the rest any more.
Stop = Callable[[], bool]


class Advance(Protocol):
    """Told of ``count`` more items that are done, and perhaps with a ``note`` on how it goes, such as a loss."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


class Progress(Protocol):
    """Told of a stage of the work before it begins, and of how many items it has."""

    def __call__(self, title: str, total: Total = None) -> Advance: ...


def quiet(title: str, total: Total = None) -> Advance:
    """A :class:`Progress` that shows nothing."""
    return hush


def hush(count: int = 1, note: str = "") -> None:
    """An :class:`Advance` that shows nothing."""


def never() -> bool:
    """A :data:`Stop` for what is wanted to its end."""
    return False
