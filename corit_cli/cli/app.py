"""The ``corit`` command. Each command has a file of its own; torch is imported inside them, never for ``--help``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from corit_cli.cli import cor_sweep, detect, evaluate, gsnr, train
from corit_cli.cli.console import err, escape
from corit_cli.errors import CoritError
from corit_cli.texts import forgive_encodings
from corit_cli.version import __version__


class Commands(TyperGroup):
    """Turns what a user can mend into one line and an exit code."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
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


app.command("detect")(detect.detect)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("gsnr")(gsnr.gsnr)
app.command("cor-sweep")(cor_sweep.cor_sweep)


def main() -> None:
    """Entry point of the ``corit`` script."""
    forgive_encodings()
    sys.exit(app())
