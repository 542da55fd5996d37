"""What scores of labelled images come to: figures with intervals, overall, by group, and of whole videos.

Ranking figures (AUC and the like) go by the head's logits; rates and calibration by the probabilities and thresholds
that the detector ships with. No threshold of a verdict is ever chosen on the images under test; equal error rate and
TPR at an FPR take theirs from them, by definition.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from corit_cli import metrics
from corit_cli.data.splits import units_of
from corit_cli.detection.scores import Scored
from corit_cli.detection.verdicts import trimmed_mean
from corit_cli.evaluation.groups import groups_by
from corit_cli.metrics.intervals import Estimate
from corit_cli.metrics.ranking import Roc

if TYPE_CHECKING:
    pass

#: The shares of real images called fake that a TPR is told at.
AT_FPR = (0.01, 0.05)
#: Named sources from which on intervals are told as sources vary.
SOURCES = 5

RANKING = {
    "auc": "AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    **{f"tpr_at_fpr_{fpr}": f"TPR at {fpr:.0%} FPR" for fpr in AT_FPR},
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
    "ece": "calibration error (ECE), classes weighing the same",
    "brier": "Brier score, classes weighing the same",
}


@dataclass(frozen=True)
class Subset:
    """Figures of one set of images, by the names in ``FIGURES``; NaN where images that they need are missing."""

    name: str
    real: int
    fake: int
    figures: dict[str, Estimate]
    against: str = ""


@dataclass(frozen=True)
class Overall(Subset):
    """Figures of all images. Their intervals are for other images of these sources; those of ``as_sources_vary``, none
    narrower, draw whole sources, and are there where ``SOURCES`` of them have a name."""

    as_sources_vary: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Figures by group, with the mean and the worst AUC of the two-class groups (named in ``counted``)."""

    by: str
    parts: list[Subset]
    counted: list[str]
    mean_auc: Estimate
    worst: str | None


def ranking(roc: Roc, reals: float) -> dict[str, NDArray]:
    """The figures of ``RANKING`` (R,) each. TPR at an FPR is NaN where ``reals``, so many independent real images, are
    too few for one of them to be called fake."""
    nothing = np.full(len(roc.fpr), np.nan)
    return {
        "auc": roc.auc,
        "average_precision": roc.average_precision,
        "eer": roc.eer,
        **{f"tpr_at_fpr_{fpr}": roc.tpr_at(fpr) if reals >= 1 / fpr else nothing for fpr in AT_FPR},
    }


def rankings(
    labels: NDArray, scores: Mapping[str, NDArray], units: Sequence[Hashable]
) -> dict[tuple[str, str], metrics.Sampled]:
    """The figures of ``RANKING`` of each detector's ``scores`` (n,) on the same images: {(detector, figure): ...}."""
    reals, fakes = metrics.class_counts(labels, units)

    def figures(weights: NDArray) -> dict[tuple[str, str], NDArray]:
        rocs = {name: Roc.of(labels, s, weights) for name, s in scores.items()}
        return {(name, key): value for name, roc in rocs.items() for key, value in ranking(roc, reals).items()}

    found = metrics.bootstrap(figures, labels, units=units)
    for name in scores:
        auc = found[name, "auc"]
        found[name, "auc"] = replace(auc, alone=metrics.newcombe(auc.value, reals, fakes))
    return found


def share(hits: NDArray, units: Sequence[Hashable] | None = None) -> Estimate:
    """The share of ``hits`` (n,) with its Wilson interval; frames of videos, of ``units``, count as so many trials as
    :func:`~corit_cli.metrics.intervals.effective_count` says."""
    trials = metrics.effective_count(range(len(hits)) if units is None else units)
    return metrics.proportion(float(np.mean(hits)) * trials if len(hits) else 0.0, trials)


def _called(labels: NDArray, verdicts: NDArray) -> dict[str, tuple[NDArray, NDArray]]:
    """For each of ``RATES`` which images count (n,), and among which (n,)."""
    real, fake = labels == 0, labels == 1
    return {
        "fpr": (verdicts == "fake", real),
        "recall": (verdicts == "fake", fake),
        "missed": (verdicts == "real", fake),
        "uncertain": (verdicts == "uncertain", real | fake),
    }


def rates(labels: NDArray, verdicts: NDArray, units: Sequence[Hashable]) -> dict[str, Estimate]:
    """The figures of ``RATES``."""
    called = _called(labels, verdicts).items()
    return {name: share(hits[of], [units[i] for i in np.flatnonzero(of)]) for name, (hits, of) in called}


def overall(scored: Scored) -> Overall:
    """All figures on all images."""
    labels, logits, units = scored.labels, scored.logits[0], scored.units
    p, verdicts = scored.probabilities[0], scored.verdicts[0]
    right = verdicts == np.where(labels == 1, "fake", "real")
    everything, decided = np.ones(len(labels), bool), verdicts != "uncertain"
    reals, _ = metrics.class_counts(labels, units)

    def figures(weights: NDArray) -> dict[str, NDArray]:
        def mean(values: NDArray, of: NDArray) -> NDArray:
            with np.errstate(invalid="ignore"):
                return weights[:, of] @ values[of].astype(np.float64) / weights[:, of].sum(1)

        def balanced(values: NDArray) -> NDArray:
            return (mean(values, labels == 0) + mean(values, labels == 1)) / 2

        return {
            **ranking(Roc.of(labels, logits, weights), reals),
            "accuracy": mean(right, everything),
            "balanced_accuracy": balanced(right),
            "accuracy_decided": mean(right, decided),
            **{name: mean(hits, of) for name, (hits, of) in _called(labels, verdicts).items()},
            "brier": balanced((p - labels) ** 2),
        }

    def drawn(whole: Sequence[Hashable]) -> dict[str, Estimate]:
        found = metrics.bootstrap(figures, labels, units=whole)
        return {k: s.estimate for k, s in found.items()} | {"ece": metrics.calibration_interval(labels, p, whole)}

    found = drawn(units) | rates(labels, verdicts, units)
    found["auc"] = metrics.auc_interval(labels, logits, units=units)
    for name, of in (("accuracy", everything), ("accuracy_decided", decided)):
        found[name] = share(right[of], [units[i] for i in np.flatnonzero(of)])
    varying, sources = {}, [s.source for s in scored.samples]
    if len(set(sources) - {""}) >= SOURCES:  # images that name none are drawn as one
        by_source = drawn(sources)
        varying = {name: found[name].widened(by_source[name]) for name in FIGURES}
    real, fake = (int((labels == label).sum()) for label in (0, 1))
    return Overall("all images", real, fake, {name: found[name] for name in FIGURES}, as_sources_vary=varying)


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
    found = rankings(labels, {"": scores}, units)
    return _subset("videos", labels, {figure: found["", figure].estimate for figure in RANKING})


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


def _subset(name: str, labels: NDArray, figures: dict[str, Estimate], against: str = "") -> Subset:
    return Subset(name, int((labels == 0).sum()), int((labels == 1).sum()), figures, against)
