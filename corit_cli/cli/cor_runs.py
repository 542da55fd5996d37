"""The runs of a sweep: where they are kept, shown as they come, and what an interrupted one leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live

from corit_cli.cli import config_file
from corit_cli.cli.console import Bars, err, escape, live
from corit_cli.cli.cor_tables import runs_table
from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from corit_cli.cor.collapse import Criteria, Run
    from corit_cli.cor.sweep import MakeArm, Sweep


def kept() -> Path:
    """Where sweeps are kept, each in a folder of its own, unless --resume names one."""
    from corit_cli.features.cache import default_cache_path

    return default_cache_path().parent / "cor-sweep"


@contextmanager
def _live(tests: Criteria) -> Iterator[tuple[Bars, Callable[[Run], None]]]:
    """Bars below a table of runs by model and radius, where that can be drawn; else one line a run."""
    bars, runs = Bars(), []

    def picture() -> Group:
        return Group(runs_table(runs, tests), bars.bars)

    def say(run: Run) -> None:
        control = ", shuffled" if run.shuffled else ""
        which = f"{run.model}, radius {run.rho:g}{control}, seed {run.seed}"
        said = f"{which}: loss {run.loss:.3f}, AUC {run.auc:.3f}, {tests.outcome(run)}"
        err.print(said, soft_wrap=True)

    def show(run: Run) -> None:
        runs.append(run)
        display.update(picture())

    if live():
        with Live(picture(), console=err, refresh_per_second=2, transient=True) as display:
            yield bars, show
    else:
        with bars:
            yield bars, say


def run(
    arms: Mapping[str, MakeArm],
    radii: Sequence[float],
    seeds: Sequence[int],
    tests: Criteria,
    about: dict[str, Any],
    configuration: dict[str, Any],
    resume: Path | None,
    extend: bool,
    plot: Path | None,
    title: str,
) -> tuple[Sweep, Path]:
    """Run a sweep, kept in a folder as it goes; interrupted, it leaves the plot of what there is. Also returned: the
    folder."""
    from corit_cli.cor.sweep import Journal, summary, sweep
    from corit_cli.report.cor_plot import cor_plot

    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = resume or kept() / key
    try:
        record = config_file.own(folder / config_file.NAME)
        journal = Journal(folder, about)
    except OSError as error:
        raise CoritError(f"cannot keep runs in {folder}: {error.strerror or error}; give --resume FOLDER") from None
    config_file.save(record, "cor-sweep", configuration)
    try:
        with _live(tests) as (bars, tell):
            found = sweep(arms, radii, list(seeds), tests, journal, extend=extend, progress=bars, tell=tell)
    except KeyboardInterrupt:
        err.print(
            f"{len(journal.runs)} finished runs are kept in {escape(str(folder))}: run the same again to go on",
            soft_wrap=True,
        )
        so_far, picture = summary(journal.runs.values(), tests), plot or folder / "partial.png"
        if so_far.found:
            cor_plot(so_far, picture, title)
            err.print(f"partial plot: {escape(str(picture))}", soft_wrap=True)
        raise
    if plot is not None:
        cor_plot(found, plot, title)
    return found, folder
