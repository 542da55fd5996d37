from __future__ import annotations

from pathlib import Path

import pytest

from corit_cli.features.cache import Job
from corit_cli.training import foresee
from corit_cli.training.plan import Planned
from corit_cli.training.settings import DEGRADATION
from tests.training.test_run import QUICK


def test_every_head_is_timed_on_the_rows_that_it_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(count: int, *readings: str, trained: bool = True) -> list[Planned]:
        return [Planned(0, Job(Path("a")), 0, trained, readings or None) for _ in range(count)]

    fitted: dict[int, set[int]] = {}
    monkeypatch.setattr(foresee, "fit_heads", lambda z, y, w, _: fitted.setdefault(z.shape[1], set()).add((*w.shape,)))
    rows = [*planned(5), *planned(7, "native"), *planned(2, "native", "cgp"), *planned(50, trained=False)]
    heads = {"hri": 3, "native": 4, "cgp": 5, DEGRADATION: 12}

    assert foresee.head_seconds(QUICK, heads, rows, members=6) >= 0
    assert fitted == {3: {(6, 5)}, 4: {(6, 14)}, 5: {(6, 7)}, 12: {(6, 5)}}
