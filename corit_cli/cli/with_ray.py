"""``--ray [ADDRESS]``: an option whose value may be left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corit_cli.cli.helping import Command
from corit_cli.cli.options import RUN, opt
from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from corit_cli.cor.sweep import MakeArm

_ADDRESS = re.compile(r"auto|local|ray://.+|[\w.-]+:\d+|\[[\da-f:]+\]:\d+")


class WithRay(Command):
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


def check(ray: str | None, num_cpus: float | None) -> None:
    """Raise CoritError for an option that has no meaning without the other."""
    if ray is None and num_cpus is not None:
        raise CoritError("--num-cpus goes with --ray")


@contextmanager
def workers(address: str, num_cpus: float | None) -> Iterator[tuple[ModuleType, int]]:
    """Ray, connected to a cluster, and the threads of each worker: as many as here if nobody says."""
    import torch

    from corit_cli.cluster.session import session

    with session(address) as ray:
        yield ray, max(1, round(num_cpus)) if num_cpus else torch.get_num_threads()


@contextmanager
def reading(address: str | None, num_cpus: float | None) -> Iterator[Any]:
    """What reads images on the cluster at ``address``, or None for this process."""
    if address is None:
        yield None
        return
    from corit_cli.cluster.reading import FarReading

    with workers(address, num_cpus) as found:
        yield FarReading(*found)


@contextmanager
def arms_on(
    arms: Mapping[str, MakeArm], address: str | None, num_cpus: float | None
) -> Iterator[Mapping[str, MakeArm]]:
    """What makes the arms of a sweep, or what makes arms that are trained on the cluster at ``address``."""
    if address is None:
        yield arms
        return
    from corit_cli.cluster.arms import far

    with workers(address, num_cpus) as found:
        yield {name: far(make, *found) for name, make in arms.items()}
