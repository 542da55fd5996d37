"""What is done to an image before its features are taken: forged, degraded, re-encoded, cut out of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from corit_cli.data.degrade import jpeg, parse_degradation
from corit_cli.data.forge import Forge

#: Degradations that a copy goes through at most.
MOST = 3


@dataclass(frozen=True)
class Variant:
    """A recipe, applied in the order of its fields. The empty recipe leaves the image as it is.

    Attributes:
        forge: a forgery of a real photograph; the result counts as fake.
        saved: JPEG quality the forgery is saved at, as its photograph was, or None for losslessly.
        degradations: ``NAME:LOW-HIGH`` each (see ``degrade.py``); one to three are drawn and applied in their order.
        codec: JPEG quality range every image is re-encoded at, so that the codec says nothing about the class.
        chain: degradations as above, but each applied always, one after the other.
        window: side in pixels of the square that is cut out at random, as far as the image reaches; None: the whole.
        seed: another seed gives another draw from the same recipe.
    """

    forge: Forge | None = None
    saved: int | None = None
    degradations: tuple[str, ...] = ()
    codec: tuple[int, int] | None = None
    chain: tuple[str, ...] = ()
    window: int | None = None
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Names the recipe in a cache key."""
        if self == ORIGINAL:
            return "original"
        forge = self.forge.fingerprint if self.forge else ""
        drawn = f"{MOST} of {','.join(self.degradations)}" if self.degradations else ""
        base = f"{forge}|{self.saved}|{drawn}|{self.codec}|{self.seed}"
        base = f"{base}|{','.join(self.chain)}" if self.chain else base
        return f"{base}|window {self.window}" if self.window else base

    def apply(self, image: Image.Image) -> Image.Image:
        """The image (RGB) after this recipe. Every draw depends on the seed and the pixels alone."""
        if self == ORIGINAL:
            return image
        digest = hashlib.sha256(image.tobytes()).digest()
        rng = np.random.default_rng([self.seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])
        if self.forge:
            image = self.forge(image, rng)
        if self.saved:
            image = jpeg(image, self.saved)
        for spec in _some(self.degradations, rng):
            image = parse_degradation(spec).apply(image, rng)
        if self.codec:
            image = parse_degradation(f"jpeg:{self.codec[0]}-{self.codec[1]}").apply(image, rng)
        for spec in self.chain:
            image = parse_degradation(spec).apply(image, rng)
        return _cut(image, self.window, rng) if self.window else image


def _some(specs: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """One to ``MOST`` of ``specs``, drawn at random, in their order: what happens to one picture, not all at once."""
    if not specs:
        return []
    count = min(len(specs), int(rng.integers(1, MOST + 1)))
    return [specs[i] for i in sorted(rng.choice(len(specs), count, replace=False))]


def _cut(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A square at random, where the image is wide and high enough for one."""
    size = [min(side, length) for length in image.size]
    left, top = (int(rng.integers(length - own + 1)) for length, own in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


ORIGINAL = Variant()
