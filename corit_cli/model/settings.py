"""CoRIT's settings, free of torch so that a command line can show the defaults without loading it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class CoRITSettings:
    """What is read from the tower, and how. Layers count from 1 (the first block's output) to L.

    Attributes:
        views: contrast views, as ``NAME[:STRENGTH]`` (see ``views.py``). With several, the proxy is their mean.
        cgp: layers whose CLS contrast is read; empty switches the contrast features off.
        pool: layers whose patch contrasts are read, pooled over patches into their mean and their spread.
        mask: which patches RSI injects at (see ``mask.py``).
        inject_at: blocks after which the contrast is injected into the stream; the first is its source, where
            contrast and mask are taken. Empty switches RSI (and with it RRM) off.
        alpha: strength of the injection, relative to the stream's own contrast at the source.
        integrate: layers whose CLS token is read.
    """

    views: tuple[str, ...] = ("blur:1.0",)
    cgp: tuple[int, ...] = (4, 5, 6, 7, 8, 9)
    pool: tuple[int, ...] = ()
    mask: str = "quantile:0.25-0.75"
    inject_at: tuple[int, ...] = ()
    alpha: float = 1.0
    integrate: tuple[int, ...] = (4, 5, 6, 7, 8, 9)

    def __post_init__(self) -> None:
        for name in ("cgp", "pool", "inject_at", "integrate"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        object.__setattr__(self, "views", tuple(self.views))
        if not (self.cgp or self.pool or self.integrate):
            raise ValueError("nothing is read: integrate, cgp and pool name no layer")
        if self.contrasted and not self.views:
            raise ValueError("CGP and RSI need at least one contrast view")

    @property
    def contrasted(self) -> bool:
        """Whether any part needs the contrast views."""
        return bool(self.cgp or self.pool or self.inject_at)

    def check(self, layers: int) -> None:
        """Raise ValueError when a setting names a layer that a tower of ``layers`` blocks does not have."""
        for name in ("cgp", "pool", "inject_at", "integrate"):
            for layer in getattr(self, name):
                if not 1 <= layer <= layers:
                    raise ValueError(f"{name} names layer {layer}, but the backbone has layers 1 to {layers}")

    def plain(self) -> CoRITSettings:
        """The same integration without CGP, RRM and RSI."""
        return replace(self, cgp=(), pool=(), inject_at=())


#: The method as docs/method.md defines it, which the instruments measure.
METHOD = CoRITSettings()
#: What ``corit train`` reads. The shipped detector leaves the contrasts to its heatmaps (docs/results.md says why).
DETECTOR = CoRITSettings(integrate=(7, 8, 9, 10, 11, 12), cgp=(4, 5, 6))


def baseline(layers: int) -> CoRITSettings:
    """A probe on the last block's CLS token, as UniversalFakeDetect (Ojha et al., CVPR 2023) does."""
    return CoRITSettings(views=(), cgp=(), pool=(), inject_at=(), integrate=(layers,))


def parse_layers(text: str) -> tuple[int, ...]:
    """``"4-9"``, ``"3,4,6-8"`` or ``"none"`` to layer numbers. Raises ValueError on anything else."""
    if text.strip().lower() in ("", "none"):
        return ()
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            raise ValueError(f"{text!r} is not a list of layers such as 3,4,6-9") from None
        if low > high:
            raise ValueError(f"{part.strip()!r} in {text!r} runs backwards")
        layers.update(range(low, high + 1))
    return tuple(sorted(layers))
