from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from corit_cli import metrics
from corit_cli.data.images import read_image
from corit_cli.data.manifest import load_samples
from corit_cli.data.robustness import CHAINS
from corit_cli.data.settings import CropConfig
from corit_cli.data.variants import Variant
from corit_cli.detection.detector import Detector
from corit_cli.errors import CoritError
from corit_cli.evaluation.evaluate import evaluate, score
from corit_cli.evaluation.protocols import run
from corit_cli.evaluation.summary import Evaluation, summarise
from corit_cli.features.cache import FeatureCache
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import Backbone, load_backbone
from corit_cli.model.settings import CoRITSettings
from corit_cli.training.run import Run, train_head
from corit_cli.training.settings import TrainSettings
from tests.conftest import Told, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2,), inject_at=(), integrate=(2, 3))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """In a file, so that a checkpoint on disk can name it."""
    folder = tmp_path_factory.mktemp("tower")
    save_file(random_tower().state_dict(), folder / "tower.safetensors")
    (folder / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    return load_backbone(str(folder / "tower.safetensors"))


@pytest.fixture
def detector(dataset: Path, backbone: Backbone) -> Detector:
    extractor = Extractor(backbone, SETTINGS, CropConfig("both", 32))
    trained = train_head(Run(load_samples(dataset), extractor, TrainSettings(epochs=5, folds=3), probe=False))
    return Detector(trained.checkpoint, extractor)


@pytest.fixture
def folder(detector: Detector, tmp_path: Path) -> Path:
    detector.checkpoint.save(tmp_path / "detector")
    return tmp_path / "detector"


def test_scores_are_those_of_detect(detector: Detector, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = load_samples(dataset)
    found = score(detector, samples)
    said = list(detector.predict(s.path for s in samples))
    np.testing.assert_allclose(found.probabilities[0], [p.probability for p in said], atol=2e-6)
    assert found.verdicts[0].tolist() == [p.verdict for p in said]
    monkeypatch.setattr("corit_cli.evaluation.evaluate.BLOCK", 7)
    np.testing.assert_allclose(score(detector, samples).logits, found.logits, atol=1e-5)


def test_a_chain_scores_the_degraded_file(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    samples = load_samples(dataset)[:6]
    names = ("jpeg-50", "resize-0.75")
    found = score(detector, samples, names)
    assert found.logits.shape == (3, 6)
    for row, name in zip(found.probabilities[1:], names, strict=True):
        files = []
        for i, s in enumerate(samples):
            files.append(tmp_path / f"{name}-{i}.png")
            Variant(chain=CHAINS[name]).apply(read_image(s.path)).save(files[-1])
        np.testing.assert_allclose(row, [p.probability for p in detector.predict(files)], atol=2e-6)


def test_bad_files_are_left_out_with_their_reason(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    samples = load_samples(dataset)[:6]
    samples[2].path.write_text("not a picture")
    cache = FeatureCache(tmp_path / "cache.sqlite")
    found = score(detector, samples, ("jpeg-50",), cache)
    cache.close()
    assert [(s, m) for s, m in found.errors] == [(samples[2], "not an image that can be read")]
    assert found.samples == samples[:2] + samples[3:] and not np.isnan(found.logits).any()
    with pytest.raises(CoritError, match="none of the 1 images can be read"):
        score(detector, samples[2:3])


def test_a_chain_that_an_image_cannot_take_is_nan(
    detector: Detector, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHAINS, "huge", ("resize:10",))
    monkeypatch.setattr("corit_cli.data.degrade.MAX_PIXELS", 64 * 48)
    found = score(detector, load_samples(dataset)[:3], ("huge",))
    assert np.isnan(found.logits[1]).all() and not np.isnan(found.logits[0]).any() and not found.errors
    assert found.verdicts[1].tolist() == [""] * 3


# --- the whole ------------------------------------------------------------------------------------


def as_json(found: Evaluation) -> str:
    return json.dumps(metrics.plain(found.as_dict()), allow_nan=False)


def test_it_is_scoring_and_summing_up(dataset: Path, folder: Path, detector: Detector) -> None:
    samples, told = load_samples(dataset), Told()
    found = evaluate(dataset, folder, robustness="jpeg-50,resize-0.5", device="cpu", precision="fp32", progress=told)
    scored = score(detector, samples, ("jpeg-50", "resize-0.5"))
    assert as_json(found) == as_json(summarise(detector.checkpoint, scored))
    np.testing.assert_array_equal(found.scored.probabilities, scored.probabilities)
    assert found.scored.samples == samples and found.robustness.images == 48
    assert told.complete and [title for title, *_ in told.stages] == ["scoring", "intervals"]
    assert told.stages[0][1] == 3 * 48
    # What is loaded already is taken as it is, folder or samples, checkpoint or detector.
    one, two = (
        evaluate(str(dataset), detector, by=("source",)),
        evaluate(samples, str(folder), by=("source",), precision="fp32"),
    )
    assert as_json(one) == as_json(two) and [table.by for table in one.tables] == ["source"]


def test_a_split_is_all_that_is_looked_at(dataset: Path, detector: Detector) -> None:
    samples = [replace(s, split="val" if i % 3 else "train") for i, s in enumerate(load_samples(dataset))]
    found = evaluate(samples, detector, split="val")
    chosen = [s for s in samples if s.split == "val"]
    assert found.scored.samples == chosen and as_json(found) == as_json(evaluate(chosen, detector))
    with pytest.raises(CoritError, match=r"no image of the split 'test' \(there: train, val\)"):
        evaluate(samples, detector, split="test")
    with pytest.raises(CoritError, match=r"there: none"):
        evaluate(dataset, detector, split="val")


def test_peers_and_protocols_are_measured(dataset: Path, detector: Detector, tmp_path: Path) -> None:
    rows = [(str(s.path), s.label) for s in load_samples(dataset)]
    for name in ("seer", "other"):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "score"), *rows])
    samples = [replace(s, source="ab"[i // 24]) for i, s in enumerate(load_samples(dataset))]
    told = Told()
    scores = [tmp_path / "seer.csv", str(tmp_path / "other.csv")]
    found = evaluate(
        samples, detector, protocols=["leave-source-out", "leave-source-out"], scores=scores, progress=told
    )
    assert [peer.name for peer in found.peers] == ["seer", "other"] and found.peers[0].theirs["auc"].value == 1
    assert repr(found.protocols) == repr(run(detector, samples, ["leave-source-out"]))  # NaN is not itself
    assert told.complete and "leave-source-out" in [title for title, *_ in told.stages]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "seer.csv").write_text("path,score\n")
    with pytest.raises(CoritError, match="same name"):
        evaluate(samples, detector, scores=[*scores, tmp_path / "again" / "seer.csv"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": ("day",)}, "by source and generator, not by 'day'"),
        ({"by": ("source", "split")}, "not by 'split'"),
        ({"split": "holdout"}, "no image of the split 'holdout'"),
        ({"robustness": "sepia"}, "sepia"),
        ({"protocols": ("leave-one-out",)}, "unknown protocol"),
        ({"scores": ("nowhere.csv",)}, "does not exist"),
        ({"detector": "nowhere"}, "no checkpoint"),
    ],
)
def test_mistakes_show_before_an_image_is_read(
    dataset: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch, options: dict, words: str
) -> None:
    monkeypatch.setattr("corit_cli.evaluation.evaluate.extract", lambda *arguments: pytest.fail("an image was read"))
    with pytest.raises(CoritError, match=words):
        evaluate(dataset, options.pop("detector", detector), **options)
    with pytest.raises(CoritError, match="does not exist"):
        evaluate("no/such/folder", detector)
