"""All that scores of labelled images come to, together, with what a reader should know of the images first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from corit_cli import metrics
from corit_cli.data.manifest import describe
from corit_cli.detection.scores import Scored
from corit_cli.evaluation.figures import AT_FPR, Overall, Subset, Table, overall, table, whole_videos
from corit_cli.evaluation.robustness import Robustness, robustness
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.detection.checkpoint import Checkpoint


@dataclass
class Evaluation:
    """All that was found; ``peers`` and ``protocols`` are put in by those who measure them."""

    scored: Scored
    about: dict[str, Any]
    overall: Overall
    videos: Subset | None
    tables: list[Table]
    robustness: Robustness | None
    notes: list[str]
    peers: list = field(default_factory=list)
    protocols: list = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single images' scores, of plain types; figures that do not exist are NaN."""
        parts = {k: getattr(self, k) for k in ("overall", "videos", "robustness")}
        lists = {k: getattr(self, k) for k in ("tables", "peers", "protocols")}
        return {
            **self.about,
            "notes": self.notes,
            **{k: None if v is None else asdict(v) for k, v in parts.items()},
            **{k: [asdict(v) for v in values] for k, values in lists.items()},
        }


def summarise(checkpoint: Checkpoint, scored: Scored, by: Sequence[str] = ("source", "generator")) -> Evaluation:
    """Figures of ``scored`` images, overall, for whole videos, in groups ``by`` source and generator, and degraded."""
    labels = scored.labels
    about = {
        "corit": __version__,
        **checkpoint.identity,
        "backbone": checkpoint.backbone,
        "thresholds": asdict(checkpoint.thresholds),
        "data": {
            "fingerprint": describe(scored.samples, (), range(len(labels)))["fingerprint"],
            "real": int((labels == 0).sum()),
            "fake": int((labels == 1).sum()),
            "unreadable": [{"path": str(s.path), "error": message} for s, message in scored.errors],
        },
    }
    tables = [table(scored, name) for name in by]
    return Evaluation(
        scored,
        about,
        overall(scored),
        whole_videos(scored),
        tables,
        robustness(scored) if scored.chains and not np.isnan(scored.logits[1:]).all() else None,
        _notes(checkpoint, scored, tables),
    )


def _notes(checkpoint: Checkpoint, scored: Scored, tables: Sequence[Table]) -> list[str]:
    """What a reader should know of the images before the figures."""
    notes, labels = [], scored.labels
    if scored.errors:
        notes.append(f"{len(scored.errors)} of {len(labels) + len(scored.errors)} images could not be read: left out")
    for name, row in zip(scored.chains, np.isnan(scored.logits[1:]), strict=True):
        if row.any():
            notes.append(f"{name} could not be applied to {row.sum()} of the images (too large)")
    if len(np.unique(labels)) < 2:
        kind = "fake" if labels[0] else "real"
        notes.append(f"all {len(labels)} images are {kind}: there are rates for them, but nothing to rank them against")
    else:
        notes += _few(metrics.class_counts(labels, scored.units)[0])
    trained = {
        name
        for name, counts in checkpoint.data.get("sources", {}).items()
        if any(k.startswith("train") for k in counts)
    }
    known = sorted({s.source for s in scored.samples if s.source} & trained)
    if known:
        notes.append(
            f"the detector was trained on images of {len(known)} of these sources ({', '.join(known)}): figures on "
            "them say little about sources it has not seen"
        )
    for t in tables:
        if not t.parts:
            notes.append(f"no image names its {t.by}: there is no table by {t.by}")
    return notes


def _few(reals: float) -> list[str]:
    """What so many independent real images are too few for."""
    notes = []
    for fpr in AT_FPR:
        if reals < 3 / fpr:
            verb = "cannot be told" if reals < 1 / fpr else "is a rough guess"
            notes.append(
                f"TPR at {fpr:.0%} FPR {verb}: its threshold takes at least {1 / fpr:.0f} independent real images, and "
                f"{3 / fpr:.0f} to be of use; these count as {reals:.0f}"
            )
    return notes
