"""``corit gsnr``: how much signal each layer's gradient carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table

from corit_cli.cli import forecast, options
from corit_cli.cli.console import Bars, escape, out, print_json, print_table, warn, warn_of_errors, working
from corit_cli.cli.options import Given, opt
from corit_cli.data.splits import FEWEST_UNITS, SMALL
from corit_cli.data.windows import CropConfig
from corit_cli.errors import CoritError
from corit_cli.gsnr.reading import reading
from corit_cli.gsnr.study import PANEL as MEASURED
from corit_cli.gsnr.study import Compared, Study, StudySettings, stage
from corit_cli.model.settings import METHOD, CoRITSettings, baseline

if TYPE_CHECKING:
    from corit_cli.metrics import Estimate

PARTS = {"params": "", "head": "", "cls": " cls", "patches": " patches"}


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

    from corit_cli.data.manifest import load_samples
    from corit_cli.detection.detector import Detector, pick_device
    from corit_cli.gsnr.foresee import foresee
    from corit_cli.gsnr.layers import study
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
            cut = detector.checkpoint.crops if not windows.flags else CropConfig("native")
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
        _write_csv(found, csv_file)
    if plot is not None:
        from corit_cli.report.gsnr_plot import gsnr_plot

        gsnr_plot(found, plot)
    if as_json:
        print_json(found.as_dict() | detector_named | {"reading": reading(found)})
    else:
        _show(found)
        out.print(
            f"A plot of GSNR against depth is in {escape(str(plot))}."
            if plot is not None
            else "For a plot of GSNR against depth give --plot gsnr.svg.",
            soft_wrap=True,
        )


# --- what is shown --------------------------------------------------------------------------------


def _show(found: Study) -> None:
    about = found.about["data"]
    out.print(
        f"GSNR on {about['measured']} images ({about['measured_fakes']} fake) in {about['jackknife_groups']} jackknife "
        f"groups; heads fitted on {about['fit']} others. Under batches with as many real images as fake ones; "
        "debiased, with 95% intervals, the plain estimate beside it.",
        soft_wrap=True,
    )
    strata = about["strata"]
    if len(strata) > 2:
        out.print(f"Strata: {len(strata)}, sources within classes, each with its share of the images.", soft_wrap=True)
    if any(name.endswith(SMALL) for name in strata):
        out.print(
            f"Sources of fewer than {FEWEST_UNITS} independent images make up one stratum of their class together.",
            soft_wrap=True,
        )
    for state in dict.fromkeys(row.head for row in found.rows):
        for subset in dict.fromkeys(row.subset for row in found.rows):
            _show_gsnr(found, state, subset)
    _show_proxies(found)
    for note in found.notes:
        out.print(f"Note: {escape(note)}", soft_wrap=True)
    out.print()
    for sentence in reading(found):
        out.print(escape(sentence), soft_wrap=True)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show_gsnr(found: Study, state: str, subset: str) -> None:
    """A table of all models and of the difference."""
    rows = [r for r in found.rows if (r.head, r.subset) == (state, subset)]
    differences = {
        (r.part, r.layer): r for r in found.differences if (r.head, r.subset) == (state, subset)
    }  # fmt: skip
    models = list(dict.fromkeys(r.model for r in rows))
    cells = {(r.model, r.part, r.layer): r for r in rows}
    drawn = max(len(r.draws) for r in rows)  # random heads, where there are several
    many = [f"{drawn} heads"] if drawn else []
    columns = [
        "layer",
        *(c for m in models for c in (m, "plain", *many)),
        *([" - ".join(models[::-1]), *many] if differences else []),
    ]
    title = f"GSNR, {stage(state)}" + ("" if subset == "all" else f", {escape(subset)} images")
    table = _table(title, columns)
    for part, layer in sorted(dict.fromkeys((r.part, r.layer) for r in rows), key=_depth):
        line = [layer + PARTS[part]]
        for model in models:
            row = cells.get((model, part, layer))
            line += ["not read", ""] if row is None else [_interval(row.estimate), f"{row.estimate.plugin:.4f}"]
            if drawn:
                line.append(_range(row.draws) if row is not None else "")
        if differences:
            row = differences.get((part, layer))
            line.append("" if row is None else _interval(row.difference))
            if drawn:
                line.append(_range(row.draws) if row is not None else "")
        table.add_row(*line)
    print_table(table)
    shares = {model: [r.estimate.noise / r.independent.noise for r in rows if r.model == model] for model in models}
    ends = ", ".join(f"{min(share):.3f} to {max(share):.3f} ({model})" for model, share in shares.items())
    out.print(f"GSNR under independent draws, as a share of these: {ends}", soft_wrap=True)
    losses = [f"{m} {found.losses[m, state, subset]:.3f}" for m in models if (m, state, subset) in found.losses]
    if losses:
        out.print(f"Mean loss: {', '.join(losses)} (chance: 0.693)", soft_wrap=True)


def _depth(key: tuple[str, str]) -> tuple[str, float]:
    part, layer = key
    return part, float(layer) if layer.isdigit() else float("inf")


def _interval(e) -> str:
    return f"{e.value:.4f} [{e.low:.4f}, {e.high:.4f}]"


def _range(draws: Sequence[float]) -> str:
    return f"{min(draws):.4f}..{max(draws):.4f}" if draws else ""


def _plus_minus(e: Estimate | None) -> str:
    return "" if e is None else f"{e.value:.3f} ±{e.high - e.value:.3f}"


def _show_proxies(found: Study) -> None:
    """Probes of the plain layers, and beside them what the proxy is like."""
    proxy = next(iter(found.proxies.values()), None)
    columns = ["layer", "probe AUC"]
    if proxy is not None:
        columns += [
            "|c|/|h|",
            f"with RSI at {','.join(map(str, proxy.inject_at))}",
            "rank agreement",
            "cosine, real",
            "cosine, fake",
        ]
    contrast = ", and the contrast (CGP) after fitting the head" if proxy else ""
    table = _table(f"Every layer's class token{contrast}", columns)
    for layer in sorted({*found.probes, *(proxy.layers if proxy else ())}):
        line = [str(layer), _plus_minus(found.probes.get(layer))]
        p = proxy.layers.get(layer) if proxy else None
        if p is not None:
            values = (p.norm, p.injected_norm, p.rank, p.cosine_real, p.cosine_fake)
            line += [_plus_minus(value) for value in values]
        table.add_row(*line)
    print_table(table)
    out.print("Probe AUC: cross-validated, on all images. ± is half a 95% interval.", soft_wrap=True)
    if proxy is None:
        return
    out.print(
        "|c|/|h|: the contrast's norm relative to the tokens', mean over "
        "patches. Rank agreement: Spearman's correlation over patches of |c| with the norm of the loss gradient at the "
        "same tokens. Cosine: of c with that gradient.",
        soft_wrap=True,
    )
    v = proxy.variance
    if proxy.tried:
        out.print("These settings inject nothing: RRM and RSI are shown as they would be.", soft_wrap=True)
    out.print(
        f"RRM at layer {v.source} lets {v.share.value:.0%} of patches through; their contrast has "
        f"{_plus_minus(v.ratio)} times the variance of all patches', and a signal-to-noise ratio of "
        f"{_plus_minus(v.masked_signal_to_noise)} against {_plus_minus(v.signal_to_noise)}.",
        soft_wrap=True,
    )


def _write_csv(found: Study, path: Path) -> None:
    from corit_cli.files import write_atomically
    from corit_cli.texts import Table

    rows = [_flat(row) for row in found.as_dict()["gsnr"]]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = Table(file, rows[0])
            for row in rows:
                table.write(row)

    write_atomically(path, write)


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row of the table with its nested estimates as columns, such as ``independent_draws.value``."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat
