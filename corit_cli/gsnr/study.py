"""What a study of GSNR by layer is asked and what it found, free of torch so that a report can be made anywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from corit_cli.config import Settings, option
from corit_cli.data.manifest import Sample
from corit_cli.errors import CoritError
from corit_cli.metrics.gsnr import GSNRDifference, GSNREstimate
from corit_cli.metrics.intervals import Estimate, plain
from corit_cli.model.settings import CoRITSettings, parse_layers

if TYPE_CHECKING:
    from corit_cli.gsnr.proxy import ProxyReport
    from corit_cli.model.fusion import FusedHead

PANEL = "What is measured"
STATES = {"init": ("initial",), "fitted": ("fitted",), "both": ("initial", "fitted")}


def parse_all(text: str) -> tuple[int, ...] | None:
    """``all`` to None, or what :func:`~corit_cli.model.settings.parse_layers` reads. Raises CoritError otherwise."""
    return None if text == "all" else parse_layers(text)


def parse_states(text: str) -> tuple[str, ...]:
    """``init``, ``fitted`` or ``both`` to states of the head. Raises CoritError otherwise."""
    if text not in STATES:
        raise CoritError(f"--head-state takes init, fitted or both, not {text!r}")
    return STATES[text]


@dataclass(frozen=True)
class Compared:
    """One of the models compared: its name, what it reads, and its head where it has been fitted already."""

    name: str
    settings: CoRITSettings
    head: FusedHead | None = None


@dataclass(frozen=True)
class StudySettings(Settings):
    """What is measured.

    ``layers`` of None are all of the backbone's, 0 being the embedding, and the head. Gradients are with respect to
    a layer's parameters; to its output, for the class token and for the mean of the patches; or (``head``) to a linear
    head on every layer's class token (baseline) or class token's contrast (CoRIT), which needs no pass backwards
    through the tower and so bears thousands of samples. ``states`` of the head are ``initial``, random on standardised
    features and of mean logit zero, in ``heads`` draws where heads are measured alone, and ``fitted``.
    """

    layers: tuple[int, ...] | None = option(
        None,
        "Layers, as in 0,3,6-9, or all; 0 is the embedding.",
        metavar="all|LAYERS",
        parse=parse_all,
        shown="all",
        panel=PANEL,
    )
    wrt: str = option(
        "params",
        "Gradients with respect to a layer's parameters, to its output, or to a linear head on its class token alone: "
        "without a pass backwards through the backbone, for thousands of images.",
        choices=("params", "tokens", "head"),
        panel=PANEL,
    )
    samples: int = option(16, "Images to measure on; heads are fitted on others.", minimum=6, panel=PANEL)
    states: tuple[str, ...] = option(
        ("initial", "fitted"),
        "The head that the loss is taken at: init, random; fitted; or both.",
        flag="--head-state",
        metavar="init|fitted|both",
        shown="both",
        parse=parse_states,
        panel=PANEL,
    )
    heads: int = option(
        1,
        "With --wrt head: random heads. The table is of the first; the range over all stands beside it.",
        minimum=1,
        panel=PANEL,
    )
    by: str | None = option(
        None, "Measure every class or source by itself, too; takes twice as long.", metavar="class|source", panel=PANEL
    )
    seed: int = option(0, "Seed of everything that is drawn at random.", panel=PANEL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in (None, "class", "source"):
            raise CoritError(f"by must be one of class, source, not {self.by!r}")
        if self.heads > 1 and self.wrt != "head":
            raise CoritError("several random heads are for gradients of heads alone: give --wrt head with --heads")
        if self.by and self.wrt == "head":
            raise CoritError("--by is for gradients of the backbone: leave it out, or give --wrt params or tokens")
        if not self.states or not set(self.states) <= {"initial", "fitted"}:
            raise CoritError(f"states must be of initial, fitted, not {self.states!r}")


@dataclass(frozen=True)
class Row:
    """GSNR of one model's layer, at one state of its head, on one subset of the images.

    ``part`` is params, cls, patches or, for a head alone, head; ``subset`` is ``all``, a class or a source.
    ``estimate`` is GSNR under batches with as many real images as fake ones, ``independent`` under independent
    draws, whose noise is larger. ``draws`` holds the values at several random heads, the first among them.
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

        return plain(
            self.about
            | {
                "gsnr": [
                    gsnr_row(row, row.estimate) | {"independent_draws": asdict(row.independent), "draws": row.draws}
                    for row in self.rows
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
