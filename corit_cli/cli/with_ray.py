"""``--ray [ADDRESS]``: an option whose value may be left out."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from typer.core import TyperCommand

from corit_cli.cli.options import RUN, opt

_ADDRESS = re.compile(r"auto|local|ray://.+|[\w.-]+:\d+|\[[\da-f:]+\]:\d+")


class WithRay(TyperCommand):
    """A command whose ``--ray`` is followed by an address, or by anything else: then it means ``--ray local``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        for i in range(end):
            if args[i] == "--ray" and not (i + 1 < end and _ADDRESS.fullmatch(args[i + 1])):
                args[i] = "--ray=local"
        return super().parse_args(ctx, args)


Ray = Annotated[
    str | None,
    opt("--ray", "On a Ray cluster: auto or HOST:PORT; left out, one of this machine's own.", RUN, metavar="[ADDRESS]"),
]
NumCpus = Annotated[float | None, opt("--num-cpus", "CPUs of each worker on it.", RUN, min=0.1)]
