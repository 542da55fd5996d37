from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from corit_cli.errors import CoritError
from corit_cli.model import loading as weights
from corit_cli.model.backbone import TowerConfig
from corit_cli.model.loading import dequantise, infer_config, load_backbone, tower_sha256, tower_state
from tests.conftest import random_tower

# Heads are 64 channels wide in every CLIP, which is what a file without a configuration is taken to have.
SMALL = TowerConfig(
    image_size=32, patch_size=8, width=128, layers=2, heads=2, mlp_width=64, activation="gelu", embed_dim=16
)

SMALL_STATE = random_tower(SMALL).state_dict()


def open_clip_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "patch_embedding.weight": "conv1.weight",
        "position_embedding": "positional_embedding",
        "projection": "proj",
    }
    inner = {"qkv.": "attn.in_proj_", "out.": "attn.out_proj.", "fc.": "mlp.c_fc.", "proj.": "mlp.c_proj."}
    out = {}
    for name, value in state.items():
        name = names.get(name, name)
        if name.startswith("blocks."):
            _, i, rest = name.split(".", 2)
            for ours, theirs in inner.items():
                if rest.startswith(ours):
                    rest = theirs + rest.removeprefix(ours)
                    break
            name = f"transformer.resblocks.{i}.{rest}"
        out[f"visual.{name}"] = value
    return out


def transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(4)}
    for name, value in state.items():
        if name == "projection":
            out["visual_projection.weight"] = value.T.contiguous()
        elif name.startswith("blocks."):
            _, i, module, part = name.split(".")
            base = f"vision_model.encoder.layers.{i}."
            if module == "qkv":
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    out[f"{base}self_attn.{letter}_proj.{part}"] = third.contiguous()
            else:
                renamed = {
                    "out": "self_attn.out_proj",
                    "fc": "mlp.fc1",
                    "proj": "mlp.fc2",
                    "ln_1": "layer_norm1",
                    "ln_2": "layer_norm2",
                }
                out[f"{base}{renamed[module]}.{part}"] = value
        else:
            renamed = (
                name.replace("patch_embedding", "embeddings.patch_embedding")
                .replace("class_embedding", "embeddings.class_embedding")
                .replace("position_embedding", "embeddings.position_embedding.weight")
                .replace("ln_pre", "pre_layrnorm")
                .replace("ln_post", "post_layernorm")
            )
            out[f"vision_model.{renamed}"] = value
    return out


@pytest.mark.parametrize("rename", [dict, open_clip_names, transformers_names])
def test_a_local_file_in_any_spelling_is_the_same_tower(rename, tmp_path: Path) -> None:
    tower = random_tower(SMALL)
    save_file(rename(tower.state_dict()), tmp_path / "clip.safetensors")
    loaded = load_backbone(str(tmp_path / "clip.safetensors"), activation="gelu")
    images = torch.rand(2, 3, 32, 32)
    assert loaded.tower.config == SMALL
    assert torch.equal(loaded.tower(images), tower(images))
    assert loaded.sha256 == tower_sha256(tower)
    other = load_backbone(str(tmp_path / "clip.safetensors"), activation="quick_gelu")
    assert other.sha256 != loaded.sha256  # the same numbers, other features


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "gelu", "num_attention_heads": 4}}),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"width": 128, "head_width": 32}}}),
    ],
)
def test_the_configuration_beside_a_file_is_read(file: str, config: dict, tmp_path: Path) -> None:
    save_file(random_tower(SMALL).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(config))
    tower = load_backbone(str(tmp_path)).tower
    assert (tower.config.activation, tower.config.heads) == ("gelu", 4)


def test_the_activation_is_never_guessed(tmp_path: Path) -> None:
    save_file(random_tower(SMALL).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CoritError, match="--activation"):
        load_backbone(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_bytes(b"garbage"), "not a readable safetensors"),
        (lambda p: save_file({"conv.weight": torch.ones(3)}, p), "not a plain CLIP"),
        (lambda p: save_file({k: v for k, v in SMALL_STATE.items() if "fc" not in k}, p), "not a complete"),
        (lambda p: save_file({**open_clip_names(SMALL_STATE), "visual.attn_pool.q": torch.ones(1)}, p), "attn_pool"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(make, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    make(path)
    with pytest.raises(CoritError, match=message):
        load_backbone(str(path), activation="gelu")


@pytest.mark.parametrize("name", ["clip.safetensors", "folder/model.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CoritError, match="neither a regular file nor a folder"):
        load_backbone(str((tmp_path / name).parent if "/" in name else tmp_path / name), activation="gelu")


def test_a_configuration_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    save_file(SMALL_STATE, tmp_path / "clip.safetensors")
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(CoritError, match="cannot be read") as error:
        load_backbone(str(tmp_path / "clip.safetensors"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", '{"model_type": "clip", "by": "J\u00fcrgen"}'.encode("latin-1")])
def test_a_configuration_that_is_no_utf8_is_one_line(content: bytes, tmp_path: Path) -> None:
    save_file(SMALL_STATE, tmp_path / "clip.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CoritError, match="cannot be read") as error:
        load_backbone(str(tmp_path / "clip.safetensors"))
    assert "\n" not in str(error.value)


def test_a_configuration_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    save_file(SMALL_STATE, tmp_path / "clip.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip", "by": "J\u00fcrgen"}', encoding="utf-8")
    script = f"from corit_cli.model.loading import load_backbone; load_backbone({str(tmp_path / 'clip.safetensors')!r})"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", script], env=os.environ | plain, check=True)


def test_an_activation_that_no_tower_has_is_one_line(tmp_path: Path) -> None:
    save_file(SMALL_STATE, tmp_path / "clip.safetensors")
    with pytest.raises(CoritError, match="activation must be"):
        load_backbone(str(tmp_path / "clip.safetensors"), activation="relu")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    torch.save(random_tower(SMALL).state_dict(), tmp_path / "clip.pt")
    with pytest.raises(CoritError, match="pickled"):
        load_backbone(str(tmp_path / "clip.pt"), activation="gelu")


def test_dequantised_weights_are_int8_times_scale() -> None:
    q = torch.tensor([[1, -127], [50, 0]], dtype=torch.int8)
    out = dequantise({"w": q, "w.scale": torch.tensor([0.5, 2.0]), "b": torch.tensor([3.0])})
    assert out["w"].tolist() == [[0.5, -63.5], [100.0, 0.0]] and out["b"].item() == 3.0 and len(out) == 2


def test_the_embedded_tower_keeps_its_digits() -> None:
    backbone = load_backbone()
    weights = dict(backbone.tower.named_parameters())
    assert set(backbone.digits) == {
        f"blocks.{k}.{name}.weight" for k in range(12) for name in ("qkv", "out", "fc", "proj")
    }
    for name in ("blocks.0.qkv.weight", "blocks.11.proj.weight"):
        digits, scale = pickle.loads(pickle.dumps(backbone.digits))[name]
        assert digits.dtype == torch.int8 and torch.equal(digits.float() * scale[:, None], weights[name])


def test_a_damaged_embedded_tower_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "clip-vit-b16"
    shutil.copytree(weights.weights_dir() / "clip-vit-b16", folder)
    monkeypatch.setattr(weights, "weights_dir", lambda: tmp_path)
    shard = folder / "tower-2-of-2.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CoritError, match="damaged"):
        load_backbone()
    shard.unlink()
    with pytest.raises(CoritError, match="missing"):
        load_backbone()


def test_unknown_names_say_what_is_understood() -> None:
    with pytest.raises(CoritError, match="unknown backbone"):
        load_backbone("ViT-nonsense")
    for name in ("x" * 5000, "a\0b", "\ud800"):  # no file can be called so
        with pytest.raises(CoritError, match="unknown backbone"):
            load_backbone(name)
    with pytest.raises(CoritError, match="it has: openai"):
        load_backbone("ViT-L-14-336/nonsense")


@pytest.mark.parametrize("name", ["ViT-B-32/openai", "hf-hub:someone/some-clip", "someone/some-clip"])
def test_offline_is_one_line_with_a_remedy(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(CoritError, match="network") as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value) and "run `" in str(caught.value)


def test_towers_without_a_class_token_are_refused() -> None:
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config("RN50")
    config["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8}
    visual = open_clip.model._build_vision_tower(64, config["vision_cfg"])
    with pytest.raises(CoritError, match="class token"):
        weights.from_open_clip(visual)


def test_shape_is_read_off_the_tensors() -> None:
    state = tower_state(open_clip_names(random_tower(SMALL).state_dict()))
    assert infer_config(state, "gelu") == SMALL


@pytest.mark.parametrize("name", ["ViT-B-32/openai", "somebody/clip"])
def test_a_hub_that_cannot_be_reached_is_one_line_at_once(name: str, tmp_path: Path) -> None:
    code = (
        f"from corit_cli.cli.app import main; import sys; sys.argv = ['corit', 'gsnr', '--backbone', {name!r}]; main()"
    )
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "HF_HUB_OFFLINE"}
    environment = {**kept, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "gsnr", "--backbone", name],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "the network cannot be reached" in done.stderr and "Retry" not in done.stderr
