"""CoRIT: a frozen tower read through CGP, RRM, RSI and HRI.

Two streams run side by side in one batch: the image and its contrast views. At the source layer s their difference
is taken and masked; after each block of ``inject_at`` it is added to the image's stream. Deeper layers of that stream
see what was injected, so a CLS contrast below the source is the injected stream against the views: a third, plain pass
is never needed. A stream ends at the deepest layer somebody reads; only the tokens that are read are computed there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corit_cli.model import cgp
from corit_cli.model.backbone import VisionTower
from corit_cli.model.injection import inject
from corit_cli.model.integration import integrate
from corit_cli.model.mask import parse_mask
from corit_cli.model.settings import CoRITSettings
from corit_cli.model.views import parse_view


@dataclass
class Reading:
    """What CoRIT reads from a batch: features ``z`` (B, F) and, with RSI, the source layer's patch contrast
    ``energy`` (B, P) and ``mask`` (B, P)."""

    z: Tensor
    energy: Tensor | None = None
    mask: Tensor | None = None


class CoRIT(nn.Module):
    """Features of images, by ``settings``, from ``tower``. Raises ValueError when they do not fit each other."""

    def __init__(self, tower: VisionTower, settings: CoRITSettings) -> None:
        super().__init__()
        settings.check(tower.config.layers)
        self.tower = tower
        self.settings = settings
        self.views = [parse_view(spec) for spec in settings.views] if settings.contrasted else []
        self.mask = parse_mask(settings.mask)
        if settings.inject_at and settings.mask.startswith("snr") and len(self.views) < 2:
            raise ValueError("the snr mask compares views: give at least two --view")

    @property
    def parts(self) -> list[tuple[str, int]]:
        """(kind, layer) of each d-wide part of the features, in order; kinds are cls, cgp, mean and spread."""
        s = self.settings
        return (
            [("cls", layer) for layer in s.integrate]
            + [("cgp", layer) for layer in s.cgp]
            + [(kind, layer) for layer in s.pool for kind in ("mean", "spread")]
        )

    @property
    def features(self) -> int:
        """F, the width of a feature vector."""
        return len(self.parts) * self.tower.config.width

    def forward(self, images: Tensor) -> Reading:
        """Images (B, 3, S, S) in [0, 1] to a :class:`Reading`."""
        s, B, K = self.settings, images.shape[0], len(self.views)
        source = min(s.inject_at, default=0)
        views_end = max((*s.cgp, *s.pool, source)) if K else 0
        end = max((*s.integrate, views_end))
        reading = Reading(images.new_empty(0))
        found: dict[tuple[str, int], Tensor] = {}

        streams = torch.cat([images, *(view(images) for view in self.views)])  # ((1+K)B, 3, S, S)
        streams = self.tower.embed(streams)  # ((1+K)B, N, d)
        x, v = streams[:B], streams[B:]
        for layer, block in enumerate(self.tower.blocks[:end], start=1):
            patches_read = layer in s.pool or layer == source
            x_rows = 1 if layer == end and not patches_read else None
            v_rows = 1 if layer == views_end and not patches_read else None
            if layer > views_end:
                x = block(x, x_rows)
            elif x_rows == v_rows:
                streams = block(torch.cat([x, v]), x_rows)
                x, v = streams[:B], streams[B:]
            else:
                x, v = block(x, x_rows), block(v, v_rows)

            if layer in s.integrate:
                found["cls", layer] = x[:, 0]  # (B, d)
            if layer in s.cgp or patches_read:
                c = cgp.contrast(x[:, : v.shape[1]], v.unflatten(0, (K, B)))  # (K, B, 1 or N, d)
                found["cgp", layer] = c[:, :, 0].mean(0)  # (B, d)
            if layer in s.pool:
                mean = c[:, :, 1:].mean(0)  # (B, P, d)
                found["mean", layer], found["spread", layer] = mean.mean(1), mean.std(1)  # (B, d) each
            if layer == source:
                contrast, source_norm = c[:, :, 1:].mean(0), x[:, 1:].norm(dim=-1, keepdim=True)
                reading.energy, reading.mask = cgp.energy(c[:, :, 1:]), self.mask(c[:, :, 1:])  # (B, P) each
            if layer in s.inject_at and layer < end:
                x = inject(x, source_norm, contrast, reading.mask, s.alpha)
        reading.z = integrate([found[part] for part in self.parts])  # (B, F)
        return reading
