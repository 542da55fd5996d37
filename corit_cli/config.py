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
        layer_weights: how much the layers' features weigh in front of the head: ``uniform``, ``gsnr`` (in proportion to
            the GSNR that their gradients have across sources) or ``learned`` along with the head.
        balance: ``class`` gives both classes the same total weight; ``source`` also weighs the sources within a class
            by the square root of their size, ``even`` all alike; ``none`` leaves every image at weight one.
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
    layer_weights: str = "uniform"
    balance: str = "even"
    seed: int = 0
    target_fpr: float = 0.05
    target_fnr: float = 0.1
    folds: int = 24

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer must be adamw or sgd, not {self.optimizer!r}")
        if self.layer_weights not in ("uniform", "gsnr", "learned"):
            raise ValueError(f"layer weights must be uniform, gsnr or learned, not {self.layer_weights!r}")
        if self.balance not in ("class", "source", "even", "none"):
            raise ValueError(f"balance must be class, source, even or none, not {self.balance!r}")


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


#: AdamW's step size by kind of scope: the more weights move together, the smaller.
TUNE_LR = {"ln": 1e-4, "last": 3e-5, "lora": 2e-4, "all": 1e-5}


@dataclass(frozen=True)
class TuneSettings:
    """How parts of the tower are trained together with the head; optimizer, weight decay and balance are the head's.

    Attributes:
        scope: what is trained, ``ln``, ``last:K``, ``lora:R`` or ``all``.
        lr: step size of the tower's weights; None takes the scope's own from ``TUNE_LR``.
        rho: SAM's radius over tower and head together, far smaller than a head alone bears; 0 trains without SAM.
        batch_size: images in a step, over all processes.
        micro_batch: images in one forward pass, which bounds the memory; the result is that of the whole batch.
        precision: ``fp32``, ``bf16``, ``fp16`` (with loss scaling), or ``auto``: bf16 on a GPU that has it, else fp32.
        grad_checkpoint: keep only what enters a block and run it again in the backward pass.
        patience: epochs without a lower held-out loss after which training ends; 0 never ends early.
    """

    scope: str
    lr: float | None = None
    rho: float = 0.02
    epochs: int = 5
    batch_size: int = 32
    micro_batch: int = 8
    precision: str = "auto"
    grad_checkpoint: bool = False
    patience: int = 2

    def __post_init__(self) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", TUNE_LR.get(self.scope.partition(":")[0]))
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision must be auto, fp32, bf16 or fp16, not {self.precision!r}")
