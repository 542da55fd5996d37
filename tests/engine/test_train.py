from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from corit_cli import metrics
from corit_cli.config import Recipe, TrainSettings
from corit_cli.data.images import CropConfig
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.engine import predict
from corit_cli.engine.features import Extractor, FeatureCache, Job, extract
from corit_cli.engine.predict import Detector
from corit_cli.engine.train import Trained, TrainingSet, plan, train
from corit_cli.engine.weights import Backbone, load_backbone
from corit_cli.errors import CoritError
from corit_cli.model.settings import CoRITSettings
from tests.conftest import photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(), integrate=(2, 3))
QUICK = TrainSettings(epochs=40, batch_size=12, folds=3)


def extractor(settings: CoRITSettings = SETTINGS) -> Extractor:
    return Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig("both", 32))


@pytest.fixture
def trained(dataset: Path) -> Trained:
    return train(load_samples(dataset), extractor(), QUICK, Recipe())


def test_it_finds_what_tells_the_fakes(trained: Trained) -> None:
    v = trained.validation
    assert metrics.auc(v.labels, v.logits) > 0.8
    assert ((v.probabilities > 0) & (v.probabilities < 1)).all()
    assert not trained.errors


def test_same_seed_same_detector(dataset: Path, trained: Trained) -> None:
    again = train(load_samples(dataset), extractor(), QUICK, Recipe())
    other = train(load_samples(dataset), extractor(), replace(QUICK, seed=1), Recipe())
    assert again.checkpoint.sha256 == trained.checkpoint.sha256 != other.checkpoint.sha256


def test_layer_weights_are_told_by_part_and_leave_the_probe_alone(dataset: Path, trained: Trained) -> None:
    weighed = train(load_samples(dataset), extractor(), replace(QUICK, layer_weights="learned"), Recipe())
    shares = weighed.checkpoint.metrics["layer_weights"]
    assert list(shares) == ["cls 2", "cls 3", "cgp 2", "cgp 3"]
    assert np.mean(list(shares.values())) == pytest.approx(1, abs=0.01) and len(set(shares.values())) == 4
    assert "layer_weights" not in trained.checkpoint.metrics
    np.testing.assert_array_equal(weighed.validation.probe, trained.validation.probe)
    with pytest.raises(CoritError, match="at least 3 sources besides"):
        train(load_samples(dataset), extractor(), replace(QUICK, layer_weights="gsnr"), Recipe())


@pytest.mark.parametrize("inject_at", [(), (1,)])
def test_the_probe_reads_the_last_layer(inject_at: tuple[int, ...], dataset: Path) -> None:
    from corit_cli.model.settings import baseline

    samples = load_samples(dataset)
    ours = train(samples, extractor(replace(SETTINGS, inject_at=inject_at)), QUICK, Recipe()).validation
    alone = train(samples, extractor(baseline(4)), QUICK, Recipe(), probe=False).validation
    np.testing.assert_allclose(ours.probe, alone.logits, atol=1e-4)
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
    result = train(samples, extractor(), QUICK, Recipe(forge=()))
    assert [s.path for s, _ in result.errors] == [samples[0].path]


def test_held_out_logits_come_from_heads_that_never_saw_them(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe(degrade=("jpeg",), copies=1))
    torch.manual_seed(0)
    z = torch.randn(len(rows), 64)
    data = TrainingSet.of(samples, rows, z)
    fold = [i for i, s in enumerate(samples) if s.source == "source0"]
    before = data.cross_fit([fold], QUICK)
    assert set(before) == set(fold)
    # Whatever the held-out rows' labels are, degraded copies included, the held-out logits do not change.
    for k, row in enumerate(rows):
        if row.sample in fold:
            data.labels[k] = 1 - data.labels[k]
    assert data.cross_fit([fold], QUICK) == before


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


def test_with_matched_codecs_heads_see_re_encoded_images_and_are_scored_on_files_as_they_are(dataset: Path) -> None:
    samples = load_samples(dataset)
    rows = plan(samples, range(len(samples)), Recipe(match_codec=(40, 50)))
    z, _ = extract(extractor(), [row.job for row in rows])
    data = TrainingSet.of(samples, rows, z)
    fold = [i for i, s in enumerate(samples) if s.source == "source1"]
    found = data.cross_fit([fold], QUICK)
    encoded = torch.tensor([row.trained and row.sample not in fold for row in rows])
    alone = TrainingSet.of(samples, [r for r, k in zip(rows, encoded, strict=True) if k], z[encoded]).fit(QUICK)
    with torch.inference_mode():
        expected = alone(extract(extractor(), [Job(samples[i].path) for i in fold])[0])
    assert list(found) == fold
    np.testing.assert_allclose(list(found.values()), expected.numpy(), atol=1e-5)


def test_forgeries_that_cannot_be_made_stop_the_run(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CoritError, match="no TAESD"):
        train(load_samples(dataset), extractor(), QUICK, Recipe(forge=(f"reconstruct:{tmp_path / 'empty'}",)))


def test_a_validation_part_without_one_class_is_said(dataset: Path) -> None:
    samples = [replace(s, split="val" if s.source == "source0" else "train") for s in load_samples(dataset)]
    for sample in samples:
        if sample.split == "val" and sample.label:
            sample.path.write_bytes(b"spoilt")
    with pytest.raises(CoritError, match="one class is empty"):
        train(samples, extractor(), QUICK, Recipe(), probe=False)


def test_reconstructions_join_the_training_set(dataset: Path, tmp_path: Path) -> None:
    from tests.data.test_forge import autoencoder_files

    result = train(
        load_samples(dataset), extractor(), QUICK, Recipe(forge=(f"reconstruct:{autoencoder_files(tmp_path)}",))
    )
    assert not result.errors
    assert result.checkpoint.training["recipe"]["forge"]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_not_enough(label: int, dataset: Path) -> None:
    samples = [s for s in load_samples(dataset) if s.label == label]
    with pytest.raises(CoritError, match="both real and fake"):
        train(samples, extractor(), QUICK, Recipe())


def test_a_cached_run_is_the_same_run(dataset: Path, tmp_path: Path, trained: Trained) -> None:
    for _ in range(2):
        cache = FeatureCache(tmp_path / "cache.sqlite")
        again = train(load_samples(dataset), extractor(), QUICK, Recipe(), cache)
        cache.close()
        assert again.checkpoint.sha256 == trained.checkpoint.sha256


class TestDetector:
    @pytest.fixture
    def folder(self, dataset: Path, tmp_path: Path) -> Path:
        """A checkpoint whose backbone is a local file."""
        save_file(random_tower().state_dict(), tmp_path / "tower.safetensors")
        (tmp_path / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
        backbone = load_backbone(str(tmp_path / "tower.safetensors"))
        result = train(
            load_samples(dataset), Extractor(backbone, SETTINGS, CropConfig("both", 32)), QUICK, Recipe(), probe=False
        )
        result.checkpoint.save(tmp_path / "detector")
        self.validation = result.validation
        return tmp_path / "detector"

    def test_it_says_what_training_said(self, folder: Path) -> None:
        detector = Detector.load(folder)
        paths = [s.path for s in self.validation.samples]
        found = list(detector.predict(paths))
        assert [p.path for p in found] == [str(p) for p in paths]
        np.testing.assert_allclose([p.probability for p in found], self.validation.probabilities, atol=1e-4)
        thresholds = detector.checkpoint.thresholds
        assert all(p.verdict == thresholds.verdict(p.probability) for p in found)

    def test_a_bad_file_is_a_row(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_text("text")
        good = self.validation.samples[0].path
        bad, fine = Detector.load(folder).predict([tmp_path / "bad.jpg", good])
        assert bad.error and bad.probability is None and bad.verdict is None
        assert fine.error is None and fine.verdict

    def test_another_backbone_is_refused(self, folder: Path) -> None:
        save_file(random_tower(seed=1).state_dict(), folder.parent / "tower.safetensors")
        with pytest.raises(CoritError, match="other weights"):
            Detector.load(folder)

    def test_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert predict.pick_device("auto") == "cpu"
        with pytest.raises(CoritError, match="CUDA"):
            predict.pick_device("cuda")
        with pytest.raises(CoritError, match="unknown device"):
            predict.pick_device("tpu")
