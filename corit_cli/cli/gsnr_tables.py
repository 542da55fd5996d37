"""What ``corit gsnr`` shows and writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from corit_cli import texts
from corit_cli.cli.console import escape, out, print_table
from corit_cli.data.splits import FEWEST_UNITS, SMALL
from corit_cli.files import write_atomically
from corit_cli.gsnr.reading import reading
from corit_cli.gsnr.settings import stage

if TYPE_CHECKING:
    from corit_cli.gsnr.study import Study
    from corit_cli.metrics import Estimate

PARTS = {"params": "", "head": "", "cls": " cls", "patches": " patches"}


def show(found: Study) -> None:
    """Print what was measured on, tables by state of the head and subset, and what they say."""
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


def write_csv(found: Study, path: Path) -> None:
    """Write a row for each model, state of the head, subset and layer."""
    rows = [_flat(row) for row in found.as_dict()["gsnr"]]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = texts.Table(file, rows[0])
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
