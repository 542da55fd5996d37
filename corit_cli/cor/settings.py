"""How the runs of a sweep are trained, free of torch: a command line shows the defaults without loading it."""

from __future__ import annotations

from dataclasses import dataclass

from corit_cli.config import Settings, option
from corit_cli.errors import CoritError

PANEL = "What is trained"


@dataclass(frozen=True)
class Optimization(Settings):
    """How the runs of a sweep over SAM's radius are trained; all alike but for seed and radius.

    ``m`` images share one perturbation (m-sharpness). Adaptive SAM (ASAM) perturbs every weight in proportion to its
    size. ``friendly`` is the decay of the mean gradient that friendly SAM (F-SAM) takes out of the ascent direction.
    """

    optimizer: str = option("adamw", "The optimizer under SAM.", choices=("adamw", "sgd"), panel=PANEL)
    lr: float = option(3e-4, "Learning rate.", minimum=0, panel=PANEL)
    weight_decay: float = 0.01
    epochs: int = option(20, "Passes over the images.", minimum=1, panel=PANEL)
    batch_size: int = option(16, "Images in a step.", minimum=1, panel=PANEL)
    hidden: int = option(0, "Width of the head's hidden layer; 0: a linear head.", minimum=0, panel=PANEL)
    m: int = option(
        0, "Images that share a perturbation; 0: the batch.", flag="--m-sharpness", metavar="M", minimum=0, panel=PANEL
    )
    adaptive: bool = option(False, "Adaptive SAM.", panel=PANEL)
    friendly: float | None = option(None, "Friendly SAM, as in 0.9.", metavar="DECAY", panel=PANEL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lr > 0:
            raise CoritError(f"lr must be above zero, not {self.lr:g}")
        if self.friendly is not None and not 0 <= self.friendly < 1:
            raise CoritError(f"the decay of friendly SAM lies in [0, 1), not {self.friendly}")
        if self.m and self.batch_size % self.m:
            raise CoritError(f"a batch of {self.batch_size} does not divide into parts of {self.m}")

    def steps(self, count: int) -> int:
        """Optimizer steps on ``count`` images."""
        return self.epochs * (count // min(self.batch_size, count))


#: Recipes by what is trained: a block in few small steps, heads in more and larger ones.
BLOCKS = Optimization(epochs=8)
HEADS = Optimization(lr=1e-2, epochs=40, batch_size=32)
