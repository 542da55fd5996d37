"""``corit gsnr``: how much signal each layer's gradient carries."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from corit_cli.analysis.study import QUANTILES, Compared, Study, StudySettings
from corit_cli.cli import options
from corit_cli.cli.console import err, escape, out, print_json, progress_bar, warn
from corit_cli.errors import CoritError
from corit_cli.model.settings import baseline, parse_layers

if TYPE_CHECKING:
    from corit_cli.analysis.study import Study
    from corit_cli.data.images import CropConfig
    from corit_cli.engine.weights import Backbone
    from corit_cli.metrics import Estimate

DEFAULT = StudySettings()
MEASURED = "What is measured"
OUTPUT = "Output"
STATES = {"init": ("initial",), "fitted": ("fitted",), "both": ("initial", "fitted")}
STATE_NAMES = {"initial": "at initialisation (one random head)", "fitted": "after fitting the head"}
PARTS = {"params": "", "cls": " cls", "patches": " patches"}


def gsnr(
    layers: Annotated[
        str, typer.Option(metavar="all|LAYERS", help="As in 0,3,6-9; 0 is the embedding.", rich_help_panel=MEASURED)
    ] = "all",
    wrt: Annotated[
        str,
        typer.Option(
            metavar="params|tokens",
            help="Gradients with respect to a layer's parameters, or to its output.",
            rich_help_panel=MEASURED,
        ),
    ] = "params",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="A folder with real/ and fake/ in it, or a manifest. Default: photographs that corit brings along "
            "and an autoencoder's reconstructions of them.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=6, help="Images to measure on; heads are fitted on others.", rich_help_panel=MEASURED)
    ] = DEFAULT.samples,
    compare: Annotated[
        str,
        typer.Option(
            metavar="MODEL,MODEL",
            help="baseline (a probe of the last layer), corit, or both; the second minus the first is given too.",
            rich_help_panel=MEASURED,
        ),
    ] = "baseline,corit",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="FOLDER",
            help="Take what corit reads, and its fitted head, from a detector that corit train made.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    head_state: Annotated[
        str,
        typer.Option(metavar="init|fitted|both", help="The head the loss is taken at.", rich_help_panel=MEASURED),
    ] = "both",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="class|source",
            help="Measure every class or source by itself, too. Takes twice as long.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    quantiles: Annotated[
        bool, typer.Option("--quantiles", help="Quantiles over single parameters, too.", rich_help_panel=MEASURED)
    ] = False,
    seed: Annotated[int, typer.Option(help="Of every random draw.", rich_help_panel=MEASURED)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document, with all it takes to redo it.", rich_help_panel=OUTPUT)
    ] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="A CSV file, besides.", rich_help_panel=OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A plot, besides: .png or .svg.", rich_help_panel=OUTPUT),
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
    """Measure where in the backbone the gradient carries signal, and what CoRIT does about it.

    GSNR is the squared norm of the mean gradient over the gradients' total variance, debiased, with a 95% interval.

    \b
    corit gsnr --layers all --plot gsnr.svg
    corit gsnr --data faces/ --samples 200 --by class --json > gsnr.json
    corit gsnr --wrt tokens --layers 3,6-9 --compare corit --inject-at 3,4,5,6
    corit gsnr -c my-detector --data faces/ --head-state fitted

    Images are read as one window of untouched pixels unless --crop or a checkpoint says otherwise.
    """
    names = _names(compare)
    try:
        settings = StudySettings(
            layers=None if layers == "all" else parse_layers(layers),
            wrt=wrt,
            samples=samples,
            states=_states(head_state),
            by=by,
            quantiles=quantiles,
            seed=seed,
        )
    except ValueError as error:
        raise CoritError(str(error)) from None
    reads = (view, integrate, cgp, no_cgp or None, pool, inject_at, mask, alpha, activation)
    if checkpoint is not None and (backbone != "embedded" or any(option is not None for option in reads)):
        raise CoritError("a checkpoint says itself what is read: leave out --backbone and the options of CoRIT")
    corit = options.corit_settings(view, integrate, cgp, no_cgp, pool, inject_at, mask, alpha)

    from corit_cli.analysis.layers import study
    from corit_cli.data.manifest import load_samples
    from corit_cli.engine.predict import Detector, pick_device
    from corit_cli.engine.weights import load_backbone
    from corit_cli.report.gsnr_plot import check_suffix, gsnr_plot

    if plot is not None:
        check_suffix(plot)
    images = load_samples(data or options.shipped_samples())
    device = pick_device(device)
    with err.status("loading the backbone"):
        if checkpoint is not None:
            detector = Detector.load(checkpoint, device)
            loaded, cut = detector.extractor.backbone, detector.checkpoint.crops
            ours = Compared("corit", detector.checkpoint.settings, detector.head)
        else:
            loaded = load_backbone(backbone, activation, device)
            cut, ours = None, Compared("corit", corit)
    windows = _windows(cut, crop, crops, loaded)
    plain = Compared("baseline", baseline(loaded.tower.config.layers))
    with progress_bar() as bar:

        def stages(title: str, total: int):
            task = bar.add_task(title, total=total)
            return lambda count: bar.advance(task, count)

        models = [{"baseline": plain, "corit": ours}[name] for name in names]
        found = study(images, loaded, models, windows, settings, device, stages)
    for sample, message in found.left_out:
        warn(f"left out {sample.path}: {message}")
    if csv_file is not None:
        _write_csv(found, csv_file)
    if plot is not None:
        gsnr_plot(found, plot)
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)


def _names(compare: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in compare.split(",")))
    if not set(names) <= {"baseline", "corit"}:
        raise CoritError(f"--compare takes baseline, corit or both with a comma between, not {compare!r}")
    return names


def _states(head_state: str) -> tuple[str, ...]:
    if head_state not in STATES:
        raise ValueError(f"--head-state takes init, fitted or both, not {head_state!r}")
    return STATES[head_state]


def _windows(cut: CropConfig | None, mode: str | None, crops: int | None, backbone: Backbone) -> CropConfig:
    """The checkpoint's windows unless options say otherwise, and a single native one without a checkpoint."""
    if cut is not None and mode is None and crops is None:
        return cut
    return options.crop_config(mode or "native", crops, backbone.tower.config.image_size)


# --- what is shown --------------------------------------------------------------------------------


def _show(found: Study) -> None:
    about = found.about["data"]
    out.print(
        f"GSNR on {about['measured']} images ({about['measured_fakes']} fake) in {about['jackknife_groups']} jackknife "
        f"groups; heads fitted on {about['fit']} others. Debiased, with 95% intervals, the plain estimate beside it.",
        soft_wrap=True,
    )
    for state in dict.fromkeys(row.head for row in found.rows):
        for subset in dict.fromkeys(row.subset for row in found.rows):
            _show_gsnr(found, state, subset)
    _show_proxies(found)
    for note in found.notes:
        out.print(f"Note: {escape(note)}", soft_wrap=True)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print(table: Table) -> None:
    """Print a table. A pipe has no width of its own, so tables keep theirs there."""
    out.print()
    (out if out.is_terminal else Console(width=160, highlight=False)).print(table)


def _show_gsnr(found: Study, state: str, subset: str) -> None:
    """A table of all models, the difference, and in words what is not distinguishable from zero."""
    rows = [r for r in found.rows if (r.head, r.subset) == (state, subset)]
    differences = {
        (r.part, r.layer): r for r in found.differences if (r.head, r.subset) == (state, subset)
    }  # fmt: skip
    models = list(dict.fromkeys(r.model for r in rows))
    cells = {(r.model, r.part, r.layer): r for r in rows}
    columns = [
        "layer",
        *(c for m in models for c in (m, "plain")),
        *([" - ".join(models[::-1])] if differences else []),
    ]
    title = f"GSNR {STATE_NAMES[state]}" + ("" if subset == "all" else f", {escape(subset)} images")
    table = _table(title, columns)
    for part, layer in sorted(dict.fromkeys((r.part, r.layer) for r in rows), key=_depth):
        line = [layer + PARTS[part]]
        for model in models:
            row = cells.get((model, part, layer))
            line += ["not read", ""] if row is None else [_interval(row.estimate), f"{row.estimate.plugin:.4f}"]
        if differences:
            row = differences.get((part, layer))
            line.append("" if row is None else _interval(row.difference))
        table.add_row(*line)
    _print(table)
    losses = [f"{model} {found.losses[model, state, subset]:.3f}" for model in models]
    out.print(f"Mean loss: {', '.join(losses)} (chance: 0.693)", soft_wrap=True)
    for model in models:
        faint = [r.layer + PARTS[r.part] for r in rows if r.model == model and not r.estimate.significant]
        if faint:
            out.print(f"{model}: not distinguishable from zero at layer {', '.join(faint)}", soft_wrap=True)
    faint = [layer + PARTS[part] for (part, layer), r in differences.items() if not r.difference.significant]
    if faint:
        out.print(f"Difference: not distinguishable from zero at layer {', '.join(faint)}", soft_wrap=True)
    _show_quantiles([r for r in rows if r.quantiles is not None])


def _show_quantiles(rows: list) -> None:
    if rows:
        table = _table("Quantiles of single parameters' GSNR", ["layer", "model", *(f"{q:.0%}" for q in QUANTILES)])
        for row in rows:
            table.add_row(row.layer, row.model, *(f"{q:.4f}" for q in row.quantiles))
        _print(table)


def _depth(key: tuple[str, str]) -> tuple[str, float]:
    part, layer = key
    return part, float(layer) if layer.isdigit() else float("inf")


def _interval(e) -> str:
    return f"{e.value:.4f} [{e.low:.4f}, {e.high:.4f}]"


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
    _print(table)
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
    from corit_cli.engine.checkpoint import write_atomically

    rows = found.as_dict()["gsnr"]
    for row in rows:
        row |= {f"quantile_{q}": value for q, value in row.pop("quantiles", {}).items()}

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)
