"""The vision tower: a pre-norm vision transformer with a class token, run block by block.

CoRIT works *between* blocks, so the tower exposes three steps (``embed``, the blocks, ``project``) where
most implementations offer one forward pass. Layer 0 is the token
sequence after the pre-norm, layer l is the output of block l, l = 1..L.

Shapes: B images, N = 1 + P tokens (class token first, then P patches in row-major order), d channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
#: Of tokens, in a block that computes only the first of each image.
FEWEST_ROWS = 4
INTERPOLATIONS = ("bicubic", "bilinear")
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: What OpenAI's activation multiplies by before the sigmoid.
QUICK = 1.702


@dataclass(frozen=True)
class TowerConfig:
    """Shape and arithmetic of a tower; everything a state dict alone does not tell.

    ``activation`` is ``"quick_gelu"`` (OpenAI's weights) or ``"gelu"`` (most others). Confusing the two gives
    plausible but wrong features, so it is always stated, never guessed. ``mean`` and ``std`` are the
    per-channel normalisation the weights were trained with; ``interpolation`` is the resize they expect.

    Raises ValueError where these do not fit each other.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    embed_dim: int | None = None
    pre_norm: bool = True
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(f"image size {self.image_size} is not a multiple of patch size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x). In a mode without gradients ``x`` is overwritten: a batch's widest tensor is more than a C
    library keeps at hand, and memory that is new from the system at every step takes its time."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation, x * sigmoid(1.702 x), through the fused SiLU kernel; ``x`` is overwritten as there."""
    if torch.is_grad_enabled():
        return silu(x * QUICK) / QUICK
    return silu(x.mul_(QUICK)).div_(QUICK)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Block(nn.Module):
    """One pre-norm transformer block: x + attn(ln_1 x), then x + mlp(ln_2 x).

    With ``reassociate`` a class token computed alone (``rows`` = 1) takes a shorter way to the same result, unless
    products are in a lower precision than the tokens.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.activation = ACTIVATIONS[config.activation]
        self.reassociate = False
        self.ln_1 = nn.LayerNorm(d, eps=config.norm_eps)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.ln_2 = nn.LayerNorm(d, eps=config.norm_eps)
        self.fc = nn.Linear(d, config.mlp_width)
        self.proj = nn.Linear(config.mlp_width, d)

    def forward(self, x: Tensor, rows: int | None = None, normal: Tensor | None = None) -> Tensor:
        """Run the block on tokens ``x`` (B, N, d).

        With ``rows`` = r only the first r output tokens are computed, (B, r, d): every token is still attended
        to, but queries and the MLP, five sixths of the work, are spent on the tokens that are read.

        Matrix products of a single image, with fewer than ``FEWEST_ROWS`` rows, or (in bf16) of rows that lie apart,
        may be summed up in another order: without gradients they are filled up, and brought together, so that on a CPU
        the last bits of an image's features do not depend on the rest of a batch, as long as as many threads multiply.

        With ``normal`` (B, N, d), tokens that are :meth:`normalised`, the class token is computed alone, the shorter
        way; class tokens are then enough of ``x``.
        """
        if normal is not None:
            return self._class_row(x, normal)
        if rows == 1 and self.reassociate and self.fc.weight.dtype == x.dtype:
            return self._class_row(x, self.normalised(x))
        B, N, d = x.shape
        y = self.ln_1(x).to(self.fc.weight.dtype)  # (B, N, d)
        lacking = 0
        if rows is None or rows >= N:
            q, k, v = self.qkv(y).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 x (B, H, N, d/H)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            lacking = max(0, -(-FEWEST_ROWS // rows) - B)
            q = F.linear(_more(y[:, :rows].contiguous(), lacking), weight[:d], bias[:d])[:B]  # (B, r, d)
            q = q.view(B, rows, self.heads, -1).transpose(1, 2)  # (B, H, r, d/H)
            k, v = F.linear(y, weight[d:], bias[d:]).view(B, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
            x = x[:, :rows]
        y = F.scaled_dot_product_attention(q, k, v)  # (B, H, r, d/H)
        x = x + self.out(_more(y.transpose(1, 2).reshape(B, -1, d), lacking))[:B]  # (B, r, d)
        y = _more(self.ln_2(x), lacking).to(self.fc.weight.dtype)  # (B + lacking, r, d)
        y = self.activation(self.fc(y))  # (B + lacking, r, mlp_width)
        return x + self.proj(_more(y, 2 - len(y)))[:B]  # (B, r, d)

    def normalised(self, x: Tensor) -> Tensor:
        """Tokens (..., d) as the first layer norm has them before its scale and shift."""
        return F.layer_norm(x, x.shape[-1:], eps=self.ln_1.eps)

    def _class_row(self, x: Tensor, y: Tensor) -> Tensor:
        """The class token's output (B, 1, d) without any other token's key or value, from tokens ``y`` (B, N, d) that
        are normalised.

        A score q.(W_k y) is (W_k^T q).y, and a weighted sum of values is W_v times the weighted sum of tokens: a tenth
        of the work where the block itself is trained. Key biases shift all of a head's scores alike and drop out.
        """
        B, _, d = x.shape
        scale, shift = self.ln_1.weight, self.ln_1.bias
        w_q, w_k, w_v = self.qkv.weight.chunk(3)
        b_q, _, b_v = self.qkv.bias.chunk(3)
        q = F.linear(y[:, 0] * scale + shift, w_q, b_q).view(B, self.heads, -1)  # (B, H, d/H)
        u = torch.einsum("bhe,hed->bhd", q, w_k.view(self.heads, -1, d)) * scale  # (B, H, d)
        scores = u @ y.transpose(1, 2) * (d // self.heads) ** -0.5  # (B, H, N)
        mean = scores.softmax(-1) @ y * scale + shift  # (B, H, d)
        v = torch.einsum("bhd,hed->bhe", mean, w_v.view(self.heads, -1, d)).flatten(1) + b_v  # (B, d)
        x = x[:, :1] + self.out(v)[:, None]  # (B, 1, d)
        return x + self.proj(self.activation(self.fc(self.ln_2(x))))  # (B, 1, d)


def _more(x: Tensor, lacking: int) -> Tensor:
    """``x`` (B, r, d) with so many images more, of zeros; where no gradient is taken, sample by sample perhaps."""
    return F.pad(x, (0, 0, 0, 0, 0, lacking)) if lacking > 0 and not torch.is_grad_enabled() else x


class VisionTower(nn.Module):
    """A CLIP image tower. Frozen on construction; ``requires_grad_`` thaws what a caller wants to train."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.patch_embedding = nn.Conv2d(3, d, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(d))
        self.position_embedding = nn.Parameter(torch.zeros(1 + config.grid**2, d))
        self.ln_pre = nn.LayerNorm(d, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_post = nn.LayerNorm(d, eps=config.norm_eps)
        self.projection = nn.Parameter(torch.zeros(d, config.embed_dim)) if config.embed_dim else None
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def embed(self, images: Tensor) -> Tensor:
        """Layer 0: images (B, 3, S, S) in [0, 1] to tokens (B, N, d). Normalisation happens here.

        Raises ValueError when the images do not have the tower's own size S.
        """
        S = self.config.image_size
        if images.shape[1:] != (3, S, S):
            raise ValueError(f"the tower reads images of shape (B, 3, {S}, {S}), not {tuple(images.shape)}")
        x = self.patch_embedding((images - self.mean) / self.std)  # (B, d, S/p, S/p)
        x = x.flatten(2).transpose(1, 2)  # (B, P, d)
        cls = self.class_embedding.expand(x.shape[0], 1, -1)  # (B, 1, d)
        return self.ln_pre(torch.cat([cls, x], dim=1) + self.position_embedding)  # (B, N, d)

    def layers(self, images: Tensor) -> list[Tensor]:
        """Tokens of layers 0..L, each (B, N, d)."""
        x = self.embed(images)
        out = [x]
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Image embedding (B, embed_dim), unnormalised: what CLIP compares with text."""
        x = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.ln_post(self.blocks[-1](x, rows=1)[:, 0])  # (B, d)
        return x if self.projection is None else x @ self.projection
