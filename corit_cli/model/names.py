"""The names that other libraries give a CLIP image tower's tensors, and the shape that the tensors tell."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from corit_cli.errors import CoritError
from corit_cli.model.backbone import TowerConfig

_OPEN_CLIP = [
    (r"^conv1\.weight$", "patch_embedding.weight"),
    (r"^class_embedding$", "class_embedding"),
    (r"^positional_embedding$", "position_embedding"),
    (r"^ln_(pre|post)\.(weight|bias)$", r"ln_\1.\2"),
    (r"^transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)$", r"blocks.\1.ln_\2.\3"),
    (r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", r"blocks.\1.qkv.\2"),
    (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)$", r"blocks.\1.out.\2"),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_(fc|proj)\.(weight|bias)$", r"blocks.\1.\2.\3"),
    (r"^proj$", "projection"),
]
_TRANSFORMERS = [
    (r"^vision_model\.embeddings\.patch_embedding\.weight$", "patch_embedding.weight"),
    (r"^vision_model\.embeddings\.class_embedding$", "class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "position_embedding"),
    (r"^vision_model\.pre_layrnorm\.(weight|bias)$", r"ln_pre.\1"),
    (r"^vision_model\.post_layernorm\.(weight|bias)$", r"ln_post.\1"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(weight|bias)$", r"blocks.\1.ln_\2.\3"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", r"blocks.\1.\2.\3"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)$", r"blocks.\1.out.\2"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(weight|bias)$", r"blocks.\1.fc.\2"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(weight|bias)$", r"blocks.\1.proj.\2"),
    (r"^visual_projection\.weight$", "projection.T"),
]


def tower_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a CLIP state dict to this project's names.

    Reads open_clip's and OpenAI's names (with or without ``visual.``), Hugging Face transformers' and this
    project's own. Tensors of the text tower are dropped. Raises CoritError when no image tower is found.
    """
    if "patch_embedding.weight" in state:
        return dict(state)
    if any(k.startswith("visual.") for k in state):
        state = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    rules = _TRANSFORMERS if any(k.startswith("vision_model.") for k in state) else _OPEN_CLIP
    out: dict[str, Tensor] = {}
    unread = []
    for name, value in state.items():
        for pattern, target in rules:
            if re.match(pattern, name):
                out[re.sub(pattern, target, name)] = value
                break
        else:
            unread.append(name)
    if rules is _TRANSFORMERS:
        unread = [name for name in unread if name.startswith("vision_model.") and "position_ids" not in name]
        if "projection.T" in out:
            out["projection"] = out.pop("projection.T").T.contiguous()
        for i in {m[1] for m in (re.match(r"blocks\.(\d+)\.q\.", k) for k in out) if m}:
            for part in ("weight", "bias"):
                out[f"blocks.{i}.qkv.{part}"] = torch.cat([out.pop(f"blocks.{i}.{p}.{part}") for p in "qkv"])
    if "patch_embedding.weight" not in out or unread:
        detail = f"it also holds {unread[0]!r}" if unread else "no patch embedding found"
        raise CoritError(f"these weights are not a plain CLIP vision transformer with a class token ({detail})")
    return out


def infer_config(state: Mapping[str, Tensor], activation: str, heads: int | None = None, **fields) -> TowerConfig:
    """Read the tower's shape off its tensors (names as :func:`tower_state` gives them).

    ``heads`` defaults to 64 channels a head, as every OpenAI CLIP has.
    """
    width, _, patch, _ = state["patch_embedding.weight"].shape
    side = round((state["position_embedding"].shape[0] - 1) ** 0.5)
    projection = state.get("projection")
    return TowerConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        layers=1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", k) for k in state) if m),
        heads=heads or width // 64,
        mlp_width=state["blocks.0.fc.weight"].shape[0],
        activation=activation,
        embed_dim=None if projection is None else projection.shape[1],
        pre_norm="ln_pre.weight" in state,
        **fields,
    )
