from __future__ import annotations

import json

import numpy as np
import pytest

from corit_cli import metrics
from corit_cli.evaluation.summary import Evaluation, summarise
from tests.evaluation.conftest import checkpoint, scored


@pytest.mark.parametrize(("fake", "there", "missing"), [(0.0, "fpr", "recall"), (1.0, "recall", "fpr")])
def test_one_class_has_rates_and_a_note(fake: float, there: str, missing: str) -> None:
    found = summarise(checkpoint(), scored(30, ("jpeg-75",), fake=fake))
    figures = found.overall.figures
    assert np.isfinite(figures[there].value) and np.isnan(figures[missing].value)
    assert np.isnan([figures[name].value for name in ("auc", "ece", "brier", "tpr_at_fpr_0.05")]).all()
    assert any("nothing to rank them against" in note for note in found.notes)
    assert np.isfinite(found.robustness.chains[0].changed.value)


def test_notes_say_what_a_reader_must_know() -> None:
    found = scored(fake=0.2, sources="")
    found.errors = [(found.samples[0], "truncated")]
    notes = summarise(checkpoint(), found).notes
    for words in ("1 of 81 images could not be read", "no image names its source"):
        assert any(words in note for note in notes), words
    assert not any("are fake" in note for note in notes)
    trained = checkpoint(sources={"a": {"train_real": 3}, "b": {"val_fake": 2}, "c": {"train_fake": 1}})
    (note,) = summarise(trained, scored(600)).notes
    assert "trained on images of 1 of these sources (a)" in note
    assert summarise(checkpoint(), scored(600)).notes == []


def as_json(found: Evaluation) -> str:
    return json.dumps(metrics.plain(found.as_dict()), allow_nan=False)


def test_the_same_scores_give_the_same_document() -> None:
    one, two = (as_json(summarise(checkpoint(), scored(chains=("jpeg-75",), frames=2))) for _ in range(2))
    assert one == two
    document = json.loads(one)
    assert document["data"]["real"] == 40 and document["thresholds"] == {"real": 0.3, "fake": 0.7, "strict": 1.0}
    assert document["tables"][0]["parts"][0]["figures"]["auc"]["low"] < document["overall"]["figures"]["auc"]["high"]
    assert document["detector_sha256"] == checkpoint().sha256
