"""``corit cor-sweep``: the SAM radius past which training collapses to random guessing."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corit_cli.cli import config_file, cor_runs, forecast, options, with_ray
from corit_cli.cli.console import Bars, err, escape, print_json, warn, working
from corit_cli.cli.cor_tables import show_sweep, show_theory
from corit_cli.cli.options import Given, opt
from corit_cli.cor.settings import BLOCKS, HEADS, Optimization
from corit_cli.cor.settings import PANEL as TRAINED
from corit_cli.data.settings import CropConfig
from corit_cli.errors import CoritError
from corit_cli.model.settings import METHOD, CoRITSettings, baseline
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.cor.arms import HeadArm, TunedArm
    from corit_cli.cor.problem import Problem
    from corit_cli.cor.sweep import Arm, MakeArm
    from corit_cli.model.scope import Scope
    from corit_cli.progress import Progress

#: Parameters that --theory sets by itself, besides all that is read.
THEORY_SETS = ("rho", "compare", "tune", "extend", "geometry", "resume", "precision")


@options.expand(other=("for heads", HEADS), optimization=BLOCKS, reads=METHOD, windows=CropConfig("native"))
def cor_sweep(
    ctx: typer.Context,
    optimization: Given[Optimization],
    reads: Given[CoRITSettings],
    windows: Given[CropConfig],
    rho: Annotated[
        str, opt("--rho", "Radii: a range, as in 0.01:0.5, or a list with commas.", metavar="LO:HI[:N]|LIST")
    ] = "0.01:0.5",
    seeds: Annotated[int, opt("--seeds", "Runs at each radius.", min=1)] = 3,
    compare: Annotated[
        str, opt("--compare", "Models by what they read: baseline, hri, corit.", TRAINED, metavar="MODEL,MODEL")
    ] = "baseline,corit",
    tune: Annotated[
        str,
        opt(
            "--tune",
            "Besides the head: nothing, layer norms, the last K blocks that are read, low-rank parts, everything.",
            TRAINED,
            metavar="head|ln|last:K|lora:R|all",
        ),
    ] = "last:1",
    data: Annotated[
        Path | None,
        opt(
            "--data",
            "A folder with real/ and fake/ in it, or a manifest. Default: what corit brings along.",
            TRAINED,
            metavar="DATA",
        ),
    ] = None,
    samples: Annotated[int, opt("--samples", "Images to use, at most.", TRAINED, min=20)] = 400,
    extend: Annotated[bool, opt("--extend", "Go on past HI, doubling it up to 64, until the cliff is found.")] = False,
    geometry: Annotated[
        bool | None,
        opt(
            "--geometry/--no-geometry",
            "Local COR, smoothness and what theory makes of them at the initial weights. Default: for heads only.",
        ),
    ] = None,
    theory: Annotated[
        bool, opt("--theory", "Instead: does COR grow with GSNR? Weaken the signal step by step and measure both.")
    ] = False,
    seed: Annotated[int, opt("--seed", "Seed of the split into training and validation.")] = 0,
    as_json: options.Json = False,
    plot: options.Plot = None,
    resume: Annotated[
        Path | None,
        opt(
            "--resume",
            "Where finished runs are kept and taken up again. Default: in the cache, by what they depend on.",
            options.OUTPUT,
            metavar="FOLDER",
        ),
    ] = None,
    backbone: options.Backbone = "embedded",
    activation: options.Activation = None,
    ray: with_ray.Ray = None,
    num_cpus: with_ray.NumCpus = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    config: options.Config = None,
    dry_run: options.DryRun = False,
) -> None:
    """Find the radius (COR) past which training with SAM collapses to random guessing, and put an interval on it.

    \b
    corit cor-sweep --rho 0.01:0.5 --plot cor.png
    corit cor-sweep --rho 0.05:5:12 --tune head --hidden 64 --seeds 5
    corit cor-sweep --data faces/ --tune last:2 --extend --resume my-sweep
    corit cor-sweep --theory --hidden 64 --plot theory.png
    corit cor-sweep --tune last:2 --seeds 10 --ray auto --num-cpus 4

    A run has collapsed when it ranks unseen images no better than a guess, or gives all of them the same answer.
    """
    from corit_cli.cor.collapse import radii_of

    radii = radii_of(rho)
    names = options.listed(compare, ("baseline", "hri", "corit"), "--compare")
    if theory:
        usual = {p.name: p.default for p in ctx.command.params}
        said = [
            f"--{name}"
            for name in THEORY_SETS
            if ctx.get_parameter_source(name).name == "COMMANDLINE" or ctx.params[name] != usual[name]
        ]
        if said or reads.flags:
            said = ", ".join([*said, *reads.flags])
            raise CoritError(f"--theory decides what is read, trained and tried, and how: leave out {said}")
        tune = "head"
    recipe = optimization.over(HEADS if tune == "head" else BLOCKS)
    options.check_crops(windows, reads, "native")
    corit = reads.over(METHOD)

    from corit_cli.cor.problem import Problem
    from corit_cli.data.manifest import load_samples
    from corit_cli.detection.detector import pick_device
    from corit_cli.model.loading import load_backbone
    from corit_cli.model.precision import pick_precision
    from corit_cli.model.scope import parse_scope

    if plot is not None:
        from corit_cli.report.figure import check_suffix

        check_suffix(plot)
    scope = parse_scope(tune)
    frozen = scope.kind in ("head", "last") and not theory  # of the others no block is
    if precision not in ("auto", "fp32") and not frozen:
        raise CoritError(f"--precision is that of frozen blocks, of which --tune {scope} leaves none: leave it out")
    with_ray.check(ray, num_cpus)
    if ray and (theory or device == "cuda"):
        raise CoritError("--ray trains the runs of a sweep on CPUs: leave out --theory and --device cuda")
    device = pick_device("cpu" if ray else device)
    images = load_samples(data or options.shipped_samples(), warn)
    with working("loading the backbone"):
        loaded = load_backbone(backbone, activation, device)
    load = partial(load_backbone, loaded.name, activation, device)  # a name on the Hub has its revision by now
    asked = "fp32" if ray and precision == "auto" else precision  # a cluster's machines may differ
    arithmetic = pick_precision(asked, device, loaded) if frozen else "fp32"
    config, digest = loaded.tower.config, loaded.sha256
    cut = replace(windows.over(CropConfig("native")), size=config.image_size, interpolation=config.interpolation)
    known = {"baseline": lambda: baseline(config.layers), "hri": corit.plain, "corit": lambda: corit}
    models = {name: known[name]() for name in names}
    problem = Problem(
        images, loaded, cut, recipe, samples, seed=seed, device=device, warn=warn, precision=arithmetic, load=load
    )
    del loaded  # the problem's, to be let go
    for read in models.values() if not theory else ():
        problem.check(read, scope)
    if dry_run:
        if theory:
            raise CoritError("--dry-run does not foresee --theory: leave one of them out")
        from corit_cli.cor.foresee import foresee

        kept = forecast.cache_file(None, scope.kind != "head")
        with forecast.foreseeing():
            cost, runs, more = foresee(problem, models, scope, radii, seeds, kept)
        written = forecast.outputs(plot=plot, runs=resume or cor_runs.kept(), features=kept)
        return forecast.of_sweep(len(problem), len(images), cost, runs, more, written).show()
    if theory:
        return _theory(problem, seeds, plot, as_json)

    def make(name: str, progress: Progress) -> HeadArm | TunedArm:
        return problem.arm(name, models[name], scope, progress(f"{name}: frozen part", len(problem)))

    geometry = scope.kind == "head" if geometry is None else geometry
    arms: dict[str, MakeArm] = {name: partial(make, name) for name in names}
    ready = {}
    if geometry or scope.kind == "head":  # wanted again, or small
        with Bars() as bars:
            ready = {name: arm(bars) for name, arm in arms.items()}
        arms = {name: partial(_made, arm) for name, arm in ready.items()}
    with working("reading the images"):
        tests = problem.criteria
    tests.check()  # by what can be read
    about = {
        "corit": __version__,
        "tune": str(scope),
        "optimization": asdict(recipe),
        "models": {name: asdict(read) for name, read in models.items()},
        "crops": asdict(cut),
        "backbone": digest,
        "precision": arithmetic,
        "seed": seed,
        "data": problem.about,
        "shuffled": "alike in both classes",  # kept runs of before were shuffled anyhow
    }
    title = _title(scope, recipe)
    shown = windows.over(CropConfig("native"))
    configuration = config_file.complete(ctx, optimization=recipe, reads=corit, windows=shown)
    with with_ray.arms_on(arms, ray, num_cpus) as trained:
        found, folder = cor_runs.run(
            trained,
            radii,
            seeds=range(seeds),
            tests=tests,
            about=about,
            configuration=configuration,
            resume=resume,
            extend=extend,
            plot=plot,
            title=title,
        )
    shapes = {}
    if geometry:
        with working("geometry at the initial weights"):
            for arm in ready.values():
                try:
                    shapes[arm.name] = problem.geometry(arm)
                except ValueError as error:
                    warn(f"no geometry of {arm.name}: {error}")
    if as_json:
        shown = {name: asdict(shape) for name, shape in shapes.items()}
        print_json(about | {"radii": radii, "seeds": seeds, "geometry": shown} | found.as_dict())
    else:
        trained = f"{title}; {problem.about['train']} images, {problem.about['val']} to validate"
        show_sweep(found, shapes, trained, convex=scope.kind == "head" and not recipe.hidden)
        err.print(f"finished runs are kept in {escape(str(folder))}", soft_wrap=True)


def _made(arm: Arm, progress: Progress) -> Arm:
    return arm


def _title(scope: Scope, o: Optimization) -> str:
    what = "a head on frozen features" if scope.kind == "head" else f"{scope} tuned with a head"
    return f"{what}, {o.optimizer}, lr {o.lr:g}, {o.epochs} epochs of batches of {o.batch_size}"


def _theory(problem: Problem, seeds: int, plot: Path | None, as_json: bool) -> None:
    """Measure GSNR and COR of heads under weakened signal, and print, plot or dump their correlation."""
    from corit_cli.cor.theory import theory
    from corit_cli.report.cor_plot import theory_plot

    depth = problem.backbone.tower.config.layers
    layers = tuple(range(1, depth + 1))
    with Bars() as bars:
        settings = CoRITSettings(views=(), cgp=(), inject_at=(), integrate=layers)
        z = problem.features(settings, bars("class tokens", len(problem)))
        tokens = dict(zip(layers, z.cpu().chunk(depth, dim=1), strict=True))  # small enough for the processor
        found = theory(tokens, problem.split, problem.units, problem.optimization, range(seeds), bars)
    if as_json:
        about = {"corit": __version__, "optimization": asdict(problem.optimization), "data": problem.about}
        print_json(about | found.as_dict())
    else:
        show_theory(found)
    if plot is not None:
        theory_plot(found, plot)
