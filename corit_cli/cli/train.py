"""``corit train``: a detector from labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from corit_cli.cli import config_file, forecast, options, with_ray
from corit_cli.cli.console import Bars, err, out, warn, warn_of_errors
from corit_cli.cli.options import Given, opt
from corit_cli.cli.push import Private, push_detector
from corit_cli.cli.train_tables import print_outcome, print_shortcuts
from corit_cli.data.settings import CropConfig
from corit_cli.errors import CoritError
from corit_cli.model.settings import DETECTOR, CoRITSettings
from corit_cli.training.settings import DATA, Recipe, TrainSettings, TuneSettings


@options.expand(settings=TrainSettings(), recipe=Recipe(), tuning=TuneSettings(), reads=DETECTOR, windows=CropConfig())
def train(
    ctx: typer.Context,
    data: Annotated[
        Path, typer.Argument(help="A folder with real/ and fake/ (or 0_real/, 1_fake/) in it, or a manifest.")
    ],
    settings: Given[TrainSettings],
    recipe: Given[Recipe],
    tuning: Given[TuneSettings],
    reads: Given[CoRITSettings],
    windows: Given[CropConfig],
    out_folder: Annotated[Path, opt("--out -o", "Where the checkpoint goes.", metavar="FOLDER")] = Path(
        "corit-detector"
    ),
    push_to_hub: Annotated[
        str | None,
        opt("--push-to-hub", "Then put it on the Hugging Face Hub, as corit push does.", metavar="USER/NAME"),
    ] = None,
    private: Private = False,
    overwrite: Annotated[bool, opt("--overwrite", "Replace a checkpoint that is there.")] = False,
    resume: Annotated[bool, opt("--resume", "Go on with an interrupted run in --out, where --tune was given.")] = False,
    local: Annotated[
        list[str] | None,
        opt(
            "--local",
            "Teach it to show where a picture was changed (detect --heatmap), by forgeries of a region as in "
            "--forge. Repeatable.",
            DATA,
            metavar="NAME[@part][:SOURCE]",
        ),
    ] = None,
    val_fraction: Annotated[
        float, opt("--val-fraction", "Validation share, where DATA names no split.", DATA, min=0.05, max=0.9)
    ] = 0.3,
    backbone: options.Backbone = "embedded",
    activation: options.Activation = None,
    probe: Annotated[
        bool, opt("--probe/--no-probe", "Train a linear probe of the last layer to compare.", options.RUN)
    ] = True,
    refit: Annotated[
        bool, opt("--refit", "Train once more on all images, validation too, when they have validated.", DATA)
    ] = False,
    log_dir: Annotated[
        Path | None,
        opt("--log-dir", "Tell TensorBoard of every epoch, besides log.csv.", options.OUTPUT, metavar="FOLDER"),
    ] = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    cache_size: options.CacheSize = 4.0,
    ray: with_ray.Ray = None,
    num_cpus: with_ray.NumCpus = None,
    device: options.Device = "auto",
    config: options.Config = None,
    dry_run: options.DryRun = False,
) -> None:
    """Train a detector on labelled images, calibrate it, and show what it is worth.

    \b
    corit train photos/ --out my-detector
    corit train manifest.csv --forge reconstruct:taesd/ --degrade jpeg
    corit train manifest.csv --tune last:2 --grad-checkpoint
    torchrun --nproc_per_node=2 -m corit_cli train manifest.csv --tune lora:8

    A split column (or train/ and val/ folders) is used where there is one; otherwise whole videos, else sources, are
    kept together. With --tune a fifth of the training images, whole sources if possible, is set aside to calibrate on.
    """
    tuned = tuning.over(TuneSettings())
    frozen = tuned.scope == "head"
    unused = [flag for flag in tuning.flags if flag not in ("--tune", "--precision") and frozen]
    unused += [flag for flag in settings.flags if flag == "--folds" and not frozen]
    if unused:
        raise CoritError(
            f"{', '.join(unused)} would be ignored with --tune {tuned.scope}: leave it out, or give another --tune"
        )
    if reads.asked.get("face") and (not frozen or settings.values.get("fusion") == "early"):
        raise CoritError("--face is a reading of its own, from the tower as it is: leave out --tune and --fusion early")
    options.check_crops(windows, reads, "both")
    if private and push_to_hub is None:
        raise CoritError("--private goes with --push-to-hub")
    with_ray.check(ray, num_cpus)
    if ray and (not frozen or device == "cuda"):
        raise CoritError("--ray reads images on CPUs for heads: with --tune use torchrun, and leave out --device cuda")
    chosen, corit = settings.over(TrainSettings()), reads.over(DETECTOR)
    made_of = recipe.over(Recipe())
    if {"--mask", "--alpha"} & set(reads.flags) and not corit.inject_at:
        raise CoritError("--mask and --alpha say how to inject: say where with --inject-at")
    if "--view" in reads.flags and not corit.contrasted and not local:
        raise CoritError("--view is compared with by --cgp, --inject-at and --local, and none of them is used here")

    from corit_cli.data.faults import find_faults
    from corit_cli.data.manifest import load_samples
    from corit_cli.detection.checkpoint import FILES
    from corit_cli.detection.detector import pick_device
    from corit_cli.model.hub import check_login, check_name
    from corit_cli.training.distributed import launched
    from corit_cli.training.foresee import foresee
    from corit_cli.training.train import LOG, STATE, check, prepare
    from corit_cli.training.train import train as run

    first = launched().rank == 0
    check(out_folder, overwrite, resume, chosen, made_of, tuned, local or (), refit)
    cut, record = windows.over(CropConfig()), config_file.own(out_folder / config_file.NAME)
    configuration = config_file.complete(ctx, settings=chosen, recipe=made_of, tuning=tuned, reads=corit, windows=cut)
    samples = load_samples(data, warn if first else lambda message: None)
    if push_to_hub is not None and first and not dry_run:  # not found out after hours
        check_name(push_to_hub)
        check_login()
    if dry_run:
        how = {"val_fraction": val_fraction, "probe": probe, "refit": refit}
        with forecast.foreseeing():
            planned = prepare(
                samples, chosen, made_of, tuned, corit, cut, backbone, activation, pick_device(device), **how
            )
            for fault in find_faults(samples, planned.train_part, planned.val_part).words:
                warn(fault)
            kept = forecast.cache_file(cache, no_cache)
            cost, rows, heads = foresee(planned, tuned, kept)
        names = (*FILES, LOG, config_file.NAME, "validation.png")
        written = [f"{out_folder / name}" for name in names] + [f"{kept} (features)"] * (kept is not None)
        written += [f"{push_to_hub} on the Hub"] * (push_to_hub is not None)
        return forecast.of_train(samples, cost, rows, heads, written).show()
    with nullcontext() if first else _silent():
        if first:
            print_shortcuts(samples, made_of)
        store = options.feature_cache(cache, no_cache, cache_size)
        with with_ray.reading(ray, num_cpus) as reading, store as kept, Bars() as bars, _kept(out_folder / STATE):
            trained = run(
                samples,
                chosen,
                out=out_folder,
                overwrite=overwrite,
                resume=resume,
                recipe=made_of,
                tuning=tuned,
                reads=corit,
                crops=cut,
                backbone=backbone,
                activation=activation,
                local=local or (),
                val_fraction=val_fraction,
                probe=probe,
                refit=refit,
                cache=kept,
                reading=reading,
                log_dir=log_dir,
                record=lambda: config_file.save(record, "train", configuration),
                device="cpu" if ray else device,
                progress=bars,
                warn=warn,
            )
    if not first:
        return
    warn_of_errors(trained.errors)

    from corit_cli.report.scores import validation_picture

    validation_picture(trained.validation, trained.probe, out_folder / "validation.png")
    print_outcome(trained, out_folder)
    if push_to_hub is not None:
        push_detector(out_folder, push_to_hub, private)


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
