"""The ``corit`` command. Each command has a file of its own; torch is imported inside them, never for ``--help``."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from corit_cli.cli import cor_sweep, detect, evaluate, gsnr, push, serve, train
from corit_cli.cli.console import err, escape
from corit_cli.cli.helping import ALL, Command, Plain
from corit_cli.cli.with_ray import WithRay
from corit_cli.errors import CoritError
from corit_cli.texts import forgive_encodings
from corit_cli.version import __version__


class Commands(Plain, TyperGroup):
    """Turns what a user can mend into one line and an exit code."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            if sys.stdout is None:
                raise CoritError("standard output is closed: there is nowhere to write to")
            return super().invoke(ctx)
        except CoritError as error:
            message, code = str(error), 2
        except KeyboardInterrupt:
            message, code = "interrupted", 130
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            message, code = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
        err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
        raise typer.Exit(code)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--help"] if args[:1] == [ALL] else args)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:
        """A file where a command should stand is most likely to be looked at."""
        if args and self.get_command(ctx, args[0]) is None and os.path.lexists(args[0]):
            raise CoritError(
                f"{args[0]} is no command: to look at a file, run {shlex.join(['corit', 'detect', *args])}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"corit {__version__}")
        raise typer.Exit


@app.callback()
def corit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Deepfake and AI-image forensics: is this picture real, and how sure can one be?"""


app.command("detect", cls=WithRay)(detect.detect)
app.command("serve", cls=Command)(serve.serve)
app.command("train", cls=WithRay)(train.train)
app.command("evaluate", cls=Command)(evaluate.evaluate)
app.command("gsnr", cls=Command)(gsnr.gsnr)
app.command("cor-sweep", cls=WithRay)(cor_sweep.cor_sweep)
app.command("push", cls=Command)(push.push)


def main() -> None:
    """Entry point of the ``corit`` script."""
    forgive_encodings()
    sys.exit(app())
