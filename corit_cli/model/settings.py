"""CoRIT's settings, free of torch so that a command line can show the defaults without loading it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from corit_cli.config import Settings, option
from corit_cli.errors import CoritError

PRECISIONS = ("auto", "fp32", "bf16", "int8")
#: Contrast views by name: what their strength is called, and what they do to a picture, for a reader of reports.
VIEW_WORDS = {
    "blur": ("SIGMA", "its finest detail is taken away"),
    "resample": ("FACTOR", "its finest detail is taken away"),
    "noise": ("SIGMA", "a little noise is added"),
    "jpeg": ("QUALITY", "it is saved as JPEG"),
}
PANEL = "What is read from CLIP"
#: The reading of a face, which has no part in what is said of a picture as a whole.
FACE = "face"


def parse_layers(text: str) -> tuple[int, ...]:
    """``"4-9"``, ``"3,4,6-8"`` or ``"none"`` to layer numbers. Raises CoritError on anything else."""
    if text.strip().lower() in ("", "none"):
        return ()
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            raise CoritError(f"{text!r} is not a list of layers such as 3,4,6-9") from None
        if low > high:
            raise CoritError(f"{part.strip()!r} in {text!r} runs backwards")
        layers.update(range(low, high + 1))
    return tuple(sorted(layers))


def _layers(default: tuple[int, ...], help: str, **how: str) -> tuple[int, ...]:
    return option(default, help, metavar="LAYERS", parse=parse_layers, panel=PANEL, **how)


@dataclass(frozen=True)
class CoRITSettings(Settings):
    """What is read from the tower, and how. Layers count from 1 (the first block's output) to L.

    With several views the proxy is the mean of their contrasts. Of ``inject_at`` the first block is the source, where
    contrast and mask are taken.
    """

    views: tuple[str, ...] = option(
        ("blur:1.0",),
        f"Contrast view: {', '.join(f'{name}:{unit}' for name, (unit, _) in VIEW_WORDS.items())}. Repeat for several.",
        flag="--view",
        metavar="NAME:STRENGTH",
        many=True,
        panel=PANEL,
    )
    cgp: tuple[int, ...] = _layers(
        (4, 5, 6, 7, 8, 9), "CGP: layers whose class token's contrast is read, as in 4-6.", without="--no-cgp"
    )
    patches: bool = option(
        False,
        "CGP: at these layers read the patches' contrast too, as its mean over all patches.",
        flag="--patches/--no-patches",
        panel=PANEL,
    )
    mask: str = option(
        "quantile:0.25-0.75",
        "RRM: patches that RSI injects at, none (all of them) or quantile:LO-HI.",
        metavar="none|quantile:LO-HI",
        panel=PANEL,
    )
    inject_at: tuple[int, ...] = _layers(
        (), "RSI: blocks after which the contrast is injected, as in 3,4,5,6, or none; it is taken after the first."
    )
    alpha: float = option(1.0, "RSI: strength of the injection, 1 for the contrast as it is.", panel=PANEL)
    integrate: tuple[int, ...] = _layers(
        (4, 5, 6, 7, 8, 9), "HRI: layers whose class token is read, as in 7-12 or 3,6-9."
    )
    native: tuple[int, ...] = _layers(
        (), "Layers whose class token is read from native windows too, where windows of both kinds are read."
    )
    spread: tuple[int, ...] = _layers(
        (), "Layers whose patches' spread is read, of every window whose class token is, but a face's."
    )
    face: tuple[int, ...] = _layers(
        (), "Layers whose class token is read from the largest face, where there is one.", without="--no-face"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _LAYERS:
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if not (self.cgp or self.integrate or self.native):
            raise CoritError("nothing is read of every image: integrate, native and cgp name no layer")
        if self.contrasted and not self.views:
            raise CoritError("CGP and RSI need at least one contrast view")

    @property
    def contrasted(self) -> bool:
        """Whether any part needs the contrast views."""
        return bool(self.cgp or self.inject_at)

    def check(self, layers: int) -> None:
        """Raise CoritError when a setting names a layer that a tower of ``layers`` blocks does not have."""
        for name in _LAYERS:
            for layer in getattr(self, name):
                if not 1 <= layer <= layers:
                    raise CoritError(f"{name} names layer {layer}, but the backbone has layers 1 to {layers}")

    def plain(self) -> CoRITSettings:
        """The same integration without CGP, RRM and RSI."""
        return replace(self, cgp=(), inject_at=())


#: The settings that name layers.
_LAYERS = ("cgp", "inject_at", "integrate", "native", "spread", "face")
#: The method as docs/method.md defines it, which the instruments measure.
METHOD = CoRITSettings()
#: What ``corit train`` reads, and the shipped detector: chosen by sources held out (docs/results.md).
DETECTOR = CoRITSettings(
    integrate=(6, 7, 8, 9, 10),
    native=(4, 5, 6, 7, 8, 9),
    spread=(2, 3, 4, 5),
    cgp=(3, 4, 5),
    patches=True,
    face=(6, 7, 8, 9, 10),
)


def baseline(layers: int) -> CoRITSettings:
    """A probe on the last block's CLS token, as UniversalFakeDetect (Ojha et al., CVPR 2023) does."""
    return CoRITSettings(views=(), cgp=(), inject_at=(), integrate=(layers,))


@dataclass(frozen=True)
class HeadKind:
    """What a head is: linear, with a hidden layer of width ``hidden``, or linear on a kernel's ``landmarks``."""

    hidden: int = 0
    landmarks: int = 0

    @classmethod
    def parse(cls, text: str) -> HeadKind:
        """``linear``, ``mlp[:WIDTH]`` or ``rbf[:LANDMARKS]``. Raises CoritError otherwise."""
        name, _, number = text.partition(":")
        fields = {"mlp": ("hidden", 256), "rbf": ("landmarks", 512)}
        if text == "linear":
            return cls()
        if name in fields and (not number or (number.isdigit() and int(number) > 0)):
            field, default = fields[name]
            return cls(**{field: int(number or default)})
        raise CoritError(f"a head is linear, mlp, mlp:WIDTH, rbf or rbf:LANDMARKS, not {text!r}")

    @property
    def spelling(self) -> str:
        """As :meth:`parse` reads it."""
        kinds = {f"mlp:{self.hidden}": self.hidden, f"rbf:{self.landmarks}": self.landmarks}
        return next((name for name, number in kinds.items() if number), "linear")


LINEAR = HeadKind()
