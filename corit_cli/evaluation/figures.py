"""What scores of labelled images come to: figures with intervals, overall, by group, of whole videos, and degraded.

Ranking figures (AUC and the like) go by the head's logits; rates and calibration by the probabilities and thresholds
that the detector ships with. No threshold is ever chosen on the images under test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from corit_cli import metrics
from corit_cli.data.manifest import describe
from corit_cli.data.splits import units_of
from corit_cli.detection.scores import Scored
from corit_cli.detection.verdicts import trimmed_mean
from corit_cli.evaluation.groups import comparable, groups_by
from corit_cli.metrics.intervals import Estimate
from corit_cli.metrics.ranking import Roc
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.detection.checkpoint import Checkpoint

RANKING = {
    "auc": "AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "tpr_at_fpr_0.01": "TPR at 1% FPR",
    "tpr_at_fpr_0.05": "TPR at 5% FPR",
}
RATES = {
    "fpr": "real images called fake (FPR)",
    "recall": "fakes called fake (recall)",
    "missed": "fakes called real",
    "uncertain": "left uncertain",
}
FIGURES = {
    **RANKING,
    "accuracy": "accuracy (uncertain counts as wrong)",
    "balanced_accuracy": "balanced accuracy (uncertain counts as wrong)",
    "accuracy_decided": "accuracy where there is a verdict",
    **RATES,
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
}


# --- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subset:
    """Figures of one set of images, by the names in ``FIGURES``; NaN where a class they need is missing."""

    name: str
    real: int
    fake: int
    figures: dict[str, Estimate]
    against: str = ""


@dataclass(frozen=True)
class Table:
    """Figures by group, with the mean and the worst AUC of the two-class groups (named in ``counted``)."""

    by: str
    parts: list[Subset]
    counted: list[str]
    mean_auc: Estimate
    worst: str | None


@dataclass(frozen=True)
class Degraded:
    """One robustness chain: mean AUC and its paired change from the clean images, rates, and verdicts that moved.

    ``flipped`` went from real to fake or back; ``changed`` also counts steps to and from uncertain.
    """

    name: str
    auc: Estimate
    change: Estimate
    fpr: Estimate
    recall: Estimate
    flipped: Estimate
    changed: Estimate


@dataclass(frozen=True)
class Robustness:
    """Chains on the ``images`` that all of them could be applied to; ``groups`` are what the AUC is a mean over."""

    images: int
    by: str
    groups: list[str]
    clean_auc: Estimate
    chains: list[Degraded]


@dataclass
class Evaluation:
    """All that was found; ``peers`` and ``protocols`` are put in by those who measure them."""

    scored: Scored
    about: dict[str, Any]
    overall: Subset
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


def ranking(roc: Roc) -> dict[str, NDArray]:
    """The figures of ``RANKING`` (R,) each."""
    return {
        "auc": roc.auc,
        "average_precision": roc.average_precision,
        "eer": roc.eer,
        **{f"tpr_at_fpr_{share}": roc.tpr_at(share) for share in (0.01, 0.05)},
    }


def share(hits: NDArray, units: Sequence | None = None) -> Estimate:
    """The share of ``hits`` (n,) with its Wilson interval. Frames of videos count as (sum n)^2 / sum n^2 trials, n
    being the frames of each: one a video where these are equally long."""
    sizes = np.array(list(Counter(range(len(hits)) if units is None else units).values()), float)
    trials = sizes.sum() ** 2 / np.square(sizes).sum() if len(hits) else 0
    return metrics.proportion(float(np.mean(hits)) * trials if len(hits) else 0.0, trials)


def rates(labels: NDArray, verdicts: NDArray, units: Sequence) -> dict[str, Estimate]:
    """The figures of ``RATES``."""
    at = {c: np.flatnonzero(labels == c) for c in (0, 1)}

    def of(label: int, verdict: str) -> Estimate:
        return share(verdicts[at[label]] == verdict, [units[i] for i in at[label]])

    values = of(0, "fake"), of(1, "fake"), of(1, "real"), share(verdicts == "uncertain", units)
    return dict(zip(RATES, values, strict=True))


def overall(scored: Scored) -> Subset:
    """All figures on all images."""
    labels, logits, units = scored.labels, scored.logits[0], scored.units
    p, verdicts = scored.probabilities[0], scored.verdicts[0]
    right = verdicts == np.where(labels == 1, "fake", "real")
    decided = verdicts != "uncertain"

    def figures(weights: NDArray) -> dict[str, NDArray]:
        def mean(values: NDArray, where: NDArray) -> NDArray:
            total = weights[:, where].sum(1)
            with np.errstate(invalid="ignore"):
                return weights[:, where] @ values[where].astype(np.float64) / total

        everything = np.ones(len(labels), bool)
        return {
            **ranking(Roc.of(labels, logits, weights)),
            "accuracy": mean(right, everything),
            "balanced_accuracy": (mean(right, labels == 0) + mean(right, labels == 1)) / 2,
            "accuracy_decided": mean(right, decided),
            "brier": mean((p - labels) ** 2, everything),
        }

    found = metrics.bootstrap(figures, labels, units=units)
    estimates = {k: s.estimate for k, s in found.items()} | rates(labels, verdicts, units)
    estimates["ece"] = metrics.calibration_interval(labels, p, units)
    return _subset("all images", labels, {name: estimates[name] for name in FIGURES})


def whole_videos(scored: Scored) -> Subset | None:
    """Ranking figures of videos, each scored as ``corit detect`` does it, by the trimmed mean of its frames; None
    where none has more than one frame."""
    videos: dict[tuple, list[int]] = {}
    for i, s in enumerate(scored.samples):
        if s.video_id:
            videos.setdefault((s.source, s.generator, s.video_id, s.label), []).append(i)
    if all(len(frames) == 1 for frames in videos.values()):
        return None
    labels = np.array([key[-1] for key in videos])
    scores = np.array([trimmed_mean(scored.logits[0, frames]) for frames in videos.values()])
    units = [units_of([scored.samples[frames[0]]])[0] for frames in videos.values()]
    found = metrics.bootstrap(lambda w: ranking(Roc.of(labels, scores, w)), labels, units=units)
    return _subset("videos", labels, {k: s.estimate for k, s in found.items()})


def table(scored: Scored, by: str) -> Table:
    """AUC and rates of each group, and what the two-class groups come to."""
    labels, units, groups = scored.labels, scored.units, groups_by(scored.samples, by)
    masks = {name: g.mask for name, g in groups.items()}
    found = metrics.bootstrap_groups(labels, {"": scored.logits[0]}, masks, units) if groups else {}
    parts = []
    for name, group in groups.items():
        chosen = np.flatnonzero(group.mask)
        figures = {"auc": found["", name].estimate}
        figures |= rates(labels[chosen], scored.verdicts[0, chosen], [units[i] for i in chosen])
        parts.append(_subset(name, labels[chosen], figures, group.against))
    counted = [name for name, g in groups.items() if g.two_class(labels)]
    mean = metrics.Sampled.mean([found["", name] for name in counted]).estimate
    return Table(by, parts, counted, mean, min(counted, key=lambda name: found["", name].value, default=None))


def robustness(scored: Scored) -> Robustness:
    """Each chain against the clean images, on the images that all chains could be applied to. A chain that most images
    are too large for is left out."""
    usable = np.flatnonzero(np.isnan(scored.logits[1:]).mean(1) < 0.5)
    rows = np.append(0, usable + 1)
    kept = ~np.isnan(scored.logits[rows]).any(0)
    samples = [s for s, k in zip(scored.samples, kept, strict=True) if k]
    units = units_of(samples)
    labels, logits, verdicts = scored.labels[kept], scored.logits[rows][:, kept], scored.verdicts[rows][:, kept]
    by, groups = comparable(samples)
    used = [scored.chains[c] for c in usable]
    names = ("", *used)
    found = metrics.bootstrap_groups(labels, dict(zip(names, logits, strict=True)), groups, units)
    mean = {name: metrics.Sampled.mean([found[name, group] for group in groups]) for name in names}
    chains = []
    for name, now in zip(used, verdicts[1:], strict=True):
        pairs = np.char.add(verdicts[0], now)
        of = rates(labels, now, units)
        chains.append(
            Degraded(
                name=name,
                auc=mean[name].estimate,
                change=(mean[name] - mean[""]).estimate,
                fpr=of["fpr"],
                recall=of["recall"],
                flipped=share(np.isin(pairs, ["realfake", "fakereal"]), units),
                changed=share(verdicts[0] != now, units),
            )
        )
    return Robustness(int(kept.sum()), by, list(groups), mean[""].estimate, chains)


def _subset(name: str, labels: NDArray, figures: dict[str, Estimate], against: str = "") -> Subset:
    return Subset(name, int((labels == 0).sum()), int((labels == 1).sum()), figures, against)


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
    elif not 0.4 <= labels.mean() <= 0.6:
        notes.append(
            f"probabilities are meant for files as likely fake as real; {labels.mean():.0%} of these are fake, which "
            "calibration error and Brier score take for miscalibration"
        )
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
