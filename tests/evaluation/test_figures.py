from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, roc_auc_score, roc_curve

from corit_cli import metrics
from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.detection.calibration import Calibration, Thresholds
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.scores import Scored
from corit_cli.evaluation.figures import FIGURES, Evaluation, share, summarise
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings

THRESHOLDS = Thresholds(0.3, 0.7)


def checkpoint(**data: object) -> Checkpoint:
    torch.manual_seed(0)
    backbone = {"name": "tiny", "sha256": "0" * 64}
    return Checkpoint(
        FusedHead({"hri": Head(4)}), backbone, CoRITSettings(), CropConfig(), Calibration(), THRESHOLDS, data=data
    )


def scored(
    n: int = 80, chains: tuple[str, ...] = (), seed: int = 0, frames: int = 0, fake: float = 0.5, sources: str = "ab"
) -> Scored:
    """Images of two sources, fakes of two generators, ``frames`` to a video; each chain blurs the scores further."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        label = int(i / n >= 1 - fake)
        video = f"v{i // frames}" if frames else ""
        k = i // max(frames, 1)
        generator = "gan" if label and k % 3 else "diffusion" if label else ""
        source = sources[k % len(sources)] if sources else ""
        samples.append(Sample(Path(f"{i}.png"), label, source, generator, video_id=video))
    labels = np.array([s.label for s in samples])
    base = 0.8 * (2 * labels - 1) + rng.normal(size=n)
    logits = np.stack([base, *(base + 2 * (k + 1) * rng.normal(size=n) + k for k in range(len(chains)))])
    return Scored.of(samples, chains, torch.from_numpy(logits), Calibration(), THRESHOLDS)


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


def test_robustness_is_paired_with_the_clean_images() -> None:
    found = scored(chains=("jpeg-75", "noise-10"))
    r = summarise(checkpoint(), found).robustness
    assert r is not None and r.images == 80 and (r.by, r.groups) == ("source", ["a", "b"])
    groups = [np.flatnonzero([s.source == g for s in found.samples]) for g in "ab"]
    mean = [np.mean([roc_auc_score(found.labels[g], row[g]) for g in groups]) for row in found.logits]
    assert r.clean_auc.value == pytest.approx(mean[0])
    verdicts = found.verdicts
    for k, chain in enumerate(r.chains, 1):
        assert chain.auc.value == pytest.approx(mean[k])
        assert chain.change.value == pytest.approx(mean[k] - mean[0])
        assert chain.fpr.value == (found.probabilities[k][found.labels == 0] >= 0.7).mean()
        pairs = list(zip(verdicts[0].tolist(), verdicts[k].tolist(), strict=True))
        assert chain.changed.value == pytest.approx(np.mean([a != b for a, b in pairs]))
        assert chain.flipped.value == pytest.approx(np.mean([{a, b} == {"real", "fake"} for a, b in pairs]))
        assert 0 < chain.flipped.value < chain.changed.value
    assert r.chains[1].flipped.value > r.chains[0].flipped.value


def test_a_chain_that_does_nothing_changes_nothing() -> None:
    found = scored(chains=("jpeg-95",))
    found.logits[1], found.probabilities[1] = found.logits[0], found.probabilities[0]
    chain = summarise(checkpoint(), found).robustness.chains[0]
    assert (chain.change.low, chain.change.value, chain.change.high) == (0, 0, 0)
    assert chain.flipped.value == chain.changed.value == 0


def test_robustness_is_on_images_that_took_every_chain() -> None:
    found = scored(chains=("jpeg-75", "noise-10"))
    found.logits[2, 5] = found.probabilities[2, 5] = np.nan
    r = summarise(checkpoint(), found).robustness
    assert r.images == 79 and np.isfinite(r.chains[1].auc.value)


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


def test_a_share_of_nothing_is_nan() -> None:
    assert np.isnan(share(np.array([], bool)).value)
    assert share(np.array([True, False]), ["a", "a"]) == metrics.proportion(0.5, 1)
