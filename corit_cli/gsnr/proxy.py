"""What CoRIT claims of its proxy, measured: the contrast's variance, its magnitude, and what it stands in for.

The contrast c_l = h_l(x) - h_l(x~) is taken at every layer of the streams that CoRIT runs, down to the deepest layer
that it reads, before anything is injected at that layer. RRM and RSI are tried at ``RSI`` where the settings leave
them out. Three questions are put to the contrast:

* RRM, "suppresses variance": the total variance tr Cov c of the source layer's patch contrasts, pooled over patches and
  images, against that of the patches the mask lets through; and, since a mask may take signal away with the noise,
  ||mean c||^2 / tr Cov c of both.
* RSI, "preserves magnitude": the mean over patches of ||c_l|| / ||h_l||, of the plain and of the injected stream.
* CGP, "a gradient proxy", with the settings as they are: the contrast against the true gradient of the loss with
  respect to the same tokens of the image's stream, dL/dh_l: over an image's patches, the rank correlation (Spearman) of
  ||c_l|| with ||dL/dh_l||, and the mean cosine of c_l with dL/dh_l. The gradient's sign depends on the label, so the
  cosine is given for real and for fake images: a contrast that pointed along the loss gradient would have a positive
  one for both. A random direction of d channels has a cosine of 0 give or take 1 / sqrt(d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corit_cli.gsnr.gradients import bce_per_sample, layer_outputs
from corit_cli.metrics import jackknife_interval
from corit_cli.metrics.intervals import Estimate
from corit_cli.model import cgp
from corit_cli.model.corit import CoRIT
from corit_cli.progress import Advance, hush

#: Block after which RRM and RSI are tried where the settings have none.
RSI = 3


@dataclass(frozen=True)
class ProxyVariance:
    """The source layer's patch contrast without and with RRM: total variance, ||mean||^2 / variance, and the share of
    patches that the mask lets through. ``ratio`` is the masked variance over the other."""

    source: int
    share: Estimate
    variance: Estimate
    masked_variance: Estimate
    ratio: Estimate
    signal_to_noise: Estimate
    masked_signal_to_noise: Estimate


@dataclass(frozen=True)
class ProxyLayer:
    """One layer: ||c||/||h|| of patches and of the class token without and with RSI; agreement with the gradient.

    ``rank`` and the cosines are None where no gradient reaches the patches, as at the last layer that is read.
    """

    norm: Estimate
    cls_norm: Estimate
    injected_norm: Estimate
    injected_cls_norm: Estimate
    rank: Estimate | None
    cosine_real: Estimate | None
    cosine_fake: Estimate | None


@dataclass(frozen=True)
class ProxyReport:
    """Everything measured. ``inject_at`` is where RSI was; ``tried`` says that the settings have none themselves."""

    inject_at: tuple[int, ...]
    tried: bool
    variance: ProxyVariance
    layers: dict[int, ProxyLayer]


def measure_proxy(
    corit: CoRIT,
    head: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    groups: Sequence[Sequence[int]],
    advance: Advance = hush,
) -> ProxyReport:
    """Measure the proxy of ``corit`` under a fitted ``head``.

    ``batches`` yields images (b, 3, S, S), labels (b,) and features (b, F0) that the head reads before those of
    ``corit``, F0 = 0 where it reads nothing else; ``groups`` lists the images' positions by jackknife group. Raises
    ValueError when the settings use no contrast.
    """
    s = corit.settings
    if not s.contrasted:
        raise ValueError("these settings use no contrast, so there is no proxy to measure")
    depth = max((*s.integrate, *corit.spread, *s.cgp, *s.inject_at))
    inject_at = s.inject_at or (max(1, min(RSI, depth - 1)),)
    rows = []
    for images, labels, before in batches:
        run = _Pass(corit, images, depth, s.inject_at)
        row = _agreement(run, head, labels, before) | {"label": labels.cpu().numpy()}
        with torch.inference_mode():
            plain = _Pass(corit, images, depth, ()) if s.inject_at else run
            injected = run if s.inject_at else _Pass(corit, images, depth, inject_at)
            row |= _magnitudes(plain, "") | _magnitudes(injected, "injected_") | _sums(injected, inject_at[0])
        rows.append(row)
        advance(len(labels))
    common = [key for key in rows[0] if all(key in row for row in rows)]  # a gradient may vanish in some batch
    found = {key: np.concatenate([row[key] for row in rows]) for key in common}  # each (n,) or (n, d)
    layers = {layer: _layer(found, layer, groups) for layer in range(depth + 1)}
    return ProxyReport(inject_at, not s.inject_at, _variance(found, inject_at[0], groups), layers)


class _Pass:
    """A pass of CoRIT that computes every token of both streams at all layers, and keeps them.

    ``rows`` are all of a layer's outputs ((1+K)B, N, d), images first, and a gradient can be taken with respect to
    them; ``reading`` holds the features that the settings as they are would give.
    """

    def __init__(self, corit: CoRIT, images: Tensor, depth: int, inject_at: tuple[int, ...]) -> None:
        self.samples = len(images)
        self.rows: dict[int, Tensor] = {}
        # Reading patches everywhere keeps CoRIT from leaving out tokens that nobody reads.
        every = replace(corit.settings, cgp=tuple(range(1, depth + 1)), patches=True, inject_at=inject_at)
        everywhere = CoRIT(corit.tower, every)
        with layer_outputs(corit.tower, self._saw):
            self.reading = everywhere(images)
        columns = [everywhere.parts.index(part) for part in corit.parts]
        z = self.reading.z.unflatten(1, (len(everywhere.parts), -1))  # (B, parts, d)
        self.reading.z = z[:, columns].flatten(1)  # (B, F)

    def _saw(self, layer: int, out: Tensor) -> None:
        if torch.is_grad_enabled() and not out.requires_grad:
            out.requires_grad_(True)
        self.rows[layer] = out

    def tokens(self, layer: int) -> Tensor:
        """Of the images, (B, N, d)."""
        return self.rows[layer][: self.samples].detach()

    def contrast(self, layer: int) -> Tensor:
        """Mean over views, (B, N, d)."""
        views = self.rows[layer][self.samples :].detach().unflatten(0, (-1, self.samples))  # (K, B, N, d)
        return cgp.contrast(self.tokens(layer), views).mean(0)


#: What is kept of a batch: one row an image, by name or by (name, layer).
_Rows = dict[object, np.ndarray]


def _agreement(run: _Pass, head: Callable[[Tensor], Tensor], labels: Tensor, before: Tensor) -> _Rows:
    """Rank correlation and cosine of the patches' contrast with the loss gradient, where that reaches the patches."""
    loss = bce_per_sample(head(torch.cat([before, run.reading.z], dim=1)), labels).sum()
    grads = torch.autograd.grad(loss, list(run.rows.values()), allow_unused=True)
    out: _Rows = {}
    for layer, grad in zip(run.rows, grads, strict=True):
        if grad is None or not grad[: run.samples, 1:].any():
            continue
        contrast, gradient = run.contrast(layer)[:, 1:], grad[: run.samples, 1:]  # (B, P, d) each
        out["rank", layer] = _rank_agreement(contrast.norm(dim=-1), gradient.norm(dim=-1))
        cosine = F.cosine_similarity(contrast, gradient, dim=-1)  # (B, P)
        out["cosine", layer] = cosine.mean(1).double().cpu().numpy()
    return out


def _magnitudes(run: _Pass, kind: str) -> _Rows:
    """||c||/||h|| of every layer: the mean over patches, and the class token's."""
    out: _Rows = {}
    for layer in run.rows:
        ratio = (run.contrast(layer).norm(dim=-1) / run.tokens(layer).norm(dim=-1)).double().cpu().numpy()  # (B, N)
        out[f"{kind}norm", layer], out[f"{kind}cls_norm", layer] = ratio[:, 1:].mean(1), ratio[:, 0]
    return out


def _sums(run: _Pass, source: int) -> _Rows:
    """What the contrast's variance is made of, over all patches and over those that the mask weights."""
    contrast = run.contrast(source)[:, 1:].double()  # (B, P, d)
    out: _Rows = {}
    for kind, mask in (("", torch.ones_like(run.reading.mask)), ("masked_", run.reading.mask)):
        mask = mask.double()  # (B, P)
        out[f"{kind}weight"] = mask.sum(1).cpu().numpy()
        out[f"{kind}sum"] = torch.einsum("bp,bpd->bd", mask, contrast).cpu().numpy()
        out[f"{kind}squares"] = (mask * contrast.square().sum(-1)).sum(1).cpu().numpy()
    return out


def _rank_agreement(a: Tensor, b: Tensor) -> np.ndarray:
    """Spearman's correlation of two (B, P), image by image, 0 where either is the same on all patches: (B,)."""
    from scipy.stats import rankdata

    x, y = (rankdata(t.cpu().numpy(), axis=1) - (t.shape[1] + 1) / 2 for t in (a, b))
    size = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
    return np.divide((x * y).sum(1), size, out=np.zeros(len(x)), where=size > 0)


def _variance(found: _Rows, source: int, groups: Sequence[Sequence[int]]) -> ProxyVariance:
    def moments(kind: str, kept: np.ndarray) -> tuple[float, float]:
        """||mean||^2 and total variance over all weighted patches of the images kept."""
        weight = found[f"{kind}weight"][kept].sum()
        signal = float(np.square(found[f"{kind}sum"][kept].sum(0) / weight).sum())
        return signal, float(found[f"{kind}squares"][kept].sum() / weight) - signal

    def signal_to_noise(kind: str, kept: np.ndarray) -> float:
        signal, noise = moments(kind, kept)
        return signal / noise

    return ProxyVariance(
        source=source,
        share=jackknife_interval(lambda k: found["masked_weight"][k].sum() / found["weight"][k].sum(), groups),
        variance=jackknife_interval(lambda k: moments("", k)[1], groups),
        masked_variance=jackknife_interval(lambda k: moments("masked_", k)[1], groups),
        ratio=jackknife_interval(lambda k: moments("masked_", k)[1] / moments("", k)[1], groups),
        signal_to_noise=jackknife_interval(lambda k: signal_to_noise("", k), groups),
        masked_signal_to_noise=jackknife_interval(lambda k: signal_to_noise("masked_", k), groups),
    )


def _layer(found: _Rows, layer: int, groups: Sequence[Sequence[int]]) -> ProxyLayer:
    def mean(name: str) -> Estimate:
        return jackknife_interval(lambda kept: float(found[name, layer][kept].mean()), groups)

    def of_class(name: str, label: int) -> Estimate | None:
        chosen = [[i for i in group if found["label"][i] == label] for group in groups]
        chosen = [group for group in chosen if group]
        if len(chosen) < 3:
            return None
        return jackknife_interval(lambda kept: float(found[name, layer][kept].mean()), chosen)

    reached = ("rank", layer) in found
    return ProxyLayer(
        norm=mean("norm"),
        cls_norm=mean("cls_norm"),
        injected_norm=mean("injected_norm"),
        injected_cls_norm=mean("injected_cls_norm"),
        rank=mean("rank") if reached else None,
        cosine_real=of_class("cosine", 0) if reached else None,
        cosine_fake=of_class("cosine", 1) if reached else None,
    )
