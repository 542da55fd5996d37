"""``--config FILE.toml``: options in a file, keyed as on the command line, which wins; and a run's complete file.

Keys are the long names of options without dashes (``tune-lr``) and the names of arguments (``data``), values text,
numbers, true or false, and lists for what may be repeated. Paths are taken as they would be on the command line.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import typer

from corit_cli.cli.inputs import STDIN
from corit_cli.cli.outputs import check_place
from corit_cli.config import Settings, options_of
from corit_cli.data.urls import is_url
from corit_cli.errors import CoritError
from corit_cli.files import is_stream, unwritable, write_atomically
from corit_cli.model.hub import PREFIX
from corit_cli.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The configuration of a run, beside its checkpoint or in the folder of its sweep.
NAME = "run.toml"
#: How a complete configuration begins; nothing else is ever written over by one.
HEAD = "# corit "
#: What no complete configuration holds: secrets, and what a repetition must be asked for anew.
UNKEPT = frozenset(("config", "dry-run", "overwrite", "push-to-hub", "private", "token"))

#: Options whose text is a path unless it is a URL, and those whose text may end in one, as in ``reconstruct:FOLDER``.
PLACES, FORGERIES = frozenset(("paths", "out")), frozenset(("forge", "local"))


def key_of(parameter: Any) -> str:
    """What a parameter of a command is called in a file; empty where it has no place there."""
    longs = [name[2:] for name in parameter.opts if name.startswith("--")]
    if parameter.param_type_name == "argument":
        return parameter.name
    return longs[0] if longs and longs[0] not in ("help", "help-all") else ""


def defaults(file: Path, ctx: typer.Context) -> dict[str, Any]:
    """What ``file`` says of the parameters of a command, by parameter. Raises CoritError for what it cannot say."""
    try:
        with file.open("rb") as opened:
            said = tomllib.load(opened)
        repr(said)  # what cannot be shown, no error could tell of
    except OSError as error:
        raise CoritError(f"cannot read {file}: {error.strerror or error}") from None
    except RecursionError:
        raise CoritError(f"{file} is nested too deeply") from None
    except ValueError as error:
        raise CoritError(f"{file} is no TOML: {' '.join(str(error).split())}") from None
    known = {key_of(p): p for p in ctx.command.params if key_of(p) not in ("", "config")}
    function = inspect.unwrap(ctx.command.callback)
    hints, annotated = get_type_hints(function), get_type_hints(function, include_extras=True)
    out = {}
    for key, value in said.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f": did you mean {near[0]}?" if near else f"; see corit {ctx.info_name} --help-all"
            raise CoritError(f"{file}: corit {ctx.info_name} has no option {key!r}{hint}")
        parameter = known[key]
        parsed = any(getattr(one, "parser", None) for one in getattr(annotated[parameter.name], "__metadata__", ()))
        if not (parsed and isinstance(value, str)):
            _check_type(f"{file}: {key}", value, hints[parameter.name])
        out[parameter.name] = value
        try:
            parameter.process_value(ctx, value)
        except typer.BadParameter as error:
            raise CoritError(f"{file}: {key}: {error.message}") from None
    return out


def _check_type(called: str, value: Any, hint: Any) -> None:
    """Raise CoritError unless ``value``, of TOML, is of the type of a parameter."""
    (hint,) = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)] if _is_union(hint) else (hint,)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise CoritError(f"{called} takes a list, as in [{_shown(value)}], not {_shown(value)}")
        for one in value:
            _check_type(f"each of {called}", one, get_args(hint)[0])
        return
    kinds, words = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
    }.get(hint, ((str,), "text"))
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise CoritError(f"{called} takes {words}, not {_shown(value)}")


def _is_union(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


# --- the complete configuration of a run ----------------------------------------------------------


def complete(ctx: typer.Context, **groups: Settings) -> dict[str, Any]:
    """Every option of a run by key, with the settings that its groups came to. What is unset is left out; paths
    are absolute."""
    resolved: dict[str, Any] = {}
    for group, settings in groups.items():
        options = dict(options_of(type(settings)))
        for f in fields(settings):
            if f.name in options:
                value = getattr(settings, f.name)
                parse = options[f.name].parse
                resolved[f"{group}_{f.name}"] = options[f.name].spell(value) if parse else value
                resolved[f"{group}_without_{f.name}"] = None
    out = {}
    for parameter in ctx.command.params:
        key = key_of(parameter)
        value = (resolved if parameter.name in resolved else ctx.params).get(parameter.name)
        resumed = key == "resume" and isinstance(value, bool)
        if key and key not in UNKEPT and value is not None and not resumed:
            out[key] = _plain(key, value)
    return out


def _plain(key: str, value: Any) -> Any:
    """As TOML has it, with absolute paths."""
    if isinstance(value, list | tuple):
        return [_plain(key, one) for one in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value) if str(value).startswith(PREFIX) else os.path.abspath(value)
    if key in FORGERIES:
        name, colon, source = value.partition(":")
        return name + colon + (os.path.abspath(source) if os.path.isdir(source) else source)
    if key == "backbone":
        named = value == "embedded" or value.startswith(PREFIX)
        return value if named or not os.path.exists(value) else os.path.abspath(value)
    if key in PLACES:
        return value if value == STDIN or is_url(value) else os.path.abspath(value)
    return value


def _without_credentials(value: Any) -> Any:
    """URLs, in lists too, without user, password and query, which may hold a signature; all else as it is."""
    if isinstance(value, list):
        return [_without_credentials(one) for one in value]
    if not isinstance(value, str) or not is_url(value):
        return value
    url = urlsplit(value)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


def save(path: Path, command: str, configuration: Mapping[str, Any], checkpoint: str | None = None) -> None:
    """Write a complete configuration; a ``checkpoint`` from the Hub is named with the commit that was used. Secrets in
    URLs, and texts that are not UTF-8, are left out, which a comment says. Raises CoritError when it cannot be
    written."""
    import tomli_w

    configuration = configuration if checkpoint is None else {**configuration, "checkpoint": checkpoint}
    lines = [f"{HEAD}{__version__}: corit {command} --config {_utf8(path.name)}\n"]
    for key, value in configuration.items():
        public = _without_credentials(value)
        line = tomli_w.dumps({key: public})
        if public != value:
            lines.append(f"# {key} without what may be secret: user, password, query and fragment of URLs\n")
        lines.append(line if _utf8(line) == line else f"# {key} is left out: it is not UTF-8, as TOML is\n")
    write_atomically(path, lambda temporary: temporary.write_text("".join(lines), "utf-8"))


def _utf8(text: str) -> str:
    """``text`` with bytes that are not UTF-8, as names of files may have them, replaced."""
    return text.encode("utf-8", "replace").decode()


def own(path: Path) -> Path:
    """``path``, where a complete configuration may be written. Raises CoritError where it cannot, or something is that
    no run wrote."""
    if path.parent.is_dir():  # else it is made
        check_place(path)
    try:
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(HEAD.encode())):
            raise CoritError(f"cannot write {path}: what is there is no configuration that a run of corit left")
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def beside(report: Path | None) -> Path | None:
    """Where the configuration of a report is written, if any is: under its name with :data:`NAME` behind. Raises
    CoritError as :func:`own` does."""
    return None if report is None or is_stream(report) else own(report.with_name(f"{report.name}.{NAME}"))
