from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.files import weights_dir
from corit_cli.report.detector_card import detector_card
from tests.conftest import save_tiny_detector


def metadata(card: str) -> dict[str, str]:
    """The lines between the first two rules, as far as they are pairs."""
    assert card.startswith("---\n")
    return dict(line.split(": ") for line in card.split("---\n")[1].splitlines() if ": " in line)


def test_the_card_of_the_shipped_detector_says_what_its_configuration_holds() -> None:
    folder = weights_dir() / "detector"
    config = json.loads((folder / "config.json").read_text())
    checkpoint = Checkpoint.load(folder)
    card = detector_card(checkpoint, "user/detector", config["corit"])
    assert metadata(card)["library_name"] == "corit" and metadata(card)["base_model"].startswith("openai/clip-vit")
    for title, key in (("as they are", "held_out_sources"), ("degraded copies", "held_out_degraded")):
        rates = config["metrics"][key]
        shown = [f"{rates[name]:.1%}" for name in ("real_called_fake", "real_called_uncertain", "fake_called_fake")]
        assert f"| {title} | {rates['real']:,} | {rates['fake']:,} | {' | '.join(shown)} |" in card
    real = sum(source.get("train_real", 0) for source in config["data"]["sources"].values())
    assert f"{real} real and" in card and checkpoint.sha256 in card
    assert not any(name in card for name in config["data"]["sources"])  # folders' names are nobody's business here


def test_the_card_says_what_judged_the_images_and_what_was_chosen_on_them(tmp_path: Path) -> None:
    bare = Checkpoint.load(save_tiny_detector(tmp_path))
    before = detector_card(bare, "user/tiny", "1.0")
    assert "fitted to these same scores" in before and "fitted to the others" not in before
    now = detector_card(replace(bare, training={"judged_by": "thresholds of the other folds"}), "user/tiny", "1.0")
    assert "fitted to the others" in now and "these same scores" not in now and "held out in turn" in now
    tuned = detector_card(replace(bare, training={"tune": {"scope": "ln"}}), "user/tiny", "1.0")
    assert "Their loss chose the epoch" in tuned and "held out in turn" not in tuned


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    bare = Checkpoint.load(save_tiny_detector(tmp_path))
    card = detector_card(bare, "user/tiny", "1.0")
    assert "%" not in card and "base_model" not in card and "Heatmaps" not in card and "trained on.**" not in card
    leaked = replace(bare, data={"leaked": 7}, backbone=bare.backbone | {"name": f"hf-hub:org/clip@{'0' * 40}"})
    card = detector_card(leaked, "user/tiny", "1.0")
    assert "**7 of the images for validation were trained on.**" in card and metadata(card)["base_model"] == "org/clip"
