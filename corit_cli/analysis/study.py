"""What a study of GSNR by layer is asked and what it found, free of torch so that a report can be made anywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from corit_cli.data.manifest import Sample
from corit_cli.gsnr import GSNRDifference, GSNREstimate
from corit_cli.metrics import Estimate, plain
from corit_cli.model.settings import CoRITSettings

if TYPE_CHECKING:
    from corit_cli.analysis.proxy import ProxyReport
    from corit_cli.model.head import Head

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Compared:
    """One of the models compared: its name, what it reads, and its head where it has been fitted already."""

    name: str
    settings: CoRITSettings
    head: Head | None = None


@dataclass(frozen=True)
class StudySettings:
    """What is measured.

    Attributes:
        layers: backbone layers to report, 0 (the embedding) to L; None is all of them and the head.
        wrt: ``params``, the gradient with respect to a layer's parameters, or ``tokens``, that with respect to its
            output, for the class token and for the mean of the patches.
        samples: images to measure on, at most.
        states: ``initial`` (a random head on standardised features) and ``fitted``.
        by: ``class`` or ``source`` measures each of them by itself too, at the price of a second pass.
        quantiles: quantiles over single parameters, too.
        seed: of every random draw.
    """

    layers: tuple[int, ...] | None = None
    wrt: str = "params"
    samples: int = 16
    states: tuple[str, ...] = ("initial", "fitted")
    by: str | None = None
    quantiles: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("wrt", self.wrt, ("params", "tokens")),
            ("by", self.by, (None, "class", "source")),
            *(("head-state", state, ("initial", "fitted")) for state in self.states),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(a for a in allowed if a)}, not {value!r}")
        if self.quantiles and self.wrt == "tokens":
            raise ValueError("quantiles are over single parameters: they need wrt params")


@dataclass(frozen=True)
class Row:
    """GSNR of one model's layer, at one state of its head, on one subset of the images.

    ``part`` is params, cls or patches; ``subset`` is ``all`` or a class or source; ``quantiles`` go with
    ``QUANTILES``.
    """

    model: str
    head: str
    subset: str
    part: str
    layer: str
    estimate: GSNREstimate
    quantiles: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DifferenceRow:
    """GSNR of ``model`` minus that of ``reference``, for the same layer, head state and images."""

    model: str
    reference: str
    head: str
    subset: str
    part: str
    layer: str
    difference: GSNRDifference


@dataclass
class Study:
    """Everything that was found. ``losses`` are mean losses by (model, head, subset); ``probes`` are cross-validated
    AUCs by layer; ``proxies`` go by model; ``left_out`` names files that could not be read; ``about`` is what it takes
    to do it again."""

    rows: list[Row] = field(default_factory=list)
    differences: list[DifferenceRow] = field(default_factory=list)
    losses: dict[tuple[str, str, str], float] = field(default_factory=dict)
    probes: dict[int, Estimate] = field(default_factory=dict)
    proxies: dict[str, ProxyReport] = field(default_factory=dict)
    left_out: list[tuple[Sample, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; not-a-number becomes None."""

        def gsnr_row(row: Row | DifferenceRow, found: GSNREstimate | GSNRDifference) -> dict[str, Any]:
            key = {k: v for k, v in vars(row).items() if isinstance(v, str)}
            return key | asdict(found) | {"verdict": found.verdict}

        rows = []
        for row in self.rows:
            rows.append(gsnr_row(row, row.estimate))
            if row.quantiles is not None:
                rows[-1]["quantiles"] = dict(zip(map(str, QUANTILES), row.quantiles, strict=True))
        return plain(
            self.about
            | {
                "gsnr": rows,
                "differences": [gsnr_row(row, row.difference) for row in self.differences],
                "losses": [
                    {"model": model, "head": head, "subset": subset, "loss": loss}
                    for (model, head, subset), loss in self.losses.items()
                ],
                "probe_auc": {str(layer): asdict(auc) for layer, auc in self.probes.items()},
                "proxy": {name: asdict(report) for name, report in self.proxies.items()},
                "left_out": [{"path": str(sample.path), "error": error} for sample, error in self.left_out],
                "notes": self.notes,
            }
        )
