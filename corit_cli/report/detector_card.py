"""The model card of a detector on the Hub: nothing but what its ``config.json`` says was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from corit_cli.report.case import About
from corit_cli.report.rates import KINDS, THE_SAME

if TYPE_CHECKING:
    from corit_cli.detection.checkpoint import Checkpoint

#: By the figures' name in ``config.json``.
_ROWS = {
    "held_out_sources": "as they are",
    "held_out_strict": "as they are, with `--strict`",
    "held_out_degraded": "degraded copies",
    "held_out_faces": "faces",
    "held_out_faces_strict": "faces, with `--strict`",
}
_SET_ASIDE = (
    "On training sources that were set aside. Their loss chose the epoch, and probabilities were calibrated on them, "
    "so that these figures are somewhat too good."
)
_HELD_OUT = "On training sources that were held out in turn, scored by heads that never saw them."
_JUDGED = "They are judged by thresholds that were fitted to the others."
#: The repository that the weights of the embedded backbone are from.
_EMBEDDED = "openai/clip-vit-base-patch16"


def detector_card(checkpoint: Checkpoint, name: str, trained_with: str) -> str:
    """Markdown with the Hub's metadata before it, of the detector to be called ``name`` (USER/NAME), which corit
    ``trained_with`` made. Figures that it lacks are left out."""
    import jinja2

    from corit_cli.model.hub import PREFIX

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corit_cli", "report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    backbone, training = checkpoint.backbone["name"], checkpoint.training
    base = {"embedded": _EMBEDDED}.get(backbone)
    if backbone.startswith(PREFIX):
        base = backbone.removeprefix(PREFIX).partition("@")[0]
    sources = checkpoint.data.get("sources", {})
    counts = {
        f"{part}_{kind}": sum(source.get(f"{part}_{kind}", 0) for source in sources.values())
        for part in ("train", "val")
        for kind in ("real", "fake")
    }
    return environment.get_template("detector_card.md.j2").render(
        name=name,
        prefix=PREFIX,
        base_model=base,
        trained_with=trained_with,
        about=About.of(checkpoint, datetime.now(timezone.utc), ""),
        tried_on=" ".join(
            (_SET_ASIDE if training.get("tune") else _HELD_OUT, _JUDGED if training.get("judged_by") else THE_SAME)
        ),
        rows=[_row(title, checkpoint.metrics[key]) for key, title in _ROWS.items() if key in checkpoint.metrics],
        places=checkpoint.metrics.get("localizer"),
        leaked=checkpoint.data.get("leaked"),
        counts=counts,
        sources=len(sources),
        fingerprint=checkpoint.data.get("fingerprint", "unknown"),
        refit=bool(training.get("refit")),
        training=json.dumps(_settings(training), indent=1),
    )


def _row(title: str, rates: Mapping[str, float]) -> dict[str, Any]:
    shown = {name: f"{value:.1%}" for name, value in rates.items() if "_called_" in name}
    return {"title": title, **{kind: f"{rates[kind]:,.0f}" if kind in rates else "–" for kind in KINDS}} | shown


def _settings(training: dict[str, Any]) -> dict[str, Any]:
    """How it was trained, without what names sources and without the log of its epochs."""
    tuning = training.get("tune")
    kept = {key: training[key] for key in ("settings", "recipe") if key in training}
    return kept | ({"tune": {k: v for k, v in tuning.items() if k not in ("epochs", "set_aside")}} if tuning else {})
