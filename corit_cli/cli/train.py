"""``corit train``: a detector from labelled images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID

from corit_cli.cli import options
from corit_cli.cli.console import err, out, progress_bar, warn
from corit_cli.cli.train_tables import print_outcome, print_shortcuts
from corit_cli.config import TUNE_LR, Recipe, TrainSettings, TuneSettings
from corit_cli.data.degrade import parse_degradation
from corit_cli.data.forge import parse_forge
from corit_cli.errors import CoritError
from corit_cli.model.settings import DETECTOR

if TYPE_CHECKING:
    from corit_cli.data.forge import Forge
    from corit_cli.data.manifest import Sample
    from corit_cli.engine.features import Extractor
    from corit_cli.engine.train import Trained

DATA = "Training images"
HEAD = "Head and optimizer"
VERDICTS = "Verdicts"
TUNING = "Tuning the backbone"
DEFAULT = TrainSettings()
TUNED = TuneSettings("head")
#: Options without a meaning where only the head is trained, and one without a meaning where the backbone is.
OF_TUNING = (
    "tune_lr",
    "tune_rho",
    "tune_epochs",
    "tune_batch_size",
    "micro_batch",
    "precision",
    "grad_checkpoint",
    "patience",
    "resume",
)
OF_HEADS = ("folds",)


def train(
    ctx: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(help="A folder with real/ and fake/ (or 0_real/, 1_fake/) in it, or a manifest."),
    ],
    out_folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the checkpoint goes.")
    ] = Path("corit-detector"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
    forge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[@part][:SOURCE]",
            help="Train on forgeries of the real images too: self_blend, resample, recompress, or reconstruct:FOLDER "
            "with a TAESD autoencoder's weights; NAME@part forges only a region.",
            rich_help_panel=DATA,
        ),
    ] = None,
    degrade: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:LO-HI",
            help="Degrade copies: jpeg, webp, blur, resize, fit, noise or crop, with the range of its strength.",
            rich_help_panel=DATA,
        ),
    ] = None,
    copies: Annotated[
        int | None, typer.Option(min=0, help="Degraded copies of each image; 1 with --degrade.", rich_help_panel=DATA)
    ] = None,
    match_codec: Annotated[
        str | None,
        typer.Option(
            metavar="LO-HI",
            help="Re-encode every image as JPEG at a quality drawn from this range, so that the codec says nothing.",
            rich_help_panel=DATA,
        ),
    ] = None,
    local: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[@part][:SOURCE]",
            help="Teach it to show where a picture was changed (detect --heatmap), by such forgeries of a region.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val_fraction: Annotated[
        float,
        typer.Option(min=0.05, max=0.9, help="Validation share, where DATA names no split.", rich_help_panel=DATA),
    ] = 0.3,
    head: Annotated[
        str, typer.Option(metavar="linear|mlp[:WIDTH]", help="Kind of head.", rich_help_panel=HEAD)
    ] = "linear",
    optimizer: Annotated[
        str, typer.Option(metavar="adamw|sgd", help="The optimizer under SAM.", rich_help_panel=HEAD)
    ] = DEFAULT.optimizer,
    rho: Annotated[
        float, typer.Option(min=0, help="SAM's radius; 0: without SAM.", rich_help_panel=HEAD)
    ] = DEFAULT.rho,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.", rich_help_panel=HEAD)] = DEFAULT.lr,
    weight_decay: Annotated[
        float, typer.Option(min=0, help="Weight decay.", rich_help_panel=HEAD)
    ] = DEFAULT.weight_decay,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.", rich_help_panel=HEAD)] = DEFAULT.epochs,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images in a step.", rich_help_panel=HEAD)
    ] = DEFAULT.batch_size,
    layer_weights: Annotated[
        str,
        typer.Option(
            **options.words("uniform", "gsnr", "learned"),
            help="How much each layer weighs: evenly, by its GSNR, or as learned.",
            rich_help_panel=HEAD,
        ),
    ] = DEFAULT.layer_weights,
    balance: Annotated[
        str, typer.Option(metavar="class|source|even|none", help="What gets equal weight.", rich_help_panel=HEAD)
    ] = DEFAULT.balance,
    seed: Annotated[int, typer.Option(help="Of every random draw.", rich_help_panel=HEAD)] = 0,
    target_fpr: Annotated[
        float, typer.Option(min=0, max=0.5, help="Real images that may be called fake.", rich_help_panel=VERDICTS)
    ] = DEFAULT.target_fpr,
    target_fnr: Annotated[
        float, typer.Option(min=0, max=0.5, help="Fakes that may be called real.", rich_help_panel=VERDICTS)
    ] = DEFAULT.target_fnr,
    folds: Annotated[
        int, typer.Option(min=2, help="Parts held out in turn, by source, to calibrate.", rich_help_panel=VERDICTS)
    ] = DEFAULT.folds,
    scope: Annotated[
        str,
        typer.Option(
            "--tune",
            metavar="SCOPE",
            help="What is trained: head, ln (layer norms too), last:K (blocks that are read), lora:R (rank) or all.",
            rich_help_panel=TUNING,
        ),
    ] = "head",
    tune_lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Learning rate of the backbone; AdamW's default is "
            + ", ".join(f"{lr:g} ({kind})" for kind, lr in TUNE_LR.items())
            + ".",
            rich_help_panel=TUNING,
        ),
    ] = None,
    tune_rho: Annotated[
        float, typer.Option(min=0, help="SAM's radius over backbone and head.", rich_help_panel=TUNING)
    ] = TUNED.rho,
    tune_epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the images.", rich_help_panel=TUNING)
    ] = TUNED.epochs,
    tune_batch_size: Annotated[
        int, typer.Option(min=1, help="Images in a step, over all processes.", rich_help_panel=TUNING)
    ] = TUNED.batch_size,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Images in memory at once; changes no result.", rich_help_panel=TUNING)
    ] = TUNED.micro_batch,
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|bf16|fp16", help="auto: bf16 on a GPU that has it, else fp32.", rich_help_panel=TUNING
        ),
    ] = TUNED.precision,
    grad_checkpoint: Annotated[
        bool,
        typer.Option(
            "--grad-checkpoint", help="Less memory for a third more time; changes no result.", rich_help_panel=TUNING
        ),
    ] = TUNED.grad_checkpoint,
    patience: Annotated[
        int,
        typer.Option(
            min=0, help="Epochs without a lower held-out loss before it ends; 0: never.", rich_help_panel=TUNING
        ),
    ] = TUNED.patience,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run in --out.", rich_help_panel=TUNING)
    ] = False,
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
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Train a linear probe of the last layer to compare.",
            rich_help_panel=options.RUN,
        ),
    ] = True,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    cache_size: options.CacheSize = 4.0,
    device: options.Device = "auto",
) -> None:
    """Train a detector on labelled images, calibrate it, and show what it is worth.

    \b
    corit train photos/ --out my-detector
    corit train manifest.csv --forge reconstruct:taesd/ --degrade jpeg
    corit train manifest.csv --tune last:2 --grad-checkpoint
    torchrun --nproc_per_node=2 -m corit_cli train manifest.csv --tune lora:8

    A split column (or train/ and val/ folders) is used where there is one; otherwise whole sources are kept together.
    With --tune a fifth of the training images, whole sources if possible, is set aside to calibrate on.
    """
    state = out_folder / "resume.safetensors"
    said = [
        n for n in (OF_TUNING if scope == "head" else OF_HEADS) if ctx.get_parameter_source(n).name == "COMMANDLINE"
    ]
    if said:
        unused = ", ".join("--" + name.replace("_", "-") for name in said)
        raise CoritError(f"{unused} would be ignored with --tune {scope}: leave it out, or give another --tune")
    if os.environ.get("RANK", "0") == "0":  # the other processes may be on other machines
        _check_folder(out_folder, state, overwrite, resume)
    if not degrade and match_codec is None and copies:
        raise CoritError("--copies makes degraded copies: say how with --degrade")
    if degrade and copies == 0:
        raise CoritError("--degrade is for copies, and --copies 0 makes none: leave one of them out")
    try:
        if scope != "head" and optimizer == "sgd" and tune_lr is None:
            raise ValueError("--tune with --optimizer sgd needs --tune-lr: the default is AdamW's")
        tuning = TuneSettings(
            scope, tune_lr, tune_rho, tune_epochs, tune_batch_size, micro_batch, precision, grad_checkpoint, patience
        )
        settings = TrainSettings(
            hidden=_hidden(head),
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            epochs=epochs,
            batch_size=batch_size,
            rho=rho,
            layer_weights=layer_weights,
            balance=balance,
            seed=seed,
            target_fpr=target_fpr,
            target_fnr=target_fnr,
            folds=folds,
        )
        recipe = Recipe(
            forge=tuple(forge or ()),
            degrade=tuple(degrade or ()),
            copies=(1 if degrade else 0) if copies is None else copies,
            match_codec=_quality_range(match_codec),
            seed=seed,
        )
        for spec in recipe.forge:
            parse_forge(spec)
        places = [parse_forge(spec) for spec in local or ()]
        if not all(kind.local for kind in places):
            raise ValueError("--local takes forgeries of a region: self_blend, or a name with @part")
        for spec in recipe.degrade:
            parse_degradation(spec)
    except ValueError as error:
        raise CoritError(str(error)) from None
    corit = options.corit_settings(view, integrate, cgp, no_cgp, pool, inject_at, mask, alpha, DETECTOR)
    if (mask is not None or alpha is not None) and not corit.inject_at:
        raise CoritError("--mask and --alpha say how to inject: say where with --inject-at")
    if view is not None and not corit.contrasted and not places:
        raise CoritError("--view is contrasted with by --cgp, --pool, --inject-at and --local, of which none is left")

    from corit_cli.data.manifest import load_samples

    samples = load_samples(data)
    for kind in places:
        kind.check()

    from corit_cli.engine.distributed import launched, world
    from corit_cli.engine.features import Extractor, FeatureCache, default_cache_path
    from corit_cli.engine.finetune import finetune
    from corit_cli.engine.predict import pick_device
    from corit_cli.engine.train import train as train_head
    from corit_cli.engine.tune import parse_scope
    from corit_cli.engine.weights import load_backbone
    from corit_cli.report.plots import validation_plot

    parse_scope(scope)
    first = launched().rank == 0
    with nullcontext() if first else _silent():
        if first:
            print_shortcuts(samples, recipe)
        device = pick_device(device)
        with world(device) as processes, ExitStack() as stack:
            with err.status("loading the backbone"):
                loaded = load_backbone(backbone, activation, device)
                windows = options.crop_config(crop, crops, loaded.tower.config.image_size)
                extractor = Extractor(loaded, corit, windows, device)
            store = None if no_cache else FeatureCache(cache or default_cache_path(), int(cache_size * 2**30), warn)
            if store is not None:
                stack.callback(store.close)
            bars = _Bars(stack.enter_context(progress_bar()))
            common = (store, probe, val_fraction, bars, processes)
            if scope == "head":
                trained = train_head(samples, extractor, settings, recipe, *common)
            else:
                if first and not resume:
                    state.unlink(missing_ok=True)
                with _kept(state):
                    trained = finetune(samples, extractor, settings, recipe, tuning, state, resume, *common)
        if not first:
            return
    for sample, message in trained.errors[:20]:
        warn(f"left out {sample.path}: {message}")
    if len(trained.errors) > 20:
        warn(f"and {len(trained.errors) - 20} more files")
    trained.checkpoint.save(out_folder, overwrite or scope != "head")
    if places:
        _teach_places(trained, samples, extractor, places, val_fraction, seed)
        trained.checkpoint.save(out_folder, overwrite=True)
    state.unlink(missing_ok=True)
    validation_plot(trained.validation, trained.checkpoint.thresholds, out_folder / "validation.png")
    print_outcome(trained, out_folder)


def _check_folder(folder: Path, state: Path, overwrite: bool, resume: bool) -> None:
    """Refuse to write over what is there, or to go on with what is not."""
    if resume and overwrite:
        raise CoritError("--resume goes on with the run in --out, --overwrite begins anew: give one of them")
    if resume and not state.is_file():
        raise CoritError(f"{folder} holds no interrupted run: leave out --resume")
    if not resume and not overwrite and state.is_file():
        raise CoritError(f"{folder} holds an interrupted run: go on with --resume, or begin anew with --overwrite")
    if not resume and not overwrite and folder.exists():
        raise CoritError(f"{folder} already exists: choose another --out, or give --overwrite")


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing is printed, but for errors that leave the block."""
    out.quiet = err.quiet = True
    try:
        yield
    finally:
        out.quiet = err.quiet = False


@contextmanager
def _kept(state: Path) -> Iterator[None]:
    """Say, when the run is interrupted, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if state.is_file():
            err.print("The epochs that are done are kept: repeat the command with --resume to go on.")
        raise


def _teach_places(
    trained: Trained,
    samples: Sequence[Sample],
    extractor: Extractor,
    kinds: Sequence[Forge],
    val_fraction: float,
    seed: int,
) -> None:
    """Give the checkpoint a localizer, and its figures; say so where none can be had."""
    from corit_cli.engine.localize import contrasts_for, localize
    from corit_cli.engine.train import split
    from corit_cli.engine.tune import tuned_extractor

    checkpoint = trained.checkpoint
    with progress_bar() as bar:
        task = bar.add_task("forged regions")
        try:
            checkpoint.localizer, checkpoint.metrics["localizer"] = localize(
                samples,
                *split(samples, val_fraction, seed),
                contrasts_for(tuned_extractor(extractor, checkpoint.tuned)),
                kinds,
                seed,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        except CoritError as error:  # the detector itself is as good as without
            warn(f"this detector will draw no heatmaps: {error}")


def _hidden(head: str) -> int:
    kind, _, width = head.partition(":")
    if kind == "linear" and not width:
        return 0
    if kind == "mlp" and (not width or width.isdigit()):
        return int(width or 256)
    raise ValueError(f"head must be linear, mlp or mlp:WIDTH, not {head!r}")


def _quality_range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, dash, high = text.partition("-")
    if not (low.isdigit() and (high.isdigit() if dash else True) and 1 <= int(low) <= int(high or low) <= 100):
        raise ValueError(f"--match-codec takes a range of JPEG qualities such as 75-95, not {text!r}")
    return int(low), int(high or low)


class _Bars:
    """Shows on a progress bar what :class:`corit_cli.engine.train.Progress` is told."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.fitting: TaskID | None = None

    def features(self, title: str, total: int) -> Callable[[int], None]:
        task = self.bar.add_task(title, total=total)
        return lambda count: self.bar.advance(task, count)

    def epoch(self, number: int, total: int, loss: float) -> None:
        if self.fitting is None:
            self.fitting = self.bar.add_task("head", total=total)
        self.bar.update(self.fitting, completed=number, description=f"head (loss {loss:.3f})")

    def tuned(self, number: int, total: int, loss: float, held_out: float) -> None:
        err.print(f"epoch {number} of {total}: loss {loss:.4f}, on sources set aside {held_out:.4f}")
