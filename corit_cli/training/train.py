"""``train``: the whole of ``corit train`` as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from corit_cli.data.faults import find_faults
from corit_cli.data.forge import Forge, parse_forge
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.detection.detector import pick_device
from corit_cli.errors import CoritError
from corit_cli.features.cache import FeatureCache, Read
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import EMBEDDED, load_backbone
from corit_cli.model.precision import pick_precision
from corit_cli.model.scope import parse_scope, tuned_backbone
from corit_cli.model.settings import DETECTOR, CoRITSettings
from corit_cli.progress import Progress, quiet
from corit_cli.seeds import undisturbed
from corit_cli.training.distributed import launched, world
from corit_cli.training.localizer import contrasts_for, localize
from corit_cli.training.log import EpochLog
from corit_cli.training.run import FEWEST_FACES, Run, Trained, train_head
from corit_cli.training.settings import Recipe, TrainSettings, TuneSettings
from corit_cli.training.tower import train_tower

#: What an unfinished run with ``tuning`` leaves in its folder.
STATE = "resume.safetensors"
#: What every training tells of its epochs, beside the checkpoint.
LOG = "log.csv"


@undisturbed()
def train(
    data: str | Path | Sequence[Sample],
    settings: TrainSettings | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    recipe: Recipe | None = None,
    tuning: TuneSettings | None = None,
    reads: CoRITSettings = DETECTOR,
    crops: CropConfig | None = None,
    backbone: str = EMBEDDED,
    activation: str | None = None,
    local: Sequence[str] = (),
    val_fraction: float = 0.3,
    probe: bool = True,
    refit: bool = False,
    cache: FeatureCache | None = None,
    reading: Read | None = None,
    log_dir: str | Path | None = None,
    record: Callable[[], None] = lambda: None,
    device: str = "auto",
    progress: Progress = quiet,
    warn: Callable[[str], None] = lambda message: None,
) -> Trained:
    """Train a detector on labelled images, calibrate it, and score the validation images.

    >>> trained = train("photos/", TrainSettings(epochs=30), out="my-detector")
    >>> trained.checkpoint.thresholds, trained.validation.probabilities

    Args:
        data: a folder, a manifest (see :func:`~corit_cli.data.manifest.load_samples`), or samples.
        settings: how the head is trained, calibrated and given thresholds; ``settings.seed`` draws everything.
        out: folder that the checkpoint is saved to; None saves nothing. Refused if it exists, unless ``overwrite``.
        resume: go on with a run with ``tuning`` that was interrupted, in ``out``.
        recipe: forgeries, degraded copies and further windows that the training images are joined by.
        tuning: parts of the backbone that are trained too; needs ``out``, where every epoch is kept. No face is then
            read by itself, nor by one head on all readings (``settings.fusion``).
        reads: what CoRIT reads; ``crops`` from which windows, by default both kinds.
        backbone, activation: see :func:`~corit_cli.model.loading.load_backbone`.
        local: forgeries of a region that teach the detector to draw heatmaps.
        val_fraction: validation share, where the data names no split.
        probe: also train the last block's linear probe, to compare with.
        refit: train on the validation images too, once they have validated; not with ``tuning``.
        cache: where features are kept; None reads them anew.
        reading: reads images for the heads (``cluster/reading.py``); None does it here.
        log_dir: folder that TensorBoard is told of every epoch in, besides ``log.csv`` beside the checkpoint.
        record: called whenever there is something to go on with in ``out``, and at the end: to note down the run there.
        device: auto, cpu or cuda. Under torchrun the first process saves; others return the same but for a heatmap's
            head and notes on the data.
        progress, warn: told of the work, and of what went wrong without ending it.

    Raises CoritError for data or settings that do not fit, before images are read if possible.
    """
    settings, recipe, tuning = settings or TrainSettings(), recipe or Recipe(), tuning or TuneSettings()
    tuned, folder = tuning.scope != "head", None if out is None else Path(out)
    kinds = check(folder, overwrite, resume, settings, recipe, tuning, local, refit)
    samples = load_samples(Path(data), warn) if isinstance(data, str | Path) else list(data)
    first = launched().rank == 0
    device = pick_device(device)
    log = EpochLog(folder / LOG if folder and first and tuned else None, Path(log_dir) if log_dir and first else None)

    def tell(**row: Any) -> None:
        log(**row)
        if first and tuned and folder is not None and (folder / STATE).is_file():
            record()

    with closing(log), world(device) as processes:
        run = prepare(
            samples,
            settings,
            recipe,
            tuning,
            reads,
            crops,
            backbone,
            activation,
            device,
            val_fraction=val_fraction,
            probe=probe,
            refit=refit,
            cache=cache,
            reading=reading,
            progress=progress,
            world=processes,
            log=tell if tuned else log,
        )
        faults = find_faults(samples, run.train_part, run.val_part)
        for fault in faults.words if first else ():
            warn(fault)
        if folder is None or not tuned:
            trained = train_head(run)
        else:
            if first and not resume:
                (folder / STATE).unlink(missing_ok=True)
            trained = train_tower(run, tuning, folder / STATE, resume)
    if not first:
        return trained
    if made := trained.checkpoint.training.get("tune"):
        before, after = (made["epochs"][k]["held_out"] for k in (0, made["epoch"]))
        if after >= before:
            warn(
                f"tuning gained nothing: on sources set aside the loss was {before:.4f} before, and is {after:.4f}; a "
                "detector trained without --tune may be better"
            )
    if faults.leaked:
        trained.checkpoint.data["leaked"] = faults.leaked
    if trained.checkpoint.calibration.slope <= 0:
        warn("nothing was learned: on images held out the scores do not tell the classes apart")
    if run.faces_wanted and not trained.checkpoint.settings.face:
        warn(f"faces are not read by themselves: that takes {FEWEST_FACES} real and as many fake images that show one")
    if folder is not None:
        trained.checkpoint.save(folder, overwrite or tuned)
    if kinds:
        _teach_places(run, trained, kinds, warn)
        if folder is not None:
            trained.checkpoint.save(folder, overwrite=True)
    if folder is not None:
        log.save(folder / LOG)
        record()
        (folder / STATE).unlink(missing_ok=True)
    return trained


def prepare(
    samples: Sequence[Sample],
    settings: TrainSettings,
    recipe: Recipe,
    tuning: TuneSettings,
    reads: CoRITSettings,
    crops: CropConfig | None,
    backbone: str,
    activation: str | None,
    device: str,
    **how: Any,
) -> Run:
    """The training that :func:`train` does, its backbone loaded and its images dealt, none read; ``how`` as Run has
    it."""
    if tuning.scope != "head" or settings.fusion == "early":
        reads = replace(reads, face=())
    loaded = load_backbone(backbone, activation, device)
    crops = replace(crops or CropConfig(), size=loaded.tower.config.image_size)
    recipe = replace(recipe, seed=settings.seed)
    asked = "fp32" if tuning.precision == "auto" and how.get("reading") else tuning.precision  # machines may differ
    extractor = Extractor(loaded, reads, crops, device, pick_precision(asked, device, loaded))
    return Run(samples, extractor, settings=settings, recipe=recipe, **how)


def check(
    folder: Path | None,
    overwrite: bool,
    resume: bool,
    settings: TrainSettings,
    recipe: Recipe,
    tuning: TuneSettings,
    local: Sequence[str],
    refit: bool = False,
) -> list[Forge]:
    """What can be told before any image is looked at, as :func:`train` takes it; the forgeries ``local`` names.

    Raises CoritError for what does not fit.
    """
    kind = parse_scope(tuning.scope).kind
    if refit and kind != "head":
        raise CoritError("--refit trains heads once more on all images: it does not go with --tune")
    if recipe.windows and kind != "head":
        raise CoritError("--more-windows trains a head on features: it does not go with --tune")
    if folder is None and kind != "head":
        raise CoritError("tuning the backbone saves every epoch: give a folder to save to (out)")
    if resume and kind == "head":
        raise CoritError("--resume goes on with a run that tunes the backbone: give its --tune, or leave out --resume")
    if kind != "head" and tuning.lr is None and settings.optimizer == "sgd":
        raise CoritError("--tune with --optimizer sgd needs --tune-lr: the default is AdamW's")
    if folder is not None and launched().rank == 0:  # the other processes may be on other machines
        _check_folder(folder, overwrite, resume)
    kinds = [parse_forge(spec) for spec in ([local] if isinstance(local, str) else local)]
    if not all(kind.local and kind.share == 1 for kind in kinds):
        raise CoritError("--local takes forgeries of a region, of every photograph: self_blend, or a name with @part")
    for forge in kinds:
        forge.check()
    return kinds


def _check_folder(folder: Path, overwrite: bool, resume: bool) -> None:
    """Refuse to write over what is there, or to go on with what is not."""
    begun = (folder / STATE).is_file()
    if resume and overwrite:
        raise CoritError("--resume goes on with the run in --out, --overwrite begins anew: give one of them")
    if resume and not begun:
        raise CoritError(f"{folder} holds no interrupted run: leave out --resume")
    if not resume and not overwrite and begun:
        raise CoritError(f"{folder} holds an interrupted run: go on with --resume, or begin anew with --overwrite")
    if not resume and not overwrite and folder.exists():
        raise CoritError(f"{folder} already exists: choose another --out, or give --overwrite")


def _teach_places(run: Run, trained: Trained, kinds: Sequence[Forge], warn: Callable[[str], None]) -> None:
    """Give the checkpoint a localizer, and its figures; say so where none can be had."""
    checkpoint = trained.checkpoint
    tuned = run.extractor.on(tuned_backbone(run.extractor.backbone, checkpoint.tuned))
    try:
        checkpoint.localizer, checkpoint.metrics["localizer"] = localize(
            run.samples,
            run.train_part,
            run.val_part,
            contrasts_for(tuned),
            kinds,
            seed=run.settings.seed,
            progress=run.progress,
        )
    except CoritError as error:  # the detector itself is as good as without
        warn(f"this detector will draw no heatmaps: {error}")
