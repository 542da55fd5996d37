"""``corit gsnr``: how much signal each layer's gradient carries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from corit_cli.cli import forecast, options
from corit_cli.cli.console import Bars, escape, out, print_json, warn, warn_of_errors, working
from corit_cli.cli.options import Given, opt
from corit_cli.cli.outputs import on_stdout
from corit_cli.data.settings import CropConfig
from corit_cli.errors import CoritError
from corit_cli.gsnr.settings import PANEL as MEASURED
from corit_cli.gsnr.settings import StudySettings
from corit_cli.model.settings import METHOD, CoRITSettings, baseline


@options.expand(settings=StudySettings(), reads=METHOD, windows=CropConfig("native"))
def gsnr(
    settings: Given[StudySettings],
    reads: Given[CoRITSettings],
    windows: Given[CropConfig],
    data: Annotated[
        Path | None,
        opt(
            "--data",
            "A folder with real/ and fake/ in it, or a manifest. Default: photographs that corit brings along "
            "and an autoencoder's reconstructions of them.",
            MEASURED,
            metavar="DATA",
        ),
    ] = None,
    compare: Annotated[
        str,
        opt(
            "--compare",
            "baseline (a probe of the last layer), corit, or both; the second minus the first is given too.",
            MEASURED,
            metavar="MODEL,MODEL",
        ),
    ] = "baseline,corit",
    checkpoint: Annotated[
        Path | None,
        opt(
            "--checkpoint -c",
            "Take what corit reads (but for faces), and its fitted head, from a detector that corit train made.",
            MEASURED,
            metavar="FOLDER|hf-hub:USER/NAME[@REVISION]",
        ),
    ] = None,
    as_json: options.Json = False,
    csv_file: options.CsvFile = None,
    plot: options.Plot = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    cache_size: options.CacheSize = 2,
    backbone: options.Backbone = "embedded",
    activation: options.Activation = None,
    device: options.Device = "auto",
    config: options.Config = None,
    dry_run: options.DryRun = False,
) -> None:
    """Measure where in the backbone the gradient carries signal, and what CoRIT does about it.

    GSNR is the squared norm of the mean gradient over the gradients' total variance, debiased, with a 95% interval.

    \b
    corit gsnr --layers all --plot gsnr.svg
    corit gsnr --data faces/ --samples 200 --by class --json > gsnr.json
    corit gsnr --wrt head --heads 10 --samples 2000 --data faces/
    corit gsnr --head-state init,1,2,5,fitted --strata source --data faces/
    corit gsnr -c my-detector --data faces/ --head-state fitted

    Images are read as one window of untouched pixels unless --crop or a checkpoint says otherwise.
    """
    names, asked = options.listed(compare, ("baseline", "corit"), "--compare"), settings.over(StudySettings())
    if checkpoint is not None and (backbone != "embedded" or activation is not None or reads.flags):
        raise CoritError(
            "the checkpoint already says what is read: leave out --backbone, --activation and the options of CoRIT"
        )
    options.check_crops(windows, reads, "native")
    unread = [flag for flag in reads.flags if flag not in ("--view", "--cgp", "--no-cgp")]
    if asked.wrt == "head" and unread:
        raise CoritError(f"--wrt head takes every layer's class token or contrast by itself: leave out {unread[0]}")
    corit = reads.over(METHOD)
    alone = on_stdout({"--csv": csv_file}, {"--json": as_json})

    from corit_cli.cli.gsnr_tables import show, write_csv
    from corit_cli.data.manifest import load_samples
    from corit_cli.detection.detector import Detector, pick_device
    from corit_cli.gsnr.foresee import foresee
    from corit_cli.gsnr.layers import study
    from corit_cli.gsnr.reading import reading
    from corit_cli.gsnr.study import Compared
    from corit_cli.model.loading import load_backbone

    if plot is not None:
        from corit_cli.report.figure import check_suffix

        check_suffix(plot)
    images = load_samples(data or options.shipped_samples(), warn)
    device = pick_device(device)
    with working("loading the backbone"):
        if checkpoint is not None:
            detector = Detector.load(checkpoint, device, "fp32").without_faces()
            loaded = detector.extractor.backbone
            cut = detector.checkpoint.crops
            if asked.wrt != "head" and windows.over(cut).mode != cut.mode:
                raise CoritError(f"the checkpoint's head was fitted to --crop {cut.mode}: leave out --crop")
            ours = Compared("corit", detector.checkpoint.settings, detector.head)
            detector_named = detector.checkpoint.identity
        else:
            loaded, cut = load_backbone(backbone, activation, device), CropConfig("native")
            ours, detector_named = Compared("corit", corit), {}
    config = loaded.tower.config
    cut = replace(windows.over(cut), size=config.image_size)
    known = {"baseline": Compared("baseline", baseline(config.layers)), "corit": ours}
    if dry_run:
        kept = forecast.cache_file(cache, no_cache)
        with forecast.foreseeing():
            cost, count, backwards = foresee(images, loaded, [known[name] for name in names], cut, asked, device, kept)
        written = forecast.outputs(csv=csv_file, plot=plot, features=kept)
        return forecast.of_study(cost, count, backwards, written).show()
    with options.feature_cache(cache, no_cache, cache_size) as store, Bars() as bars:
        found = study(
            images,
            loaded,
            [known[name] for name in names],
            crops=cut,
            settings=asked,
            device=device,
            progress=bars,
            cache=store,
        )
    warn_of_errors(found.left_out)
    if csv_file is not None:
        write_csv(found, csv_file)
    if plot is not None:
        from corit_cli.report.gsnr_plot import gsnr_plot

        gsnr_plot(found, plot)
    if as_json:
        print_json(found.as_dict() | detector_named | {"reading": reading(found)})
    elif not alone:
        show(found)
        out.print(
            f"A plot of GSNR against depth is in {escape(str(plot))}."
            if plot is not None
            else "For a plot of GSNR against depth give --plot gsnr.svg.",
            soft_wrap=True,
        )
