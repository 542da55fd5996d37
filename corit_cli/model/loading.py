"""Where the vision tower's weights come from.

Four kinds of name reach the same :class:`VisionTower`:

=========================  =====================================================================
``embedded``               OpenAI's CLIP ViT-B/16, shipped with the package; no network
``ViT-L-14/openai``        an open_clip architecture and pretrained tag, fetched through open_clip
``openai/clip-vit-...``    a Hub repository holding a CLIP in safetensors; ``hf-hub:`` may precede, ``@REVISION`` follow
``path/to/weights``        a ``.safetensors`` file, or a folder holding one, with its ``config.json``
=========================  =====================================================================

open_clip pulls in torchvision and timm and takes seconds to import, so only the second kind imports it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

from corit_cli.config import restored
from corit_cli.errors import CoritError
from corit_cli.files import content_sha256, weights_dir
from corit_cli.model.backbone import TowerConfig, VisionTower
from corit_cli.model.hub import PREFIX, NotCached, at_once, fetch, is_offline, silenced, why
from corit_cli.model.names import infer_config, tower_state

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Backbone:
    """A loaded tower with what identifies it: ``name`` as the user gives it, ``sha256`` of its weights.

    ``digits`` has those of its weights that are stored in 8 bits, by name: (out, in) int8 and a scale (out,), whose
    product the weight is.
    """

    tower: VisionTower
    name: str
    sha256: str
    digits: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def load_backbone(
    name: str = EMBEDDED, activation: str | None = None, device: str = "cpu", origin: str | None = None
) -> Backbone:
    """Load the tower called ``name`` (see the module's table), frozen, in float32, on ``device``.

    ``activation`` is needed only for a local file with no configuration beside it; ``origin`` is where on the Hub the
    name comes from, if it does: open_clip, whose files may be pickles, is not asked for those. Raises CoritError with
    a remedy when the weights are missing, damaged, unreachable or not a CLIP tower.
    """
    if name == EMBEDDED:
        backbone = _load_embedded()
    elif os.path.exists(name):  # also of what no file can be called
        backbone = _load_local(Path(name), activation)
    elif name.startswith((".", "/", "~")) or name.endswith((".safetensors", ".pt", ".pth", ".bin")):
        raise CoritError(f"backbone file {name} does not exist")
    elif name.startswith(PREFIX) or ("/" in name and not _is_open_clip_name(name.split("/", 1)[0])):
        backbone = _load_hub(name)
    elif origin is not None:
        raise CoritError(
            f"{origin} reads open_clip's {name}, which may be a pickle and is not fetched for a detector from the Hub: "
            "download its files into a folder, and give that, if you trust their maker"
        )
    else:
        backbone = _load_open_clip(name)
    return replace(backbone, tower=backbone.tower.to(device))


# --- the embedded tower ---------------------------------------------------------------------------


def _load_embedded() -> Backbone:
    folder = _embedded_folder()
    manifest = json.loads((folder / "config.json").read_text())
    state: dict[str, Tensor] = {}
    files: dict[str, str] = {}
    for file, expected in manifest["sha256"].items():
        path = folder / file
        if not path.is_file():
            raise CoritError(f"{path} is missing: install corit again")
        if content_sha256(path) != expected:
            raise CoritError(f"{path} is damaged (its SHA-256 is not the recorded one): install corit again")
        shard = load_file(path)
        state.update(shard)
        files |= {name: file for name in shard if f"{name}.scale" in shard}
    config = restored(TowerConfig, manifest["tower"])
    joined = hashlib.sha256("".join(manifest["sha256"].values()).encode()).hexdigest()
    return Backbone(_build(config, dequantise(state)), EMBEDDED, joined, _Digits(files))


def _embedded_folder() -> Path:
    return weights_dir() / "clip-vit-b16"


class _Digits(Mapping[str, tuple[Tensor, Tensor]]):
    """Those of the embedded tower, read from its shards, ``files`` by weight, whenever one is asked for: few need them,
    and a tower that does has them in a form of its own. It may be sent to a machine with the same package."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = dict(files)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        with safe_open(_embedded_folder() / self._files[name], framework="pt") as shard:
            return shard.get_tensor(name), shard.get_tensor(f"{name}.scale")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def dequantise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 weights from int8 ones: ``NAME`` (out, in) int8 times ``NAME.scale`` (out,), one per output channel."""
    out = {}
    for name, value in state.items():
        if name.endswith(".scale"):
            continue
        scale = state.get(f"{name}.scale")
        # Cloned: one tensor of a file keeps all of it in memory.
        out[name] = value.clone() if scale is None else value.float().mul_(scale[:, None])
    return out


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, in name order: the same weights give the same digest
    whichever file format brought them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().float().contiguous().cpu()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def tower_sha256(tower: VisionTower) -> str:
    """SHA-256 over a tower's weights and its arithmetic, since activation, heads and norms change the features too."""
    config = json.dumps(asdict(tower.config), sort_keys=True)
    return hashlib.sha256(f"{config}{state_sha256(tower.state_dict())}".encode()).hexdigest()


def _build(config: TowerConfig, state: Mapping[str, Tensor]) -> VisionTower:
    with torch.device("meta"):
        tower = VisionTower(config)
    tower.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    # Buffers are not in the state dict, so they are still on the meta device.
    tower.mean = torch.tensor(config.mean).view(3, 1, 1)
    tower.std = torch.tensor(config.std).view(3, 1, 1)
    return tower.requires_grad_(False).eval()


# --- local files, the Hub, open_clip --------------------------------------------------------------


def _load_local(path: Path, activation: str | None) -> Backbone:
    file = path
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CoritError(f"{path} holds no .safetensors file")
        file = next((f for f in files if f.name in ("model.safetensors", "open_clip_model.safetensors")), files[0])
    if not file.is_file():  # a pipe might never give a byte
        raise CoritError(f"{file} is neither a regular file nor a folder")
    if file.suffix != ".safetensors":
        raise CoritError(f"{file} is not a .safetensors file; pickled weights are never loaded, convert it first")
    try:
        with safe_open(file, framework="pt"):
            state = tower_state(load_file(file))
    except CoritError as error:
        raise CoritError(f"{file}: {error}") from None
    except Exception as error:
        raise CoritError(f"{file} is not a readable safetensors file ({error})") from None
    try:
        settings = _read_config(file.parent)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CoritError(f"the configuration beside {file} cannot be read ({_first_line(error)})") from None
    if activation is not None:
        settings["activation"] = activation
    if "activation" not in settings:
        raise CoritError(
            f"no config.json beside {file} says which activation it uses: give --activation quick_gelu "
            "(OpenAI's weights and their descendants) or --activation gelu"
        )
    try:
        tower = _build(infer_config(state, **settings), state)
    except ValueError as error:
        raise CoritError(f"{file}: {_first_line(error)}") from None
    except (RuntimeError, KeyError) as error:
        raise CoritError(f"{file} is not a complete CLIP image tower ({str(error).splitlines()[0]})") from None
    return Backbone(tower, str(path.resolve()), tower_sha256(tower))


def _read_config(folder: Path) -> dict:
    """What a ``config.json`` (transformers) or ``open_clip_config.json`` says that the tensors do not."""
    for name in ("open_clip_config.json", "config.json"):
        if not (folder / name).is_file():
            continue
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        if "model_cfg" in config:  # open_clip
            model, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
            vision = model.get("vision_cfg", {})
            out = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
            if isinstance(vision.get("width"), int) and vision.get("head_width"):
                out["heads"] = vision["width"] // vision["head_width"]
            for key in ("mean", "std", "interpolation"):
                if key in preprocess:
                    out[key] = tuple(preprocess[key]) if isinstance(preprocess[key], list) else preprocess[key]
            return out
        vision = config.get("vision_config", config)
        if "hidden_act" in vision or config.get("model_type") in ("clip", "clip_vision_model"):
            # transformers leaves defaults out of the file; CLIP's are quick_gelu and 64 channels a head.
            out = {"activation": vision.get("hidden_act", "quick_gelu")}
            if "num_attention_heads" in vision:
                out["heads"] = vision["num_attention_heads"]
            return out
        if "tower" in config:  # this project's own
            kept = ("activation", "heads", "norm_eps", "mean", "std", "interpolation")
            return {k: tuple(v) if isinstance(v, list) else v for k, v in config["tower"].items() if k in kept}
    return {}


def _load_hub(name: str) -> Backbone:
    names = ["config.json", "open_clip_config.json", "model.safetensors", "open_clip_model.safetensors"]
    found = fetch(name, names)
    return replace(_load_local(found.folder, None), name=found.name)


def _is_open_clip_name(architecture: str) -> bool:
    import open_clip

    return architecture in open_clip.list_models()


def _load_open_clip(name: str) -> Backbone:
    import open_clip

    architecture, _, tag = name.partition("/")
    if not _is_open_clip_name(architecture):
        raise CoritError(
            f"unknown backbone {name!r}: give 'embedded', an open_clip name and tag such as ViT-L-14/openai, "
            "a Hub repository, or a .safetensors file"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise CoritError(f"open_clip knows no weights {tag!r} for {architecture}; it has: {', '.join(tags) or 'none'}")
    command = f"python -c \"import open_clip; open_clip.create_model('{architecture}', pretrained='{tag}')\""
    try:
        with at_once(), silenced():
            model = open_clip.create_model(architecture, pretrained=tag)
    except Exception as error:
        if is_offline(error):
            raise NotCached(f"open_clip weights {name}", command) from None
        raise CoritError(f"open_clip cannot load {name}: {why(error)}") from None
    tower = from_open_clip(model.visual)
    return Backbone(tower, name, tower_sha256(tower))


def from_open_clip(visual: torch.nn.Module) -> VisionTower:
    """This project's tower with the weights and arithmetic of an open_clip ``VisionTransformer``.

    Raises CoritError for towers that are not a plain class-token ViT (timm towers, ResNets, SigLIP pooling).
    """
    import open_clip.transformer as oc

    pooled = getattr(visual, "pool_type", None) == "tok" and getattr(visual, "attn_pool", None) is None
    if not isinstance(visual, oc.VisionTransformer) or not pooled or getattr(visual, "final_ln_after_pool", False):
        raise CoritError("CoRIT reads a class token between blocks; this open_clip tower has none")
    block = visual.transformer.resblocks[0]
    fields = {
        "activation": "quick_gelu" if isinstance(block.mlp.gelu, oc.QuickGELU) else "gelu",
        "heads": block.attn.num_heads,
        "norm_eps": block.ln_1.eps,
    }
    for key, attribute in (("mean", "image_mean"), ("std", "image_std")):
        if getattr(visual, attribute, None) is not None:
            fields[key] = tuple(getattr(visual, attribute))
    fields |= {k: v for k, v in (getattr(visual, "preprocess_cfg", None) or {}).items() if k == "interpolation"}
    state = tower_state({k: v.detach() for k, v in visual.state_dict().items()})
    return _build(infer_config(state, **fields), state)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
