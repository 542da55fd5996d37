"""Tiny autoencoders of the TAESD family (Ollin Boer Bohan, MIT): a diffusion model's decoder, small enough for a CPU.

A photograph sent through encoder and decoder keeps its content and gains a latent-diffusion decoder's traces, which
makes it a fake whose semantics equal those of its real twin (the aligned pairs of Rajan et al., ICLR 2025). Only the
architecture is here; the weights are the user's (taesd, taesdxl, taesd3, taef1, taef2), from a folder or the Hub.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from corit_cli.errors import CoritError

FACTOR = 8  # pixels of the image to one latent position, along each side


class _Block(nn.Module):
    """relu(conv3x3-relu-conv3x3-relu-conv3x3 (x) + x), with a channel bottleneck before it where there is one."""

    def __init__(self, channels: int, pool: int | None) -> None:
        super().__init__()
        conv = lambda: nn.Conv2d(channels, channels, 3, padding=1)  # noqa: E731
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        self.pool = pool and nn.Sequential(
            nn.Conv2d(channels, pool, 1, bias=False),
            nn.GroupNorm(4, pool),
            nn.ReLU(),
            nn.Conv2d(pool, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class _Squash(nn.Module):
    """Soft clamp of the latents to (-3, 3), the decoder's first step."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _build(state: Mapping[str, Tensor], decoder: bool) -> nn.Sequential:
    """Read the sequence of layers off the tensors' names ``INDEX.rest``; a convolution without bias changes size."""
    indices = sorted({int(name.split(".")[0]) for name in state})
    modules: list[nn.Module] = [_Squash()] if decoder else []
    for position, i in enumerate(indices):
        part = {k.removeprefix(f"{i}."): v.float() for k, v in state.items() if k.startswith(f"{i}.")}
        if "conv.0.weight" in part:
            pool = part.get("pool.0.weight")
            module: nn.Module = _Block(part["conv.0.weight"].shape[0], None if pool is None else pool.shape[0])
        else:
            out_channels, in_channels, _, _ = part["weight"].shape
            resizes = "bias" not in part
            if resizes and decoder:
                modules.append(nn.Upsample(scale_factor=2))
            stride = 2 if resizes and not decoder else 1
            module = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=not resizes)
        module.load_state_dict(part)
        modules.append(module)
        if decoder and position == 0:
            modules.append(nn.ReLU())
    return nn.Sequential(*modules).requires_grad_(False).eval()


class Autoencoder:
    """Encoder and decoder; calling it reconstructs images (B, 3, H, W) in [0, 1], any H and W."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        self.encoder, self.decoder = encoder, decoder
        digest = hashlib.sha256()
        for tensor in (*encoder.state_dict().values(), *decoder.state_dict().values()):
            digest.update(tensor.numpy().tobytes())
        self.sha256 = digest.hexdigest()

    @classmethod
    def load(cls, source: str) -> Autoencoder:
        """From a folder (``*encoder*.safetensors`` and ``*decoder*.safetensors``, or one diffusers file) or a Hub name.

        Raises CoritError when ``source`` holds no such pair or cannot be reached.
        """
        folder = Path(source)
        if not folder.is_dir():
            if source.startswith((".", "/", "~")):
                raise CoritError(f"autoencoder {source!r} is neither a folder here nor the name of a Hub repository")
            folder = _download(source)
        parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
        try:
            for file in sorted(folder.glob("*.safetensors")):
                for name, value in load_file(file).items():
                    part = next((p for p in parts if name.startswith(f"{p}.") or p in file.stem), None)
                    if part and (key := re.sub(rf"^({part}\.)?(layers\.)?", "", name))[:1].isdigit():
                        parts[part][key] = value
            for name, part in parts.items():
                if not part:
                    raise ValueError(f"no {name} weights found")
            return cls(_build(parts["encoder"], decoder=False), _build(parts["decoder"], decoder=True))
        except (KeyError, RuntimeError, IndexError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise CoritError(f"{source} holds no TAESD encoder and decoder in safetensors ({reason})") from None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        H, W = images.shape[-2:]
        padded = F.pad(images, (0, -W % FACTOR, 0, -H % FACTOR), mode="replicate")
        return self.decoder(self.encoder(padded))[..., :H, :W].clamp(0, 1)


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.safetensors"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise CoritError(f"autoencoder {repo!r} is neither a folder nor a Hub repository in reach: {reason}") from None
