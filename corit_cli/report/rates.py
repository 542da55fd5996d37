"""How often a detector was right and wrong when it was trained, as a checkpoint has it on record, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from corit_cli.report.words import share

if TYPE_CHECKING:
    from corit_cli.metrics.intervals import Estimate

KINDS = {"real": "real images", "fake": "fakes"}
#: Of detectors whose thresholds were fitted to the images that their error rates are of.
THE_SAME = "Thresholds were fitted to these same scores, so that such shares are a little too good."
#: Images of either class that must have got a verdict before its share among the ones is held against the others'.
FEWEST = 10


def rate(rates: Mapping[str, float], kind: str, verdict: str) -> Estimate | None:
    """The share of ``real`` or ``fake`` images that got a ``verdict``, with its 95% interval where their number is on
    record; None where the share is not."""
    from corit_cli.metrics.intervals import Estimate, proportion

    value, count = rates.get(f"{kind}_called_{verdict}"), independent(rates, kind)
    if value is None:
        return None
    return proportion(value * count, count) if count else Estimate(value, float("nan"), float("nan"))


def independent(rates: Mapping[str, float], kind: str) -> float:
    """As how many independent images those of a kind count, 0 where that is not on record: frames of one video are much
    the same."""
    return rates.get(f"independent_{kind}", rates.get(kind, 0))


def in_words(rates: Mapping[str, float], kind: str, verdict: str) -> str:
    """Such as "3.5% [2.7%, 4.4%] of 1,897 real images"."""
    return f"{_percents(rate(rates, kind, verdict))} of {_named(rates, kind)}"


def rows(rates: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """A table: real images and fakes, and which share was called real, uncertain and fake; none where no rate is on
    record."""
    verdicts = ("real", "uncertain", "fake")
    return [(_named(rates, kind), [_percents(rate(rates, kind, v)) for v in verdicts]) for kind in KINDS if rates]


def _named(rates: Mapping[str, float], kind: str) -> str:
    return f"{rates[kind]:,.0f} {KINDS[kind]}" if rates.get(kind) else KINDS[kind]


def _percents(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return share(found.value) + ("" if math.isnan(found.low) else f" [{share(found.low)}, {share(found.high)}]")


def times(rates: Mapping[str, float], verdict: str) -> Estimate | None:
    """How many times as common a verdict ``fake`` was among fakes as among real images, or ``real`` the other way
    round. None where numbers are not on record, or too small to tell."""
    from corit_cli.metrics.intervals import ratio

    other = "real" if verdict == "fake" else "fake"
    hits, others = (rates.get(f"{kind}_called_{verdict}", 0) * independent(rates, kind) for kind in (verdict, other))
    if min(hits, others) < FEWEST - 0.5:  # they are whole numbers, to rounding
        return None
    return ratio(hits, independent(rates, verdict), others, independent(rates, other))
