"""What a study of GSNR says, in sentences: where there is signal, which model has more, how many images would tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import floor, log10

from corit_cli.gsnr.settings import stage
from corit_cli.gsnr.study import DifferenceRow, Row, Study
from corit_cli.metrics.gsnr import INDISTINCT

#: What a layer's number stands for, by part.
PARTS = {
    "params": "layer",
    "head": "the head on layer",
    "cls": "the class token of layer",
    "patches": "patches of layer",
}
#: The share of 95% intervals that lie above the truth.
ABOVE = 0.025


def reading(found: Study) -> list[str]:
    """Sentences on all images, one for each state of the head and model, and pair of models; subsets have none."""
    rows = [row for row in found.rows if row.subset == "all"]
    differences = [row for row in found.differences if row.subset == "all"]
    lines = []
    for state in dict.fromkeys(row.head for row in rows):
        for of, said in ((rows, _signal), (differences, _contrast)):
            here = [row for row in of if row.head == state]
            for key in dict.fromkeys((row.model, row.part) for row in here):
                lines.append(
                    f"{stage(state).capitalize()}, {said([row for row in here if (row.model, row.part) == key])}."
                )
    compared = f", and of {len(differences)} differences of nothing about {2 * ABOVE * len(differences):.1f} something"
    lines.append(
        f"Every interval is of 95% by itself: of {len(rows)} estimates without any signal, about "
        f"{ABOVE * len(rows):.1f} would seem to have some{compared if differences else ''}."
    )
    if any(row.estimate.more_samples for row in rows) or any(row.difference.more_samples for row in differences):
        lines.append(
            "More images: give a larger --samples, and --data that holds as many again to fit heads on. The numbers "
            "take what was measured for the truth; the smaller holds where the error falls as 1/n, the larger where it "
            "falls as 1/sqrt(n)."
        )
    return lines


def _signal(rows: Sequence[Row]) -> str:
    """Where one model's gradient carries signal."""
    order, part = [row.layer for row in rows], PARTS[rows[0].part]
    sure = [row.layer for row in rows if row.estimate.significant]
    faint = {row.layer: row.estimate.more_samples for row in rows if not row.estimate.significant}
    said = [f"signal at {part} {_spans(sure, order)}"] if sure else []
    if faint:
        said.append(f"{INDISTINCT} at {part} {_spans(faint, order)}{_settled(faint, order)}")
    return f"{rows[0].model}: {'; '.join(said)}"


def _contrast(rows: Sequence[DifferenceRow]) -> str:
    """Which of two models carries more."""
    order, part, said = [row.layer for row in rows], PARTS[rows[0].part], []
    for verdict, word in (("higher", "more"), ("lower", "less")):
        layers = [row.layer for row in rows if row.difference.verdict == verdict]
        if layers:
            said.append(f"{word} signal at {part} {_spans(layers, order)}")
    faint = {row.layer: row.difference.more_samples for row in rows if not row.difference.significant}
    if faint:
        said.append(f"no difference can be told at {part} {_spans(faint, order)}{_settled(faint, order)}")
    return f"{rows[0].model} against {rows[0].reference}: {'; '.join(said)}"


def _settled(faint: Mapping[str, tuple[int, int] | None], order: Sequence[str]) -> str:
    """How many more images would settle layers, in brackets: the nearest, the farthest, and where that is unknown."""
    told = sorted((more, layer) for layer, more in faint.items() if more is not None)
    untold = [layer for layer, more in faint.items() if more is None]
    if not told:
        return ", measured at or below zero"
    ends = dict.fromkeys([*told[:1], *told[-1:]])
    alone = len(faint) == 1
    said = [" and ".join(_more(*m) + ("" if alone else f" for {_place(k)}") for m, k in ends)]
    if len(told) > 2:
        said.append("others between")
    if untold:
        said.append(f"no number for layer {_spans(untold, order)}, measured at or below zero")
    return f" (to settle it: {', '.join(said)})"


def _more(low: int, high: int) -> str:
    """So many more images, to two digits."""
    low, high = (round(n, 1 - floor(log10(n))) if n else 0 for n in (low, high))
    return f"{low:,} to {high:,} more images" if high > low else f"{low:,} more image{'' if low == 1 else 's'}"


def _place(layer: str) -> str:
    return f"layer {layer}" if layer.isdigit() else f"the {layer}"


def _spans(layers: Iterable[str], order: Sequence[str]) -> str:
    """Layers with neighbours of ``order`` taken together: ``1, 3-6, head``."""
    places = sorted(order.index(layer) for layer in layers)
    spans = []
    for _, run in groupby(enumerate(places), lambda item: item[1] - item[0]):
        own = [order[place] for _, place in run]
        words = [own] if all(layer.isdigit() for layer in own) else [own[:-1], own[-1:]]
        spans += [
            "-".join(dict.fromkeys([word[0], word[-1]])) if len(word) > 2 else ", ".join(word) for word in words if word
        ]
    return ", ".join(spans)
