"""Does COR grow with GSNR? Signal strength is varied on purpose, and both are measured at every strength.

Three ways to weaken the signal a head sees: flip training labels, drown the features in noise, or let it read another
layer. A fourth leaves the signal of a gradient alone: train on fewer images, for as many epochs. docs/theory.md says
what is to be expected, and why the expectation is no theorem.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corit_cli.cor.arms import HeadArm, Split
from corit_cli.cor.collapse import COR, Criteria, critical_radius, rounded
from corit_cli.cor.settings import Optimization
from corit_cli.data.splits import jackknife_groups
from corit_cli.errors import CoritError
from corit_cli.metrics import gsnr
from corit_cli.metrics.correlation import Correlation, spearman
from corit_cli.metrics.gsnr import GSNREstimate, Moments
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.progress import Progress, quiet
from corit_cli.seeds import undisturbed
from corit_cli.training.head import centre, per_sample_gradients

LABEL_NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
#: In units of the features' own spread.
FEATURE_NOISE = (0.5, 1.0, 2.0, 4.0, 8.0)
#: Shares of the training images.
DATA_SIZE = (0.75, 0.5, 0.35, 0.25)
RADII = tuple(rounded(float(r)) for r in np.geomspace(0.05, 20, 9))
#: Radii added between the two that the cliff lies between.
BETWEEN = 6


@dataclass(frozen=True)
class Condition:
    """GSNR and COR at one strength of the signal; ``kind`` is label noise, feature noise, data size or
    layer."""

    kind: str
    level: float
    gsnr: GSNREstimate
    cor: COR


@dataclass(frozen=True)
class Theory:
    """All conditions, those that were left out, and Spearman's rank correlation of COR with GSNR over those of a kind
    and over all of them.

    No test goes with that of layers, whose neighbours are alike, nor with that of all, which share levels. Conditions
    of one kind share images, so that a test of theirs is a guide, no more.
    """

    conditions: list[Condition]
    correlation: Correlation
    by_kind: dict[str, Correlation]
    left_out: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "conditions": [
                {"kind": c.kind, "level": c.level, "gsnr": asdict(c.gsnr), "cor": c.cor.as_dict()}
                for c in self.conditions
            ],
            "left_out": list(self.left_out),
            "spearman": asdict(self.correlation),
            "spearman_by_kind": {kind: asdict(e) for kind, e in self.by_kind.items()},
        }


def theory(
    tokens: dict[int, Tensor],
    split: Split,
    units: Sequence[Hashable],
    optimization: Optimization,
    seeds: Sequence[int],
    progress: Progress = quiet,
) -> Theory:
    """Measure GSNR and COR of heads on the class tokens (n, d) of every layer, and under noise on the deepest one.

    ``units`` names, for every image, what it belongs together with. GSNR is that of the head's parameters at their
    initial values, on the training images. Collapse is that of training alone, loss at chance and a flat output: under
    noise, unseen images may be beyond any head, and that says nothing about the radius.

    A data size at which too few independent images are left for a GSNR is left out. Raises CoritError, before anything
    is trained, where there are too few of them in the first place.
    """
    deepest = max(tokens)
    levels = [
        *(("label noise", level) for level in LABEL_NOISE),
        *(("feature noise", level) for level in FEATURE_NOISE),
        *(("data size", level) for level in DATA_SIZE),
        *(("layer", float(layer)) for layer in sorted(tokens) if layer != deepest),
    ]
    ready, left_out = [], []
    for kind, level in levels:
        z, generator = tokens[int(level) if kind == "layer" else deepest], torch.Generator().manual_seed(0)
        labels, train = split.labels, split.train
        if kind == "data size":
            groups = jackknife_groups([units[i] for i in train.tolist()], labels[train].tolist())
            kept = [k for group in groups[: max(3, round(level * len(groups)))] for k in group]
            train = train[sorted(kept)]
        if kind == "feature noise":
            z = z + level * z[split.train].std(0) * torch.randn(z.shape, generator=generator)
        if kind == "label noise":
            flipped = train[torch.rand(len(train), generator=generator) < level]
            labels = labels.clone()
            labels[flipped] = 1 - labels[flipped]
        # Flipped labels are what heads are trained with; the validation labels stay true.
        arm = HeadArm(kind, z, replace(split, labels=labels, train=train), optimization)
        try:
            tests = replace(Criteria.of(labels[train].tolist(), split.labels[split.val].tolist()), null_auc=0.0)
            signal = head_gsnr(arm.x, labels, train, units, optimization)
        except ValueError as error:
            if kind != "data size":
                raise CoritError(
                    f"too few independent images ({error}), where those of one source or video may count as one: give "
                    "more, or more --samples"
                ) from None
            left_out.append(f"{kind} {level:g}: too few independent images")
            continue
        ready.append((kind, level, arm, tests, signal))
    found, advance = [], progress("conditions", len(ready))
    for kind, level, arm, tests, signal in ready:
        advance(0, f"{kind} {level:g}")
        runs = list(arm.run([(rho, seed, False) for rho in RADII for seed in seeds]))
        ends = critical_radius(runs, tests).bracket
        if ends is not None:
            between = np.geomspace(*ends, BETWEEN + 2)[1:-1]
            runs += arm.run([(rounded(float(rho)), seed, False) for rho in between for seed in seeds])
        found.append(Condition(kind, level, signal, critical_radius(runs, tests)))
        advance()
    by_kind = {
        kind: rank_correlation([c for c in found if c.kind == kind], independent=kind != "layer")
        for kind in dict.fromkeys(c.kind for c in found)
    }
    return Theory(found, rank_correlation(found, independent=False), by_kind, left_out)


@undisturbed()
def head_gsnr(
    x: Tensor, labels: Tensor, positions: Tensor, units: Sequence[Hashable], optimization: Optimization, seed: int = 0
) -> GSNREstimate:
    """GSNR of a fresh head's parameters, its mean logit taken out, on standardised features ``x`` (n, F) of the images
    ``positions``."""
    torch.manual_seed(seed)
    head = Head(x.shape[1], HeadKind(optimization.hidden)).layers
    centre(head, x[positions])
    own = [units[i] for i in positions.tolist()]
    classes = labels[positions].tolist()
    groups = jackknife_groups(own, classes)
    g = per_sample_gradients(head, x[positions], labels[positions])  # (t, parameters)
    moments = Moments.of_samples(g.numpy(), classes, groups)
    return gsnr.estimate(moments, clustered=len(set(own)) < len(own))


def rank_correlation(conditions: Sequence[Condition], independent: bool = True) -> Correlation:
    """:func:`spearman` of COR with GSNR.

    A COR known only as a bound above (below) all radii ranks above (below) every other; where all runs diverged there
    is none to rank.
    """
    conditions = [c for c in conditions if c.cor.value is not None or c.cor.side is not None]
    return spearman(
        [c.gsnr.value for c in conditions],
        [np.inf if c.cor.side == "above" else c.cor.value or 0.0 for c in conditions],
        independent,
    )
