"""Settings that say themselves what their command-line options are: name, type, default, help and limits stand once.

A group of settings is a frozen dataclass derived from :class:`Settings`; a field made by :func:`option` becomes an
option of every command that takes the group (``cli/options.py``), any other field is for Python alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

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
        many: whether it may be repeated; the field is then a tuple of texts.
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
    many: bool = False
    without: str = ""


def option(default: Any, help: str, **how: Any) -> Any:
    """A dataclass field with its ``default`` that is also an option; ``how`` as in :class:`Option`."""
    return field(default=default, metadata={"option": Option(help, **how)})


@dataclass(frozen=True)
class Settings:
    """Base of all groups of settings; raises CoritError for values that a field's option does not allow."""

    def __post_init__(self) -> None:
        for name, o in options_of(type(self)):
            value = getattr(self, name)
            if not _fits(value, type(self).__dataclass_fields__[name].default):
                raise CoritError(f"{o.flag.lstrip('-')} cannot be {value!r}")
            if o.choices and value not in o.choices:
                allowed = f"{', '.join(o.choices[:-1])} or {o.choices[-1]}"
                raise CoritError(f"{o.flag.lstrip('-')} must be {allowed}, not {value!r}")
            if isinstance(value, int | float):
                if o.minimum is not None and not value >= o.minimum:
                    raise CoritError(f"{o.flag.lstrip('-')} must be at least {o.minimum:g}, not {value:g}")
                if o.maximum is not None and not value <= o.maximum:
                    raise CoritError(f"{o.flag.lstrip('-')} must be at most {o.maximum:g}, not {value:g}")


def _fits(value: Any, default: Any) -> bool:
    """Whether ``value`` is of the kind of a field's ``default``; anything may stand where that is None."""
    if isinstance(default, tuple) and default:
        return isinstance(value, tuple | list) and all(_fits(v, default[0]) for v in value)
    if isinstance(default, bool | int | float):
        numbers = (int, float) if isinstance(default, float) else (int,)
        return isinstance(value, numbers) and isinstance(value, bool) == isinstance(default, bool)
    return default is None or isinstance(value, type(default))


def options_of(group: type[Settings]) -> Iterator[tuple[str, Option]]:
    """The fields of ``group`` that are options, with these, in order; a flag that was left out is filled in."""
    for f in fields(group):
        if "option" in f.metadata:
            o: Option = f.metadata["option"]
            yield f.name, replace(o, flag=o.flag or "--" + f.name.replace("_", "-"))


def restored(group: type[T], kept: Mapping[str, Any]) -> T:
    """A dataclass from what ``asdict`` and JSON made of it. Raises TypeError for fields that it does not have."""
    return group(**{name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()})
