from __future__ import annotations

import pytest

from corit_cli.errors import CoritError
from corit_cli.training.settings import Recipe, TrainSettings, TuneSettings, parse_quality_range


def test_spellings_of_the_command_line() -> None:
    assert [parse_quality_range(text) for text in ("75-95", "80", "1-100")] == [(75, 95), (80, 80), (1, 100)]


@pytest.mark.parametrize("text", ["", "-", "95-70", "0-50", "50-101", "75-", "-75", "a-b", "70-80-90"])
def test_other_qualities_are_refused(text: str) -> None:
    with pytest.raises(CoritError, match="--match-codec takes"):
        parse_quality_range(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainSettings(optimizer="adam"), "optimizer must be adamw or sgd"),
        (lambda: TrainSettings(head="mlp:0"), "a head is linear"),
        (lambda: TrainSettings(rho=float("nan")), "rho must be a finite number"),
        (lambda: TrainSettings(target_fpr=0.6), "target-fpr must be at most 0.5"),
        (lambda: TrainSettings(folds=1), "folds must be at least 2"),
        (lambda: TuneSettings(precision="fp16"), "precision must be auto, fp32, bf16 or int8"),
        (lambda: TuneSettings(epochs=0), "tune-epochs must be at least 1"),
        (lambda: Recipe(copies=2), "say how with --degrade"),
        (lambda: Recipe(degrade=("jpeg",), copies=0), "makes none"),
        (lambda: Recipe(degrade=("jpeg:200",)), "jpeg"),
        (lambda: Recipe(forge=("painting",)), "painting"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message: str) -> None:
    with pytest.raises(CoritError, match=message):
        make()


def test_there_is_a_copy_where_there_is_something_to_degrade_by() -> None:
    recipes = (Recipe(), Recipe(degrade=("jpeg",)), Recipe(degrade=("jpeg",), copies=3))
    assert [recipe.copies_made for recipe in recipes] == [0, 1, 3]
