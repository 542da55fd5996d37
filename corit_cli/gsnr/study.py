"""What a study of GSNR by layer is asked and what it found, free of torch so that a report can be made anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from corit_cli.config import Settings, option, spelled
from corit_cli.data.manifest import Sample
from corit_cli.errors import CoritError
from corit_cli.metrics import gsnr
from corit_cli.metrics.gsnr import GSNRDifference, GSNREstimate, Moments
from corit_cli.metrics.intervals import Estimate, plain
from corit_cli.model.settings import CoRITSettings, parse_layers

if TYPE_CHECKING:
    from corit_cli.gsnr.proxy import ProxyReport
    from corit_cli.model.fusion import FusedHead

#: What gradients are with respect to (``Row.part``), and where.
Layer = tuple[str, str]

PANEL = "What is measured"
STATES = {"init": ("initial",), "fitted": ("fitted",), "both": ("initial", "fitted")}


def epoch_state(epoch: int) -> str:
    """The name of the head's state after so many epochs."""
    return f"epoch {epoch}" if epoch else "initial"


def epochs_of(state: str) -> float:
    """After how many epochs a state of the head is, infinity for ``fitted``. Raises ValueError for what is no state."""
    named = {"initial": 0.0, "fitted": float("inf")}
    return named[state] if state in named else int(state.removeprefix("epoch "))


def stage(state: str) -> str:
    """A state of the head in words."""
    if state in ("initial", "fitted"):
        return "random head" if state == "initial" else "fitted head"
    epochs = int(epochs_of(state))
    return f"head after {epochs} epoch{'s' if epochs > 1 else ''}"


def parse_all(text: str) -> tuple[int, ...] | None:
    """``all`` to None, or what :func:`~corit_cli.model.settings.parse_layers` reads. Raises CoritError otherwise."""
    return None if text == "all" else parse_layers(text)


def parse_states(text: str) -> tuple[str, ...]:
    """``init``, ``fitted``, ``both``, epochs, or several of these with commas between, to states of the head:
    ``initial``, ``epoch E`` and ``fitted``, in this order. Raises CoritError otherwise."""
    found: set[str] = set()
    for word in text.split(","):
        if word not in STATES and not word.isdecimal():
            raise CoritError(f"--head-state takes init, fitted, both or epochs such as 1,2,5, not {word!r}")
        found.update(STATES.get(word) or (epoch_state(int(word)),))
    return tuple(sorted(found, key=epochs_of))


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
    through the tower and so bears thousands of samples. Strata are the classes, or the sources within them.
    ``states`` of the head are ``initial``, random on standardised features and of mean logit zero; ``epoch E``,
    after E epochs of its training; and ``fitted``, after the last. ``heads`` are drawn at random, and trained each by
    itself up to the epochs asked for; one alone is fitted to the end, where the start is forgotten.
    """

    layers: tuple[int, ...] | None = option(
        None,
        "Layers, as in 0,3,6-9, or all; 0 is the embedding.",
        metavar="all|LAYERS",
        parse=parse_all,
        spell=lambda value: "all" if value is None else spelled(value),
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
    strata: str = option(
        "class",
        "What weighs as the sample has it, so that its differences are no noise: the classes, or sources within them.",
        choices=("class", "source"),
        panel=PANEL,
    )
    states: tuple[str, ...] = option(
        ("initial", "fitted"),
        "The head that the loss is taken at: init, random; fitted; both; or epochs of fitting: init,1,2,5,fitted.",
        flag="--head-state",
        metavar="init|fitted|both|EPOCHS",
        shown="both",
        parse=parse_states,
        spell=lambda value: ",".join(state.removeprefix("epoch ").replace("initial", "init") for state in value),
        panel=PANEL,
    )
    heads: int = option(
        1,
        "Random heads to begin with. The table is of the first; the range over all stands beside it.",
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
        if self.by and self.wrt == "head":
            raise CoritError("--by is for gradients of the backbone: leave it out, or give --wrt params or tokens")
        if self.wrt == "head" and self.layers is not None and 0 in self.layers:
            raise CoritError("layer 0's class token is the same for all images: give --wrt head layers from 1 on")
        if self.heads > 1 and set(self.states) == {"fitted"}:
            raise CoritError("--heads are random ones, and only the fitted head is asked for: add init to --head-state")
        if not self.states or not all(re.fullmatch(r"initial|fitted|epoch [1-9]\d*", state) for state in self.states):
            raise CoritError(f"states must be of initial, epoch 1 and so on, and fitted, not {self.states!r}")

    def states_of(self, draw: int) -> tuple[str, ...]:
        """The states that a random head, the first or another, is measured at."""
        return self.states if draw == 0 else tuple(state for state in self.states if state != "fitted")


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
