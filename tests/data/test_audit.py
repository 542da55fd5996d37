from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corit_cli.data.audit import Shortcut, audit
from corit_cli.data.images import FileInfo
from corit_cli.data.manifest import Sample


def sample(label: int) -> Sample:
    return Sample(Path("a.jpg"), label)


def matched(n: int = 200, seed: int = 0) -> tuple[list[Sample], list[FileInfo | None]]:
    """Files whose outer form is drawn without looking at the class."""
    rng = np.random.default_rng(seed)
    infos: list[FileInfo | None] = []
    for _ in range(n):
        width, height = rng.choice([256, 512, 640, 1024, 1333], 2).tolist()
        kind = str(rng.choice(["JPEG", "PNG", "WEBP"]))
        quality = int(rng.integers(60, 100)) if kind == "JPEG" else None
        infos.append(FileInfo(kind, width, height, int(width * height * rng.uniform(0.1, 2)), quality))
    return [sample(i % 2) for i in range(n)], infos


def by_name(found: list[Shortcut]) -> dict[str, Shortcut]:
    return {s.attribute: s for s in found}


def test_matched_data_raise_no_alarm() -> None:
    for seed in range(60):
        found = audit(*matched(30 if seed % 2 else 200, seed))
        assert not [s for s in found if s.severe]
    assert set(by_name(found)) == {"format", "size", "pixels", "aspect ratio", "JPEG quality", "bytes per pixel"}
    assert [s.auc for s in found] == sorted((s.auc for s in found), reverse=True)
    assert all(0.5 <= s.auc <= 1 for s in found)


def test_formats() -> None:
    samples = [sample(1)] * 100 + [sample(0)] * 100
    kinds = ["PNG"] * 61 + ["JPEG"] * 39 + ["PNG"] * 2 + ["JPEG"] * 98
    found = by_name(audit(samples, [FileInfo(kind, 100, 100, 5000, None) for kind in kinds]))
    assert found["format"].detail == "PNG holds 61% of the fakes and 2% of the real images"
    assert found["format"].auc == pytest.approx(0.5 + (0.61 - 0.02) / 2)  # two categories: area under two segments
    assert found["format"].severe
    assert "JPEG quality" not in found
    assert [s.attribute for s in found.values() if s.severe] == ["format"]


def test_a_size_that_only_fakes_have_although_it_is_the_median_of_the_real_ones() -> None:
    samples = [sample(1)] * 60 + [sample(0)] * 60
    sides = [500] * 60 + [500 - i for i in range(1, 31)] + [500 + i for i in range(1, 31)]
    found = by_name(audit(samples, [FileInfo("PNG", side, side, side * side, None) for side in sides]))
    assert found["pixels"].auc == 0.5
    assert found["size"] == Shortcut("size", 1.0, "500 x 500 holds 100% of the fakes and 0% of the real images", True)


def test_sizes_of_their_own_are_no_shortcut() -> None:
    samples = [sample(i % 2) for i in range(200)]
    found = by_name(audit(samples, [FileInfo("PNG", 300 + i, 300, 90_000, None) for i in range(200)]))
    assert found["size"].auc == 0.5
    assert found["size"].detail == "no size is common"


@pytest.mark.parametrize(
    ("attribute", "fake", "real", "detail"),
    [
        ("pixels", (512, 512, 9), (1000, 1000, 9), "0.262 megapixels for the fakes and 1 megapixels"),
        ("aspect ratio", (600, 600, 9), (900, 400, 9), "1 to 1 for the fakes and 2.25 to 1"),
        ("JPEG quality", (600, 600, 75), (600, 600, 92), "quality 75 for the fakes and quality 92"),
        ("bytes per pixel", (500, 500, 9), (400, 400, 9), "0.4 bytes per pixel for the fakes and 0.625"),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_each_number_in_either_direction(attribute: str, fake: tuple, real: tuple, detail: str, swap: bool) -> None:
    infos = [FileInfo("JPEG", width, height, 100_000, quality) for width, height, quality in [fake, real] * 20]
    found = by_name(audit([sample(int(i % 2 == swap)) for i in range(40)], infos))[attribute]
    assert (found.auc, found.severe) == (1, True)
    if not swap:
        assert detail in found.detail


def test_a_few_files_prove_nothing() -> None:
    infos = [FileInfo("PNG" if i % 2 else "JPEG", 10, 10, 100, None) for i in range(6)]
    found = by_name(audit([sample(i % 2) for i in range(6)], infos))
    assert (found["format"].auc, found["format"].severe) == (1, False)


def test_a_weak_but_certain_difference_is_not_severe() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 5000)
    infos = [FileInfo("PNG", 100, 100, int(10_000 + 1000 * (rng.normal() + 0.3 * label)), None) for label in labels]
    found = by_name(audit([sample(int(label)) for label in labels], infos))["bytes per pixel"]
    assert 0.55 < found.auc < 0.65
    assert not found.severe


def test_unreadable_files_and_a_missing_class() -> None:
    samples, infos = matched(100)
    kept = [i for i in range(100) if i % 5]
    with_holes = [infos[i] if i % 5 else None for i in range(100)]
    assert audit(samples, with_holes) == audit([samples[i] for i in kept], [infos[i] for i in kept])
    assert audit([sample(0)] * 100, infos) == []
    assert audit([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        audit(samples, infos[:-1])
