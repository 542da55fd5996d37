from __future__ import annotations

from pathlib import Path

import numpy as np

from corit_cli.data.manifest import Sample
from corit_cli.evaluation.groups import comparable, groups_by


def samples(*rows: tuple) -> list[Sample]:
    """(how many, label, source, generator) each."""
    return [Sample(Path(f"{k}-{i}.png"), *known) for k, (n, *known) in enumerate(rows) for i in range(n)]


def test_a_generator_meets_the_real_images_of_its_sources() -> None:
    data = samples(
        (3, 0, "a"), (2, 1, "a", "gan"), (4, 0, "b"), (1, 1, "b", "gan"), (5, 0, "c"), (2, 1, "d", "diffusion"),
        (9, 1, "a", ""),
    )  # fmt: skip
    groups = groups_by(data, "generator")
    at = {name: sorted({(data[i].label, data[i].source) for i in np.flatnonzero(g.mask)}) for name, g in groups.items()}
    assert at == {
        "diffusion": [(0, "a"), (0, "b"), (0, "c"), (1, "d")],
        "gan": [(0, "a"), (0, "b"), (1, "a"), (1, "b")],
    }
    assert groups["gan"].against == "its sources" and groups["diffusion"].against == "all real images"
    assert groups["gan"].mask.sum() == 3 + 2 + 4 + 1
    assert {name: int(g.mask.sum()) for name, g in groups_by(data, "source").items()} == {
        "a": 14,
        "b": 5,
        "c": 5,
        "d": 2,
    }


def test_means_are_over_groups_of_eight_and_eight() -> None:
    data = samples((8, 0, "a"), (8, 1, "a", "gan"), (9, 0, "b"), (7, 1, "b", "gan"))
    by, groups = comparable(data)
    assert by == "source" and list(groups) == ["a"]
    data = samples((4, 0, "a"), (7, 1, "a", "gan"), (9, 0, "b"), (1, 1, "b", "gan"))
    by, groups = comparable(data)
    assert by == "generator" and list(groups) == ["gan"]
    by, groups = comparable(samples((4, 0), (4, 1)))
    assert by == "" and groups["all images"].all()
