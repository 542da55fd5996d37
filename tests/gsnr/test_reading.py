from __future__ import annotations

from corit_cli.gsnr.reading import reading
from corit_cli.gsnr.study import DifferenceRow, Row, Study
from corit_cli.metrics.gsnr import GSNRDifference, GSNREstimate

More = tuple[int, int] | None


def row(model: str, layer: str, low: float, more: More = None, state: str = "fitted", **other: str) -> Row:
    value = max(low, 0.01 if more else -0.01)
    estimate = GSNREstimate(value, 0.1, low, 1.0, 0.1, 48, value, 1.0, more)
    return Row(model, state, other.get("subset", "all"), other.get("part", "params"), layer, estimate, estimate)


def difference(layer: str, low: float, high: float, more: More = None) -> DifferenceRow:
    found = GSNRDifference((low + high) / 2, low, high, 0.1, more)
    return DifferenceRow("corit", "baseline", "fitted", "all", "params", layer, found)


def test_layers_with_signal_are_named_and_those_without_say_how_many_images_would_tell() -> None:
    rows = [row("baseline", layer, 0.1) for layer in ("0", "2", "3", "4", "head")]
    rows += [row("baseline", "1", -0.1, (40, 163)), row("baseline", "5", -0.2, (1234, 56789)), row("baseline", "6", -1)]
    rows.sort(key=lambda r: (r.layer == "head", r.layer))
    said = reading(Study(rows=rows))[0]
    assert said == (
        "Fitted head, baseline: signal at layer 0, 2-4, head; not distinguishable from zero at layer 1, 5, 6 "
        "(to settle it: 40 to 160 more images for layer 1 and 1,200 to 57,000 more images for layer 5, "
        "no number for layer 6, measured at or below zero)."
    )


def test_the_model_that_carries_more_is_named() -> None:
    rows = [row(model, str(k), 0.1) for model in ("baseline", "corit") for k in range(1, 6)]
    differences = [
        difference("1", 0.1, 0.2), difference("2", -0.2, -0.1), difference("3", 0.1, 0.3),
        difference("4", -0.1, 0.2, (5, 10)), difference("5", -0.1, 0.2, (7, 20)),
    ]  # fmt: skip
    said = reading(Study(rows=rows, differences=differences))[2]
    assert said == (
        "Fitted head, corit against baseline: more signal at layer 1, 3; less signal at layer 2; no difference can be "
        "told at layer 4, 5 (to settle it: 5 to 10 more images for layer 4 and 7 to 20 more images for layer 5)."
    )


def test_every_stage_and_part_has_its_words_and_subsets_have_none() -> None:
    rows = [
        row("corit", "1", 0.1, state="initial", part="cls"), row("corit", "1", 0.1, state="initial", part="patches"),
        row("corit", "1", 0.1, state="epoch 1", part="head"), row("corit", "1", 0.1, state="epoch 5"),
        row("corit", "7", 0.1, subset="real"),
    ]  # fmt: skip
    said = reading(Study(rows=rows))
    assert said[:4] == [
        "Random head, corit: signal at the class token of layer 1.",
        "Random head, corit: signal at patches of layer 1.",
        "Head after 1 epoch, corit: signal at the head on layer 1.",
        "Head after 5 epochs, corit: signal at layer 1.",
    ]
    assert len(said) == 5 and "of 4 estimates without any signal, about 0.1 would seem to have some." in said[4]


def test_what_chance_would_show_counts_differences_and_a_single_faint_layer_is_named_once() -> None:
    rows = [
        row("corit", "1", 0.1),
        row("corit", "2", -0.1, (5, 9)),
        row("baseline", "1", -0.1),
        row("baseline", "2", 0),
    ]
    said = reading(Study(rows=rows, differences=[difference("1", 0.1, 0.2), difference("2", 0.1, 0.2)]))
    assert said[0].endswith("not distinguishable from zero at layer 2 (to settle it: 5 to 9 more images).")
    assert said[1].endswith("not distinguishable from zero at layer 1, 2, measured at or below zero.")
    assert "of 4 estimates" in said[-2] and "of 2 differences of nothing about 0.1 something" in said[-2]
    assert said[-1].startswith("More images: give a larger --samples")
