"""``train`` as a whole: images in, a folder with a detector out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.detection import detector as predict
from corit_cli.detection.detector import Detector
from corit_cli.detection.scores import Scored
from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import load_backbone
from corit_cli.training import tower
from corit_cli.training.resume import State
from corit_cli.training.run import Run, Trained, train_head
from corit_cli.training.settings import Recipe, TrainSettings, TuneSettings
from corit_cli.training.train import STATE, train
from tests.conftest import random_tower
from tests.training.test_run import QUICK, SETTINGS

TUNING = TuneSettings("last:1", lr=1e-3, epochs=2, batch_size=8, precision="fp32")
FULL = TuneSettings(precision="fp32")
SHORT = TrainSettings(epochs=3, batch_size=12, folds=3)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A tiny backbone in a file."""
    save_file(random_tower().state_dict(), tmp_path / "tower.safetensors")
    (tmp_path / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    return str(tmp_path / "tower.safetensors")


def made(data: Path | list[Sample], settings: TrainSettings, clip: str, **options: object) -> Trained:
    return train(data, settings, **{"backbone": clip, "reads": SETTINGS, "device": "cpu", "tuning": FULL} | options)


@pytest.fixture
def trained(dataset: Path, clip: str, tmp_path: Path) -> Trained:
    return made(dataset, QUICK, clip, out=tmp_path / "detector")


def test_it_is_the_training_of_a_head_and_a_folder(trained: Trained, dataset: Path, clip: str, tmp_path: Path) -> None:
    extractor = Extractor(load_backbone(clip), SETTINGS, CropConfig("both", 32))
    alone = train_head(Run(load_samples(dataset), extractor, QUICK))
    assert sorted(os.listdir(tmp_path / "detector")) == ["config.json", "log.csv", "model.safetensors"]
    assert trained.checkpoint.sha256 == alone.checkpoint.sha256
    assert trained.checkpoint.thresholds == alone.checkpoint.thresholds
    np.testing.assert_array_equal(trained.validation.logits, alone.validation.logits)
    np.testing.assert_array_equal(trained.validation.probabilities, alone.validation.probabilities)
    np.testing.assert_array_equal(trained.probe, alone.probe)
    assert [s.path for s in trained.validation.samples] == [s.path for s in alone.validation.samples]


def test_samples_serve_as_data_and_without_out_nothing_is_written(
    trained: Trained, dataset: Path, clip: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    again = made(load_samples(dataset), QUICK, clip)
    assert again.checkpoint.sha256 == trained.checkpoint.sha256
    assert sorted(tmp_path.rglob("*")) == before


def test_the_seed_of_the_settings_draws_everything(dataset: Path, clip: str) -> None:
    recipe = Recipe(degrade=("jpeg:30-90",))
    found = made(dataset, TrainSettings(epochs=1, folds=3, seed=7), clip, recipe=recipe, probe=False)
    assert found.checkpoint.training["recipe"]["seed"] == found.checkpoint.training["settings"]["seed"] == 7


def test_the_callers_random_numbers_go_on(dataset: Path, clip: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    made(dataset, QUICK, clip)
    assert torch.equal(torch.rand(2), expected)


def test_a_failed_save_leaves_no_folder(trained: Trained, tmp_path: Path) -> None:
    broken = replace(trained.checkpoint, metrics={"a": object()})
    with pytest.raises(TypeError, match="not JSON serializable"):
        broken.save(tmp_path / "det")
    assert not (tmp_path / "det").exists()


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0, float("nan")])
def test_a_share_for_validation_that_is_none_is_named(dataset: Path, clip: str, share: float) -> None:
    with pytest.raises(CoritError, match="val_fraction must lie between 0 and 1"):
        made(dataset, QUICK, clip, val_fraction=share)


def test_a_folder_that_is_there_is_written_over_only_when_asked(
    trained: Trained, dataset: Path, clip: str, tmp_path: Path
) -> None:
    folder = tmp_path / "detector"
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CoritError, match="already exists"):
        made(tmp_path / "nowhere", SHORT, clip, out=folder)  # said before any image is looked for
    assert (folder / "model.safetensors").read_bytes() == before
    made(dataset, SHORT, clip, out=folder, overwrite=True, probe=False)
    assert (folder / "model.safetensors").read_bytes() != before


def test_images_are_read_in_the_precision_asked_for(dataset: Path, clip: str, tmp_path: Path) -> None:
    found = [made(dataset, SHORT, clip, tuning=TuneSettings(precision=p), probe=False) for p in ("fp32", "bf16")]
    assert [one.checkpoint.training["precision"] for one in found] == ["fp32", "bf16"]
    full, low = (one.validation.probabilities for one in found)
    assert not np.array_equal(full, low)
    np.testing.assert_allclose(full, low, atol=0.05)


# --- tuning -----------------------------------------------------------------------------------------------------------


def test_a_tuned_detector_is_saved_and_leaves_no_state(dataset: Path, clip: str, tmp_path: Path) -> None:
    found = made(dataset, SHORT, clip, out=str(tmp_path / "tuned"), tuning=TUNING, probe=False)
    assert sorted(os.listdir(tmp_path / "tuned")) == ["config.json", "log.csv", "model.safetensors"]
    assert found.checkpoint.training["tune"]["scope"] == "last:1"
    assert all(name.startswith("blocks.2.") for name in found.checkpoint.tuned) and found.checkpoint.tuned
    assert_said_again(tmp_path / "tuned", found.validation)


@pytest.mark.parametrize(("after", "warned"), [(0.5, False), (0.9, True), (1.1, True)])
def test_tuning_that_gains_nothing_is_told(
    dataset: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: float, warned: bool
) -> None:
    losses, told = iter([0.9, after, after, after]), []
    monkeypatch.setattr(tower, "held_out_loss", lambda *_: next(losses))
    made(dataset, SHORT, clip, out=tmp_path / "tuned", tuning=replace(TUNING, epochs=1), probe=False, warn=told.append)
    assert any("gained nothing" in said and "0.9000 before" in said for said in told) == warned


def test_an_interrupted_run_goes_on_and_begins_anew_only_when_told(
    dataset: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"tuning": TUNING, "probe": False}
    whole = made(dataset, SHORT, clip, out=tmp_path / "whole", **options)
    save, folder = State.save, tmp_path / "cut"

    def interrupt(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(State, "save", interrupt)
        made(dataset, SHORT, clip, out=folder, **options)
    assert os.listdir(folder) == [STATE]
    with pytest.raises(CoritError, match="interrupted run"):
        made(dataset, SHORT, clip, out=folder, **options)
    resumed = made(dataset, SHORT, clip, out=folder, resume=True, **options)
    assert resumed.checkpoint.sha256 == whole.checkpoint.sha256
    assert sorted(os.listdir(folder)) == ["config.json", "log.csv", "model.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": TUNING}, "give a folder"),
        ({"tuning": TuneSettings("most")}, "--tune takes"),
        ({"tuning": TUNING, "out": "new", "resume": True}, "no interrupted run"),
        ({"tuning": TUNING, "out": "new", "resume": True, "overwrite": True}, "one of them"),
        ({"local": ("self_blend", "resample")}, "region"),
        ({"local": ("0.5*self_blend",)}, "every photograph"),
        ({"local": ("resample@native",)}, "region"),
        ({"local": ("painting",)}, "painting"),
    ],
)
def test_mistakes_are_said_before_anything_is_read(options: dict, message: str, tmp_path: Path) -> None:
    options = {name: tmp_path / value if name == "out" else value for name, value in options.items()}
    with pytest.raises(CoritError, match=message):
        made(tmp_path / "no images", SHORT, str(tmp_path / "no.safetensors"), **options)
    assert not list(tmp_path.iterdir())


# --- heatmaps ---------------------------------------------------------------------------------------------------------


def test_local_forgeries_teach_a_localizer_that_is_saved(dataset: Path, clip: str, tmp_path: Path) -> None:
    said: list[str] = []
    options = {"local": ("self_blend", "resample@part"), "probe": False, "warn": said.append}
    found = made(dataset, SHORT, clip, out=tmp_path / "detector", **options)
    loaded = Detector.load(tmp_path / "detector").checkpoint
    assert loaded.localizer.forges == ("self_blend", "resample@part")
    assert loaded.localizer.settings == replace(SETTINGS, integrate=())
    assert loaded.metrics["localizer"] == found.checkpoint.metrics["localizer"] and not said
    assert torch.equal(loaded.localizer.head.layers[0].weight, found.checkpoint.localizer.head.layers[0].weight)


def test_a_detector_that_cannot_be_taught_places_is_none_the_worse(dataset: Path, clip: str, tmp_path: Path) -> None:
    """It reads no contrast, and the tower is too shallow for those that heatmaps would read."""
    said: list[str] = []
    options = {"reads": SETTINGS.plain(), "probe": False, "warn": said.append}
    found = made(dataset, SHORT, clip, out=tmp_path / "detector", local=("self_blend",), **options)
    assert len(said) == 1 and "no heatmaps" in said[0]
    assert found.checkpoint.localizer is None and Detector.load(tmp_path / "detector").checkpoint.localizer is None


# --- the detector that was made ---------------------------------------------------------------------------------------


def assert_said_again(folder: Path, validation: Scored) -> None:
    """Whether the detector in ``folder`` says of the validation images what training said."""
    detector = Detector.load(folder, "cpu", "fp32")
    paths = [s.path for s in validation.samples]
    found = list(detector.predict(paths))
    assert [p.path for p in found] == [str(p) for p in paths]
    np.testing.assert_allclose([p.probability for p in found], validation.probabilities[0], atol=1e-4)
    thresholds = detector.checkpoint.thresholds
    assert all(p.verdict == thresholds.verdict(p.probability) for p in found)


def test_the_detector_says_what_training_said(trained: Trained, tmp_path: Path) -> None:
    assert_said_again(tmp_path / "detector", trained.validation)


def test_a_bad_file_is_a_row(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("text")
    good = trained.validation.samples[0].path
    bad, fine = Detector.load(tmp_path / "detector").predict([tmp_path / "bad.jpg", good])
    assert bad.error and bad.probability is None and bad.verdict is None
    assert fine.error is None and fine.verdict


def test_another_backbone_is_refused(trained: Trained, clip: str, tmp_path: Path) -> None:
    save_file(random_tower(seed=1).state_dict(), clip)
    with pytest.raises(CoritError, match="other weights"):
        Detector.load(tmp_path / "detector")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert predict.pick_device("auto") == "cpu"
    with pytest.raises(CoritError, match="CUDA"):
        predict.pick_device("cuda")
    with pytest.raises(CoritError, match="unknown device"):
        predict.pick_device("tpu")
