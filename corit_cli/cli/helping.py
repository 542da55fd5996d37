"""``--help`` with the options that most people want, ``--help-all`` with every one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from corit_cli.errors import CoritError

ALL = "--help-all"
#: By command, what ``--help`` shows; commands that are not named show all that they have.
COMMON = {
    "detect": "recursive checkpoint fail-on strict explain faces stability heatmap html json jsonl csv quiet out "
    "resume device",
    "train": "out overwrite forge degrade local tune backbone head epochs device",
    "gsnr": "data checkpoint layers wrt compare samples by heads head-state strata plot json csv backbone device",
    "cor-sweep": "rho seeds tune hidden epochs data plot json theory compare backbone device",
}


class Plain:
    """Mixed into a command: its help names flags without a type."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class Command(Plain, TyperCommand):
    """A command whose help leaves out what is rarely wanted unless all is asked for."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if self.name in COMMON:
            self.epilog = f"{ALL} shows every option."

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        given = args[: args.index("--")] if "--" in args else args
        if ALL in given:
            ctx.meta[ALL] = True
            args = ["--help"]
        return super().parse_args(ctx, args if ctx.resilient_parsing else self._configured(ctx, args))

    def _configured(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Take the defaults of a file that ``--config`` names; ``args`` with the arguments that only this has."""
        said, _, _ = self.make_parser(ctx).parse_args(list(args))
        if said.get("help"):
            return args
        self._check(ctx, said)
        if not said.get("config"):
            return args
        from corit_cli.cli.config_file import defaults

        ctx.default_map = found = defaults(Path(said["config"]), ctx)
        for parameter in self.params:  # of which there may be none: the parser does not ask for defaults
            if parameter.nargs == -1 and not said.get(parameter.name) and parameter.name in found:
                args = [*args, *([] if "--" in args else ["--"]), *found[parameter.name]]
        return args

    def _check(self, ctx: typer.Context, said: dict[str, Any]) -> None:
        """Raise CoritError where an option took the next one for its value, since it was given none."""
        names = {name for one in self.get_params(ctx) for name in (*one.opts, *one.secondary_opts)} | {ALL}
        for option in (parameter for parameter in self.params if isinstance(parameter, TyperOption)):
            value = said.get(option.name or "")
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, str) and one.partition("=")[0] in names:
                    raise CoritError(f"{option.opts[0]} needs a value, and {one} is another option")

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        """As Typer does, of the common options alone unless ``--help-all`` asked."""
        common = COMMON.get(self.name or "")
        rare = []
        if common is not None and ALL not in ctx.meta:
            names = {f"--{name}" for name in common.split()} | {"--help"}
            options = (p for p in self.params if isinstance(p, TyperOption) and not p.hidden)
            rare = [parameter for parameter in options if not names & set(parameter.opts)]
        for parameter in rare:
            parameter.hidden = True
        try:
            super().format_help(ctx, formatter)
        finally:
            for parameter in rare:
                parameter.hidden = False
