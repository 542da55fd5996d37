"""Products in bf16 are those of float32 to its digits, those of stored 8-bit weights all but equal, and what is clearly
faster is taken."""

from __future__ import annotations

import copy
import json
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corit_cli.errors import CoritError
from corit_cli.model import int8
from corit_cli.model import precision as module
from corit_cli.model.backbone import VisionTower
from corit_cli.model.int8 import Int8Linear, available
from corit_cli.model.loading import Backbone
from corit_cli.model.precision import lowered, pick_precision
from corit_cli.model.scope import tuned_backbone
from tests.conftest import TINY, random_tower

PLAIN = Backbone(random_tower(), "tiny", "0" * 64)
SURE = {"bf16": 2.0, "int8": 1.3}


needs_int8 = pytest.mark.skipif(not available(), reason="this machine's torch does not multiply 8-bit integers")


@pytest.fixture
def fresh() -> Iterator[None]:
    """What this machine can do is found out anew, before and after."""
    available.cache_clear()
    yield
    available.cache_clear()


def in_8_bits(tower: VisionTower) -> Backbone:
    """``tower`` with the weights of its blocks rounded to 8 bits, as a file holds them."""
    digits = {}
    for name, weight in tower.named_parameters():
        if name.startswith("blocks.") and weight.dim() == 2:
            scale = weight.abs().amax(1) / 127  # (out,)
            digits[name] = (weight / scale[:, None]).round().to(torch.int8), scale
            weight.data = digits[name][0].float() * scale[:, None]
    return Backbone(tower, "tiny", "1" * 64, digits)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the measured gain is kept, with nothing measured yet in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module._gains.cache_clear()
    yield tmp_path / "corit" / "precision.json"
    module._gains.cache_clear()


def test_products_are_those_of_autocast(images: Tensor) -> None:
    tower = random_tower()
    with torch.inference_mode():
        exact, low = tower.layers(images), lowered(replace(PLAIN, tower=tower), "bf16").layers(images)
        x = tower.embed(images)
        with torch.autocast("cpu", torch.bfloat16):
            for block, y in zip(tower.blocks, low[1:], strict=True):
                x = block(x)
                assert y.dtype == torch.float32
                torch.testing.assert_close(y, x.float(), atol=0.05, rtol=0.05)
    assert torch.equal(exact[0], low[0]) and not torch.equal(exact[-1], low[-1])
    assert torch.cosine_similarity(exact[-1], low[-1], dim=-1).min() > 0.999


def test_everything_but_the_products_weights_is_shared() -> None:
    tower = PLAIN.tower
    low = lowered(PLAIN, "bf16")
    names = {n for n, p in low.named_parameters() if p.dtype == torch.bfloat16}
    assert names == {n for n in tower.state_dict() if {"qkv", "out", "fc", "proj"} & set(n.split("."))}
    for (name, a), b in zip(low.named_parameters(), tower.parameters(), strict=True):
        assert (a is b) == (name not in names) and not a.requires_grad
    assert lowered(PLAIN, "fp32") is tower
    if not available():
        return
    stored = in_8_bits(random_tower())
    for a, b in zip(lowered(stored, "int8").parameters(), stored.tower.parameters(), strict=True):
        assert a is b  # parts of weights are multiplied with, too


@needs_int8
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("rows", [None, 1, 3])
def test_stored_weights_give_what_float32_gives(images: Tensor, rows: int | None, activation: str) -> None:
    backbone = in_8_bits(random_tower(replace(TINY, activation=activation)))
    low = lowered(backbone, "int8")
    with torch.inference_mode():
        x = y = backbone.tower.embed(images)
        for exact, block in zip(backbone.tower.blocks, low.blocks, strict=True):
            x, y = exact(x, rows), block(y, rows)
            torch.testing.assert_close(y, x, atol=2e-3, rtol=1e-3)
            assert not torch.equal(x, y)
            if rows:
                break


@needs_int8
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 70)),
    width=st.integers(1, 40),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_products_of_two_digits(shape: tuple[int, int], width: int, size: float, seed: int) -> None:
    """Against float64; an activation is off by at most half a step of its token's scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * size
    layer = torch.nn.Linear(shape[1], width, device="meta")
    digits = torch.randint(-127, 128, (width, shape[1]), generator=generator, dtype=torch.int8)
    scale = torch.rand(width, generator=generator) + 0.1
    layer.weight = torch.nn.Parameter(digits * scale[:, None], False)
    layer.bias = torch.nn.Parameter(torch.randn(width, generator=generator), False)
    with torch.inference_mode():
        found = Int8Linear(layer, digits, scale, 2.0, 3.0)(x).double()
    weight = 2 * digits.double() * scale[:, None].double()
    expected = x.double() @ weight.T + 3 * layer.bias.double()
    step = x.double().abs().amax(1, keepdim=True) / 2**15
    rounding = 1e-5 * (expected.abs() + x.double().abs() @ weight.T.abs()) + 1e-30  # of float32
    bound = 0.501 * step * weight.abs().sum(1) + rounding
    assert ((found - expected).abs() <= bound).all()
    assert torch.equal(Int8Linear(layer, digits, scale)(torch.zeros(2, shape[1])), layer.bias.expand(2, -1))


@needs_int8
def test_no_activation_leaves_its_digits() -> None:
    """Values at both ends and beside every change of the upper digit come out whole."""
    whole = torch.arange(-32767.0, 32768.0)
    x = torch.stack([whole, torch.full_like(whole, 32767)], 1)  # the scale is 1
    layer = torch.nn.Linear(2, 1, device="meta")
    digits, scale = torch.tensor([[1, 0]], dtype=torch.int8), torch.ones(1)
    layer.weight, layer.bias = (torch.nn.Parameter(t, False) for t in (digits.float(), torch.zeros(1)))
    with torch.inference_mode():
        assert torch.equal(Int8Linear(layer, digits, scale)(x)[:, 0], x[:, 0])


@needs_int8
def test_layers_in_8_bits_can_be_sent_and_copied(images: Tensor) -> None:
    low = lowered(in_8_bits(random_tower()), "int8")
    with torch.inference_mode():
        expected = low(images)
        for other in (pickle.loads(pickle.dumps(low)), copy.deepcopy(low)):
            assert torch.equal(other(images), expected)


def test_a_tower_whose_blocks_were_tuned_is_no_longer_stored_in_8_bits() -> None:
    backbone = in_8_bits(random_tower())
    norms = tuned_backbone(backbone, {"blocks.1.ln_1.bias": backbone.tower.blocks[1].ln_1.bias + 1})
    assert norms.digits is backbone.digits
    assert not tuned_backbone(backbone, {"blocks.1.fc.weight": backbone.tower.blocks[1].fc.weight + 1}).digits


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_an_image_does_not_depend_on_its_batch(images: Tensor, precision: str) -> None:
    low = lowered(in_8_bits(random_tower()), precision)
    images = torch.cat([images, images.flip(0)])
    with torch.inference_mode():
        x = low.embed(images)
        for rows in (None, 1):
            for n in (1, 2, 5):
                for block in low.blocks:
                    assert torch.equal(block(x, rows)[:n], block(x[:n], rows))


@pytest.mark.parametrize(
    ("bf16", "int8", "expected", "without"),
    [
        (3.0, 2.0, "bf16", "bf16"),
        (1.6, 2.0, "int8", "bf16"),
        (1.4, 1.3, "int8", "fp32"),
        (1.4, 1.2, "fp32", "fp32"),
        (0.12, 0, "fp32", "fp32"),
    ],
)
def test_what_is_faster_is_taken_and_remembered(
    kept: Path, monkeypatch: pytest.MonkeyPatch, bf16: float, int8: float, expected: str, without: str
) -> None:
    monkeypatch.setattr(module, "_measure", lambda: {"bf16": bf16, "int8": int8})
    stored = in_8_bits(random_tower())
    assert pick_precision("auto", "cpu", stored) == expected
    assert pick_precision("auto", "cpu", PLAIN) == pick_precision("auto", "cpu") == without
    assert list(json.loads(kept.read_text()).values()) == [{"bf16": bf16, "int8": int8}]
    module._gains.cache_clear()
    monkeypatch.setattr(module, "_measure", lambda: pytest.fail("it was measured again"))
    assert pick_precision("auto", "cpu", stored) == expected


@pytest.mark.parametrize(
    "damage",
    ["", "[]", '{"KEY": "b"}', '{"KEY": 2.0}', '{"KEY": {"bf16": 3}}', "\x00", pytest.param("[" * 200_000, id="deep")],
)
def test_a_damaged_note_is_measured_anew(kept: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(module, "_measure", lambda: SURE)
    assert pick_precision("auto", "cpu") == "bf16"
    (key,) = json.loads(kept.read_text())
    kept.write_text(damage.replace("KEY", key))
    module._gains.cache_clear()
    assert pick_precision("auto", "cpu") == "bf16" and json.loads(kept.read_text()) == {key: SURE}


def test_a_note_that_cannot_be_kept_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    (tmp_path / "corit").write_text("a file where the folder would be")
    monkeypatch.setattr(module, "_measure", lambda: SURE)
    assert pick_precision("auto", "cpu") == "bf16"


def test_a_pipe_in_place_of_the_note_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    kept.parent.mkdir()
    os.mkfifo(kept)
    monkeypatch.setattr(module, "_measure", lambda: SURE)
    assert pick_precision("auto", "cpu") == "bf16" and kept.is_fifo()


def test_the_gains_are_measured() -> None:
    gains = module._measure()
    assert 0.01 < gains["bf16"] < 100 and (gains["int8"] > 0) == available()


def test_what_will_not_pay_is_not_timed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def slow(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        end = time.thread_time() + 0.6
        while time.thread_time() < end:
            pass
        return x

    monkeypatch.setattr(module, "_in_bf16", lambda *_: slow)
    assert module._measure()["bf16"] < 0.5 and len(seen) == 2


def test_a_processor_that_adds_otherwise_is_not_trusted(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some add pairs of products in 16 bits, and stop at the largest number there."""

    def saturating(upper, lower, digits, scale, zero):
        x = (256 * (upper.double() - 128) + lower).clamp(-30000, 30000)
        return (x @ digits.to_dense().double() * scale).float()

    monkeypatch.setattr(int8, "_product", saturating)
    assert not available() and module._measure()["int8"] == 0
    with pytest.raises(CoritError, match="does not multiply 8-bit integers exactly"):
        lowered(in_8_bits(random_tower()), "int8")


def test_a_torch_without_such_products_is_no_fault(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_packed", lambda _: (_ for _ in ()).throw(RuntimeError("no oneDNN")))
    assert not available() and module._measure()["int8"] == 0


@needs_int8
def test_a_layer_that_was_sent_is_checked_where_it_arrives(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pickle.dumps(lowered(in_8_bits(random_tower()), "int8"))
    available.cache_clear()
    monkeypatch.setattr(int8, "_packed", lambda _: (_ for _ in ()).throw(RuntimeError("no oneDNN")))
    with pytest.raises(CoritError, match="does not multiply"):
        pickle.loads(sent)


def test_names(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_precision("bf16", "cpu") == "bf16" and pick_precision("fp32", "cuda") == "fp32"
    stored = in_8_bits(random_tower())
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert pick_precision("auto", "cuda", stored) == expected
    with pytest.raises(CoritError, match="unknown precision 'fp16': give auto, fp32, bf16, int8"):
        pick_precision("fp16", "cpu")
    monkeypatch.setattr(module, "_measure", lambda: SURE)
    assert pick_precision("int8", "cpu", stored) == "int8"
    with pytest.raises(CoritError, match="a processor's"):
        pick_precision("int8", "cuda", stored)
    with pytest.raises(CoritError, match="not stored in 8 bits"):
        pick_precision("int8", "cpu", PLAIN)
    for precision in ("int8", "int7"):
        with pytest.raises(ValueError, match="are not multiplied in"):
            lowered(PLAIN, precision)
