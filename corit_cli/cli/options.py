"""Options that several commands share: those of settings, expanded from their fields, and a few others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypedDict, TypeVar, get_type_hints

import typer

from corit_cli.cli.console import warn
from corit_cli.cli.outputs import check_file, check_place
from corit_cli.config import Settings, options_of
from corit_cli.errors import CoritError
from corit_cli.model.settings import PANEL as MODEL
from corit_cli.model.settings import PRECISIONS

RUN, OUTPUT = "Running", "Output"
S = TypeVar("S", bound=Settings)


class Words(TypedDict):
    metavar: str
    autocompletion: Callable[[str], list[str]]


def words(*allowed: str) -> Words:
    """What makes an option show the words it takes, and complete them. It does not check them."""
    return {
        "metavar": "|".join(allowed),
        "autocompletion": lambda incomplete: [word for word in allowed if word.startswith(incomplete)],
    }


def opt(flags: str, help: str, panel: str | None = None, **how: Any) -> Any:
    """Typer's option with one line of help, under a panel's heading; its ``flags`` have blanks between."""
    return typer.Option(*flags.split(), help=help, rich_help_panel=panel, **how)


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given(Generic[S]):
    """What a command line and a file say of a group of settings: values by field, the flags that were given, and the
    values that these ask for. A complete file names every option: what it leaves as it is, it does not ask for."""

    values: Mapping[str, Any]
    flags: tuple[str, ...]
    asked: Mapping[str, Any]

    def over(self, default: S) -> S:
        """``default`` with what was given. Raises CoritError for values that do not go together."""
        return replace(default, **self.values)


def expand(
    *, other: tuple[str, Settings] | None = None, **shown: Settings
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command's parameters of these names into the options of a group of settings.

    The command gets a :class:`Given` for each; the defaults that ``--help`` shows are those of the settings given here,
    and, where they differ, those of an ``other`` group of the same kind, with the words that say when these hold.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            own = _parameters(parameter.name, shown[parameter.name], other) if parameter.name in shown else [parameter]
            parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        wants_context = "ctx" in signature.parameters
        if not wants_context:
            parameters.append(_parameter("ctx", typer.Context))

        def expanded(**arguments: Any) -> None:
            context: typer.Context = arguments["ctx"]
            for group, default in shown.items():
                arguments[group] = _given(group, default, arguments, context)
            if not wants_context:
                del arguments["ctx"]
            command(**arguments)

        expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        expanded.__annotations__ = {p.name: p.annotation for p in parameters}
        expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
        return expanded

    return decorate


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters(group: str, shown: Settings, other: tuple[str, Settings] | None) -> Iterator[inspect.Parameter]:
    """The parameters that Typer makes options of."""
    hints = get_type_hints(type(shown))
    for name, o in options_of(type(shown)):
        how: dict[str, Any] = {"metavar": o.metavar}
        if o.choices:
            how |= words(*o.choices)
        if o.minimum is not None and o.parse is None:
            how["min"] = o.minimum
        if o.maximum is not None and o.parse is None:
            how["max"] = o.maximum
        kind, default = hints[name], getattr(shown, name)
        unchanged = default == getattr(type(shown), name, None)
        if other is not None and type(other[1]) is type(shown) and getattr(other[1], name) != default:
            how["show_default"] = f"{default:g}; {getattr(other[1], name):g} {other[0]}"
        if o.many:
            kind, default = list[str], list(default)
        elif o.parse is not None:
            kind, default = str | None, o.shown if o.shown and unchanged else o.spell(default)
        yield _parameter(f"{group}_{name}", Annotated[kind, opt(o.flag, o.help, o.panel or None, **how)], default)
        if o.without:
            flag = opt(o.without, f"The same as {o.flag} none.", o.panel or None)
            yield _parameter(f"{group}_without_{name}", Annotated[bool, flag], False)


def _given(group: str, shown: Settings, arguments: dict[str, Any], context: typer.Context) -> Given:
    """Take the group's options out of ``arguments``. Raises CoritError for texts that cannot be understood."""

    def source(parameter: str) -> str:
        return context.get_parameter_source(parameter).name

    values, flags, asked = {}, [], {}
    for name, o in options_of(type(shown)):
        own, without = f"{group}_{name}", f"{group}_without_{name}"
        value, left_out = arguments.pop(own), o.without and arguments.pop(without)
        said = source(own) != "DEFAULT"
        if said and left_out:
            if source(own) == source(without):
                raise CoritError(f"give {o.flag} or {o.without}, not both")
            said = source(own) == "COMMANDLINE"
        if said:
            values[name] = tuple(value) if o.many else o.parse(value) if o.parse else value
            if source(own) == "COMMANDLINE" or values[name] != getattr(shown, name):
                flags.append(o.flag)
                asked[name] = values[name]
        elif left_out:
            values[name] = asked[name] = ()
            flags.append(o.without)
    return Given(values, tuple(flags), asked)


# --- options of the commands' own -----------------------------------------------------------------

Device = Annotated[str, opt("--device", "Where the model runs.", RUN, **words("auto", "cpu", "cuda"))]
Precision = Annotated[
    str, opt("--precision", "Arithmetic of the model; auto: the faster one here.", RUN, **words(*PRECISIONS))
]
Backbone = Annotated[
    str,
    opt(
        "--backbone",
        "embedded (CLIP ViT-B/16, no network), an open_clip name such as ViT-L-14/openai, a Hub repository "
        "(USER/NAME[@REVISION]), or a .safetensors file.",
        MODEL,
        metavar="NAME",
    ),
]
Activation = Annotated[
    str | None,
    opt(
        "--activation",
        "Only for a .safetensors file with no config.json beside it.",
        MODEL,
        **words("quick_gelu", "gelu"),
    ),
]
Checkpoint = Annotated[
    Path | None,
    opt("--checkpoint -c", "A detector that corit train made.", metavar="FOLDER|hf-hub:USER/NAME[@REVISION]"),
]
Config = Annotated[
    Path | None,
    opt("--config", "Options from a TOML file, keyed by their names; the command line wins.", RUN, metavar="FILE"),
]
DryRun = Annotated[
    bool, opt("--dry-run", "Say what would be read, trained and written, and how long it may take; do nothing.", RUN)
]
Cache = Annotated[Path | None, opt("--cache", "Where features are kept.", RUN, metavar="FILE")]
NoCache = Annotated[bool, opt("--no-cache", "Keep no features on disk.", RUN)]
CacheSize = Annotated[float, opt("--cache-size", "Size that the cache may reach.", RUN, min=0.01, metavar="GB")]
Json = Annotated[bool, opt("--json", "One JSON document.", OUTPUT)]
CsvFile = Annotated[Path | None, opt("--csv", "Also a CSV file.", OUTPUT, metavar="FILE", callback=check_file)]
Html = Annotated[
    Path | None, opt("--html", "Also a report to hand on, in one file.", OUTPUT, metavar="FILE", callback=check_file)
]
Plot = Annotated[Path | None, opt("--plot", "Also a plot: .png or .svg.", OUTPUT, metavar="FILE", callback=check_place)]


def parse_workers(text: str | int) -> int | None:
    """A number of threads, None for ``auto``. Raises BadParameter otherwise."""
    if text == "auto":
        return None
    if str(text).isdecimal() and int(text) > 0:
        return int(text)
    raise typer.BadParameter(f"a number from 1 on, or auto, not {text!r}")


Workers = Annotated[
    int | None,
    opt(
        "--workers",
        "Threads that decode images; auto if not given.",
        RUN,
        parser=parse_workers,
        metavar="auto|N",
        autocompletion=words("auto")["autocompletion"],
    ),
]


@contextmanager
def feature_cache(file: Path | None, off: bool, gigabytes: float) -> Iterator[Any]:
    """The cache that ``Cache``, ``NoCache`` and ``CacheSize`` ask for, or None; closed at the end."""
    from corit_cli.features.cache import FeatureCache, default_cache_path

    if off:
        yield None
        return
    cache = FeatureCache(file or default_cache_path(), int(gigabytes * 2**30), warn)
    try:
        yield cache
    finally:
        cache.close()


def check_crops(given: Given, reads: Given, mode: str) -> None:
    """Raise CoritError where native windows are counted and there are none, or are to be read beside the resized one
    and are not, or faces by what reads none; ``mode`` is the command's own, ``native`` that of the instruments."""
    if mode == "native" and reads.asked.get("face"):
        raise CoritError("--face is for corit train: no face is read by itself here")
    mode = given.values.get("mode", mode)
    if mode == "resize" and "crops" in given.asked:
        raise CoritError("--crops counts native windows: --crop resize has none")
    if mode != "both" and reads.asked.get("native"):
        raise CoritError("--native reads native windows beside the resized one: that takes --crop both")


def listed(text: str, allowed: Sequence[str], flag: str) -> list[str]:
    """Names with commas between, each once. Raises CoritError for others than those ``allowed``."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if not set(names) <= set(allowed):
        raise CoritError(f"{flag} takes {', '.join(allowed)}, with commas between, not {text!r}")
    return names


def shipped_samples() -> Path:
    """The manifest of the sample set that corit brings along. Raises CoritError when it is missing."""
    from corit_cli.files import weights_dir

    manifest = weights_dir() / "samples" / "manifest.csv"
    if not manifest.is_file():
        raise CoritError(f"{manifest} is missing: install corit again, or give --data")
    return manifest
