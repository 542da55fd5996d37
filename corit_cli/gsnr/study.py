"""What a study of GSNR by layer found, free of torch so that a report can be made anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from corit_cli.data.manifest import Sample
from corit_cli.errors import CoritError
from corit_cli.metrics import gsnr
from corit_cli.metrics.gsnr import GSNRDifference, GSNREstimate, Moments
from corit_cli.metrics.intervals import Estimate, plain
from corit_cli.model.settings import CoRITSettings

if TYPE_CHECKING:
    from corit_cli.gsnr.proxy import ProxyReport
    from corit_cli.model.fusion import FusedHead

#: What gradients are with respect to (``Row.part``), and where.
Layer = tuple[str, str]


@dataclass(frozen=True)
class Compared:
    """One of the models compared: its name, what it reads, and its head where it has been fitted already."""

    name: str
    settings: CoRITSettings
    head: FusedHead | None = None


@dataclass(frozen=True)
class Row:
    """GSNR of one model's layer, at one state of its head, on one subset of the images.

    ``part`` is params, cls, patches or, for a head alone, head; ``subset`` is ``all``, a class or a source.
    ``estimate`` is GSNR under batches with as many real images as fake ones, ``independent`` under independent
    draws, whose noise is larger. ``draws`` holds the values at several random heads, where there are, the first first.
    """

    model: str
    head: str
    subset: str
    part: str
    layer: str
    estimate: GSNREstimate
    independent: GSNREstimate
    draws: tuple[float, ...] = ()


@dataclass(frozen=True)
class DifferenceRow:
    """GSNR of ``model`` minus that of ``reference``, for the same layer, head state and images; ``draws`` as in Row."""

    model: str
    reference: str
    head: str
    subset: str
    part: str
    layer: str
    difference: GSNRDifference
    draws: tuple[float, ...] = ()


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

    def add(
        self, head: str, subset: str, moments: Mapping[str, Mapping[Layer, Sequence[Moments]]], clustered: bool
    ) -> None:
        """Add the rows of one head state and subset, and the differences from the first model, from moments by model,
        (part, layer) and random head. Raises CoritError on gradients that no GSNR can be taken of."""
        first = next(iter(moments))
        for model, layers in moments.items():
            for (part, layer), drawn in layers.items():
                key = (head, subset, part, layer)
                try:
                    both = [gsnr.estimate(drawn[0], clustered, reading) for reading in ("balanced", "independent")]
                    values = _values(drawn, clustered)
                    self.rows.append(Row(model, *key, *both, values))
                    if model != first and (part, layer) in moments[first]:
                        others = moments[first][part, layer]
                        difference = gsnr.compare(drawn[0], others[0], clustered)
                        apart = tuple(a - b for a, b in zip(values, _values(others, clustered), strict=True))
                        self.differences.append(DifferenceRow(model, first, *key, difference, apart))
                except ValueError as error:
                    raise CoritError(f"{model}, {head} head, {subset}, layer {layer}: {error}") from None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; not-a-number becomes None."""

        def gsnr_row(row: Row | DifferenceRow, found: GSNREstimate | GSNRDifference) -> dict[str, Any]:
            key = {k: v for k, v in vars(row).items() if isinstance(v, str)}
            over = {"draws": row.draws, "draws_mean": None, "draws_sd": None}
            if row.draws:
                over |= {"draws_mean": mean(row.draws), "draws_sd": stdev(row.draws)}
            return key | asdict(found) | {"verdict": found.verdict} | over

        return plain(
            self.about
            | {
                "gsnr": [
                    gsnr_row(row, row.estimate) | {"independent_draws": asdict(row.independent)} for row in self.rows
                ],
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


def _values(drawn: Sequence[Moments], clustered: bool) -> tuple[float, ...]:
    """GSNR at each of several random heads; nothing where there is one."""
    if len(drawn) < 2:
        return ()
    found = [gsnr.variances(moments, clustered) for moments in drawn]
    return tuple(v.signal / v.within for v in found)
