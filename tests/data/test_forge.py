from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from corit_cli.data.autoencoder import Autoencoder
from corit_cli.data.faces import Face, square
from corit_cli.data.forge import MAX_SIDE, REGION_AREA, Forge, blend, parse_forge, region
from corit_cli.data.opening import ImageError
from corit_cli.data.variants import Variant
from corit_cli.errors import CoritError
from tests.conftest import OneFace, photograph

CHANNELS = 8


def block(i: int, pool: bool = False) -> dict[str, torch.Tensor]:
    out = {}
    for k in (0, 2, 4):
        out[f"{i}.conv.{k}.weight"] = torch.randn(CHANNELS, CHANNELS, 3, 3) / 9
        out[f"{i}.conv.{k}.bias"] = torch.zeros(CHANNELS)
    if pool:
        out[f"{i}.pool.0.weight"] = torch.randn(16, CHANNELS, 1, 1) / 4
        out[f"{i}.pool.1.weight"], out[f"{i}.pool.1.bias"] = torch.ones(16), torch.zeros(16)
        out[f"{i}.pool.3.weight"] = torch.randn(CHANNELS, 16, 1, 1) / 4
    return out


def conv(i: int, into: int, out_of: int, bias: bool = True) -> dict[str, torch.Tensor]:
    out = {f"{i}.weight": torch.randn(out_of, into, 3, 3) / (3 * into**0.5)}
    return out | ({f"{i}.bias": torch.full((out_of,), 0.1)} if bias else {})


def autoencoder_files(folder: Path, prefix: tuple[str, str] = ("", "")) -> Path:
    """A random autoencoder of the TAESD family, three halvings deep, as two files."""
    torch.manual_seed(0)
    encoder, decoder = conv(0, 3, CHANNELS) | block(1), {}
    at = 2
    for _ in range(3):
        encoder |= conv(at, CHANNELS, CHANNELS, bias=False) | block(at + 1, pool=at == 6)
        at += 2
    encoder |= conv(at, CHANNELS, 4)
    decoder = conv(1, 4, CHANNELS) | block(3, pool=True)
    at = 4
    for _ in range(3):
        decoder |= conv(at + 1, CHANNELS, CHANNELS, bias=False) | block(at + 2)
        at += 3
    decoder |= conv(at, CHANNELS, 3)
    target = folder / "autoencoder"
    target.mkdir(exist_ok=True)
    save_file({prefix[0] + k: v for k, v in encoder.items()}, target / "tiny_encoder.safetensors")
    save_file({prefix[1] + k: v for k, v in decoder.items()}, target / "tiny_decoder.safetensors")
    return target


def test_structure_is_read_off_the_names(tmp_path: Path) -> None:
    autoencoder = Autoencoder.load(str(autoencoder_files(tmp_path)))
    images = torch.rand(2, 3, 40, 24)
    latents = autoencoder.encoder(images)
    assert latents.shape == (2, 4, 5, 3)
    assert autoencoder.decoder(latents).shape == images.shape


def test_diffusers_names_mean_the_same(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 16, 16)
    plain = Autoencoder.load(str(autoencoder_files(tmp_path)))(images)
    prefixed = autoencoder_files(tmp_path, ("encoder.layers.", "decoder.layers."))
    assert torch.equal(Autoencoder.load(str(prefixed))(images), plain)


def test_any_size_comes_back_at_its_size_and_in_range(tmp_path: Path) -> None:
    autoencoder = Autoencoder.load(str(autoencoder_files(tmp_path)))
    for height, width in ((8, 8), (9, 17), (1, 30)):
        out = autoencoder(torch.rand(1, 3, height, width))
        assert out.shape == (1, 3, height, width)
        assert out.min() >= 0 and out.max() <= 1


def test_reconstruct_changes_the_image_deterministically(tmp_path: Path) -> None:
    forge = parse_forge(f"reconstruct:{autoencoder_files(tmp_path)}")
    image = photograph(0)
    rng = np.random.default_rng(0)
    one, two = forge(image, rng), forge(image, rng)
    assert one.size == image.size and one.mode == "RGB"
    assert np.array_equal(one, two) and not np.array_equal(one, image)
    large = Image.new("RGB", (MAX_SIDE + 100, MAX_SIDE // 2))
    assert forge(large, rng).size == (MAX_SIDE, MAX_SIDE // 2)


def test_a_variant_forges_then_encodes(tmp_path: Path) -> None:
    forge = parse_forge(f"reconstruct:{autoencoder_files(tmp_path)}")
    image = photograph(0)
    forged = Variant(forge=forge).apply(image)
    coded = Variant(forge=forge, codec=(60, 60)).apply(image)
    assert np.array_equal(forged, forge(image, np.random.default_rng(0)))
    difference = np.abs(np.asarray(forged, float) - np.asarray(coded, float))
    assert 0 < difference.mean() < 10


# --- whole images and regions ---------------------------------------------------------------------

SPECS = ("resample", "resample@part", "recompress", "recompress@part", "self_blend")
PARTIAL = ("resample@part", "recompress@part", "self_blend")
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))
seeds = st.integers(0, 2**32)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, float)


def psnr(a: Image.Image, b: Image.Image) -> float:
    return 10 * np.log10(255**2 / max(((array(a) - array(b)) ** 2).mean(), 1e-9))


@given(st.sampled_from(SPECS), sizes, seeds)
def test_forgeries_follow_their_seed_and_keep_to_their_mask(spec: str, size: tuple[int, int], seed: int) -> None:
    image, forge = photograph(seed, size), parse_forge(spec)
    one, two = (forge.forge(image, np.random.default_rng(seed)) for _ in range(2))
    assert one.image.tobytes() == two.image.tobytes() == forge(image, np.random.default_rng(seed)).tobytes()
    assert np.array_equal(one.mask, two.mask)
    assert one.image.size == image.size and one.image.mode == "RGB"
    assert one.mask.shape == (image.height, image.width)
    assert one.mask.min() >= 0 and 0 < one.mask.max() <= 1
    untouched = one.mask == 0
    assert np.array_equal(np.asarray(one.image)[untouched], np.asarray(image)[untouched])


@pytest.mark.parametrize("spec", SPECS)
def test_what_the_mask_covers_has_changed_and_hardly_shows(spec: str) -> None:
    seen = set()
    for seed in range(8):
        image = photograph(seed, (160, 120))
        forged = parse_forge(spec).forge(image, np.random.default_rng(seed))
        seen.add(forged.image.tobytes())
        changed = (array(forged.image) != array(image)).any(-1)
        assert changed[forged.mask > 0.4].mean() > 0.9
        assert (forged.mask.min() < 1) == (spec in PARTIAL)
        # Grain of 6 levels, the finest detail there is, may go altogether (33 dB); nothing else may.
        assert psnr(forged.image, image) > (34 if spec in PARTIAL else 31)
        coarse = [array(picture.resize((8, 6), Image.Resampling.BOX)) for picture in (image, forged.image)]
        assert np.abs(coarse[0] - coarse[1]).max() < 8
    assert len(seen) == 8


def test_another_seed_forges_differently() -> None:
    for spec in SPECS:
        image, forge = photograph(0, (320, 240)), parse_forge(spec)
        assert len({forge(image, np.random.default_rng(seed)).tobytes() for seed in range(5)}) == 5


@given(st.tuples(st.integers(192, 400), st.integers(192, 400)), seeds)
def test_a_region_is_smooth_and_as_large_as_stated(size: tuple[int, int], seed: int) -> None:
    mask = region(size, np.random.default_rng(seed))
    low, high = REGION_AREA
    assert low - 0.01 < (mask >= 0.5).mean() < high + 0.01
    assert 0.98 < mask.max() <= 1 and (mask == 0).mean() > 0.3
    steps = [np.abs(np.diff(mask, axis=axis)).max() for axis in (0, 1)]
    assert max(steps) < 0.4


def test_regions_lie_anywhere() -> None:
    cover = np.mean([region((64, 64), np.random.default_rng(seed)) > 0 for seed in range(200)], axis=0)
    assert cover.min() > 0 and cover.max() < 0.8


@given(seeds)
def test_blend_mixes_by_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, other = photograph(1, (7, 5)), photograph(2, (7, 5))
    mask = rng.random((5, 7)) * rng.integers(0, 2, (5, 7))
    expected = (1 - mask[..., None]) * array(image) + mask[..., None] * array(other)
    assert np.abs(array(blend(image, other, mask).image) - expected).max() <= 0.501


def blockiness(pixels: np.ndarray) -> float:
    """How much larger the largest of the eight column-step means is than their median, steps taken modulo 8."""
    steps = np.abs(np.diff(pixels.mean(-1), n=1, axis=1)).mean(0)
    means = np.array([steps[k::8].mean() for k in range(8)])
    return means.max() / np.median(means)


def detail(pixels: np.ndarray) -> float:
    return float(np.abs(np.diff(pixels, n=2, axis=1)).mean() + np.abs(np.diff(pixels, n=2, axis=0)).mean())


@pytest.mark.parametrize(("name", "trace", "sign"), [("recompress", blockiness, 1), ("resample", detail, -1)])
def test_each_leaves_its_own_trace(name: str, trace: Callable[[np.ndarray], float], sign: int) -> None:
    """JPEG leaves a grid of period 8, interpolation takes fine detail away."""
    for seed in range(6):
        image = photograph(seed, (320, 240), grain=3)
        forged = parse_forge(name)(image, np.random.default_rng(seed))
        assert sign * (trace(array(forged)) - trace(array(image))) > 0.02


def test_turning_back_restores_the_corners() -> None:
    image = photograph(3, (160, 120), grain=0)
    for seed in range(10):
        forged = parse_forge("resample")(image, np.random.default_rng(seed))
        assert np.abs(array(forged) - array(image)).max() < 8


def test_a_region_of_a_reconstruction(tmp_path: Path) -> None:
    source = autoencoder_files(tmp_path)
    image = photograph(0, (MAX_SIDE + 40, 56))
    middle = image.crop((20, 0, 20 + MAX_SIDE, 56))
    whole = parse_forge(f"reconstruct:{source}").forge(image, np.random.default_rng(0))
    part = parse_forge(f"reconstruct@part:{source}").forge(image, np.random.default_rng(0))
    assert (whole.mask == 1).all() and whole.mask.shape == part.mask.shape == (56, MAX_SIDE)
    for weight, expected in ((0, middle), (1, whole.image)):
        chosen = part.mask == weight
        assert chosen.any() and np.array_equal(np.asarray(part.image)[chosen], np.asarray(expected)[chosen])


def test_plain_reconstruction_is_the_autoencoder_and_nothing_else(tmp_path: Path) -> None:
    """Fingerprint and pixels of plain reconstruct, by an oracle that knows nothing of Forge; no draw is spent on it."""
    source = str(autoencoder_files(tmp_path))
    image = photograph(5, (MAX_SIDE + 31, 48))
    pixels = torch.from_numpy(np.array(image)[:, 15 : 15 + MAX_SIDE]).permute(2, 0, 1)[None].float() / 255
    expected = (Autoencoder.load(source)(pixels)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    rng = np.random.default_rng(7)
    variant = Variant(forge=parse_forge(f"reconstruct:{source}"))
    assert np.array_equal(variant.forge(image, rng), expected)
    assert rng.random() == np.random.default_rng(7).random()
    assert np.array_equal(variant.apply(image), expected)
    assert variant.fingerprint == f"reconstruct:{Autoencoder.load(source).sha256}|None||None|0"


# --- spelling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "forge"),
    [
        ("reconstruct:user/weights", Forge("reconstruct", "user/weights")),
        ("reconstruct:C:\\weights@2", Forge("reconstruct", "C:\\weights@2")),
        ("reconstruct@part:w", Forge("reconstruct", "w", part=True)),
        ("resample", Forge("resample")),
        ("recompress@part", Forge("recompress", part=True)),
        ("self_blend", Forge("self_blend")),
    ],
)
def test_spelling(spec: str, forge: Forge) -> None:
    assert parse_forge(spec) == forge


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("reconstruct", "reconstruct:FOLDER"),
        ("reconstruct:", "reconstruct:FOLDER"),
        ("reconstruct@part", "reconstruct@part:FOLDER"),
        ("paint:x", "choose from reconstruct, resample, recompress, self_blend"),
        ("", "choose from"),
        ("resample:x", "write resample"),
        ("resample@part:", "write resample@part"),
        ("resample@half", "resample@part for a region of it, or resample@native"),
        ("self_blend@native", "for all readings, or one of its own: write self_blend"),
        ("reconstruct:x@native", "write reconstruct@native:x"),
        ("resample*0.3", r"as in 0.3\*resample"),
        ("0*resample", "write 0.3\\*resample"),
        ("1.5*resample", "write 0.3\\*resample"),
        ("nan*resample", "write 0.3\\*resample"),
        ("*resample", "write 0.3\\*resample"),
        ("0.5*", "choose from"),
        ("recompress@", "recompress@part for a region"),
        ("self_blend@part", "write self_blend"),
    ],
)
def test_nonsense_is_refused(spec: str, hint: str) -> None:
    with pytest.raises(CoritError, match=hint):
        parse_forge(spec)


def test_who_is_trained_and_how_many_are_forged_change_no_forgery() -> None:
    plain, asked = parse_forge("resample"), parse_forge("0.25*resample@native")
    assert (asked.native, asked.share, asked.part) == (True, 0.25, False)
    assert (plain.native, plain.share) == (False, 1.0)
    assert asked.fingerprint == plain.fingerprint and asked.spelling == plain.spelling


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(3)}, tmp_path / "encoder.safetensors")
    with pytest.raises(CoritError, match="no TAESD"):
        Autoencoder.load(str(tmp_path))


def test_every_face_is_blended(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [(10.0, 10.0, 80.0, 80.0), (150.0, 20.0, 190.0, 60.0)]
    faces = [Face(box, 0.9, np.zeros((5, 2))) for box in boxes]
    monkeypatch.setattr("corit_cli.data.forge.finder", lambda: lambda image: faces)
    image = photograph(0, (220, 120))
    found = parse_forge("face_blend").forge(image, np.random.default_rng(0))
    changed = (np.asarray(found.image) != np.asarray(image)).any(-1)
    for left, top, right, bottom in np.array(boxes).astype(int):
        assert changed[top:bottom, left:right].mean() > 0.2 and found.mask[top:bottom, left:right].any()
    assert not changed[found.mask == 0].any()


def test_a_blended_face_changes_nothing_but_the_face(one_face: OneFace) -> None:
    image = photograph(0, (160, 120))
    left, top, side = square(image.size, one_face(image)[0])
    for seed in range(8):
        found = parse_forge("face_blend").forge(image, np.random.default_rng(seed))
        inside = np.zeros((120, 160), bool)
        inside[top : top + side, left : left + side] = True
        changed = (np.asarray(found.image) != np.asarray(image)).any(-1)
        assert changed.any() and not changed[~inside].any() and not found.mask[~inside].any()
        assert not changed[found.mask == 0].any()
        share = (found.mask > 0.5 * found.mask.max()).sum() / side**2
        assert 0.05 < share < 0.5  # an oval in the square, not all of it
        again = parse_forge("face_blend")(image, np.random.default_rng(seed))
        assert np.array_equal(np.asarray(again), np.asarray(found.image))
    with pytest.raises(ImageError, match="no face"):
        parse_forge("face_blend").forge(photograph(0, (64, 48)), np.random.default_rng(0))
    assert parse_forge("face_blend").of_faces and not parse_forge("self_blend").of_faces
    with pytest.raises(CoritError, match="write face_blend"):
        parse_forge("face_blend@part")
