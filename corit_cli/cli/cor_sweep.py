"""``corit cor-sweep``: the SAM radius past which training collapses to random guessing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live

from corit_cli import __version__
from corit_cli.cli import options
from corit_cli.cli.console import err, escape, print_json, progress_bar, warn
from corit_cli.cli.cor_tables import runs_table, show_sweep, show_theory
from corit_cli.config import Optimization
from corit_cli.errors import CoritError
from corit_cli.model.settings import CoRITSettings, baseline

if TYPE_CHECKING:
    from corit_cli.analysis.cor import Criteria, Run
    from corit_cli.analysis.problem import Problem
    from corit_cli.analysis.sweep import Sweep

TRAINED = "What is trained"
OUTPUT = "Output"
#: Recipes by what is trained: a block in few small steps, heads in more and larger ones.
BLOCKS = Optimization(lr=3e-4, epochs=8, batch_size=16)
HEADS = Optimization(lr=1e-2, epochs=40, batch_size=32)

#: Parameters that --theory sets by itself.
THEORY_SETS = (
    *("rho", "compare", "features", "tune", "extend", "geometry", "resume", "view", "integrate", "cgp", "no_cgp"),
    *("pool", "inject_at", "mask", "alpha"),
)


def cor_sweep(
    ctx: typer.Context,
    rho: Annotated[
        str, typer.Option(metavar="LO:HI[:N]|LIST", help="Radii: a range, as in 0.01:0.5, or a list with commas.")
    ] = "0.01:0.5",
    seeds: Annotated[int, typer.Option(min=1, help="Runs at each radius.")] = 3,
    compare: Annotated[
        str, typer.Option(metavar="MODEL,MODEL", help="baseline, hri, corit: what is read.", rich_help_panel=TRAINED)
    ] = "baseline,corit",
    features: Annotated[
        str | None,
        typer.Option(
            metavar="last|hri|corit", help="Instead of --compare: one model, by what it reads.", rich_help_panel=TRAINED
        ),
    ] = None,
    tune: Annotated[
        str,
        typer.Option(
            metavar="head|ln|last:K|lora:R|all",
            help="Besides the head: nothing, layer norms, the last K blocks that are read, low-rank parts, everything.",
            rich_help_panel=TRAINED,
        ),
    ] = "last:1",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="A folder with real/ and fake/ in it, or a manifest. Default: what corit brings along.",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=20, help="Images to use, at most.", rich_help_panel=TRAINED)] = 400,
    optimizer: Annotated[
        str, typer.Option(metavar="adamw|sgd", help="The optimizer that SAM wraps.", rich_help_panel=TRAINED)
    ] = BLOCKS.optimizer,
    lr: Annotated[
        float | None,
        typer.Option(min=0, help=f"{HEADS.lr:g} for heads, else {BLOCKS.lr:g}.", rich_help_panel=TRAINED),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help=f"{HEADS.epochs} for heads, else {BLOCKS.epochs}.", rich_help_panel=TRAINED),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"{HEADS.batch_size} for heads, else {BLOCKS.batch_size}.", rich_help_panel=TRAINED),
    ] = None,
    hidden: Annotated[
        int, typer.Option(min=0, help="Width of the head's hidden layer; 0: a linear head.", rich_help_panel=TRAINED)
    ] = 0,
    m_sharpness: Annotated[
        int,
        typer.Option(
            "--m-sharpness",
            min=0,
            metavar="M",
            help="Images that share a perturbation; 0: the batch.",
            rich_help_panel=TRAINED,
        ),
    ] = 0,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Adaptive SAM.", rich_help_panel=TRAINED)] = False,
    friendly: Annotated[
        float | None, typer.Option(metavar="DECAY", help="Friendly SAM, as in 0.9.", rich_help_panel=TRAINED)
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on past HI, doubling it up to 64, until the cliff is found.")
    ] = False,
    geometry: Annotated[
        bool | None,
        typer.Option(
            "--geometry/--no-geometry",
            help="Local COR, smoothness and what theory makes of them at the initial weights. Default: for heads only.",
        ),
    ] = None,
    theory: Annotated[
        bool,
        typer.Option("--theory", help="Instead: does COR grow with GSNR? Signal weakened on purpose, both measured."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the split into training and validation.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.", rich_help_panel=OUTPUT)] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A plot, besides: .png or .svg.", rich_help_panel=OUTPUT)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FOLDER",
            help="Where finished runs are kept and taken up again. Default: in the cache, by what they depend on.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    backbone: options.Backbone = "embedded",
    activation: options.Activation = None,
    crop: options.Crop = None,
    crops: options.Crops = None,
    view: options.View = None,
    integrate: options.Integrate = None,
    cgp: options.Cgp = None,
    no_cgp: options.NoCgp = False,
    pool: options.Pool = None,
    inject_at: options.InjectAt = None,
    mask: options.Mask = None,
    alpha: options.Alpha = None,
    device: options.Device = "auto",
) -> None:
    """Find the radius (COR) past which training with SAM collapses to random guessing, and put an interval on it.

    \b
    corit cor-sweep --rho 0.01:0.5 --plot cor.png
    corit cor-sweep --rho 0.05:5:12 --tune head --hidden 64 --seeds 5
    corit cor-sweep --data faces/ --tune last:2 --extend --resume my-sweep
    corit cor-sweep --theory --hidden 64 --plot theory.png

    A run has collapsed when it ranks unseen images no better than a guess, or gives all of them the same answer.
    """
    from corit_cli.analysis.cor import radii_of

    radii = _checked(lambda: radii_of(rho))
    names = _names(features or compare, single=features is not None)
    base = HEADS if tune == "head" or theory else BLOCKS
    given = {"lr": lr, "epochs": epochs, "batch_size": batch_size}
    if theory:
        said = [name for name in THEORY_SETS if ctx.get_parameter_source(name).name == "COMMANDLINE"]
        if said:
            options_said = ", ".join("--" + name.replace("_", "-") for name in said)
            raise CoritError(f"--theory says itself what is read, trained and tried: leave out {options_said}")
        tune = "head"
    optimization = _checked(
        lambda: replace(
            base,
            optimizer=optimizer,
            hidden=hidden,
            m=m_sharpness,
            adaptive=adaptive,
            friendly=friendly,
            **{k: v for k, v in given.items() if v is not None},
        )
    )
    corit = options.corit_settings(view, integrate, cgp, no_cgp, pool, inject_at, mask, alpha)

    from corit_cli.analysis.problem import Problem
    from corit_cli.data.manifest import load_samples
    from corit_cli.engine.predict import pick_device
    from corit_cli.engine.tune import parse_scope
    from corit_cli.engine.weights import load_backbone
    from corit_cli.report.gsnr_plot import check_suffix

    if plot is not None:
        check_suffix(plot)
    scope = parse_scope(tune)
    device = pick_device(device)
    images = load_samples(data or options.shipped_samples())
    with err.status("loading the backbone"):
        loaded = load_backbone(backbone, activation, device)
    cut = options.crop_config(crop or "native", crops, loaded.tower.config.image_size)
    depth = loaded.tower.config.layers
    read = {"baseline": lambda: baseline(depth), "hri": corit.plain, "corit": lambda: corit}
    reads = {name: _checked(read[name]) for name in names}
    problem = Problem(images, loaded, cut, optimization, samples, seed, device, warn)
    if theory:
        return _theory(problem, seeds, plot, as_json)

    with progress_bar() as bar:
        arms = []
        for name in names:
            task = bar.add_task(f"{name}: frozen part", total=len(problem))
            arms.append(problem.arm(name, reads[name], scope, partial(bar.advance, task)))
    tests = problem.criteria
    about = {
        "corit": __version__,
        "tune": str(scope),
        "optimization": asdict(optimization),
        "models": {name: asdict(reads[name]) for name in names},
        "crops": asdict(cut),
        "backbone": loaded.sha256,
        "seed": seed,
        "data": problem.about,
    }
    found, folder = _run(arms, radii, range(seeds), tests, about, resume, extend, plot, _title(scope, optimization))
    shapes = {}
    if geometry or (geometry is None and scope.kind == "head"):
        with err.status("geometry at the initial weights"):
            for arm in arms:
                try:
                    shapes[arm.name] = problem.geometry(arm)
                except ValueError as error:
                    warn(f"no geometry of {arm.name}: {error}")
    if as_json:
        shown = {name: asdict(shape) for name, shape in shapes.items()}
        print_json(about | {"radii": radii, "seeds": seeds, "geometry": shown} | found.as_dict())
    else:
        trained = f"{_title(scope, optimization)}; {problem.about['train']} images, {problem.about['val']} to validate"
        show_sweep(found, shapes, trained, convex=scope.kind == "head" and not hidden)
        err.print(f"finished runs are kept in {escape(str(folder))}", soft_wrap=True)


def _checked(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ValueError as error:
        raise CoritError(str(error)) from None


def _names(text: str, single: bool) -> list[str]:
    known = {"baseline": "baseline", "last": "baseline", "hri": "hri", "corit": "corit"}
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(known) or (single and len(names) > 1):
        raise CoritError(f"models are baseline (the last layer), hri and corit, not {text!r}")
    return list(dict.fromkeys(known[name] for name in names))


def _title(scope: Any, o: Optimization) -> str:
    what = "a head on frozen features" if scope.kind == "head" else f"{scope} tuned with a head"
    return f"{what}, {o.optimizer}, lr {o.lr:g}, {o.epochs} epochs of batches of {o.batch_size}"


@contextmanager
def _live(tests: Criteria) -> Iterator[tuple[Callable[[Run], None], Callable[[int, int], None]]]:
    """A table of runs by model and radius, and a bar with the remaining time, on a terminal; else one line a run."""
    bar = progress_bar()
    task = bar.add_task("runs", total=0)
    runs: list[Run] = []
    kept = [0]  # runs from before, which took no time

    def picture() -> Group:
        return Group(runs_table(runs, tests), bar)

    with Live(picture(), console=err, refresh_per_second=2, transient=True, auto_refresh=err.is_terminal) as live:

        def tell(run: Run) -> None:
            runs.append(run)
            if err.is_terminal:
                bar.update(task, completed=max(0, len(runs) - kept[0]))
                live.update(picture())
            else:
                control = ", shuffled" if run.shuffled else ""
                which = f"{run.model}, radius {run.rho:g}{control}, seed {run.seed}"
                said = f"{which}: loss {run.loss:.3f}, AUC {run.auc:.3f}, {tests.outcome(run)}"
                err.print(said, soft_wrap=True)

        def plan(wanted: int, missing: int) -> None:
            kept[0] += wanted - missing
            bar.update(task, total=(bar.tasks[task].total or 0) + missing)

        yield tell, plan


def _run(
    arms: Sequence[Any],
    radii: Sequence[float],
    seeds: Sequence[int],
    tests: Criteria,
    about: dict[str, Any],
    resume: Path | None,
    extend: bool,
    plot: Path | None,
    title: str,
) -> tuple[Sweep, Path]:
    """The sweep, kept in a folder as it goes; interrupted, it leaves the plot of what there is."""
    from corit_cli.analysis.sweep import Journal, summary, sweep
    from corit_cli.engine.features import default_cache_path
    from corit_cli.report.cor_plot import cor_plot

    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = resume or default_cache_path().parent / "cor-sweep" / key
    journal = Journal(folder, about)
    try:
        with _live(tests) as (tell, plan):
            found = sweep(arms, radii, list(seeds), tests, journal, extend=extend, tell=tell, plan=plan)
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


def _theory(problem: Problem, seeds: int, plot: Path | None, as_json: bool) -> None:
    """Measure GSNR and COR of heads under weakened signal, and print, plot or dump their correlation."""
    from corit_cli.analysis.theory import theory
    from corit_cli.report.cor_plot import theory_plot

    depth = problem.backbone.tower.config.layers
    layers = tuple(range(1, depth + 1))
    with progress_bar() as bar:
        task = bar.add_task("class tokens", total=len(problem))
        settings = CoRITSettings(views=(), cgp=(), inject_at=(), integrate=layers)
        z = problem.features(settings, partial(bar.advance, task))
        tokens = dict(zip(layers, z.cpu().chunk(depth, dim=1), strict=True))  # small enough for the processor
        steps = bar.add_task("conditions", total=None)
        found = theory(
            tokens,
            problem.split,
            problem.units,
            problem.optimization,
            range(seeds),
            lambda kind, level: bar.update(steps, advance=1, description=f"{kind} {level:g}"),
        )
    if as_json:
        about = {"corit": __version__, "optimization": asdict(problem.optimization), "data": problem.about}
        print_json(about | found.as_dict())
    else:
        show_theory(found)
    if plot is not None:
        theory_plot(found, plot)
