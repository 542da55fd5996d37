from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from corit_cli.data.settings import CropConfig
from corit_cli.detection.calibration import Calibration, Thresholds
from corit_cli.detection.checkpoint import Checkpoint, Localizer
from corit_cli.errors import CoritError
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings, HeadKind

PLACES = CoRITSettings(("blur:2.0",), cgp=(1, 2), integrate=())


def checkpoint(hidden: int = 3) -> Checkpoint:
    torch.manual_seed(0)
    heads = {"hri": Head(8, HeadKind(hidden)), "cgp": Head(4, HeadKind(landmarks=0 if hidden else 6))}
    for head, width in zip(heads.values(), (8, 4), strict=True):
        head.fit_standardiser(torch.randn(20, width))
        head.choose_landmarks(torch.randn(20, width))
    head = FusedHead(heads)
    head.bias[:] = torch.rand(4)
    return Checkpoint(
        head,
        {"name": "tiny", "sha256": "abc", "activation": "gelu"},
        CoRITSettings(("jpeg:80",), cgp=(2,), inject_at=(1,), integrate=(2, 3)),
        CropConfig("native", 32, 3),
        Calibration(1.5, -0.25),
        Thresholds(0.2, 0.8),
        training={"seed": 1},
    )


@pytest.mark.parametrize("hidden", [0, 3])
def test_what_is_saved_is_loaded(hidden: int, tmp_path: Path) -> None:
    saved = checkpoint(hidden)
    saved.save(tmp_path / "det")
    loaded = Checkpoint.load(tmp_path / "det")
    z = torch.randn(5, 12)
    assert torch.equal(loaded.head(z), saved.head(z))
    for name in ("backbone", "settings", "crops", "calibration", "thresholds", "training", "sha256"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert sorted(os.listdir(tmp_path / "det")) == ["config.json", "model.safetensors"]


def test_what_tells_degraded_pictures_is_saved_with_the_head(tmp_path: Path) -> None:
    plain, saved = checkpoint(), checkpoint()
    degradation = Head(8)
    degradation.fit_standardiser(torch.randn(20, 8))
    saved.head = FusedHead(dict(plain.head.heads), degradation)
    saved.head.degraded_bias[:] = torch.rand(4)
    assert saved.sha256 != plain.sha256
    saved.save(tmp_path / "det")
    loaded = Checkpoint.load(tmp_path / "det")
    z = torch.randn(5, 12)
    assert torch.equal(loaded.head(z), saved.head(z)) and not torch.equal(loaded.head(z), plain.head(z))
    for wrong, message in (({}, "KeyError"), ({"features": 13, "hidden": 0, "landmarks": 0}, "more than there is")):
        damaged = json.loads((tmp_path / "det" / "config.json").read_text()) | {"degradation": wrong}
        (tmp_path / "det" / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(CoritError, match=message):
            Checkpoint.load(tmp_path / "det")
    saved.head = FusedHead(dict(plain.head.heads), Head(13))
    with pytest.raises(CoritError, match=r"not saved, .*more than there is"):
        saved.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    # One from before there was any has none.
    plain.save(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    del config["degradation"], config["settings"]["spread"]
    config["format"] = 2
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    before = Checkpoint.load(tmp_path / "plain")
    assert before.head.degradation is None and before.settings == plain.settings


def test_one_from_before_faces_were_joined_judges_them_by_their_own_reading(tmp_path: Path) -> None:
    saved = checkpoint()
    saved.head = FusedHead({"hri": Head(3), "cgp": Head(4), "face": Head(5)})
    saved.face_readings = ("cgp", "face")
    saved.save(tmp_path / "det")
    file = tmp_path / "det" / "config.json"
    config = json.loads(file.read_text())
    now = Checkpoint.load(tmp_path / "det")
    assert now.face_readings == ("cgp", "face")
    del config["face_readings"]
    for old in (2, 3):
        file.write_text(json.dumps(config | {"format": old}))
        before = Checkpoint.load(tmp_path / "det")
        assert before.face_readings == ("face",) and before.sha256 != now.sha256
    for wrong in (["cgp"], ["native", "face"], 5):
        file.write_text(json.dumps(config | {"face_readings": wrong}))
        with pytest.raises(CoritError, match="damaged"):
            Checkpoint.load(tmp_path / "det")


@pytest.mark.parametrize(
    ("part", "name", "value"), [("calibration", "bias", -6.0), ("settings", "spread", [1]), ("crops", "crops", 2)]
)
def test_the_fingerprint_is_of_all_that_a_probability_depends_on(
    tmp_path: Path, part: str, name: str, value: object
) -> None:
    checkpoint().save(tmp_path / "det")
    file, before = tmp_path / "det" / "config.json", Checkpoint.load(tmp_path / "det").sha256
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"metrics": {"held_out_sources": {}}, "training": {"seed": 9}}))
    assert Checkpoint.load(tmp_path / "det").sha256 == before
    config[part][name] = value
    file.write_text(json.dumps(config))
    assert Checkpoint.load(tmp_path / "det").sha256 != before


TUNED = {"blocks.1.fc.weight": torch.arange(6.0).view(2, 3), "class_embedding": torch.ones(4)}


def test_tuned_weights_stand_beside_the_head(tmp_path: Path) -> None:
    plain, saved = checkpoint(), checkpoint()
    saved.tuned = dict(TUNED)
    assert saved.sha256 != plain.sha256 and plain.tuned == {}
    saved.save(tmp_path / "det")
    loaded = Checkpoint.load(tmp_path / "det")
    assert set(loaded.tuned) == set(TUNED) and all(torch.equal(loaded.tuned[n], t) for n, t in TUNED.items())
    assert loaded.sha256 == saved.sha256
    z = torch.randn(5, 12)
    assert torch.equal(loaded.head(z), saved.head(z))


def test_a_checkpoint_from_before_there_was_tuning(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    config = json.loads((tmp_path / "det" / "config.json").read_text())
    del config["tuned"]
    (tmp_path / "det" / "config.json").write_text(json.dumps(config))
    assert Checkpoint.load(tmp_path / "det").tuned == {}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("tower.class_embedding", None, "tuned weights are not those"),
        ("tower.ln_pre.weight", torch.ones(4), "tuned weights are not those"),
        ("tower.class_embedding", torch.tensor([1.0, float("nan")]), "not finite"),
        ("head.weight", torch.ones(4), "does not fit"),
    ],
)
def test_damaged_tuned_weights_are_refused(
    name: str, tensor: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    saved = checkpoint()
    saved.tuned = dict(TUNED)
    saved.save(tmp_path / "det")
    tensors = load_file(tmp_path / "det" / "model.safetensors") | {name: tensor}
    save_file({n: t for n, t in tensors.items() if t is not None}, tmp_path / "det" / "model.safetensors")
    with pytest.raises(CoritError, match=message):
        Checkpoint.load(tmp_path / "det")


def test_a_localizer_stands_beside_the_head(tmp_path: Path) -> None:
    plain, saved = checkpoint(), checkpoint()
    saved.localizer = Localizer(Head(8).eval(), PLACES, CropConfig("native", 32), 0.5, 1.25, ("self_blend",))
    assert saved.sha256 != plain.sha256
    saved.save(tmp_path / "det")
    loaded = Checkpoint.load(tmp_path / "det")
    z, patches = torch.randn(5, 12), torch.randn(2, 9, 8)
    assert torch.equal(loaded.head(z), saved.head(z)) and loaded.sha256 == saved.sha256
    assert torch.equal(loaded.localizer.head(patches), saved.localizer.head(patches))
    for name in ("settings", "crops", "common", "rare", "forges"):
        assert getattr(loaded.localizer, name) == getattr(saved.localizer, name)
    plain.save(tmp_path / "plain")
    assert Checkpoint.load(tmp_path / "plain").localizer is None


@pytest.mark.parametrize("change", [{"localizer.mean": None}, {"localizer.more": torch.ones(2)}], ids=["less", "more"])
def test_a_damaged_localizer_is_refused(change: dict[str, torch.Tensor | None], tmp_path: Path) -> None:
    saved = checkpoint()
    saved.localizer = Localizer(Head(8), PLACES, CropConfig("native", 32), 0.0, 1.0)
    saved.save(tmp_path / "det")
    tensors = load_file(tmp_path / "det" / "model.safetensors") | change
    save_file({n: t for n, t in tensors.items() if t is not None}, tmp_path / "det" / "model.safetensors")
    with pytest.raises(CoritError, match="does not fit"):
        Checkpoint.load(tmp_path / "det")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": None}, "does not say what it reads"),
        ({"settings": {"cgp": [], "integrate": [2]}}, "reads nothing"),
        ({"crops": {"mode": "sideways"}}, "crop must be both, native or resize, not 'sideways'"),
        ({"common": None}, "KeyError"),
        ({"common": float("nan")}, "localizer.common cannot be nan"),
        ({"rare": float("inf")}, "localizer.rare cannot be inf"),
        ({"rare": "high"}, "localizer.rare cannot be 'high'"),
        ({"rare": 0.0}, "localizer.common, 0.0, is not below localizer.rare, 0.0"),
        ({"features": 10**9}, "more weights than there are"),
        ({"crops": {"mode": "native", "crops": 10**8}}, "crops must be at most 1000"),
    ],
)
def test_a_localizer_that_makes_no_sense_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    saved = checkpoint()
    saved.localizer = Localizer(Head(8), PLACES, CropConfig("native", 32), 0.0, 1.0)
    saved.save(tmp_path / "det")
    config = json.loads((tmp_path / "det" / "config.json").read_text())
    places = {k: v for k, v in (config["localizer"] | change).items() if v is not None}
    (tmp_path / "det" / "config.json").write_text(json.dumps(config | {"localizer": places}))
    with pytest.raises(CoritError, match=message):
        Checkpoint.load(tmp_path / "det")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    with pytest.raises(CoritError, match="--overwrite"):
        checkpoint().save(tmp_path / "det")
    checkpoint().save(tmp_path / "det", overwrite=True)


def other_checkpoint() -> Checkpoint:
    """One that fits the same config.json, so that a mixture of the two would load."""
    other = checkpoint()
    torch.nn.init.normal_(other.head.heads.hri.layers[0].weight)
    other.thresholds = Thresholds(0.3, 0.7)
    return other


def test_overwriting_replaces_both_files_and_keeps_the_others(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    (tmp_path / "det" / "notes.txt").write_text("mine")
    other_checkpoint().save(tmp_path / "det", overwrite=True)
    loaded = Checkpoint.load(tmp_path / "det")
    assert (loaded.sha256, loaded.thresholds) == (other_checkpoint().sha256, Thresholds(0.3, 0.7))
    assert sorted(os.listdir(tmp_path / "det")) == ["config.json", "model.safetensors", "notes.txt"]


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("step", range(4))  # two old files go, two new ones come
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_overwriting_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool, failure: BaseException
) -> None:
    checkpoint().save(tmp_path / "det")
    (tmp_path / "det" / "notes.txt").write_text("mine")
    done = []

    def replace(source: Path, target: Path) -> None:
        done.append(target)
        here = len(done) == step + 1
        if here and not after:
            raise failure
        os.replace(source, target)
        if here:
            raise failure

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(CoritError if isinstance(failure, OSError) else KeyboardInterrupt):
        other_checkpoint().save(tmp_path / "det", overwrite=True)
    loaded = Checkpoint.load(tmp_path / "det")
    assert (loaded.sha256, loaded.thresholds) == (checkpoint().sha256, Thresholds(0.2, 0.8))
    assert sorted(os.listdir(tmp_path / "det")) == ["config.json", "model.safetensors", "notes.txt"]


def test_a_process_killed_while_overwriting_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every step of a swap, and at its end, the folder holds the old pair, the new pair, or none that loads."""
    moments: list[Path] = []

    def look() -> None:
        moments.append(tmp_path / str(len(moments)))
        shutil.copytree(tmp_path / "det", moments[-1])

    def replace(source: Path, target: Path) -> None:
        look()
        os.replace(source, target)

    checkpoint().save(tmp_path / "det")
    monkeypatch.setattr(Path, "replace", replace)
    other_checkpoint().save(tmp_path / "det", overwrite=True)
    look()
    assert len(moments) == 5
    for folder, expected in ((moments[0], checkpoint()), (moments[4], other_checkpoint())):
        loaded = Checkpoint.load(folder)
        assert (loaded.sha256, loaded.thresholds) == (expected.sha256, expected.thresholds)
    for folder in moments[1:4]:
        with pytest.raises(CoritError, match=r"has no config\.json"):
            Checkpoint.load(folder)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "does not fit"),
        (lambda f: edit(f, format=99), "format 99"),
        (lambda f: edit(f, head={"hri": {"features": 13, "hidden": 3, "landmarks": 0}}), "does not fit"),
        (lambda f: edit(f, head={"hri": {"features": 12, "hidden": 0, "landmarks": 0}}), "does not fit"),
        (lambda f: edit(f, settings={"colour": "blue"}), "damaged"),
        (lambda f: edit(f, crops={"mode": "squash"}), "squash"),
    ],
)
def test_what_is_wrong_is_said(spoil, message: str, tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    spoil(tmp_path / "det")
    with pytest.raises(CoritError, match=message):
        Checkpoint.load(tmp_path / "det")


@pytest.mark.parametrize(
    "wrong",
    [
        {"backbone": "x"},
        {"backbone": {"name": "tiny"}},
        {"backbone": {"name": "tiny", "sha256": 7}},
        {"head": None},
        {"head": {}},
        {"head": {"features": "twelve", "hidden": 3}},
        {"head": {"hri": {"features": "twelve", "hidden": 3, "landmarks": 0}}},
        {"settings": {"cgp": [], "integrate": []}},
        {"settings": {"cgp": [2], "views": []}},
        {"crops": {"mode": "native", "size": 0}},
        {"calibration": {"slope": float("nan"), "bias": 0.0}},
        {"calibration": {"slope": "steep", "bias": 0.0}},
        {"calibration": {"slope": float("inf"), "bias": 0.0}},
        {"thresholds": {"real": 0.8, "fake": 0.2}},
        {"thresholds": {"real": 0.2, "fake": float("nan")}},
        {"thresholds": {"real": float("nan"), "fake": float("nan")}},
        {"thresholds": {"real": 0.2, "fake": 1.5}},
        {"thresholds": {"real": -0.5, "fake": 0.5}},
        {"thresholds": {"real": "low", "fake": 0.5}},
        {"thresholds": {"real": 0.2}},
        {"thresholds": [0.2, 0.8]},
        {"training": [1]},
        {"data": "photos"},
        {"metrics": None},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_damaged(wrong: dict, tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    edit(tmp_path / "det", **wrong)
    with pytest.raises(CoritError, match=r"config\.json is damaged") as error:
        Checkpoint.load(tmp_path / "det")
    assert "\n" not in str(error.value)


RATES = {"real": 30, "fake": 40, "images": 70, "real_called_fake": 0.05, "fake_called_fake": 1}


@pytest.mark.parametrize(
    ("part", "told", "message"),
    [
        ("metrics", {"held_out_sources": RATES | {"real": "x"}}, "metrics.held_out_sources.real cannot be 'x'"),
        ("metrics", {"held_out_faces": RATES | {"real_called_fake": float("nan")}}, "real_called_fake cannot be nan"),
        ("metrics", {"held_out_degraded": RATES | {"fake_called_fake": 1e999}}, "fake_called_fake cannot be inf"),
        ("metrics", {"held_out_strict": RATES | {"fake": 10**400}}, "fake cannot be 1000"),
        ("metrics", {"held_out_sources": RATES | {"real": 1e-300}}, "real cannot be 1e-300"),
        ("metrics", {"held_out_sources": RATES | {"fake": 12.5}}, "fake cannot be 12.5"),
        ("metrics", {"held_out_sources": RATES | {"independent_fake": 1e-300}}, "independent_fake cannot be 1e-300"),
        ("metrics", {"held_out_sources": [1]}, "metrics.held_out_sources cannot be"),
        ("metrics", {"held_out_sources": {"a\nb": None}}, r"a\\nb cannot be None"),
        ("metrics", {"localizer": [1]}, "metrics.localizer cannot be"),
        ("metrics", {"localizer": {"tried_on": 3, "pixel_auc": {"x": {"forged": "y"}}}}, "x.forged cannot be 'y'"),
        ("metrics", {"localizer": {"tried_on": 3}}, "KeyError: 'pixel_auc'"),
        ("data", {"sources": ["web"]}, "data.sources cannot be"),
        ("data", {"sources": {"web": 3}}, "data.sources.web cannot be 3"),
        ("data", {"sources": {"web": {"train_real": "many"}}}, "data.sources.web.train_real cannot be 'many'"),
        ("data", {"leaked": [1]}, "data.leaked cannot be"),
        ("training", {"settings": [1]}, "training.settings cannot be"),
        ("training", {"tune": 7}, "training.tune cannot be 7"),
        ("training", {"recipe": {"forge": [7]}}, "training.recipe.forge cannot be"),
        ("backbone", {"evil": {"a": 1}}, "backbone.evil cannot be"),
        ("backbone", {"activation": ["gelu"]}, "backbone.activation cannot be"),
        ("calibration", {"slope": 1e308}, "calibration.slope cannot be 1e"),
        ("calibration", {"bias": -(10**400)}, "calibration.bias cannot be -1000"),
        ("faces", {"calibration": {"slope": float("nan")}}, "faces.calibration.slope cannot be nan"),
        ("crops", {"crops": 10**8}, "crops must be at most 1000"),
        ("crops", {"crops": 10**400}, "OverflowError"),
        ("head", {"hri": {"features": 8, "hidden": 10**9, "landmarks": 0}}, "more weights than there are"),
        ("head", {"cgp": {"features": 4, "hidden": 0, "landmarks": 10**6}}, "more weights than there are"),
        ("head", {"cgp": {"features": 10**30, "hidden": 0, "landmarks": 0}}, "the size of head.cgp cannot be 1000"),
        ("head", {f"{k}": {"features": 1, "hidden": 0, "landmarks": 0} for k in range(99)}, "more weights than there"),
    ],
)
def test_what_would_end_a_run_later_is_told_when_it_is_loaded(
    part: str, told: dict, message: str, tmp_path: Path
) -> None:
    checkpoint().save(tmp_path / "det")
    kept = json.loads((tmp_path / "det" / "config.json").read_text())[part]
    edit(tmp_path / "det", **{part: (kept or {}) | told})
    with pytest.raises(CoritError, match=message) as error:
        Checkpoint.load(tmp_path / "det")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_what_training_has_on_record_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint()
    saved.metrics = {"held_out_sources": RATES, "held_out_called_degraded": {"copies": 0.9, "others": 0.0}}
    found = {"photographs": 3, "forged": 0.75, "original": 0.5}
    saved.metrics["localizer"] = {"taught_by": 9, "tried_on": 3, "pixel_auc": {"self_blend": found}}
    saved.data = {"fingerprint": "f", "sources": {"web": {"train_real": 3}}, "unreadable": 0, "leaked": 2}
    saved.training = {
        "settings": {"seed": 1},
        "recipe": {"forge": ["self_blend"]},
        "tune": {"epochs": [{"held_out": 1}]},
    }
    saved.save(tmp_path / "det")
    loaded = Checkpoint.load(tmp_path / "det")
    assert (loaded.metrics, loaded.data, loaded.training) == (saved.metrics, saved.data, saved.training)


@pytest.mark.parametrize(
    "name", ["bias", "weights", "degraded_bias", "heads.hri.mean", "heads.hri.scale", "heads.cgp.layers.0.weight",
             "degradation.layers.0.bias", "localizer.layers.0.bias"]
)  # fmt: skip
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e30])
def test_weights_that_are_no_numbers_are_refused(name: str, value: float, tmp_path: Path) -> None:
    saved = checkpoint()
    saved.head = FusedHead(dict(saved.head.heads), Head(8))
    saved.localizer = Localizer(Head(8), PLACES, CropConfig("native", 32), 0.0, 1.0)
    saved.save(tmp_path / "det")
    tensors = load_file(tmp_path / "det" / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, tmp_path / "det" / "model.safetensors")
    with pytest.raises(CoritError, match=f"does not fit its config.json .{name} is not finite"):
        Checkpoint.load(tmp_path / "det")


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-30])
def test_features_without_a_spread_are_refused(value: float, tmp_path: Path) -> None:
    saved = checkpoint()
    saved.save(tmp_path / "det")
    tensors = load_file(tmp_path / "det" / "model.safetensors")
    tensors["heads.hri.scale"][0] = saved.head.heads.hri.scale[0] = value
    with pytest.raises(CoritError, match=r"not saved, .*heads\.hri\.scale"):
        saved.save(tmp_path / "other")
    save_file(tensors, tmp_path / "det" / "model.safetensors")
    with pytest.raises(CoritError, match=r"heads\.hri\.scale"):
        Checkpoint.load(tmp_path / "det")


@pytest.mark.parametrize("depth", [900, 980, 200_000])
def test_a_config_of_any_depth_is_one_line(depth: int, tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    for text in ("[" * depth, '{"format": 4, "backbone": ' + "[" * depth + "]" * depth + "}"):
        (tmp_path / "det" / "config.json").write_text(text)
        with pytest.raises(CoritError, match=r"config\.json is damaged") as error:
            Checkpoint.load(tmp_path / "det")
        assert str(error.value).isprintable() and len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["[]", "7", "null", '"format"', "{}", '{"format": 2}'])
def test_json_that_is_no_config_is_damaged(text: str, tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "det")
    (tmp_path / "det" / "config.json").write_text(text)
    with pytest.raises(CoritError, match=r"config\.json is damaged"):
        Checkpoint.load(tmp_path / "det")


def test_a_missing_checkpoint_is_never_a_random_head(tmp_path: Path) -> None:
    with pytest.raises(CoritError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "nowhere")
