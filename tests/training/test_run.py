from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from corit_cli import metrics
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.errors import CoritError
from corit_cli.features.cache import FeatureCache
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings, baseline
from corit_cli.training.fusion import HeldOut
from corit_cli.training.run import Run, Trained, train_head
from corit_cli.training.settings import Recipe, TrainSettings
from tests.conftest import OneFace, Told, photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(), integrate=(2, 3))
QUICK = TrainSettings(epochs=40, batch_size=48, folds=3)


def extractor(settings: CoRITSettings = SETTINGS) -> Extractor:
    return Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig("both", 32))


def train(
    samples: Sequence[Sample], settings: TrainSettings = QUICK, e: Extractor | None = None, **options: Any
) -> Trained:
    return train_head(Run(samples, e or extractor(), settings, **options))


@pytest.fixture
def trained(dataset: Path) -> Trained:
    return train(load_samples(dataset))


def test_it_finds_what_tells_the_fakes(trained: Trained) -> None:
    v = trained.validation
    assert metrics.auc(v.labels, v.logits[0]) > 0.8
    assert ((v.probabilities > 0) & (v.probabilities < 1)).all()
    assert not trained.errors


def test_same_seed_same_detector(dataset: Path, trained: Trained) -> None:
    again = train(load_samples(dataset))
    other = train(load_samples(dataset), replace(QUICK, seed=1))
    assert again.checkpoint.sha256 == trained.checkpoint.sha256 != other.checkpoint.sha256


def test_refit_validates_as_before_and_keeps_a_detector_of_all_images(dataset: Path, trained: Trained) -> None:
    samples = load_samples(dataset)
    found = train(samples, refit=True)
    np.testing.assert_array_equal(found.validation.logits, trained.validation.logits)
    np.testing.assert_array_equal(found.probe, trained.probe)
    # The same as a training on everything, whatever it is validated on.
    everything = [replace(s, split="train") for s in samples] + [
        replace(s, split="val") for s in samples[:1] + samples[-1:]
    ]
    whole = train(everything)
    kept, expected = found.checkpoint, whole.checkpoint
    for name, head in kept.head.heads.items():
        torch.testing.assert_close(head.state_dict(), expected.head.heads[name].state_dict(), atol=1e-5, rtol=1e-4)
    rates = kept.metrics["held_out_sources"]
    assert rates["real"] + rates["fake"] == len(samples) > len(found.validation.samples)
    assert kept.sha256 != trained.checkpoint.sha256
    assert kept.training["refit"] and not trained.checkpoint.training["refit"]


@pytest.mark.parametrize("inject_at", [(), (1,)])
def test_the_probe_reads_the_last_layer(inject_at: tuple[int, ...], dataset: Path) -> None:
    samples = load_samples(dataset)
    ours = train(samples, e=extractor(replace(SETTINGS, inject_at=inject_at)))
    alone = train(samples, e=extractor(baseline(4)), probe=False)
    np.testing.assert_allclose(ours.probe, alone.validation.logits[0], atol=1e-4)
    assert alone.probe is None


def test_no_source_is_on_both_sides(trained: Trained, dataset: Path) -> None:
    counts = trained.checkpoint.data["sources"]
    assert len(counts) == 4
    assert all(
        not ({"train_real", "train_fake"} & set(c) and {"val_real", "val_fake"} & set(c)) for c in counts.values()
    )


def test_unreadable_images_are_left_out_and_named(dataset: Path) -> None:
    samples = load_samples(dataset)
    samples[0].path.write_bytes(samples[0].path.read_bytes()[:200])
    result = train(samples)
    assert [s.path for s, _ in result.errors] == [samples[0].path]


def test_forgeries_that_cannot_be_made_stop_the_run(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CoritError, match="no TAESD"):
        train(load_samples(dataset), recipe=Recipe(forge=(f"reconstruct:{tmp_path / 'empty'}",)))


def test_one_picture_in_many_files_teaches_nothing(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / f"set{number // 2}" / ("fake" if number % 2 else "real") / f"{number}.png"
        path.parent.mkdir(parents=True)
        photograph(1).save(path, dpi=(70 + number, 70))  # no two files are the same
    with pytest.raises(CoritError, match="sees the same in every image: there is nothing to learn"):
        train(load_samples(tmp_path))


def test_a_validation_part_without_one_class_is_said(dataset: Path) -> None:
    samples = [replace(s, split="val" if s.source == "source0" else "train") for s in load_samples(dataset)]
    for sample in samples:
        if sample.split == "val" and sample.label:
            sample.path.write_bytes(b"spoilt")
    with pytest.raises(CoritError, match="no real or no fake ones"):
        train(samples, probe=False)


def test_reconstructions_join_the_training_set(dataset: Path, tmp_path: Path) -> None:
    from tests.data.test_forge import autoencoder_files

    result = train(load_samples(dataset), recipe=Recipe(forge=(f"reconstruct:{autoencoder_files(tmp_path)}",)))
    assert not result.errors
    assert result.checkpoint.training["recipe"]["forge"]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_not_enough(label: int, dataset: Path) -> None:
    samples = [s for s in load_samples(dataset) if s.label == label]
    with pytest.raises(CoritError, match="both real and fake"):
        train(samples)


def test_a_cached_run_is_the_same_run(dataset: Path, tmp_path: Path, trained: Trained) -> None:
    for _ in range(2):
        cache = FeatureCache(tmp_path / "cache.sqlite")
        again = train(load_samples(dataset), cache=cache)
        cache.close()
        assert again.checkpoint.sha256 == trained.checkpoint.sha256


def test_every_stage_is_told_of_to_its_end(dataset: Path) -> None:
    told = Told()
    train(load_samples(dataset), progress=told)
    assert told.complete and [stage[:2] for stage in told.stages] == [("features", 48), ("head", 2 * QUICK.epochs)]
    assert all(note.startswith("loss ") for note in told.stages[1][3])


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    """As ``dataset``, of pictures wide enough for a face; a fifth has none."""
    root = tmp_path / "portraits"
    for i in range(60):
        fake = i % 2
        folder = root / f"source{i // 2 % 4}" / ("fake" if fake else "real")
        folder.mkdir(parents=True, exist_ok=True)
        image = photograph(i, (80, 100) if i % 10 < 2 else (130, 100))
        if fake:
            pixels = np.asarray(image, np.int16) + 24 * (np.indices((100, image.width)).sum(0) % 2)[..., None]
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{i}.png")
    return root


def test_faces_are_a_reading_that_some_images_lack(
    portraits: Path, one_face: OneFace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = extractor(replace(SETTINGS, face=(2, 3)))
    samples, recipe = load_samples(portraits), Recipe(forge=("face_blend",), degrade=("jpeg:60-90",))
    asked, fused = [], HeldOut.fused
    monkeypatch.setattr(HeldOut, "fused", lambda self, *readings: asked.append(readings) or fused(self, *readings))
    found = train(samples, e=e, recipe=recipe)
    checkpoint = found.checkpoint
    # Verdicts on faces are fitted to just what faces are judged by.
    assert asked == [(), checkpoint.face_readings] and checkpoint.face_readings == e.face_readings
    assert checkpoint.head.names == ["hri", "cgp", "face"] and np.isfinite(found.validation.logits).all()
    rates = checkpoint.metrics
    assert 0 < rates["held_out_faces"]["real"] < rates["held_out_sources"]["real"]
    assert checkpoint.faces.calibration != checkpoint.calibration
    checkpoint.save(tmp_path / "det")
    again = Checkpoint.load(tmp_path / "det")
    assert again.faces == checkpoint.faces and again.settings == checkpoint.settings
    assert again.strictly().faces.thresholds == checkpoint.faces.thresholds.strictly()
    # Forged faces teach the reading of faces alone.
    plain = train(samples, e=e, recipe=replace(recipe, forge=())).checkpoint
    for name, same in (("hri", True), ("cgp", True), ("face", False)):
        heads = (c.head.heads[name].layers[0].weight for c in (checkpoint, plain))
        assert torch.equal(*heads) is same


def test_too_few_faces_are_no_reading(dataset: Path, one_face: OneFace, trained: Trained) -> None:
    found = train(load_samples(dataset), e=extractor(replace(SETTINGS, face=(2, 3))))
    assert found.checkpoint.settings == SETTINGS and found.checkpoint.faces is None
    np.testing.assert_allclose(found.validation.logits, trained.validation.logits, atol=1e-3)
    np.testing.assert_allclose(found.probe, trained.probe, atol=1e-3)


def test_what_does_not_go_with_faces(dataset: Path) -> None:
    samples, e = load_samples(dataset), extractor(replace(SETTINGS, face=(2,)))
    with pytest.raises(CoritError, match="--no-face"):
        train(samples, replace(QUICK, fusion="early"), e=e)
    with pytest.raises(CoritError, match="give --face LAYERS"):
        train(samples, recipe=Recipe(forge=("face_blend",)))


@pytest.mark.parametrize("recipe", [Recipe(forge=("resample@native",)), Recipe(windows=1)])
def test_what_teaches_the_readings_of_native_windows_needs_one(dataset: Path, recipe: Recipe) -> None:
    samples = load_samples(dataset)
    backbone = Backbone(random_tower(), "tiny", "0" * 64)
    resized = Extractor(backbone, SETTINGS, CropConfig("resize", 32))
    assert resized.native_readings == ()
    with pytest.raises(CoritError, match="give --native"):
        train(samples, e=resized, recipe=recipe)
    with pytest.raises(CoritError, match="leave out --fusion early"):
        train(samples, replace(QUICK, fusion="early"), recipe=recipe)
    alone = Extractor(backbone, SETTINGS, CropConfig("native", 32))
    assert alone.native_readings == ("hri", "cgp")


def test_the_probe_beside_changes_nothing_that_forgeries_teach(dataset: Path) -> None:
    """It reads class tokens in the same pass, where contrasts alone are asked for."""
    samples, settings = load_samples(dataset), replace(SETTINGS, integrate=())
    e = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig("native", 32))
    weights = {}
    for name, forge in (("with", ("resample@native",)), ("without", ())):
        for probe in (True, False):
            found = train(samples, e=e, recipe=Recipe(forge=forge), probe=probe)
            weights[name, probe] = found.checkpoint.head.heads["cgp"].layers[0].weight
    torch.testing.assert_close(weights["with", True], weights["with", False], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(weights["with", True], weights["without", True], atol=1e-2)
