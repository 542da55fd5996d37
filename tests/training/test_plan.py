from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from corit_cli.data.manifest import Sample, load_samples
from corit_cli.features.cache import Job
from corit_cli.training.plan import plan
from corit_cli.training.settings import Recipe
from tests.conftest import photograph
from tests.training.test_run import SETTINGS, extractor


def test_a_plan_holds_every_version_once(tmp_path: Path) -> None:
    photograph(0).save(tmp_path / "real.jpg", quality=83)
    photograph(1).save(tmp_path / "fake.png")
    samples = [Sample(tmp_path / "real.jpg", 0), Sample(tmp_path / "fake.png", 1)]
    rows = plan(samples, [0, 1], Recipe(forge=("reconstruct:somewhere",), degrade=("jpeg:70-90",), copies=2))
    assert len(rows) == 9
    assert len({row.job for row in rows}) == 9
    forged = [row for row in rows if row.job.variant.forge]
    assert len(forged) == 3 and all(row.label == 1 and row.sample == 0 for row in forged)
    assert {row.job.variant.saved for row in forged} == {83}  # the way the photograph was, before any degradation
    assert {row.job.variant.codec for row in rows} == {None}
    matched = plan(samples, [0, 1], Recipe(forge=("reconstruct:somewhere",), match_codec=(70, 80)))
    assert {row.job.variant.codec for row in matched if row.trained} == {(70, 80)}
    as_they_are = [row for row in matched if not row.trained]
    assert [(row.job, row.label) for row in as_they_are] == [(Job(s.path), s.label) for s in samples]
    # A photograph that cannot be looked into is planned as it is, so that its reading reports it.
    (tmp_path / "broken.jpg").write_text("no picture")
    broken = Sample(tmp_path / "broken.jpg", 0)
    assert [row.job for row in plan([broken], [0], Recipe(forge=("self_blend",)))] == [Job(broken.path)]


def test_windows_of_re_encoded_images_are_different_draws(dataset: Path) -> None:
    samples, e = load_samples(dataset), extractor(replace(SETTINGS, native=(1,)))
    rows = plan(samples, [0], Recipe(match_codec=(70, 80), copies=2, windows=3), e)
    assert len(rows) == len({row.job for row in rows}) == 3 + 3 * 3 + 1
    assert [row.trained for row in rows] == [True] * 12 + [False]


def test_a_share_of_the_photographs_is_drawn_by_their_contents_whatever_else_is_there(tmp_path: Path) -> None:
    samples = []
    for i in range(400):
        photograph(i, (8, 6)).save(tmp_path / f"{i}.png")
        samples.append(Sample(tmp_path / f"{i}.png", i % 2))

    def forged(*names: str, of: list[Sample] = samples, seed: int = 0, **more: tuple[str, ...]) -> set[Path]:
        rows = plan(of, range(len(of)), Recipe(forge=names, seed=seed, **more))
        return {r.job.path for r in rows if r.job.variant.forge and r.job.variant.forge.name == "resample"}

    some = forged("0.3*resample")
    assert 40 < len(some) < 80 and some < {s.path for s in samples if s.label == 0}
    assert forged("self_blend", "0.3*resample", degrade=("jpeg",)) == some
    assert forged("0.3*resample", of=samples[7:]) == some - {s.path for s in samples[:7]}
    assert some < forged("0.5*resample")
    assert forged("0.3*resample", seed=1) != some
    assert len(forged("resample")) == len(forged("1*resample")) == 200


@pytest.mark.parametrize("recipe", [Recipe(forge=("resample@native",)), Recipe(windows=1)])
def test_rows_for_native_windows_need_to_know_their_readings(dataset: Path, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="there are none"):
        plan(load_samples(dataset), [0], recipe)
