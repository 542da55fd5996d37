from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from corit_cli.data.manifest import load_samples
from corit_cli.data.variants import ORIGINAL
from corit_cli.features.cache import Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.training.plan import Planned, features_of, plan
from corit_cli.training.rows import TrainingSet
from corit_cli.training.settings import Recipe, TrainSettings
from tests.training.test_run import QUICK, SETTINGS, extractor


def test_held_out_logits_come_from_heads_that_never_saw_them(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe(degrade=("jpeg",), copies=1))
    torch.manual_seed(0)
    z = torch.randn(len(rows), 64)
    data = TrainingSet.of(samples, rows, z)
    fold = [i for i, s in enumerate(samples) if s.source == "source0"]
    head, before = data.cross_fit([fold], QUICK)
    originals = {row.sample: k for k, row in enumerate(rows) if row.sample in fold and row.job.variant == ORIGINAL}
    assert set(before.samples) == set(fold) == set(originals) and len(before.samples) == 2 * len(fold)
    untouched = [i for i, touched in zip(before.samples, before.touched.tolist(), strict=True) if not touched]
    assert sorted(untouched) == fold and not torch.allclose(before.logits[:, 0], head(z)[: len(before.logits)])
    found = data.held_out([fold, [i for i, s in enumerate(samples) if s.source == "source1"]], QUICK)
    assert found.sources == [samples[i].source for i in found.samples] and len(set(found.sources)) == 2
    assert found.balance == QUICK.balance
    # Whatever the held-out rows' labels are, degraded copies included, the held-out logits do not change.
    for k, row in enumerate(rows):
        if row.sample in fold:
            data.labels[k] = 1 - data.labels[k]
    assert torch.equal(data.cross_fit([fold], QUICK)[1].logits, before.logits)


def test_forgeries_for_native_windows_teach_nobody_else(dataset: Path) -> None:
    samples, e = load_samples(dataset), extractor(replace(SETTINGS, native=(1,)))
    assert e.native_readings == ("native", "cgp")
    rows = plan(samples, range(len(samples)), Recipe(forge=("resample@native",), degrade=("jpeg",)), e)
    forged = torch.tensor([row.job.variant.forge is not None for row in rows])
    assert {row.readings for row, own in zip(rows, forged.tolist(), strict=True) if own} == {("native", "cgp")}
    z, errors = features_of(rows, e, extract)
    assert not errors
    data = TrainingSet.of(samples, rows, z, e.readings)
    names = list(e.readings)
    weights = data.weights_by_head(QUICK, names)  # (n, R)
    taught = ~forged[:, None] | torch.tensor([name != "hri" for name in names])
    assert torch.equal(weights > 0, taught)
    for column, own in zip(weights.T, taught.T, strict=True):
        assert column[own].mean().item() == pytest.approx(1, abs=1e-5)
        assert column[data.labels == 0].sum().item() == pytest.approx(column[data.labels == 1].sum().item(), rel=1e-5)
    parts = dict(zip(names, z.split(list(e.readings.values()), 1), strict=True))
    assert parts["hri"][forged].isnan().all() and z[~forged].isfinite().all()
    # What is read of them is what is read where everything is.
    whole, _ = extract(e, [row.job for row in rows])
    torch.testing.assert_close(torch.where(z.isnan(), whole, z), whole, atol=1e-6, rtol=1e-5)
    head, without = data.heads(QUICK), data.chosen(~forged).heads(QUICK)
    for name in names:
        same = torch.equal(head.heads[name].layers[0].weight, without.heads[name].layers[0].weight)
        assert same is (name == "hri")
    # Beside an original fake of its own weight, a forgery has that of a copy; the classes stay even.
    light = data.weights(replace(QUICK, copy_weight=0.25))
    fake, copy = data.labels == 1, torch.tensor([bool(row.job.variant.degradations) for row in rows])
    ratios = light / data.weights(QUICK)
    torch.testing.assert_close(ratios[fake & forged] * 4, ratios[fake & ~forged & ~copy][:1].expand(int(forged.sum())))
    assert light[fake].sum().item() == pytest.approx(light[~fake].sum().item(), rel=1e-5)


def test_further_windows_weigh_as_what_they_are_cut_from_and_are_not_scored(dataset: Path) -> None:
    samples, e = load_samples(dataset), extractor(replace(SETTINGS, native=(1,), face=(2,)))
    forges = ("resample@native", "recompress", "self_blend", "face_blend")
    recipe, everything = Recipe(forge=forges, degrade=("jpeg",)), range(len(samples))
    few, rows = (plan(samples, everything, replace(recipe, windows=n), e) for n in (0, 2))
    cut = [row for row in rows if row.job.variant.window]
    assert [row for row in rows if not row.job.variant.window] == few
    assert set(plan(samples, everything, replace(recipe, windows=1), e)) < set(rows)
    assert len({row.job for row in rows}) == len(rows) and {row.job.variant.window for row in cut} == {32}
    assert {row.readings for row in cut} == {("native",)} and all(row.trained for row in cut)

    def cut_from(row: Planned) -> Planned:
        """The row that the same is done to, whatever its seed."""
        v = row.job.variant
        alike = (row.sample, row.label, v.forge, v.saved, v.degradations)
        (found,) = [
            whole
            for whole in few
            if (whole.sample, whole.label, (w := whole.job.variant).forge, w.saved, w.degradations) == alike
        ]
        return found

    sources = Counter(cut_from(row) for row in cut)
    # A window of a region's forgery might show nothing of it.
    names = {row: row.job.variant.forge and row.job.variant.forge.name for row in few}
    assert sources == {row: 2 for row in few if names[row] in (None, "resample", "recompress")}

    z, errors = features_of(rows, e, extract)
    data, windows = TrainingSet.of(samples, rows, z, e.readings), torch.tensor([row in cut for row in rows])
    assert not errors
    for name, part in zip(e.readings, z[windows].split(list(e.readings.values()), 1), strict=True):
        assert part.isfinite().all() if name == "native" else part.isnan().all()
    weights = data.weights(TrainSettings(copy_weight=0.25, balance="none")).tolist()
    of = dict(zip(rows, weights, strict=True))
    assert all(of[row] == of[cut_from(row)] for row in cut) and len(set(weights)) == 2
    without = TrainingSet.of(samples, few, z[~windows], e.readings)
    assert torch.equal(*(d.heads(QUICK).degradation.layers[0].weight for d in (data, without)))
    fold = [i for i, s in enumerate(samples) if s.source == "source0"]
    heads, found = data.cross_fit([fold], QUICK)
    assert sorted(found.samples) == sorted(2 * fold)  # as they are, and degraded
    for name, before in without.heads(QUICK).heads.items():
        learned = heads.heads[name].layers[0].weight
        assert torch.allclose(learned, before.layers[0].weight, atol=1e-4) is (name != "native")


def test_with_matched_codecs_heads_see_re_encoded_images_and_are_scored_on_files_as_they_are(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe(match_codec=(40, 50)))
    z, _ = extract(extractor(), [row.job for row in rows])
    data = TrainingSet.of(samples, rows, z)
    fold = [i for i, s in enumerate(samples) if s.source == "source1"]
    _, found = data.cross_fit([fold], QUICK)
    encoded = torch.tensor([row.trained and row.sample not in fold for row in rows])
    alone = TrainingSet.of(samples, [r for r, k in zip(rows, encoded, strict=True) if k], z[encoded]).fit(QUICK)
    with torch.inference_mode():
        expected = alone(extract(extractor(), [Job(samples[i].path) for i in fold])[0])
    assert found.samples == fold and not found.touched.any()
    np.testing.assert_allclose(found.fused(), expected.numpy(), atol=1e-5)


def test_what_a_copy_weighs(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe(degrade=("jpeg",), copies=2))
    data = TrainingSet.of(samples, rows, torch.zeros(len(rows), 1))
    copies = torch.tensor([row.job.variant != ORIGINAL for row in rows])
    alike, less = (data.weights(TrainSettings(copy_weight=weight)) for weight in (1.0, 0.25))
    assert less.mean() == pytest.approx(1) and alike.mean() == pytest.approx(1)
    torch.testing.assert_close(less[copies] / alike[copies], (less[~copies] / alike[~copies])[0] / 4 * torch.ones(96))


def test_a_reading_that_some_rows_lack_is_learned_from_the_others(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe())
    torch.manual_seed(0)
    z = torch.randn(len(rows), 12)
    z[::3, 8:] = float("nan")
    data = TrainingSet.of(samples, rows, z, {"hri": 8, "cgp": 4})
    head = data.fit(QUICK)
    assert head.names == ["hri", "cgp"] and head(z).isfinite().all()
    assert head.each(z).isnan().tolist() == [[False, k % 3 == 0] for k in range(len(rows))]
    early = data.fit(replace(QUICK, fusion="early"))
    assert early.names == ["all"] and early.features == 12


def test_forged_faces_are_for_their_reading_alone_and_weigh_as_copies_do(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe(forge=("face_blend", "resample")))
    faces = [k for k, row in enumerate(rows) if row.readings]
    real = sum(s.label == 0 for s in samples)
    assert len(faces) == real and {rows[k].readings for k in faces} == {("face",)}
    assert {rows[k].job.variant.forge.name for k in faces} == {"face_blend"} and {rows[k].label for k in faces} == {1}
    read: list[tuple[int, int]] = []

    def zeros(part: Extractor, jobs: list[Job]) -> tuple[torch.Tensor, dict[int, str]]:
        read.append((part.width, len(jobs)))
        return torch.randn(len(jobs), part.width), {0: "broken"}

    e = extractor(replace(SETTINGS, face=(3,)))
    z, errors = features_of(rows, e, zeros)
    width = e.readings["face"]
    assert read == [(e.width, len(rows) - real), (width, real)]
    assert errors == {0: "broken"}  # a photograph that shows no face to forge is no error
    assert z[faces, -width:].isfinite().all() and z[faces, :-width].isnan().all()
    rest = [k for k in range(len(rows)) if k not in faces]
    assert z[rest].isfinite().all()
    bare = extractor()
    assert features_of(rows, bare, zeros)[0][faces].isnan().all()
    # Other heads are trained as if they were not there, and copies' weight is theirs.
    data = TrainingSet.of(samples, rows, z, e.readings)
    whole = torch.tensor([row.readings is None for row in rows])
    head, without = data.heads(QUICK), data.chosen(whole).heads(QUICK)
    for name in ("hri", "cgp"):
        torch.testing.assert_close(head.heads[name].state_dict(), without.heads[name].state_dict(), atol=0, rtol=0)
    light = data.weights(replace(QUICK, copy_weight=0.25))
    heavy = data.weights(QUICK)
    torch.testing.assert_close((light / heavy)[faces] * 4, (light / heavy)[rest][:1].expand(real), atol=1e-5, rtol=1e-5)


def test_a_reading_that_one_class_lacks_is_missing(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe())
    torch.manual_seed(0)
    z = torch.randn(len(rows), 64)
    labels = torch.tensor([row.label for row in rows])
    z[labels == 1, 32:] = float("nan")
    data = TrainingSet.of(samples, rows, z, {"hri": 32, "face": 32})
    head = data.fit(QUICK)
    assert head.each(z)[:, 1].isnan().all() and head(z).isfinite().all()
    folds = [[i for i, s in enumerate(samples) if s.source == name] for name in ("source0", "source1")]
    _, found = data.cross_fit(folds, QUICK)
    assert found.fused().isfinite().all() and found.fused("face").isnan().all()
    torch.testing.assert_close(found.fused("hri"), found.fused())


def test_a_further_head_tells_degraded_copies(dataset: Path) -> None:
    samples, keen = load_samples(dataset), replace(QUICK, lr=0.5)
    rows = plan(samples, range(len(samples)), Recipe(degrade=("jpeg",), forge=("face_blend",)))
    torch.manual_seed(0)
    z = torch.randn(len(rows), 12)
    copies = torch.tensor([bool(row.job.variant.degradations) for row in rows])
    z[copies, 3] += 6
    z[:, 8:] = float("nan")
    z[::2, 8:] = torch.randn(len(z[::2]), 4)  # faces, in some
    data = TrainingSet.of(samples, rows, z, {"hri": 8, "face": 4})
    head = data.fit(keen)
    assert head.degradation.features == 8
    told = head.degraded(head.each(z))
    assert told[copies].min() > 0.5 > told[~copies].max()
    # Sources held out are told by a head that never saw them, and each kind of picture is joined by itself.
    folds = [[i for i, s in enumerate(samples) if s.source == name] for name in ("source0", "source1")]
    whole, found = data.cross_fit(folds, keen)
    assert found.logits.shape[1] == 3 and found.fused().isfinite().all()
    assert (found.logits[found.touched, -1] > 0).all() and (found.logits[~found.touched, -1] < 0).all()
    assert not torch.equal(whole.weights, whole.degraded_weights)
    # Without copies, or where it was not asked for, there is none.
    assert data.fit(replace(keen, degradation_aware=False)).degradation is None
    assert data.chosen(~copies).fit(keen).degradation is None
    for aware, width in ((True, 8), (False, 0)):
        heads = replace(keen, degradation_aware=aware).fitted(data.readings, Recipe(degrade=("jpeg",)))
        assert heads.get("degradation", 0) == width
    assert set(keen.fitted(data.readings, Recipe())) == {"hri", "face"}
    # Nor where only copies of one class were held out, or files are scored as they are alone.
    one_class = ~copies | (data.labels == 0)
    assert data.chosen(one_class).fit(keen).degradation is None
    encoded = Recipe(degrade=("jpeg",), match_codec=(70, 90))
    rows = plan(samples, range(len(samples)), encoded)
    data = TrainingSet.of(samples, rows, torch.randn(len(rows), 8), {"hri": 8})
    assert data.fit(keen).degradation is None and set(keen.fitted(data.readings, encoded)) == {"hri"}


def test_a_fold_without_which_nothing_tells_copies_is_joined_too(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe(degrade=("jpeg",)))
    torch.manual_seed(0)
    data = TrainingSet.of(samples, rows, torch.randn(len(rows), 12), {"hri": 8, "cgp": 4})
    first = torch.tensor([source == "source0" for source in data.sources])
    data = data.chosen(~data.degraded | (data.labels == 0) | first)  # copies of fakes come from one source
    folds = [[i for i, s in enumerate(samples) if s.source == name] for name in ("source0", "source1")]
    head, found = data.cross_fit(folds, QUICK)
    assert head.degradation is not None
    assert [found.heads[fold].degradation is None for fold in (0, 1)] == [True, False]
    assert found.fused().isfinite().all() and found.fused("hri").isfinite().all()


def test_heads_for_several_choices_are_those_for_each(dataset: Path) -> None:
    """With the same rows in every batch: all of them."""
    samples, whole = load_samples(dataset), replace(QUICK, batch_size=1000)
    rows = plan(samples, range(len(samples)), Recipe(degrade=("jpeg",)))
    torch.manual_seed(0)
    z = torch.randn(len(rows), 12)
    z[::3, 8:] = float("nan")
    data = TrainingSet.of(samples, rows, z, {"hri": 8, "cgp": 4})
    keeps = [torch.tensor([source != name for source in data.sources]) for name in ("source0", "source1")]
    told: list[int] = []
    each = data.fit_each(whole, keeps, lambda step, note="": told.append(step))
    assert sum(told) == 3 * whole.epochs  # of the heads of two readings, and of what tells copies
    for keep, head in zip(keeps, each, strict=True):
        for alone in (data.fit(whole, keep), data.chosen(keep).fit(whole)):
            for name, value in alone.state_dict().items():
                torch.testing.assert_close(head.state_dict()[name], value, atol=2e-3, rtol=1e-3, msg=name)


def test_videos_stay_whole_across_sources(dataset: Path) -> None:
    """Each video's original is in one of two sources and its forgery in one of two others."""
    samples = load_samples(dataset)
    seen: Counter[int] = Counter()
    for k, s in enumerate(samples):
        video = seen[s.label]
        seen[s.label] += 1
        samples[k] = replace(s, source=f"{s.label} {video % 2}", video_id=f"{video}")
    data = TrainingSet.of(samples, plan(samples, range(len(samples)), Recipe()), torch.zeros(len(samples), 1))
    folds = data._folds(None, seed=0)
    assert len(folds) == 2 and all({samples[i].label for i in fold} == {0, 1} for fold in folds)
    assert not {samples[i].video_id for i in folds[0]} & {samples[i].video_id for i in folds[1]}


def test_videos_stay_whole_where_sources_cannot(dataset: Path) -> None:
    samples = [replace(s, source="one", video_id=f"{i // 3}") for i, s in enumerate(load_samples(dataset))]
    data = TrainingSet.of(samples, plan(samples, range(len(samples)), Recipe()), torch.zeros(len(samples), 1))
    folds = data._folds(None, seed=0)
    assert sorted(i for fold in folds for i in fold) == list(range(len(samples))) and len(folds) > 1
    assert sum(len({samples[i].video_id for i in fold}) for fold in folds) == len({s.video_id for s in samples})
