"""What ``corit cor-sweep`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from corit_cli.cli.console import escape, out

if TYPE_CHECKING:
    from corit_cli.cor.collapse import Criteria, Run
    from corit_cli.cor.curvature import Geometry
    from corit_cli.cor.sweep import Sweep
    from corit_cli.cor.theory import Theory

#: Below so many seeds a bootstrap over them is too narrow.
FEW_SEEDS = 10


def runs_table(runs: Sequence[Run], tests: Criteria) -> Table:
    """One line a model and radius: means, and how many of the runs collapsed."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model", "radius", "loss", "AUC", "spread", "collapsed"):
        table.add_column(column, justify="left" if column == "model" else "right")
    keys = dict.fromkeys((r.model, r.shuffled, r.rho) for r in sorted(runs, key=lambda r: (r.shuffled, r.rho)))
    for model, shuffled, rho in sorted(keys, key=lambda k: ([r.model for r in runs].index(k[0]), k[1:])):
        chosen = [r for r in runs if (r.model, r.shuffled, r.rho) == (model, shuffled, rho)]
        outcomes = [tests.outcome(r) for r in chosen]
        good = [r for r, outcome in zip(chosen, outcomes, strict=True) if outcome != "diverged"]
        names = ("loss", "auc", "spread")
        mean = [sum(getattr(r, name) for r in good) / len(good) if good else float("nan") for name in names]
        broken = outcomes.count("diverged")
        table.add_row(
            model,
            f"{rho:g}" + (", shuffled" if shuffled else ""),
            *(f"{value:.3f}" for value in mean),
            f"{outcomes.count('collapsed')} of {len(chosen)}" + (f", {broken} diverged" if broken else ""),
        )
    return table


def show_sweep(found: Sweep, shapes: dict[str, Geometry], trained: str, convex: bool) -> None:
    """What was trained, every radius, the tests, COR of each model, the geometry, and what to be careful of."""
    t = found.tests
    out.print(f"Trained: {trained}.", soft_wrap=True)
    out.print(runs_table([r for f in found.found.values() for r in f.runs], t))
    out.print(
        f"Collapsed: validation AUC at most {t.null_auc:.3f}, where guessing ends up 39 times in 40 on {t.reals} real "
        f"and {t.fakes} fake independent images; or loss not {t.margin:g} below chance ({t.chance:.3f}) while logits "
        f"spread by less than {t.floor:g}.",
        soft_wrap=True,
    )
    for name, f in found.found.items():
        out.print(f"[bold]COR of {escape(name)}: {escape(str(f.cor))}[/]", soft_wrap=True)
    seeds = len({r.seed for f in found.found.values() for r in f.runs})
    if seeds < FEW_SEEDS:
        out.print(
            f"Brackets come from resampling {seeds} seeds; of so few they hold the truth less often than 95 times in a "
            f"hundred: --seeds {FEW_SEEDS} says more.",
            soft_wrap=True,
        )
    for name, g in shapes.items():
        _show_geometry(name, g, convex)
    for warning in found.warnings():
        out.print(f"[yellow]Warning:[/] {escape(warning)}", soft_wrap=True)


def _show_geometry(name: str, g: Geometry, convex: bool) -> None:
    def radius(value: float | None) -> str:
        return "none up to the limit" if value is None else f"{value:.3g}"

    linear = ": without a hidden layer the loss is convex" if g.local is None else ""
    text = (
        f"At {name}'s initial weights: GSNR {g.gsnr:.4f}, ||E g|| {g.gradient_norm:.3g}, smoothness {g.smoothness:.3g}"
        f"{'' if g.converged else ' (not settled)'}; guaranteed radius {g.bound:.3g}; local COR {radius(g.local)} "
        f"[{radius(g.local_low)}, {radius(g.local_high)}]{linear if convex else ''}; edge of stability "
        f"{'none' if g.edge is None else f'{g.edge:.3g}'} (plain gradient steps)."
    )
    out.print(escape(text), soft_wrap=True)


def show_theory(found: Theory) -> None:
    """GSNR and COR under every condition, and their rank correlations."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("varied", "level", "GSNR", "COR"):
        table.add_column(column, justify="left" if column in ("varied", "COR") else "right", no_wrap=True)
    for c in found.conditions:
        gsnr = f"{c.gsnr.value:.4f} [{c.gsnr.low:.4f}, {c.gsnr.high:.4f}]"
        table.add_row(c.kind, f"{c.level:g}", gsnr, str(c.cor))
    out.print(table)
    for line in found.left_out:
        out.print(escape(f"left out: {line}"), soft_wrap=True)
    for kind, e in {"all": found.correlation, **found.by_kind}.items():
        out.print(escape(f"Spearman's correlation of COR with GSNR, {kind}: {e}"), soft_wrap=True)
    out.print(
        "p is the share of orders that correlate as strongly, a guide and no more, since conditions share images. "
        "Neighbouring layers are alike, and all conditions share levels: none can be told of them.",
        soft_wrap=True,
    )
