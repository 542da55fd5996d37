"""Settings that say themselves what their command-line options are: name, type, default, help and limits stand once.

A group of settings is a frozen dataclass derived from :class:`Settings`; a field made by :func:`option` becomes an
option of every command that takes the group (``cli/options.py``), any other field is for Python alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from corit_cli.errors import CoritError

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """How a field is given on a command line.

    Attributes:
        help: one line.
        flag: such as ``--rho``; by default the field's name.
        metavar: what stands for the value in the help.
        panel: heading that the help lists it under.
        choices: the values that are allowed, if only some are.
        minimum, maximum: bounds of a number.
        parse: the command line's text to the field's value; raises CoritError.
        spell: the field's value to a text that ``parse`` reads; None where there is none.
        many: whether it may be repeated; the field is then a tuple of texts.
        shown: how the default is written where it is no plain number, word or list of layers.
        without: another flag, without a value, that empties the field, such as ``--no-cgp``.
    """

    help: str
    flag: str = ""
    metavar: str | None = None
    panel: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    parse: Callable[[str], Any] | None = None
    spell: Callable[[Any], str | None] = lambda value: spelled(value)
    many: bool = False
    shown: str | None = None
    without: str = ""


def option(default: Any, help: str, **how: Any) -> Any:
    """A dataclass field with its ``default`` that is also an option; ``how`` as in :class:`Option`."""
    return field(default=default, metadata={"option": Option(help, **how)})


@dataclass(frozen=True)
class Settings:
    """Base of all groups of settings; raises CoritError for values that a field's option does not allow."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            plain = _plain(value)
            if plain is not value:
                object.__setattr__(self, f.name, value := plain)
            if not _fits(value, hints[f.name]):
                raise CoritError(f"{f.name} cannot be {value!r}")
        for name, o in options_of(type(self)):
            value, called = getattr(self, name), o.flag.lstrip("-")
            if o.choices and value not in o.choices:
                raise CoritError(f"{called} must be {', '.join(o.choices[:-1])} or {o.choices[-1]}, not {value!r}")
            if isinstance(value, int | float):
                if isinstance(value, float) and not isfinite(value):
                    raise CoritError(f"{called} must be a finite number, not {value:g}")
                if o.minimum is not None and not value >= o.minimum:
                    raise CoritError(f"{called} must be at least {o.minimum:g}, not {value:g}")
                if o.maximum is not None and not value <= o.maximum:
                    raise CoritError(f"{called} must be at most {o.maximum:g}, not {value:g}")


def _plain(value: Any) -> Any:
    """Lists as tuples, as JSON has tuples, and numbers of other kinds, such as NumPy's, as Python's own."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if type(value) in (int, float, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of a type: a plain one, a tuple of such, or one of several."""
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kinds:
        return any(_fits(value, kind) for kind in kinds)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, hint)


def options_of(group: type[Settings]) -> Iterator[tuple[str, Option]]:
    """The fields of ``group`` that are options, with these, in order; a flag that was left out is filled in."""
    for f in fields(group):
        if "option" in f.metadata:
            o: Option = f.metadata["option"]
            yield f.name, replace(o, flag=o.flag or "--" + f.name.replace("_", "-"))


def spelled(value: Any) -> str | None:
    """A parsed value as one would write it: ``none``, or numbers such as 4-9; None where there is nothing to write."""
    if value == ():
        return "none"
    if isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        together = len(value) > 2 and value == tuple(range(value[0], value[-1] + 1))
        return f"{value[0]}-{value[-1]}" if together else ",".join(map(str, value))
    return None


def restored(group: type[T], kept: Mapping[str, Any]) -> T:
    """A dataclass from what ``asdict`` and JSON made of it. Raises TypeError for fields that it does not have."""
    return group(**{name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()})
