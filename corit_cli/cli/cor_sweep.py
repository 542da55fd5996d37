"""``corit cor-sweep``: the SAM radius past which training collapses to random guessing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from corit_cli import __version__
from corit_cli.cli import options
from corit_cli.cli.console import err, escape, out, progress_bar, warn
from corit_cli.config import Optimization
from corit_cli.errors import CoritError
from corit_cli.model.settings import CoRITSettings, baseline

if TYPE_CHECKING:
    from torch import Tensor

    from corit_cli.analysis.arms import HeadArm, Split, TunedArm
    from corit_cli.analysis.cor import Criteria, Run
    from corit_cli.analysis.curvature import Geometry
    from corit_cli.analysis.sweep import Sweep
    from corit_cli.analysis.theory import Theory
    from corit_cli.data.images import CropConfig
    from corit_cli.data.manifest import Sample
    from corit_cli.engine.weights import Backbone

TRAINED = "What is trained"
OUTPUT = "Output"
#: Recipes by what is trained: a block in few small steps, heads in more and larger ones.
BLOCKS = Optimization(lr=3e-4, epochs=8, batch_size=16)
HEADS = Optimization(lr=1e-2, epochs=40, batch_size=32)
#: Of five parts of the independent images, so many are trained on; the others validate.
PARTS, TRAIN_PARTS = 5, 3
FEWEST_UNITS = 2


def cor_sweep(
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
        _refuse_with_theory(
            {
                "--rho": rho != "0.01:0.5",
                "--compare": compare != "baseline,corit",
                "--tune": tune not in ("last:1", "head"),
                "--extend": extend,
                "--geometry": geometry is not None,
            }
            | {
                f"--{name}": value not in (None, False)
                for name, value in (
                    ("features", features),
                    ("resume", resume),
                    ("view", view),
                    ("integrate", integrate),
                    ("cgp", cgp),
                    ("no-cgp", no_cgp),
                    ("pool", pool),
                    ("inject-at", inject_at),
                    ("mask", mask),
                    ("alpha", alpha),
                )
            }
        )
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

    from corit_cli.analysis.sampling import units_of
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
    if cut.mode == "both" or (scope.kind != "head" and len(cut.windows) > 1):
        raise CoritError(
            "a sweep reads one kind of window, and a single one where blocks are tuned: --crop native|resize"
        )
    depth = loaded.tower.config.layers
    read = {"baseline": lambda: baseline(depth), "hri": corit.plain, "corit": lambda: corit}
    reads = {name: _checked(read[name]) for name in names}
    images = [s for s in images if s.split != "test"]
    units = units_of(images)
    split_at = _split(images, units, samples, seed)
    problem = _Problem(images, units, *split_at, loaded, cut, device, optimization)
    if theory:
        return _theory(problem, seeds, plot, as_json)

    with progress_bar() as bar:
        arms = [problem.arm(name, reads[name], scope, bar) for name in names]
    tests = problem.tests()
    about = {
        "corit": __version__,
        "tune": str(scope),
        "optimization": asdict(optimization),
        "models": {name: asdict(reads[name]) for name in names},
        "crops": asdict(cut),
        "backbone": loaded.sha256,
        "seed": seed,
        "data": problem.fingerprint,
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
        _print_json(about | {"radii": radii, "seeds": seeds} | _as_dict(found, shapes))
    else:
        _show(found, shapes, problem, scope, optimization)
        err.print(f"finished runs are kept in {escape(str(folder))}", soft_wrap=True)


def _refuse_with_theory(given: dict[str, bool]) -> None:
    """The experiment varies by itself what these options would set."""
    names = [name for name, there in given.items() if there]
    if names:
        raise CoritError(f"--theory says itself what is read, trained and tried: leave out {', '.join(names)}")


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


def _split(samples: Sequence[Sample], units: Sequence[Hashable], most: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions to train on and to validate on: whole units, both classes in either."""
    from corit_cli.analysis.sampling import deal, thin

    parts = deal([s.label for s in samples], units, PARTS, seed)
    sides = []
    for side, name in ((parts[:TRAIN_PARTS], "train on"), (parts[TRAIN_PARTS:], "validate on")):
        chosen = thin(samples, units, sorted(i for part in side for i in part), most * len(side) // PARTS, seed)
        if min(len({units[i] for i in chosen if samples[i].label == label}) for label in (0, 1)) < FEWEST_UNITS:
            raise CoritError(f"too few images to {name}: give ten independent ones of each class, or more --samples")
        sides.append(chosen)
    return sides[0], sides[1]


def _title(scope: Any, o: Optimization) -> str:
    what = "a head on frozen features" if scope.kind == "head" else f"{scope} tuned with a head"
    return f"{what}, {o.optimizer}, lr {o.lr:g}, {o.epochs} epochs of batches of {o.batch_size}"


@dataclass
class _Problem:
    """The images, how they are read, and how runs are trained."""

    images: list[Sample]
    units: Sequence[Hashable]
    train: list[int]
    val: list[int]
    backbone: Backbone
    crops: CropConfig
    device: str
    optimization: Optimization

    def __post_init__(self) -> None:
        # Only what is trained or validated on is ever read; unreadable files fall out here.
        self.used: list[int] = []
        self.split: Split | None = None

    def tests(self) -> Criteria:
        from corit_cli.analysis.cor import Criteria

        s = self.split
        units = [self.units[self.used[k]] for k in s.val.tolist()]
        return Criteria.of(s.labels[s.train].tolist(), s.labels[s.val].tolist(), units)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Sizes of the parts, and a digest of what is in the files, their labels and their part."""
        from corit_cli.engine.features import content_sha256

        train = set(self.train)
        rows = [f"{content_sha256(self.images[i].path)} {self.images[i].label} {i in train}" for i in self.used]
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return {"train": len(self.split.train), "val": len(self.split.val), "fingerprint": digest}

    def windows(self) -> Tensor:
        """One window of every image that can be read, (n, S, S, 3) uint8; what cannot be read is reported once."""
        import numpy as np
        import torch

        from corit_cli.data.images import crop, read_image
        from corit_cli.engine.features import ahead

        def load(i: int) -> Any:
            try:
                return crop(read_image(self.images[i].path), self.crops)[0]
            except CoritError as error:
                return error

        wanted = sorted(self.train + self.val)
        loaded = dict(zip(wanted, ahead(load, wanted, workers=4, window=16), strict=True))
        self._keep([i for i in wanted if not isinstance(loaded[i], CoritError)], loaded)
        return torch.from_numpy(np.stack([loaded[i] for i in self.used]))

    def _keep(self, good: list[int], errors: dict[int, Any]) -> None:
        if self.split is None:
            for i in sorted({*self.train, *self.val} - {*good}):
                warn(f"left out {self.images[i].path}: {errors[i]}")
            from corit_cli.analysis.arms import Split

            for part in (self.train, self.val):
                if len({self.images[i].label for i in part if i in set(good)}) < 2:
                    raise CoritError("after leaving out the images that cannot be read, one class is empty")
            place = {i: k for k, i in enumerate(good)}
            self.used = good
            self.split = Split.of(
                [self.images[i].label for i in good],
                [place[i] for i in self.train if i in place],
                [place[i] for i in self.val if i in place],
            )

    def z(self, settings: CoRITSettings, tick: Callable[[int], None]) -> Tensor:
        """Features (n, F) of the images in use, from the cache where it has them."""
        from corit_cli.engine.features import Extractor, FeatureCache, Job, default_cache_path, extract

        wanted = sorted(self.train + self.val)
        cache = FeatureCache(default_cache_path(), warn=warn)
        try:
            extractor = Extractor(self.backbone, settings, self.crops, self.device)
            z, errors = extract(extractor, [Job(self.images[i].path) for i in wanted], cache, tick)
        finally:
            cache.close()
        good = [k for k in range(len(wanted)) if k not in errors]
        self._keep([wanted[k] for k in good], {wanted[k]: message for k, message in errors.items()})
        return z[good].to(self.device)

    def arm(self, name: str, settings: CoRITSettings, scope: Any, bar: Any) -> HeadArm | TunedArm:
        """A model, made ready."""
        from corit_cli.analysis.arms import HeadArm, TunedArm
        from corit_cli.engine.tune import Tuned

        task = bar.add_task(f"{name}: frozen part", total=len(self.train) + len(self.val))

        def tick(count: int) -> None:
            bar.advance(task, count)

        if scope.kind == "head":
            return HeadArm(name, self.z(settings, tick), self.split, self.optimization)
        tuned = Tuned(self.backbone.tower, settings, scope)
        windows = self.windows()
        return TunedArm(name, tuned, tuned.prepare(windows, tick), self.split, self.optimization)

    def geometry(self, arm: HeadArm | TunedArm) -> Geometry:
        """Local geometry of the loss at an arm's first seed's initial weights."""
        from corit_cli.analysis.curvature import geometry

        positions = self.split.train.tolist()
        units = [self.units[self.used[k]] for k in positions]
        batches = [[positions[k] for k in batch] for batch in _apart(units, self.optimization.batch_size)]
        loss, params = arm.objective()
        return geometry(loss, params, batches, self.optimization.lr)


def _apart(units: Sequence[Hashable], size: int) -> list[list[int]]:
    """Disjoint batches of one size, ``size`` at most, no unit in two of them: positions. Large units are dealt first.

    There are from 3 to 16, with two units each where there are enough.
    """
    members: dict[Hashable, list[int]] = {}
    for position, unit in enumerate(units):
        members.setdefault(unit, []).append(position)
    count = max(3, min(16, len(units) // size, len(members) // 2))
    batches: list[list[int]] = [[] for _ in range(count)]
    for unit in sorted(members.values(), key=len, reverse=True):
        min(batches, key=len).extend(unit)
    least = min(size, *map(len, batches))
    if not least:
        raise ValueError("too few independent images for three batches")
    return [batch[:least] for batch in batches]


@contextmanager
def _live(tests: Criteria) -> Iterator[tuple[Callable[[Run], None], Callable[[int, int], None]]]:
    """A table of runs by model and radius, and a bar with the remaining time, on a terminal; else one line a run."""
    bar = progress_bar()
    task = bar.add_task("runs", total=0)
    runs: list[Run] = []
    kept = [0]  # runs from before, which took no time

    def picture() -> Group:
        return Group(_runs_table(runs, tests), bar)

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
        partial, picture = summary(journal.runs.values(), tests), plot or folder / "partial.png"
        if partial.found:
            cor_plot(partial, picture, title)
            err.print(f"partial plot: {escape(str(picture))}", soft_wrap=True)
        raise
    if plot is not None:
        cor_plot(found, plot, title)
    return found, folder


# --- what is shown --------------------------------------------------------------------------------


def _runs_table(runs: Sequence[Run], tests: Criteria) -> Table:
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


def _print_json(document: dict[str, Any]) -> None:
    """One JSON document; what is not finite becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(plain(document), indent=1, allow_nan=False))


def _as_dict(found: Sweep, shapes: dict[str, Geometry]) -> dict[str, Any]:
    """What was found, for JSON."""
    return {
        "tests": asdict(found.tests),
        "found": {
            name: {
                "cor": f.cor.as_dict(),
                "learns_without_sam": f.learns_without_sam,
                "learns_when_shuffled": f.learns_when_shuffled,
                "runs": [asdict(r) | {"outcome": found.tests.outcome(r)} for r in f.runs],
            }
            for name, f in found.found.items()
        },
        "geometry": {name: asdict(g) for name, g in shapes.items()},
        "warnings": found.warnings(),
    }


def _show(found: Sweep, shapes: dict[str, Geometry], problem: _Problem, scope: Any, o: Optimization) -> None:
    t, data = found.tests, problem.fingerprint
    out.print(f"Trained: {_title(scope, o)}; {data['train']} images, {data['val']} to validate.", soft_wrap=True)
    out.print(_runs_table([r for f in found.found.values() for r in f.runs], t))
    out.print(
        f"Collapsed: validation AUC at most {t.null_auc:.3f}, which guessing reaches 39 times in 40; or loss not "
        f"{t.margin:g} below chance ({t.chance:.3f}) while logits spread by less than {t.floor:g}.",
        soft_wrap=True,
    )
    for name, f in found.found.items():
        out.print(f"[bold]COR of {escape(name)}: {escape(str(f.cor))}[/]", soft_wrap=True)
    for name, g in shapes.items():
        _show_geometry(name, g, scope.kind == "head" and not o.hidden)
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


def _theory(problem: _Problem, seeds: int, plot: Path | None, as_json: bool) -> None:
    """Measure GSNR and COR of heads under weakened signal, and print, plot or dump their correlation."""
    from corit_cli.analysis.theory import theory
    from corit_cli.report.cor_plot import theory_plot

    depth = problem.backbone.tower.config.layers
    layers = tuple(range(1, depth + 1))
    with progress_bar() as bar:
        task = bar.add_task("class tokens", total=len(problem.train) + len(problem.val))
        settings = CoRITSettings(views=(), cgp=(), inject_at=(), integrate=layers)
        z = problem.z(settings, lambda count: bar.advance(task, count))
        tokens = dict(zip(layers, z.cpu().chunk(depth, dim=1), strict=True))  # small enough for the processor
        steps = bar.add_task("conditions", total=None)
        units = [problem.units[i] for i in problem.used]
        found = theory(
            tokens,
            problem.split,
            units,
            problem.optimization,
            range(seeds),
            lambda kind, level: bar.update(steps, advance=1, description=f"{kind} {level:g}"),
        )
    if as_json:
        about = {"corit": __version__, "optimization": asdict(problem.optimization), "data": problem.fingerprint}
        _print_json(about | found.as_dict())
    else:
        _show_theory(found)
    if plot is not None:
        theory_plot(found, plot)


def _show_theory(found: Theory) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("varied", "level", "GSNR", "COR"):
        table.add_column(column, justify="left" if column in ("varied", "COR") else "right", no_wrap=True)
    for c in found.conditions:
        gsnr = f"{c.gsnr.value:.4f} [{c.gsnr.low:.4f}, {c.gsnr.high:.4f}]"
        table.add_row(c.kind, f"{c.level:g}", gsnr, str(c.cor))
    out.print(table)
    for kind, e in {"all": found.correlation, **found.by_kind}.items():
        out.print(escape(f"Spearman's correlation of COR with GSNR, {kind}: {e}"), soft_wrap=True)
