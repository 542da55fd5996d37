"""Settings of a training run, free of torch so that a command line can show the defaults without loading it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """How a head is trained on features.

    Attributes:
        hidden: width of the head's hidden layer; 0 is a linear head.
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9), the base under SAM.
        rho: SAM's radius; 0 trains without SAM.
        balance: ``class`` gives both classes the same total weight, ``source`` also every source within a class,
            ``none`` leaves every image at weight one.
        target_fpr: share of real images that may be called fake; sets the upper threshold.
        target_fnr: share of fake images that may be called real; sets the lower threshold.
        folds: parts of the training data held out in turn, by source, to fit calibration and thresholds on.
    """

    hidden: int = 0
    optimizer: str = "adamw"
    lr: float = 0.1
    weight_decay: float = 1e-2
    epochs: int = 20
    batch_size: int = 64
    rho: float = 0.5
    balance: str = "source"
    seed: int = 0
    target_fpr: float = 0.05
    target_fnr: float = 0.1
    folds: int = 24

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer must be adamw or sgd, not {self.optimizer!r}")
        if self.balance not in ("class", "source", "none"):
            raise ValueError(f"balance must be class, source or none, not {self.balance!r}")


@dataclass(frozen=True)
class Recipe:
    """What the training images go through before their features are taken; validation images go through nothing.

    Attributes:
        forge: forgeries made of every real photograph and counted as fake, ``NAME[@part][:SOURCE]`` each
            (``data/forge.py``).
        degrade: degradations of the extra copies, ``NAME[:LOW-HIGH]`` each (``data/degrade.py``).
        copies: degraded copies of every image, besides the clean one.
        match_codec: JPEG quality range at which every image of both classes is re-encoded, or None.
        seed: of every random draw.
    """

    forge: tuple[str, ...] = ()
    degrade: tuple[str, ...] = ()
    copies: int = 0
    match_codec: tuple[int, int] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Optimization:
    """How the runs of a sweep over SAM's radius are trained; all alike but for seed and radius.

    Attributes:
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9), the base under SAM.
        hidden: width of the head's hidden layer; 0 is a linear head.
        m: images that share one perturbation (m-sharpness); 0 means the whole batch.
        adaptive: perturb every weight in proportion to its size (ASAM).
        friendly: decay of the mean gradient that friendly SAM takes out of the ascent direction; None is plain SAM.
    """

    optimizer: str = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.01
    epochs: int = 20
    batch_size: int = 16
    hidden: int = 0
    m: int = 0
    adaptive: bool = False
    friendly: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"the optimizer is adamw or sgd, not {self.optimizer!r}")
        if min(self.epochs, self.batch_size) < 1 or min(self.m, self.hidden) < 0 or not self.lr > 0:
            raise ValueError(
                "epochs and batches must be at least one, the step size positive, width and m not negative"
            )
        if self.friendly is not None and not 0 <= self.friendly < 1:
            raise ValueError(f"the decay of friendly SAM lies in [0, 1), not {self.friendly}")
        if self.m and self.batch_size % self.m:
            raise ValueError(f"a batch of {self.batch_size} does not divide into parts of {self.m}")

    def steps(self, count: int) -> int:
        """Optimizer steps on ``count`` images."""
        return self.epochs * (count // min(self.batch_size, count))
