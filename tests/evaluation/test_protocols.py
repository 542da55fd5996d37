from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from corit_cli import metrics
from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.detection.detector import Detector
from corit_cli.errors import CoritError
from corit_cli.evaluation import protocols
from corit_cli.evaluation.groups import Group
from corit_cli.evaluation.protocols import check, leave_out, recipe_of, run, summed
from corit_cli.features.cache import FeatureCache, Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.model.fusion import FusedHead
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings, baseline
from corit_cli.report.evaluation import _protocol_grid
from corit_cli.training.plan import plan
from corit_cli.training.rows import TrainingSet
from corit_cli.training.run import Run, train_head
from corit_cli.training.settings import Recipe, TrainSettings
from tests.conftest import photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2,), inject_at=(), integrate=(2, 3))
QUICK = TrainSettings(epochs=10, batch_size=48, folds=3, lr=0.05, seed=3)
RECIPE = Recipe(degrade=("jpeg",), copies=1, forge=("resample",), seed=3)
BOTH = ("leave-source-out", "leave-generator-out")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two sources of 8 and 8, generators alpha and beta, and a source of 8 fakes of gamma alone."""
    root = tmp_path_factory.mktemp("data")
    found = []
    for source, generator in (("s", "alpha"), ("t", "beta"), ("u", "gamma")):
        for i in range(16):
            label = i % 2
            if source == "u" and not label:
                continue
            pixels = np.asarray(photograph(len(found), (40, 36)), np.int16)
            pixels = pixels + label * 15 * (-1) ** np.indices(pixels.shape[:2]).sum(0)[..., None]
            path = root / f"{source}{i}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            found.append(Sample(path, label, source, generator if label else "none"))
    return found


@pytest.fixture(scope="module")
def detector(data: list[Sample]) -> Detector:
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), SETTINGS, CropConfig("native", 32))
    trained = train_head(Run(data, extractor, QUICK, RECIPE, probe=False))
    return Detector(trained.checkpoint, extractor)


def test_heads_never_see_what_they_are_tested_on(detector: Detector, data: list[Sample]) -> None:
    (found,) = run(detector, data, ["leave-source-out"])
    assert [(g.name, g.real, g.fake) for g in found.groups] == [("s", 8, 8), ("t", 8, 8)]
    assert list(found.passed_over) == ["u"] and "fewer than 8" in found.passed_over["u"]
    # The same by hand: train on the other sources alone, probe included, and test on the files as they are.
    for group in found.groups:
        rest = [s for s in data if s.source != group.name]
        test = [s for s in data if s.source == group.name]
        labels = [s.label for s in test]
        rows = plan(rest, range(len(rest)), RECIPE)
        for settings, auc in ((SETTINGS, group.ours), (baseline(4), group.probe)):
            extractor = Extractor(detector.extractor.backbone, settings, CropConfig("native", 32))
            z, _ = extract(extractor, [row.job for row in rows])
            head = TrainingSet.of(rest, rows, z).fit(QUICK)
            with torch.inference_mode():
                scores = head(extract(extractor, [Job(s.path) for s in test])[0])
            assert auc.value == pytest.approx(roc_auc_score(labels, scores), abs=0.02)
        assert group.difference.value == pytest.approx(group.ours.value - group.probe.value)
    assert found.ours.value == pytest.approx(np.mean([g.ours.value for g in found.groups]))
    assert found.difference.value == pytest.approx(found.ours.value - found.probe.value)
    for figure in ("ours", "probe", "difference"):
        values = np.array([getattr(g, figure).value for g in found.groups])
        bounds = (-1 if figure == "difference" else 0, 1)
        assert found.as_groups_vary[figure] == metrics.mean_interval(values, bounds=bounds)
        assert found.one_new_group[figure] == metrics.prediction_interval(values, bounds=bounds)
    assert not found.share_images
    assert found.ours.value != found.probe.value


def test_the_same_run_gives_the_same_figures_cache_or_not(
    detector: Detector, data: list[Sample], tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path / "cache.sqlite")
    one = run(detector, data, BOTH, cache)
    assert repr(run(detector, data, BOTH, cache)) == repr(one)  # NaN is not itself
    cache.close()
    assert [p.name for p in one] == list(BOTH)
    assert [g.name for g in one[1].groups] == ["alpha", "beta"]


def held(data: list[Sample], name: str) -> set[tuple[int, str]]:
    groups, _ = leave_out(data, "leave-generator-out", 0)
    return {(data[i].label, data[i].source) for i in np.flatnonzero(groups[name].mask)}


def test_a_generator_goes_with_the_real_images_of_its_sources(data: list[Sample]) -> None:
    assert held(data, "alpha") == {(0, "s"), (1, "s")}


def test_a_generator_without_real_images_borrows_a_third() -> None:
    made = [
        Sample(Path(f"{i}"), int(i >= 60), "abcdef"[i // 10] if i < 60 else "g", "gan" if i < 70 else "vae")
        for i in range(80)
    ]
    groups, _ = leave_out(made, "leave-generator-out", 0)
    real = {name: {i for i in np.flatnonzero(g.mask) if i < 60} for name, g in groups.items()}
    assert len(real["gan"]) == 20 and real["gan"] == real["vae"]
    assert groups["gan"].mask.sum() == 30 and groups["gan"].against == "a third of all real images"
    again, other = (leave_out(made, "leave-generator-out", seed)[0]["gan"].mask for seed in (0, 1))
    assert (again == groups["gan"].mask).all() and (other != again).any()


def test_a_third_is_borrowed_where_else_no_real_image_would_be_left() -> None:
    made = [Sample(Path(f"{i}"), int(i >= 30), "a", ("gan", "vae")[i % 2]) for i in range(60)]
    groups, _ = leave_out(made, "leave-generator-out", 0)
    assert {int(g.mask[:30].sum()) for g in groups.values()} == {10}


def test_videos_are_borrowed_whole() -> None:
    made = [
        Sample(Path(f"{i}"), int(i >= 60), "a" if i < 60 else "b", "gan" if i < 75 else "vae", video_id=str(i // 6))
        for i in range(90)
    ]
    groups, _ = leave_out(made, "leave-generator-out", 0)
    chosen = groups["gan"].mask[:60].reshape(10, 6)
    assert (chosen == chosen[:, :1]).all() and chosen[:, 0].sum() == 3


@pytest.mark.parametrize("by_method", [True, False])
def test_of_a_video_that_is_judged_nothing_is_trained_on(by_method: bool) -> None:
    """Originals and two generators' forgeries of the same 30 videos, in sources of their own or in one."""
    made = [
        Sample(Path(f"{kind}{i}"), int(kind != "real"), kind if by_method else "all", kind, video_id=str(i // 2))
        for kind in ("real", "swap", "reenact")
        for i in range(60)
    ]
    groups, passed_over = leave_out(made, "leave-generator-out", 0)
    assert set(groups) == {"swap", "reenact"} and not passed_over
    for name, group in groups.items():
        judged, trained = ([made[i] for i in np.flatnonzero(m)] for m in (group.mask, ~group.withheld))
        assert group.against == "a third of its videos" and len(judged) == 40 and len(trained) == 80
        assert not {s.video_id for s in judged} & {s.video_id for s in trained}
        assert {s.generator for s in trained} == {"real", "swap", "reenact"} - {name}
        assert {s.generator for s in judged} == {"real", name}


@pytest.mark.parametrize(("gan", "more"), [("B", 0), ("A", 0), ("A", 60)])
def test_originals_are_left_where_a_source_holds_them_with_their_forgeries(gan: str, more: int) -> None:
    """Source A has originals and their forgeries by swap; somewhere is a generator that forged no video."""
    made = [
        Sample(Path(f"{kind}{i}"), int(kind == "swap"), "A", kind, video_id=str(i))
        for kind in ("real", "swap")
        for i in range(60)
    ]
    made += [Sample(Path(f"gan{i}"), 1, gan, "gan") for i in range(60)]
    made += [Sample(Path(f"b{i}"), 0, "B") for i in range(more)]
    groups, _ = leave_out(made, "leave-generator-out", 0)
    group = groups["swap"]
    left = [made[i] for i in np.flatnonzero(~group.withheld)]
    assert group.against == "a third of its videos" and group.mask.sum() == 40
    assert sum(s.source == "A" and not s.label for s in left) == 40 and not any(s.generator == "swap" for s in left)


def layout(*parts: tuple[str, str, int, str]) -> list[Sample]:
    """(source, generator, images, what their videos are called) each; generator "" for real ones."""
    return [
        Sample(
            Path(f"{source} {generator}{i}"),
            int(generator != ""),
            source,
            generator,
            video_id=f"{video}{i}" * (video != ""),
        )
        for source, generator, count, video in parts
        for i in range(count)
    ]


@pytest.mark.parametrize(("made", "judged", "left"), [
    (layout(("R", "", 60, "r"), ("x", "x", 60, "v"), ("y", "y", 60, "v")), [20, 20], [40, 40]),
    (layout(("A", "", 60, "a"), ("A", "x", 60, ""), ("B", "y", 60, "a")), [20, 60], [40, 40]),
    (layout(("A", "", 100, "a"), ("x", "x", 20, "a"), ("y", "y", 20, "a"), ("z", "z", 60, "")), [33, 20], None),
], ids=["forgeries tied to each other", "originals tied to forgeries elsewhere", "few forgeries"])  # fmt: skip
def test_a_generator_is_judged_whatever_its_videos_tie_it_to(
    made: list[Sample], judged: list[int], left: list[int] | None
) -> None:
    groups, passed_over = leave_out(made, "leave-generator-out", 0)
    labels = np.array([s.label for s in made])
    group = groups["x"]
    assert not passed_over and np.bincount(labels[group.mask]).tolist() == judged
    assert left is None or (np.bincount(labels[~group.withheld]) >= left).all()
    seen, kept = ({made[i].video_id for i in np.flatnonzero(m)} - {""} for m in (group.mask, ~group.withheld))
    assert not seen & kept and "x" not in {made[i].generator for i in np.flatnonzero(~group.withheld)}


def test_a_video_that_two_generators_share_costs_no_others() -> None:
    made = [Sample(Path(f"{i}"), i % 2, "A", "swap" if i % 2 else "", video_id=f"{i}") for i in range(40)]
    made += [
        Sample(Path(f"o{i}"), i % 2, "B", "other" if i % 2 else "", video_id=f"{i if i == 1 else f'o{i}'}")
        for i in range(40)
    ]
    groups, _ = leave_out(made, "leave-generator-out", 0)
    assert groups["swap"].mask.sum() == 40 and groups["swap"].withheld.sum() == 41


def test_a_source_whose_videos_are_in_all_others_is_passed_over() -> None:
    made = [
        Sample(Path(f"{source}{i}"), i % 2, source, video_id=f"{'x' if source == 'c' else ''}{i // 2}")
        for source in "abc"
        for i in range(40)
    ]
    groups, passed_over = leave_out(made, "leave-source-out", 0)
    assert set(groups) == {"a", "b", "c"} and not passed_over
    assert groups["a"].mask.sum() == 40 and groups["a"].withheld.sum() == 80  # b holds the same videos
    _, passed_over = leave_out(made[:80], "leave-source-out", 0)
    assert set(passed_over) == {"a", "b"} and "to train on" in passed_over["a"]


def test_what_groups_share_is_no_certainty() -> None:
    """Ten generators, equally hard, against the same twenty real images: their AUCs rise and fall together."""
    made = [Sample(Path(f"{i}"), int(i >= 20), "a", f"g{i // 20}" if i >= 20 else "") for i in range(220)]
    labels, rng = np.array([s.label for s in made]), np.random.default_rng(0)
    groups = {f"g{k}": Group((labels == 0) | np.array([s.generator == f"g{k}" for s in made])) for k in range(1, 11)}
    truth, hits = 0.85, {"shared": 0, "alone": 0}
    for _ in range(30):
        scores = rng.normal(size=220) + labels * norm.ppf(truth) * 2**0.5
        found = summed(
            "leave-generator-out", made, groups, {}, {k: dict.fromkeys(groups, scores) for k in ("ours", "probe")}
        )
        assert found.share_images and found.difference.value == found.as_groups_vary["difference"].high == 0
        shared = found.as_groups_vary["ours"]
        alone = metrics.mean_interval(np.array([g.ours.value for g in found.groups]))
        hits["shared"] += shared.low <= truth <= shared.high
        hits["alone"] += alone.low <= truth <= alone.high
        assert found.one_new_group["ours"].low < shared.low
        assert found.groups[0].ours == metrics.auc_interval(labels[:40], scores[:40])
    assert hits["shared"] >= 27 and hits["alone"] < 20


def test_the_recipe_is_the_checkpoint_s(detector: Detector) -> None:
    assert recipe_of(detector.checkpoint) == (QUICK, RECIPE)
    assert detector.head.degradation is not None
    older = replace(detector.checkpoint, head=FusedHead(dict(detector.head.heads)))
    assert recipe_of(older) == (replace(QUICK, degradation_aware=False), RECIPE)


def test_a_forgery_that_cannot_be_made_here_is_left_out_and_named(
    detector: Detector, data: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = run(detector, data, ["leave-source-out"])
    assert plain.untaught == ()
    recipe = detector.checkpoint.training["recipe"]
    forges = [*recipe["forge"], "0.3*reconstruct@native:./nowhere/at/all"]
    training = {**detector.checkpoint.training, "recipe": {**recipe, "forge": forges}}
    monkeypatch.setattr(detector, "checkpoint", replace(detector.checkpoint, training=training))
    check(detector.checkpoint, data, BOTH)
    (found,) = run(detector, data, ["leave-source-out"])
    assert repr(replace(found, untaught=())) == repr(plain)  # NaN is not itself
    (why,) = found.untaught
    assert why.startswith("0.3*reconstruct@native:./nowhere/at/all (") and "neither a folder" in why
    assert any(why in note for note in _protocol_grid(found).notes)


def test_what_cannot_be_retrained_is_refused(
    detector: Detector, data: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CoritError, match="unknown protocol 'leave-one-out'"):
        check(detector.checkpoint, data, ["leave-one-out"])
    with pytest.raises(CoritError, match="does not say how it was trained"):
        check(replace(detector.checkpoint, training={}), data, BOTH)
    nameless = [replace(s, source="", generator="") for s in data]
    with pytest.raises(CoritError, match="leave-source-out finds nothing to hold out \\(no image names its source"):
        run(detector, nameless, ["leave-source-out"])
    alone = [s for s in data if s.source == "s"]
    with pytest.raises(CoritError, match="without it there are no real images to train on"):
        run(detector, alone, ["leave-source-out"])
    monkeypatch.setattr(detector.checkpoint, "tuned", {"block": 1}, raising=False)
    with pytest.raises(CoritError, match="tower was tuned"):
        check(detector.checkpoint, data, BOTH)
    assert set(protocols.PROTOCOLS) == set(BOTH)
