from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from corit_cli.data.autoencoder import Autoencoder
from corit_cli.data.forge import MAX_SIDE, parse_forge
from corit_cli.data.variants import Variant
from corit_cli.errors import CoritError
from tests.conftest import photograph

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


@pytest.mark.parametrize("spec", ["reconstruct", "reconstruct:", "paint:x"])
def test_nonsense_is_refused(spec: str) -> None:
    with pytest.raises(ValueError):
        parse_forge(spec)


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(3)}, tmp_path / "encoder.safetensors")
    with pytest.raises(CoritError, match="no TAESD"):
        Autoencoder.load(str(tmp_path))
