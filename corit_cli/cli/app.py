"""The ``corit`` command. Each command has a file of its own, loaded when it is used; torch is imported inside them,
never for ``--help``."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from corit_cli.cli.console import err, escape
from corit_cli.cli.helping import ALL, Command, Plain
from corit_cli.errors import CoritError
from corit_cli.texts import forgive_encodings
from corit_cli.version import __version__


class Commands(Plain, TyperGroup):
    """Turns what a user can mend into one line and an exit code."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            if sys.stdout is None:
                raise CoritError("standard output is closed: there is nowhere to write to")
            if sys.platform == "win32":
                raise CoritError("corit runs on Linux and macOS; on Windows use WSL")
            return super().invoke(ctx)
        except CoritError as error:
            message, code = str(error), 2
        except KeyboardInterrupt:
            message, code = "interrupted", 130
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            message, code = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2
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


class LazyCommand(TyperCommand):
    """A command as the list of all shows it: what it takes is loaded when it is used."""

    def make_context(self, *arguments: Any, **more: Any) -> typer.Context:
        return load_command(self.name).make_context(*arguments, **more)


def load_command(name: str) -> TyperCommand:
    """A command by its name, with all that it takes."""
    from corit_cli.cli.with_ray import WithRay

    name_in_python = name.replace("-", "_")
    function = getattr(import_module(f"corit_cli.cli.{name_in_python}"), name_in_python)
    alone = typer.Typer(**_SETTINGS, add_completion=False)
    alone.command(name, cls=WithRay if "ray" in inspect.signature(function).parameters else Command)(function)
    return get_command(alone)


_SETTINGS: dict[str, Any] = {
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
#: The commands, in the order in which they are listed, and what each is for: the first line of its own help.
COMMANDS = {
    "detect": "Say of each image whether it is real, fake or uncertain, with the probability that it is fake.",
    "serve": "Answer over HTTP what corit detect says of files: a page to drop pictures on, JSON, reports.",
    "train": "Train a detector on labelled images, calibrate it, and show what it is worth.",
    "evaluate": "Measure a detector on labelled images: AUC and error rates with intervals, by source and generator, "
    "degraded, beside other detectors, or trained anew without each source.",
    "gsnr": "Measure where in the backbone the gradient carries signal, and what CoRIT does about it.",
    "cor-sweep": "Find the radius (COR) past which training with SAM collapses to random guessing, and put an "
    "interval on it.",
    "push": "Put a detector on the Hugging Face Hub: weights, configuration, and a model card made from "
    "measured figures.",
}
app = typer.Typer(cls=Commands, no_args_is_help=True, **_SETTINGS)


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


for _name, _purpose in COMMANDS.items():
    app.command(_name, cls=LazyCommand, help=_purpose)(lambda: None)  # never called: see LazyCommand


def main() -> None:
    """Entry point of the ``corit`` script."""
    forgive_encodings()
    sys.exit(app())
