"""Forgeries of real photographs that leave the semantics alone. Deterministic by seed, one small function each.

``parse_forge("reconstruct:FOLDER")`` turns the command line's spelling into a :class:`Forge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

#: Reconstruction costs time by the pixel; of a larger photograph only the central square of this side is used.
MAX_SIDE = 384


def reconstruct(image: Image.Image, source: str) -> Image.Image:
    """The photograph after a latent-diffusion autoencoder: same content, a generator's decoder traces all over.

    ``source`` is a folder or Hub repository with weights of the TAESD family (see ``autoencoder.py``).
    """
    import torch

    left, top = (max(0, (side - MAX_SIDE) // 2) for side in image.size)
    image = image.crop((left, top, left + min(image.width, MAX_SIDE), top + min(image.height, MAX_SIDE)))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    pixels = (_autoencoder(source)(pixels)[0] * 255).round().to(torch.uint8)  # (3, H, W)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@lru_cache(maxsize=2)
def _autoencoder(source: str):
    from corit_cli.data.autoencoder import Autoencoder

    return Autoencoder.load(source)


@dataclass(frozen=True)
class Forge:
    """A named way to forge; calling it maps an RGB image to its forgery."""

    name: str
    source: str = ""

    @property
    def fingerprint(self) -> str:
        """Names the forgery in a cache key."""
        return f"{self.name}:{self.source}"

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return FORGES[self.name](image, self.source)


FORGES = {"reconstruct": reconstruct}


def parse_forge(spec: str) -> Forge:
    """``reconstruct:SOURCE`` to a :class:`Forge`. Raises ValueError naming what is understood."""
    name, _, source = spec.partition(":")
    if name not in FORGES:
        raise ValueError(f"unknown forgery {name!r}: choose from {', '.join(FORGES)}")
    if not source:
        raise ValueError(f"{name} needs autoencoder weights: {name}:FOLDER or {name}:HUB/REPOSITORY")
    return Forge(name, source)
