"""Products in bf16 are those of float32 to its digits, and it is taken where it is faster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corit_cli.errors import CoritError
from corit_cli.model import precision as module
from corit_cli.model.precision import lowered, pick_precision
from tests.conftest import random_tower


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the measured gain is kept, with nothing measured yet in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module._gain.cache_clear()
    yield tmp_path / "corit" / "precision.json"
    module._gain.cache_clear()


def test_products_are_those_of_autocast(images: Tensor) -> None:
    tower = random_tower()
    with torch.inference_mode():
        exact, low = tower.layers(images), lowered(tower, "bf16").layers(images)
        x = tower.embed(images)
        with torch.autocast("cpu", torch.bfloat16):
            for block, y in zip(tower.blocks, low[1:], strict=True):
                x = block(x)
                assert y.dtype == torch.float32
                torch.testing.assert_close(y, x.float(), atol=0.05, rtol=0.05)
    assert torch.equal(exact[0], low[0]) and not torch.equal(exact[-1], low[-1])
    assert torch.cosine_similarity(exact[-1], low[-1], dim=-1).min() > 0.999


def test_everything_but_the_products_weights_is_shared() -> None:
    tower = random_tower()
    low = lowered(tower, "bf16")
    names = {n for n, p in low.named_parameters() if p.dtype == torch.bfloat16}
    assert names == {n for n in tower.state_dict() if {"qkv", "out", "fc", "proj"} & set(n.split("."))}
    for (name, a), b in zip(low.named_parameters(), tower.parameters(), strict=True):
        assert (a is b) == (name not in names) and not a.requires_grad
    assert lowered(tower, "fp32") is tower


def test_an_image_does_not_depend_on_its_batch(images: Tensor) -> None:
    low = lowered(random_tower(), "bf16")
    images = torch.cat([images, images.flip(0)])
    with torch.inference_mode():
        x = low.embed(images)
        for rows in (None, 1):
            for n in (1, 2, 5):
                for block in low.blocks:
                    assert torch.equal(block(x, rows)[:n], block(x[:n], rows))


@pytest.mark.parametrize(("gain", "expected"), [(3.0, "bf16"), (1.2, "fp32"), (0.12, "fp32")])
def test_what_is_faster_is_taken_and_remembered(
    kept: Path, monkeypatch: pytest.MonkeyPatch, gain: float, expected: str
) -> None:
    monkeypatch.setattr(module, "_measure", lambda: gain)
    assert pick_precision("auto", "cpu") == expected
    assert list(json.loads(kept.read_text()).values()) == [gain]
    module._gain.cache_clear()
    monkeypatch.setattr(module, "_measure", lambda: pytest.fail("it was measured again"))
    assert pick_precision("auto", "cpu") == expected


@pytest.mark.parametrize("damage", ["", "[]", '{"a": "b"}', "\x00"])
def test_a_damaged_note_is_measured_anew(kept: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    kept.parent.mkdir()
    kept.write_text(damage)
    monkeypatch.setattr(module, "_measure", lambda: 2.0)
    assert pick_precision("auto", "cpu") == "bf16" and 2.0 in json.loads(kept.read_text()).values()


def test_a_note_that_cannot_be_kept_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    (tmp_path / "corit").write_text("a file where the folder would be")
    monkeypatch.setattr(module, "_measure", lambda: 2.0)
    assert pick_precision("auto", "cpu") == "bf16"


def test_the_gain_is_measured() -> None:
    assert 0.01 < module._measure() < 100


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_precision("bf16", "cpu") == "bf16" and pick_precision("fp32", "cuda") == "fp32"
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert pick_precision("auto", "cuda") == expected
    with pytest.raises(CoritError, match="unknown precision 'fp16': give auto, fp32, bf16"):
        pick_precision("fp16", "cpu")
