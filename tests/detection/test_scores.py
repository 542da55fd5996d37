from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from corit_cli.data.manifest import Sample
from corit_cli.detection.calibration import Calibration, Thresholds
from corit_cli.detection.scores import Scored


def samples(n: int) -> list[Sample]:
    return [Sample(Path(f"{i}.png"), i % 2, "a", video_id=str(i // 2)) for i in range(n)]


def test_verdicts_are_at_the_given_thresholds() -> None:
    logits = torch.tensor([[-3.0, 0.0, 3.0]])
    found = Scored.of(samples(3), (), logits, Calibration(), Thresholds(0.2, 0.8))
    assert found.verdicts[0].tolist() == ["real", "uncertain", "fake"]
    assert found.probabilities[0].tolist() == [0.047426, 0.5, 0.952574]


def test_what_could_not_be_read_is_taken_out_of_every_row() -> None:
    data = samples(5)
    logits = torch.arange(10.0).view(2, 5)
    errors = {3: "truncated", 1: "no such file"}
    found = Scored.of(data, ("jpeg-75",), logits, Calibration(), Thresholds(0.2, 0.8), errors)
    assert found.samples == [data[0], data[2], data[4]] and found.labels.tolist() == [0, 0, 0]
    assert found.errors == [(data[1], "no such file"), (data[3], "truncated")]
    np.testing.assert_array_equal(found.logits, [[0, 2, 4], [5, 7, 9]])
    assert found.probabilities.shape == found.verdicts.shape == (2, 3)


def test_where_there_is_no_score_there_is_no_verdict() -> None:
    logits = torch.tensor([[-3.0, 3.0], [float("nan"), 3.0]])
    found = Scored.of(samples(2), ("jpeg-75",), logits, Calibration(), Thresholds(0.2, 0.8))
    assert found.verdicts.tolist() == [["real", "fake"], ["", "fake"]] and np.isnan(found.probabilities[1, 0])
    assert len(set(found.units)) == 1
