"""Heads that gradients are taken at, and GSNR of heads alone: a linear head on what is read at each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from corit_cli.data.splits import jackknife_groups
from corit_cli.gsnr.measured import Strata
from corit_cli.gsnr.settings import StudySettings, epoch_state
from corit_cli.gsnr.study import Study
from corit_cli.metrics.gsnr import Moments
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.seeds import undisturbed
from corit_cli.training.head import balance_weights, centre, fit_head, per_sample_gradients
from corit_cli.training.settings import TrainSettings


@undisturbed()
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


def heads_at(
    states: Sequence[str], z: Tensor, labels: Sequence[int], sources: Sequence[str], training: TrainSettings
) -> dict[str, Head]:
    """The head at each of the states (``study.py``) of one training on features ``z`` (n, F).

    ``epoch E`` is the head after E of the training's epochs, whose step size is still on its way down.
    """
    heads: dict[str, Head] = {}

    def after(epoch: int, head: Head) -> None:
        if epoch_state(epoch) in states:
            heads[epoch_state(epoch)] = deepcopy(head).eval()

    if "initial" in states:
        heads["initial"] = initial_head(z, training)
    if set(states) - {"initial"}:
        weights = balance_weights(labels, sources, training.balance)
        fitted = fit_head(z, torch.tensor(labels), weights, training, after=after)
        if "fitted" in states:
            heads["fitted"] = fitted
    return heads


def measure_heads(
    out: Study,
    read: Mapping[str, Tensor],
    fitting: tuple[Sequence[int], Sequence[str]],
    labels: Sequence[int],
    units: Sequence[Hashable],
    training: TrainSettings,
    settings: StudySettings,
    sources: Sequence[str] = (),
) -> None:
    """Add to ``out`` the GSNR of a linear head on every layer of what each model reads.

    Args:
        read: features (n, L, d) of layers 1 to L by model, of the images that heads are fitted to, then the measured.
        fitting: labels and sources of the images that heads are fitted to.
        labels: of the measured images.
        units: of the measured images, what they belong to.
        sources: of the measured images; read where strata are by source.
    """
    strata = Strata.of(labels, sources, units, settings.strata)
    groups, clustered = jackknife_groups(units, strata.numbers, seed=settings.seed), len(set(units)) < len(units)
    first, n = next(iter(read)), len(fitting[0])
    layers = settings.layers or range(1, read[first].shape[1] + 1)
    out.about["data"] |= {"jackknife_groups": len(groups), "clustered": clustered, "strata": strata.names}
    for layer in layers:
        found: dict[str, dict[str, list[Moments]]] = {state: defaultdict(list) for state in settings.states}
        for name, features in read.items():
            z = features[:, layer - 1]  # (n, d)
            for draw in range(settings.heads):
                drawn = replace(training, seed=training.seed + draw)
                for state, head in heads_at(settings.states_of(draw), z[:n], *fitting, drawn).items():
                    g = per_sample_gradients(head.layers, head.standardise(z[n:]), torch.tensor(labels))  # (m, params)
                    found[state][name].append(Moments.of_samples(g.numpy(), strata.numbers, groups, strata.weights))
        for state, moments in found.items():
            out.add(state, "all", {name: {("head", str(layer)): m} for name, m in moments.items()}, clustered)
    for rows in (out.rows, out.differences):
        rows.sort(key=lambda row: settings.states.index(row.head))  # by state, then by layer
