"""What degrading does to scores of labelled images: each chain of degradations against the images as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corit_cli import metrics
from corit_cli.data.splits import units_of
from corit_cli.detection.scores import Scored
from corit_cli.evaluation.figures import rates, share
from corit_cli.evaluation.groups import comparable
from corit_cli.metrics.intervals import Estimate


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
