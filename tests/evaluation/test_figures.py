from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, roc_auc_score, roc_curve

from corit_cli import metrics
from corit_cli.evaluation.figures import FIGURES, share
from corit_cli.evaluation.summary import summarise
from tests.evaluation.conftest import checkpoint, scored


def test_figures_equal_sklearn_s() -> None:
    found = scored(240, fake=0.4)
    labels, p, verdicts = found.labels, found.probabilities[0], found.verdicts[0]
    alike = np.where(labels == 1, 1 / 96, 1 / 144)
    figures = summarise(checkpoint(), found).overall.figures
    assert list(figures) == list(FIGURES)
    value = {name: e.value for name, e in figures.items()}
    assert value["auc"] == pytest.approx(roc_auc_score(labels, found.logits[0]))
    assert value["average_precision"] == pytest.approx(average_precision_score(labels, found.logits[0]))
    fpr, tpr, _ = roc_curve(labels, found.logits[0], drop_intermediate=False)
    assert value["eer"] == pytest.approx(brentq(lambda x: np.interp(x, fpr, tpr) - (1 - x), 0, 1), abs=1e-9)
    for false in (0.01, 0.05):
        assert value[f"tpr_at_fpr_{false}"] == pytest.approx(tpr[fpr <= false].max())
    assert value["brier"] == pytest.approx(brier_score_loss(labels, p, sample_weight=alike))
    assert value["brier"] != pytest.approx(brier_score_loss(labels, p), abs=1e-4)
    truth = np.where(labels == 1, "fake", "real")
    decided = verdicts != "uncertain"
    assert 0 < decided.sum() < 240
    assert value["accuracy"] == pytest.approx((verdicts == truth).mean())
    assert value["accuracy_decided"] == pytest.approx((verdicts == truth)[decided].mean())
    # Uncertain as the wrong answer, which is what a two-way verdict would have to give.
    wrong = np.where(verdicts == "uncertain", np.where(labels == 1, "real", "fake"), verdicts)
    assert value["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, wrong))
    assert value["fpr"] == (p[labels == 0] >= 0.7).mean()
    assert value["recall"] == (p[labels == 1] >= 0.7).mean()
    assert value["missed"] == (p[labels == 1] <= 0.3).mean()
    assert value["uncertain"] == ((p > 0.3) & (p < 0.7)).mean()
    bins = np.minimum((10 * p).astype(int), 9)
    gaps = [abs((alike * (labels - p))[bins == b].sum()) for b in range(10)]
    assert value["ece"] == pytest.approx(sum(gaps) / 2)
    assert figures["auc"] == metrics.auc_interval(labels, found.logits[0])
    for e in figures.values():
        assert e.low <= e.value + 1e-9 and e.value - 1e-9 <= e.high and e.low < e.high <= 1


def test_by_source_and_generator() -> None:
    found = scored()
    by_source, by_generator = summarise(checkpoint(), found).tables
    assert [part.name for part in by_source.parts] == ["a", "b"] == by_source.counted
    each = []
    for part in by_source.parts:
        chosen = [i for i, s in enumerate(found.samples) if s.source == part.name]
        each.append(roc_auc_score(found.labels[chosen], found.logits[0, chosen]))
        assert part.figures["auc"].value == pytest.approx(each[-1])
        assert (part.real, part.fake) == (20, 20)
    assert by_source.mean_auc.value == pytest.approx(np.mean(each))
    assert by_source.worst == "ab"[int(np.argmin(each))]
    assert [(part.name, part.real, part.against) for part in by_generator.parts] == [
        ("diffusion", 40, "its sources"),
        ("gan", 40, "its sources"),
    ]
    small = summarise(checkpoint(), scored(60, sources="abcd")).tables[0]
    assert len(small.parts) == 4 and small.counted == [] and small.worst is None and np.isnan(small.mean_auc.value)


def test_figures_as_sources_vary() -> None:
    few = summarise(checkpoint(), scored(sources="abcd")).overall
    assert few.as_sources_vary == {}
    found = scored(200, sources="abcdef")
    # What is said of an image hangs on its source: images draw a far narrower interval than sources do.
    of_source = np.array(["abcdef".index(s.source) for s in found.samples])
    found.logits[0] += 2.5 * np.array([-2, -1, 0, 0, 1, 2])[of_source]
    found.probabilities[0] = 1 / (1 + np.exp(-found.logits[0]))
    overall = summarise(checkpoint(), found).overall
    assert list(overall.as_sources_vary) == list(FIGURES)
    for name, e in overall.as_sources_vary.items():
        own = overall.figures[name]
        assert np.isnan(own.value) or (e.value == own.value and e.low <= own.low and own.high <= e.high), name
    for name in ("fpr", "recall"):
        own, e = overall.figures[name], overall.as_sources_vary[name]
        assert e.high - e.low > 1.5 * (own.high - own.low), name
    # By hand: whole sources are drawn.
    real, called = found.labels == 0, found.verdicts[0] == "fake"
    counts = np.array([[(called & real & (of_source == k)).sum(), (real & (of_source == k)).sum()] for k in range(6)])
    drawn = counts[np.random.default_rng(1).integers(6, size=(4000, 6))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    e = overall.as_sources_vary["fpr"]
    assert (e.low, e.high) == pytest.approx((low, high), abs=0.04)


def test_figures_whose_real_images_are_of_one_source_do_not_tell_how_sources_vary() -> None:
    found = scored(120, sources="abcdef")
    found.samples = [replace(s, source=s.source if s.label else "only") for s in found.samples]
    overall = summarise(checkpoint(), found).overall
    assert np.isnan(overall.as_sources_vary["auc"].low) and np.isfinite(overall.figures["auc"].low)


@pytest.mark.parametrize(("reals", "missing", "rough"), [(15, 2, 0), (20, 1, 1), (60, 1, 0), (100, 0, 1), (300, 0, 0)])
def test_a_tpr_at_an_fpr_takes_enough_real_images(reals: int, missing: int, rough: int) -> None:
    found = summarise(checkpoint(), scored(2 * reals))
    there = [found.overall.figures[f"tpr_at_fpr_{fpr}"].value for fpr in (0.01, 0.05)]
    assert np.isnan(there).sum() == missing and np.isnan(there[:missing]).all()
    notes = [note for note in found.notes if note.startswith("TPR at")]
    assert sum("cannot be told" in note for note in notes) == missing
    assert sum("rough guess" in note for note in notes) == rough
    assert all(f"these count as {reals}" in note for note in notes)
    # Frames of a video count as one.
    films = summarise(checkpoint(), scored(2 * reals, frames=5))
    assert np.isnan(films.overall.figures["tpr_at_fpr_0.01"].value) == (reals < 500)


def test_frames_of_a_video_are_drawn_and_scored_together() -> None:
    frames, alone = scored(160, frames=8), scored(160)
    with_videos, without = (summarise(checkpoint(), s) for s in (frames, alone))
    assert without.videos is None
    videos = with_videos.videos
    assert videos is not None and (videos.real, videos.fake) == (10, 10)
    means = frames.probabilities[0].reshape(20, 8).mean(1)
    assert videos.figures["auc"].value == pytest.approx(roc_auc_score(np.arange(20) >= 10, means))
    # 8 frames count as one trial: the interval of the same share is that of 10 trials.
    fpr = with_videos.overall.figures["fpr"]
    assert fpr == metrics.proportion(10 * without.overall.figures["fpr"].value, 10)


def test_a_share_of_nothing_is_nan() -> None:
    assert np.isnan(share(np.array([], bool)).value)
    assert share(np.array([True, False]), ["a", "a"]) == metrics.proportion(0.5, 1)
