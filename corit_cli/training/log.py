"""What a training tells of every epoch: rows of a CSV file, and of TensorBoard where it is asked for.

``loss``, ``perturbed`` (the loss at SAM's perturbed point), ``gradient_norm`` (at the weights themselves: the ascent's)
and ``cosine`` (between the gradients at both points) are means over the epoch's images; ``lr`` is the epoch's first.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from corit_cli.errors import CoritError
from corit_cli.files import write_atomically
from corit_cli.training.sam import Step

#: What is trained (a head, or the tower with its heads), of which reading (or to tell degraded copies), without which
#: fold, and what was seen.
COLUMNS = (*("stage", "reading", "fold", "epoch"), *("loss", "perturbed", "gradient_norm", "cosine", "lr", "held_out"))


class Log(Protocol):
    """Told of every epoch, by columns."""

    def __call__(self, **row: Any) -> None: ...


def unlogged(**row: Any) -> None:
    """A :class:`Log` that keeps nothing."""


@dataclass
class Epoch:
    """Sums of what the steps of one epoch saw, of one model or of each in a population, to become their means over its
    images."""

    lr: float
    sums: dict[str, Any] = field(default_factory=dict)
    images: int = 0

    def add(self, step: Step, images: int) -> None:
        """Count one step on so many images."""
        seen = {"loss": step.loss, "perturbed": step.perturbed, "gradient_norm": step.norm, "cosine": step.cosine}
        self.sums = {name: self.sums.get(name, 0.0) + value * images for name, value in seen.items()}
        self.images += images

    @property
    def means(self) -> dict[str, float]:
        """By column, with the learning rate."""
        return {name: total / self.images for name, total in self.sums.items()} | {"lr": self.lr}

    def of(self, member: int) -> dict[str, float]:
        """The means of one of a population."""
        return {name: float(total[member]) / self.images for name, total in self.sums.items()} | {"lr": self.lr}


class EpochLog:
    """Keeps every row until it is saved, and tells TensorBoard in ``log_dir`` at once.

    A ``live`` file is written after every epoch that a tower is tuned, as soon as there is its folder. No clock stands
    in it: the same training writes the same bytes, interrupted or not. Raises CoritError where TensorBoard is asked for
    and not installed.
    """

    def __init__(self, live: Path | None = None, log_dir: Path | None = None) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self._live, self._board = live, None if log_dir is None else tensorboard(log_dir)

    def __call__(self, **row: Any) -> None:
        self.rows.append(row)
        if self._board is not None:
            fold = f"fold-{row['fold']}" if "fold" in row else None
            run = "/".join(part for part in (row["stage"], row.get("reading"), fold) if part)
            for name in COLUMNS[4:]:
                if name in row:
                    self._board.add_scalar(f"{run}/{name}", row[name], row["epoch"])
        if self._live is not None and row["stage"] == "tune" and self._live.parent.is_dir():
            self.save(self._live)

    def save(self, path: Path) -> None:
        """Write all rows there are. Raises CoritError when that cannot be done."""

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
                table.writeheader()
                table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in self.rows)

        write_atomically(path, write)

    def close(self) -> None:
        """Let TensorBoard's file go."""
        if self._board is not None:
            self._board.close()


def tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard's files. Raises CoritError where it is not installed, or the folder cannot be written."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CoritError("--log-dir is for TensorBoard, which is not installed: pip install tensorboard") from None
    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise CoritError(f"cannot write {folder}: {error.strerror or error}") from None
