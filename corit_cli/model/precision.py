"""Which arithmetic the matrix products of a tower's blocks are done in, by the machine.

Brain floating point (bf16) halves the bytes of every product, and some processors multiply it three times faster than
float32, others more slowly: what the instruction set promises is not what is got. So it is timed, once a machine.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch.nn import functional as F

from corit_cli.errors import CoritError
from corit_cli.files import cache_dir
from corit_cli.model.backbone import VisionTower
from corit_cli.model.settings import PRECISIONS

#: How many times faster than float32 a product has to be in bf16 to be worth the digits.
PAYS = 1.5
_REPEATS = 5
_LAYERS = ("qkv", "out", "fc", "proj")


def pick_precision(name: str, device: str) -> str:
    """``auto`` to bf16 where ``device`` is clearly faster with it, else fp32; other names stay. Raises CoritError for
    names that there are not."""
    if name not in PRECISIONS:
        raise CoritError(f"unknown precision {name!r}: give {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _gain() >= PAYS else "fp32"


def lowered(tower: VisionTower, precision: str) -> VisionTower:
    """``tower`` with the products of its blocks in ``precision``: a copy that shares all other weights.

    What runs between blocks, layer norms, embedding and projection stay in float32: contrasts are small differences of
    tokens, which bf16 could not hold.
    """
    if precision == "fp32":
        return tower
    layers = [getattr(block, name) for block in tower.blocks for name in _LAYERS]
    own = {id(p) for layer in layers for p in layer.parameters()}
    memo = {id(t): t for t in (*tower.parameters(), *tower.buffers()) if id(t) not in own}
    memo |= {id(p): torch.nn.Parameter(p.to(torch.bfloat16), False) for layer in layers for p in layer.parameters()}
    return copy.deepcopy(tower, memo)


@lru_cache
def _gain() -> float:
    """How many times faster this machine's processor multiplies in bf16 than in float32, as it was once measured."""
    file = cache_dir() / "precision.json"
    key = hashlib.sha256(f"{_processor()} {torch.__version__} {torch.get_num_threads()}".encode()).hexdigest()
    known = _read(file)
    if key not in known:
        known[key] = round(_measure(), 2)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known))
        except OSError:  # then it is measured again
            pass
    return known[key]


def _read(file: Path) -> dict[str, float]:
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, int | float)} if isinstance(known, dict) else {}


def _processor() -> str:
    """What tells one kind of processor from another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    drifting = ("processor", "core id", "apicid", "initial apicid", "cpu MHz", "bogomips", "physical id")
    return "\n".join(line for line in lines if line.partition("\t")[0].strip() not in drifting)


def _measure() -> float:
    """The ratio of the times that a product takes, by the processor's clock, which other programs do not slow down."""
    x, w = torch.rand(512, 768), torch.rand(768, 768)
    pairs = [(x, w), (x.bfloat16(), w.bfloat16())]
    times: list[list[float]] = [[], []]
    with torch.inference_mode():
        for _ in range(_REPEATS + 1):  # in turn; the first ones warm up
            for (a, b), taken in zip(pairs, times, strict=True):
                begun = time.process_time()
                F.linear(a, b)
                taken.append(time.process_time() - begun)
    full, low = (min(taken[1:]) for taken in times)
    return full / max(low, 1e-9)
