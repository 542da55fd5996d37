"""Settings of a training run, free of torch so that a command line can show the defaults without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from corit_cli.config import Settings, option
from corit_cli.errors import CoritError
from corit_cli.model.settings import FACE, PRECISIONS, HeadKind

DATA = "Training images"
HEAD = "Head and optimizer"
VERDICTS = "Verdicts"
TUNING = "Tuning the backbone"
#: What the head that tells degraded copies is called beside the readings.
DEGRADATION = "degradation"
OPTIMIZERS = ("adamw", "sgd")


def parse_quality_range(text: str) -> tuple[int, int]:
    """``75-95`` or ``90`` to a range of JPEG qualities. Raises CoritError otherwise."""
    low, dash, high = text.partition("-")
    if not (low.isdigit() and (high.isdigit() if dash else True) and 1 <= int(low) <= int(high or low) <= 100):
        raise CoritError(f"--match-codec takes a range of JPEG qualities such as 75-95, not {text!r}")
    return int(low), int(high or low)


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How heads are trained on features, joined, calibrated and given thresholds.

    With ``fusion`` late every reading has a head of its own (``model/fusion.py``), else one reads all. The base under
    SAM is AdamW or SGD with momentum 0.9. ``class`` gives both classes the same total weight; ``source`` also weighs
    the sources within a class by the square root of their size, ``even`` all alike. With ``degradation_aware``, a tower
    that is not tuned and degraded copies to learn from, a further head tells these from untouched pictures, and each
    kind is joined by itself.
    """

    head: str = option(
        "linear",
        "Kind of head: linear, with a hidden layer, or a kernel machine on landmarks among the images.",
        metavar="linear|mlp[:WIDTH]|rbf[:LANDMARKS]",
        panel=HEAD,
    )
    fusion: str = option(
        "late",
        "late: every reading (hri, native, cgp, face) has a head of its own; early: one head reads all.",
        choices=("late", "early"),
        panel=HEAD,
    )
    optimizer: str = option("adamw", "The optimizer under SAM.", choices=OPTIMIZERS, panel=HEAD)
    lr: float = option(0.1, "Learning rate.", minimum=0, panel=HEAD)
    weight_decay: float = option(1e-2, "Weight decay.", minimum=0, panel=HEAD)
    epochs: int = option(20, "Passes over the data.", minimum=1, panel=HEAD)
    batch_size: int = option(64, "Images in a step.", minimum=1, panel=HEAD)
    rho: float = option(0.5, "SAM's radius; 0: without SAM.", minimum=0, panel=HEAD)
    balance: str = option(
        "even",
        "What weighs alike: both classes; sources in a class too, by the root of their size or evenly; or every image.",
        choices=("class", "source", "even", "none"),
        panel=HEAD,
    )
    copy_weight: float = option(
        1.0,
        "What a degraded copy, or a forgery for some readings only, weighs beside an original.",
        minimum=0,
        panel=HEAD,
    )
    seed: int = option(0, "Seed of everything that is drawn at random.", panel=HEAD)
    target_fpr: float = option(
        0.05, "Share of real images that may be called fake.", minimum=0, maximum=0.5, panel=VERDICTS
    )
    target_fnr: float = option(0.05, "Share of fakes that may be called real.", minimum=0, maximum=0.5, panel=VERDICTS)
    degradation_aware: bool = True
    folds: int = option(
        24, "Parts of the data, whole sources, held out in turn to calibrate on.", minimum=2, panel=VERDICTS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        HeadKind.parse(self.head)  # so that a kind that does not exist is said at once

    def heads_of(self, readings: Mapping[str, int]) -> dict[str, int]:
        """The heads to be trained on ``readings`` {name: features}: one each, or one on all."""
        return dict(readings) if self.fusion == "late" else {"all": sum(readings.values())}

    def degradation_width(self, readings: Mapping[str, int]) -> int:
        """How many features, the first ones, tell degraded pictures: those that every picture has; 0: nothing does."""
        return sum(n for name, n in readings.items() if name != FACE) if self.degradation_aware else 0

    def fitted(self, readings: Mapping[str, int], recipe: Recipe) -> dict[str, int]:
        """All heads that a training with ``recipe`` fits, with how many features each has."""
        width = self.degradation_width(readings) if recipe.degrade and not recipe.match_codec else 0
        return self.heads_of(readings) | ({DEGRADATION: width} if width else {})


@dataclass(frozen=True)
class Recipe(Settings):
    """What the training images go through before their features are taken; validation images go through nothing.

    ``copies`` of None stands for one where there is anything to degrade by. ``windows`` are for the reading of native
    class tokens alone; those of copies are cut from copies of their own. ``seed`` is that of every random draw; a
    training sets it to that of its settings.
    """

    forge: tuple[str, ...] = option(
        (),
        "Train on forgeries of real images: self_blend, resample, recompress, reconstruct:FOLDER with a TAESD "
        "autoencoder's weights, face_blend for faces' reading; NAME@part: of a region; NAME@native: for native "
        "windows' readings; 0.3*NAME: of three in ten. Repeatable.",
        metavar="[SHARE*]NAME[@WHERE]",
        many=True,
        panel=DATA,
    )
    degrade: tuple[str, ...] = option(
        (),
        "Degrade copies by jpeg, webp, blur, resize, fit, noise, crop, tonemap, grade, grey, portrait, paint, collage, "
        "screenshot or rescan, in a range. Repeatable.",
        metavar="NAME:LO-HI",
        many=True,
        panel=DATA,
    )
    copies: int | None = option(None, "Degraded copies of each image; 1 with --degrade.", minimum=0, panel=DATA)
    windows: int = option(
        0,
        "Further native windows of each image, copy and forgery, at random, for the reading `native`.",
        flag="--more-windows",
        minimum=0,
        panel=DATA,
    )
    match_codec: tuple[int, int] | None = option(
        None,
        "Re-encode every image as JPEG at a quality drawn from this range, so that the codec says nothing.",
        metavar="LO-HI",
        parse=parse_quality_range,
        spell=lambda value: value and f"{value[0]}-{value[1]}",
        panel=DATA,
    )
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies and not self.degrade and not self.match_codec:
            raise CoritError("--copies makes degraded copies: say how with --degrade")
        if self.degrade and self.copies == 0:
            raise CoritError("--degrade is for copies, and --copies 0 makes none: leave one of them out")
        if self.forge or self.degrade:
            from corit_cli.data.degrade import parse_degradation
            from corit_cli.data.forge import parse_forge

            for spec in self.forge:
                parse_forge(spec)
            for spec in self.degrade:
                parse_degradation(spec)

    @property
    def copies_made(self) -> int:
        """Degraded copies of each image."""
        return int(bool(self.degrade)) if self.copies is None else self.copies


#: AdamW's step size by kind of scope: the more weights move together, the smaller.
TUNE_LR = {"ln": 1e-4, "last": 3e-5, "lora": 2e-4, "all": 1e-5}


@dataclass(frozen=True)
class TuneSettings(Settings):
    """How parts of the tower are trained together with the head; optimizer, weight decay and balance are the head's.

    ``lr`` of None is the scope's own in ``TUNE_LR``. ``rho`` is SAM's radius over tower and head together, far
    smaller than a head alone bears. ``precision`` is that of the features, too, which heads alone are trained on; what
    is trained of the tower has gradients, which 8-bit integers have not: with int8 it is float32.
    """

    scope: str = option(
        "head",
        "What is trained: head, ln (layer norms too), last:K (blocks that are read), lora:R (rank) or all.",
        flag="--tune",
        metavar="SCOPE",
        panel=TUNING,
    )
    lr: float | None = option(
        None,
        "Learning rate of the backbone; AdamW's default is "
        + ", ".join(f"{lr:g} ({kind})" for kind, lr in TUNE_LR.items())
        + ".",
        flag="--tune-lr",
        minimum=0,
        panel=TUNING,
    )
    rho: float = option(
        0.02, "SAM's radius over backbone and head; 0: without SAM.", flag="--tune-rho", minimum=0, panel=TUNING
    )
    epochs: int = option(5, "Passes over the images.", flag="--tune-epochs", minimum=1, panel=TUNING)
    batch_size: int = option(
        32, "Images in a step, over all processes.", flag="--tune-batch-size", minimum=1, panel=TUNING
    )
    micro_batch: int = option(8, "Images in memory at once; changes no result.", minimum=1, panel=TUNING)
    precision: str = option(
        "auto",
        "Arithmetic of the model, for features too; auto: the faster one here.",
        choices=PRECISIONS,
        panel=TUNING,
    )
    grad_checkpoint: bool = option(False, "Less memory for a third more time; changes no result.", panel=TUNING)
    patience: int = option(
        2, "Epochs without a lower held-out loss before training ends; 0: never.", minimum=0, panel=TUNING
    )
