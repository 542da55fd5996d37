"""CoRIT against a plain reading of its equations, stream by stream, with every block run whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from corit_cli.errors import CoritError
from corit_cli.model.backbone import Block, VisionTower
from corit_cli.model.corit import CoRIT, side_by_side
from corit_cli.model.mask import parse_mask
from corit_cli.model.settings import CoRITSettings, baseline, parse_layers
from corit_cli.model.spread import spread
from corit_cli.model.views import parse_view
from tests.conftest import random_tower

VARIANTS = {
    "full": CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(1, 2), integrate=(2, 3, 4)),
    "views go deepest": CoRITSettings(("blur:1.0",), cgp=(4,), inject_at=(1,), integrate=(2,)),
    "injected stream goes deepest": CoRITSettings(("blur:1.0",), cgp=(), inject_at=(2,), integrate=(4,)),
    "patches to the last layer": CoRITSettings(("blur:1.0",), cgp=(2, 4), patches=True, inject_at=(), integrate=()),
    "two views, no mask": CoRITSettings(
        ("blur:1.0", "noise:0.05"), cgp=(3,), inject_at=(1, 3), integrate=(4,), mask="none"
    ),
    "no contrast": CoRITSettings(cgp=(), inject_at=(), integrate=(1, 3)),
    "spread of patches": CoRITSettings(("blur:1.0",), cgp=(1, 2), inject_at=(), integrate=(1, 3), spread=(1, 2)),
    "spread of the last layer, injected into": CoRITSettings(cgp=(1,), inject_at=(1, 2), integrate=(2,), spread=(3,)),
    "contrast only": CoRITSettings(("jpeg:75",), cgp=(1, 2), inject_at=(), integrate=(), spread=(3,)),
    "source is the last layer read": CoRITSettings(("blur:1.0",), cgp=(1,), inject_at=(3,), integrate=(2,)),
}


def by_the_equations(tower: VisionTower, s: CoRITSettings, images: torch.Tensor) -> torch.Tensor:
    h = tower.embed(images)
    views = [tower.embed(parse_view(spec)(images)) for spec in s.views]
    parts = {}
    for layer, block in enumerate(tower.blocks, start=1):
        h, views = block(h), [block(v) for v in views]
        contrast = torch.stack([h - v for v in views]).mean(0) if views else None
        if layer in s.integrate:
            parts["cls", layer] = h[:, 0]
        if layer in s.spread:
            patches = h[:, 1:] - h[:, 1:].mean(-1, keepdim=True)
            patches = patches / (patches.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            parts["spread", layer] = (patches.square().mean(1) - patches.mean(1).square()).sqrt()
        if layer in s.cgp:
            parts["cgp", layer] = contrast[:, 0]
        if s.patches and layer in s.cgp:
            parts["patches", layer] = contrast[:, 1:].mean(1)
        if s.inject_at and layer == s.inject_at[0]:
            mask = parse_mask(s.mask)(torch.stack([(h - v)[:, 1:] for v in views]))[..., None]
            source, source_norm = contrast[:, 1:], h[:, 1:].norm(dim=-1, keepdim=True)
        if layer in s.inject_at:
            h = h.clone()
            h[:, 1:] += s.alpha * mask * source * h[:, 1:].norm(dim=-1, keepdim=True) / source_norm
    order = [
        (kind, i)
        for kind, layers in (("cls", s.integrate), ("spread", s.spread if s.integrate else ()), ("cgp", s.cgp))
        for i in layers
    ]
    order += [("patches", i) for i in s.cgp if s.patches]
    return torch.cat([F.normalize(parts[part], dim=-1) for part in order], dim=-1)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_follow_the_equations(name: str, tower: VisionTower, images: torch.Tensor) -> None:
    settings = VARIANTS[name]
    corit = CoRIT(tower, settings)
    z = corit(images).z
    assert z.shape == (3, corit.width)
    torch.testing.assert_close(z, by_the_equations(tower, settings, images), atol=1e-5, rtol=1e-5)


def test_patches_that_are_all_the_same_have_no_spread_and_no_gradient() -> None:
    one = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    patches = one.repeat(1, 16, 1).requires_grad_()
    found = spread(patches)
    assert found.max() < 1e-5
    found.sum().backward()
    assert patches.grad is not None and patches.grad.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_an_image_does_not_depend_on_its_batch(name: str, tower: VisionTower, images: torch.Tensor) -> None:
    corit = CoRIT(tower, VARIANTS[name])
    torch.testing.assert_close(corit(images[1:2]).z, corit(images).z[1:2], atol=1e-5, rtol=1e-4)


def test_blocks_that_nobody_reads_are_not_run(tower: VisionTower, images: torch.Tensor) -> None:
    rows: dict[int, list[tuple[int, int | None]]] = {}
    for i, block in enumerate(tower.blocks, start=1):
        original = block.forward

        def counted(x, r=None, normal=None, i=i, original=original):
            rows.setdefault(i, []).append((x.shape[0], r))
            return original(x, r)

        block.forward = counted
    CoRIT(tower, CoRITSettings(("blur:1.0",), cgp=(1, 2), inject_at=(1,), integrate=(3,)))(images)
    # Block 1 with both streams; in 2 the views end, with their class token; 3 is the image's alone; 4 is never run.
    assert rows == {1: [(6, None)], 2: [(3, None), (3, 1)], 3: [(3, 1)]}


def test_without_injection_strength_the_injected_stream_is_the_plain_one(
    tower: VisionTower, images: torch.Tensor
) -> None:
    full = VARIANTS["full"]
    none = CoRIT(tower, replace(full, inject_at=()))(images).z
    torch.testing.assert_close(CoRIT(tower, replace(full, alpha=0.0))(images).z, none, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(CoRIT(tower, full)(images).z, none, atol=1e-3)


def test_injection_keeps_the_relative_size_of_the_contrast(tower: VisionTower, images: torch.Tensor) -> None:
    from corit_cli.model.injection import inject

    tokens = torch.randn(3, 17, 32)
    contrast = torch.randn(3, 16, 32)
    source_norm = torch.rand(3, 16, 1) + 0.5
    moved = inject(tokens, source_norm, contrast, torch.ones(3, 16), alpha=0.7) - tokens
    assert torch.equal(moved[:, 0], torch.zeros(3, 32))
    relative = moved[:, 1:].norm(dim=-1) / tokens[:, 1:].norm(dim=-1)
    torch.testing.assert_close(relative, 0.7 * contrast.norm(dim=-1) / source_norm[..., 0])
    masked = inject(tokens, source_norm, contrast, torch.zeros(3, 16), alpha=0.7)
    assert torch.equal(masked, tokens)


def test_baseline_is_the_last_class_token(tower: VisionTower, images: torch.Tensor) -> None:
    z = CoRIT(tower, baseline(4))(images).z
    torch.testing.assert_close(z, F.normalize(tower.layers(images)[-1][:, 0], dim=-1), atol=1e-5, rtol=1e-5)


def test_contrast_of_an_image_with_itself_is_nothing(tower: VisionTower) -> None:
    flat = torch.full((1, 3, 32, 32), 0.5)
    corit = CoRIT(tower, CoRITSettings(("blur:1.0",), cgp=(2,), inject_at=(1,), integrate=(2,)))
    assert corit(flat).energy.max() < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: CoRITSettings(cgp=(), inject_at=(), integrate=()),
        lambda: CoRITSettings(views=()),
        lambda: CoRITSettings(integrate=(5,)).check(4),
        lambda: CoRITSettings(integrate=(0,)).check(4),
        lambda: CoRIT(random_tower(), CoRITSettings(integrate=(5,))),
        lambda: CoRIT(random_tower(), replace(VARIANTS["full"], mask="soft:0.2-0.8")),
        lambda: CoRIT(random_tower(), replace(VARIANTS["full"], views=("sharpen",))),
        lambda: parse_layers("4-x"),
        lambda: parse_layers("9-4"),
    ],
)
def test_impossible_settings_are_refused(make) -> None:
    with pytest.raises(CoritError):
        make()


def test_layers_are_read_from_text() -> None:
    assert parse_layers("4-6,9, 2") == (2, 4, 5, 6, 9)
    assert parse_layers("none") == ()


def assert_same_reading(corit: CoRIT, images: torch.Tensor, stops: list[int]) -> None:
    """Whether the streams, halted after each of ``stops``, lead to what one pass leads to."""
    state = corit.start(images)
    for layer in stops:
        before = {name: value.clone() for name, value in state.found.items()}
        kept, streams = state, state.streams.clone()
        state = corit.run(state, layer)
        assert state.layer == layer
        # a state can be run from again: nothing of it is overwritten
        assert set(kept.found) == set(before) and all(torch.equal(kept.found[n], t) for n, t in before.items())
        assert torch.equal(kept.streams, streams)
    ours, whole = corit.read(corit.run(state, corit.end)), corit(images)
    torch.testing.assert_close(ours.z, whole.z, atol=1e-5, rtol=1e-5)
    for a, b in ((ours.energy, whole.energy), (ours.mask, whole.mask)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_halting_after_any_block_changes_nothing(name: str, tower: VisionTower, images: torch.Tensor) -> None:
    corit = CoRIT(tower, VARIANTS[name])
    for k in range(corit.end + 1):
        assert_same_reading(corit, images, [k])
    assert_same_reading(corit, images, list(range(corit.end + 1)))


_LAYERS = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    st.builds(
        dict,
        views=st.sampled_from([("blur:1.0",), ("blur:1.0", "noise:0.05")]),
        cgp=_LAYERS,
        patches=st.booleans(),
        inject_at=_LAYERS,
        integrate=_LAYERS,
        mask=st.sampled_from(["quantile:0.25-0.75", "none"]),
    ).filter(lambda s: s["cgp"] or s["integrate"]),
    st.lists(st.integers(0, 4), max_size=4),
)
def test_halting_changes_nothing_whatever_is_read(chosen: dict, stops: list[int]) -> None:
    corit = CoRIT(random_tower(), CoRITSettings(**chosen))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_same_reading(corit, images, sorted(min(k, corit.end) for k in stops))
    expected = by_the_equations(corit.tower, corit.settings, images)
    torch.testing.assert_close(corit(images).z, expected, atol=1e-5, rtol=1e-5)


def test_running_no_further_does_nothing(tower: VisionTower, images: torch.Tensor) -> None:
    corit = CoRIT(tower, VARIANTS["full"])
    state = corit.run(corit.start(images), 2)
    again = corit.run(state, 2)
    assert again.layer == 2 and again.found is not state.found and set(again.found) == set(state.found)
    assert again.streams is state.streams


def test_streams_start_embedded_view_by_view(tower: VisionTower, images: torch.Tensor) -> None:
    state = CoRIT(tower, VARIANTS["two views, no mask"]).start(images)
    assert state.layer == 0 and not state.found
    streams = [images, *(parse_view(spec)(images) for spec in ("blur:1.0", "noise:0.05"))]
    expected = torch.cat([tower.embed(stream) for stream in streams])
    torch.testing.assert_close(state.streams, expected, atol=1e-5, rtol=1e-5)
    assert len(CoRIT(tower, VARIANTS["no contrast"]).start(images).streams) == len(images)


def test_regional_contrasts_are_unit_differences_of_plain_streams(tower: VisionTower, images: torch.Tensor) -> None:
    """Whatever is pooled or injected; two views are averaged before scaling."""
    settings = CoRITSettings(("blur:1.0", "noise:0.05"), cgp=(1, 3), integrate=(4,), inject_at=(1, 2), patches=True)
    found = CoRIT(tower, settings).regional(images)  # (B, P, 2 d)
    blocks = [
        _tokens(tower, x)[:, :, 1:] for x in (images, parse_view("blur:1.0")(images), parse_view("noise:0.05")(images))
    ]
    for k, layer in enumerate((1, 3)):
        x, *views = (tokens[layer - 1] for tokens in blocks)
        expected = F.normalize(x - (views[0] + views[1]) / 2, dim=-1)
        torch.testing.assert_close(found[..., 32 * k : 32 * (k + 1)], expected, atol=1e-5, rtol=1e-4)


def _tokens(tower: VisionTower, images: torch.Tensor) -> torch.Tensor:
    """Tokens after each block, (L, B, N, d)."""
    x, found = tower.embed(images), []
    for block in tower.blocks:
        x = block(x)
        found.append(x)
    return torch.stack(found)


@pytest.mark.parametrize("most", [0, 7, 100])
def test_side_by_side_all_find_what_each_finds_alone(most: int) -> None:
    tower, every = random_tower(), list(VARIANTS.values())
    corits = [CoRIT(tower, s).eval() for s in every]
    images = [torch.rand(1 + k % 3, 3, 32, 32) for k in range(len(every))]
    with torch.inference_mode():
        steps = [c.steps(c.start(x), c.end) for c, x in zip(corits, images, strict=True)]
        states = side_by_side(tower, steps, most)
        for corit, state, x in zip(corits, states, images, strict=True):
            torch.testing.assert_close(corit.read(state).z, corit(x).z, rtol=1e-5, atol=1e-6)


def test_side_by_side_a_block_is_run_once_for_all_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = random_tower()
    shallow, deep = (CoRIT(tower, baseline(layers)).eval() for layers in (2, 4))
    seen: list[int] = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, *how: (seen.append(len(x)), forward(self, x, *how))[1])

    def batches(most: int) -> list[int]:
        seen.clear()
        steps = [c.steps(c.start(torch.rand(n, 3, 32, 32)), c.end) for c, n in ((shallow, 2), (deep, 3))]
        side_by_side(tower, steps, most)
        return list(seen)

    # Of the deepest layer that one reads it takes the class token alone.
    assert batches(5) == [5, 2, 3, 3, 3] and batches(4) == [2, 3, 2, 3, 3, 3]
    assert side_by_side(tower, []) == []
