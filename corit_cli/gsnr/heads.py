"""Heads that gradients are taken at, and GSNR of heads alone: a linear head on what is read at each layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from corit_cli.data.splits import jackknife_groups
from corit_cli.errors import CoritError
from corit_cli.gsnr.study import DifferenceRow, Row, Study, StudySettings
from corit_cli.metrics import gsnr
from corit_cli.metrics.gsnr import Moments
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.training.head import balance_weights, centre, fit_head, per_sample_gradients
from corit_cli.training.settings import TrainSettings


def initial_head(z: Tensor, training: TrainSettings) -> Head:
    """A head with random weights by the training's seed, for features as of ``z`` (n, F): standardised, and of mean
    logit zero."""
    torch.manual_seed(training.seed)
    head = Head(z.shape[1], HeadKind.parse(training.head))
    head.fit_standardiser(z)
    head.choose_landmarks(z)
    centre(head.layers, head.expand(head.standardise(z)))
    return head


def initial_like(head: FusedHead, z: Tensor, training: TrainSettings) -> FusedHead:
    """Random heads of the kinds that ``head`` has, each as :func:`initial_head` makes it, for features ``z`` (n, F)."""
    drawn = {
        name: initial_head(part, replace(training, head=one.kind.spelling))
        for (name, one), part in zip(head.heads.items(), head.split(z), strict=True)
    }
    return FusedHead(drawn)


def fitted_head(z: Tensor, labels: Sequence[int], sources: Sequence[str], training: TrainSettings) -> Head:
    """A head fitted to features ``z`` (n, F)."""
    return fit_head(z, torch.tensor(labels), balance_weights(labels, sources, training.balance), training)


def measure_heads(
    out: Study,
    read: Mapping[str, Tensor],
    fitting: tuple[Sequence[int], Sequence[str]],
    labels: Sequence[int],
    units: Sequence[Hashable],
    training: TrainSettings,
    settings: StudySettings,
) -> None:
    """Add to ``out`` the GSNR of a linear head on every layer of what each model reads.

    Args:
        read: features (n, L, d) of layers 1 to L by model, of the images that heads are fitted to, then the measured.
        fitting: labels and sources of the images that heads are fitted to.
        labels: of the measured images.
        units: of the measured images, what they belong to.

    Raises CoritError when only layer 0 is asked for, whose class token is the same for all images.
    """
    groups, clustered = jackknife_groups(units, labels, seed=settings.seed), len(set(units)) < len(units)
    first, n = next(iter(read)), len(fitting[0])
    layers = [layer for layer in settings.layers or range(1, read[first].shape[1] + 1) if layer]
    if not layers:
        raise CoritError("layer 0's class token is the same for all images: give --wrt head a layer from 1 on")
    out.about["data"] |= {"jackknife_groups": len(groups), "clustered": clustered}
    for state in settings.states:
        draws = range(training.seed, training.seed + (settings.heads if state == "initial" else 1))
        for layer in layers:
            reference: Moments | None = None
            for name, features in read.items():
                z = features[:, layer - 1]  # (n, d)
                found: list[Moments] = []
                for seed in draws:
                    drawn = replace(training, seed=seed)
                    head = initial_head(z[:n], drawn) if state == "initial" else fitted_head(z[:n], *fitting, drawn)
                    g = per_sample_gradients(head.layers, head.standardise(z[n:]), torch.tensor(labels))  # (m, params)
                    found.append(Moments.of_samples(g.numpy(), labels, groups))
                key = (state, "all", "head", str(layer))
                both = [gsnr.estimate(found[0], clustered, reading) for reading in ("balanced", "independent")]
                values = tuple(gsnr.estimate(moments, clustered).value for moments in found)
                out.rows.append(Row(name, *key, *both, values if len(values) > 1 else ()))
                if reference is None:
                    reference = found[0]
                else:
                    difference = gsnr.compare(found[0], reference, clustered)
                    out.differences.append(DifferenceRow(name, first, *key, difference))
