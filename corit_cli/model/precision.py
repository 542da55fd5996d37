"""Which arithmetic the matrix products of a tower's blocks are done in, by the machine.

Brain floating point (bf16) halves the bytes of every product, and some processors multiply it three times faster than
float32, others more slowly; many more have instructions for 8-bit integers, which weights that are stored so can be
multiplied with and lose nothing. What the instruction set promises is not what is got: it is timed, once a machine.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from corit_cli.errors import CoritError, NotMultiplied
from corit_cli.files import cache_dir, is_special, write_atomically
from corit_cli.model.backbone import QUICK, VisionTower, quick_gelu, silu
from corit_cli.model.int8 import Int8Linear, available
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import PRECISIONS

#: How many times faster than float32 a product has to be to be worth it: in bf16 for its digits, in 8-bit integers for
#: the time between products, in which these gain nothing.
PAYS = {"bf16": 1.5, "int8": 1.25}
_REPEATS = 5
#: Raised whenever what is timed becomes another, so that it is timed again.
_HOW = 1
_LAYERS = ("qkv", "out", "fc", "proj")


def pick_precision(name: str, device: str, backbone: Backbone | None = None) -> str:
    """``auto`` to what ``device`` is clearly fastest with, else fp32; other names stay.

    8-bit integers are taken for a ``backbone`` whose weights are stored in them, on a processor. Raises CoritError for
    names that there are not, and for int8 where there is no such backbone or processor.
    """
    if name not in PRECISIONS:
        raise CoritError(f"unknown precision {name!r}: give {', '.join(PRECISIONS)}")
    if name == "int8":
        if device != "cpu":
            raise NotMultiplied("8-bit products are a processor's: give --device cpu, or another --precision")
        if backbone is None or not backbone.digits:
            raise NotMultiplied("weights that are not stored in 8 bits are not multiplied so: give another --precision")
    if name != "auto":
        return name
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = ["bf16", "int8"] if backbone is not None and backbone.digits else ["bf16"]
    gains = {other: gain for other, gain in _gains().items() if other in able and gain >= PAYS[other]}
    return max(gains, key=gains.get, default="fp32")


def lowered(backbone: Backbone, precision: str) -> VisionTower:
    """The tower of ``backbone`` with the products of its blocks in ``precision``: a copy that shares all other weights.

    What runs between blocks, layer norms, embedding and projection stay in float32: contrasts are small differences of
    tokens, which bf16 could not hold. With int8 weights that are not stored in 8 bits are
    multiplied in float32. Raises ValueError for no such precision, and for int8 where no weight is stored so.
    """
    tower, digits = backbone.tower, backbone.digits if precision == "int8" else {}
    if precision == "fp32":
        return tower
    if precision not in PAYS or (precision == "int8" and not digits):
        raise ValueError(f"the weights of {backbone.name} are not multiplied in {precision}")
    low = copy.deepcopy(tower, {id(t): t for t in (*tower.parameters(), *tower.buffers())})  # all weights are shared
    for number, block in enumerate(low.blocks):
        stored = {name: digits.get(f"blocks.{number}.{name}.weight") for name in _LAYERS}
        factors = dict.fromkeys(_LAYERS, (1.0, 1.0))
        if block.activation is quick_gelu and (precision == "bf16" or (stored["fc"] and stored["proj"])):
            # x * sigmoid(1.702 x) is silu(1.702 x) / 1.702: the weights on both sides take the number.
            block.activation, factors["fc"], factors["proj"] = silu, (QUICK, QUICK), (1 / QUICK, 1.0)
        for name in _LAYERS:
            layer: nn.Linear = getattr(block, name)
            if precision == "bf16":
                setattr(block, name, _in_bf16(layer, *factors[name]))
            elif stored[name] is not None:
                setattr(block, name, Int8Linear(layer, *stored[name], *factors[name]))
    return low


def _in_bf16(layer: nn.Linear, gain: float, shift: float) -> nn.Linear:
    """``layer`` with its weight times ``gain`` and its bias times ``shift``, in bf16."""
    low = nn.Linear(layer.in_features, layer.out_features, device="meta")
    low.weight = nn.Parameter((layer.weight * gain).bfloat16(), False)
    low.bias = nn.Parameter((layer.bias * shift).bfloat16(), False)
    return low


@lru_cache
def _gains() -> dict[str, float]:
    """How many times faster than in float32 this machine's processor multiplies, as it was once measured; 0 for what it
    cannot do."""
    file = cache_dir() / "precision.json"
    told = f"{_processor()} {torch.__version__} {available()} {_HOW}"
    key = hashlib.sha256(told.encode()).hexdigest()
    known = _read(file)
    if key not in known:
        known[key] = _measure()
        with suppress(CoritError, OSError):  # else it is measured again
            file.parent.mkdir(parents=True, exist_ok=True)
            if not is_special(file):  # a pipe would wait for a reader
                write_atomically(file, lambda place: place.write_text(json.dumps(known)))
    return known[key]


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        known = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in known.items() if _is_measured(v)} if isinstance(known, dict) else {}


def _is_measured(gains: object) -> bool:
    """Whether these are gains as :func:`_measure` gives them."""
    right = isinstance(gains, dict) and set(gains) == set(PAYS)
    return right and all(isinstance(gain, int | float) for gain in gains.values())


def _processor() -> str:
    """What tells one kind of processor from another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    drifting = ("processor", "core id", "apicid", "initial apicid", "cpu MHz", "bogomips", "physical id")
    return "\n".join(line for line in lines if line.partition("\t")[0].strip() not in drifting)


@torch.inference_mode()
def _measure() -> dict[str, float]:
    """The ratios of the times that a layer takes in one thread, by that thread's clock, which neither other programs
    nor threads that wait for each other slow down."""
    random = torch.Generator().manual_seed(0)
    x, layer = torch.rand(512, 768, generator=random), nn.Linear(768, 3072, device="meta")
    digits = torch.randint(-127, 128, (3072, 768), generator=random, dtype=torch.int8)
    scale = torch.full((3072,), 1 / 127)  # (out,)
    layer.weight = nn.Parameter(digits * scale[:, None], False)
    layer.bias = nn.Parameter(torch.zeros(3072), False)
    low = _in_bf16(layer, 1.0, 1.0)
    ways: dict[str, Callable[[], Tensor]] = {"fp32": lambda: layer(x), "bf16": lambda: low(x.bfloat16())}
    if available():
        whole = Int8Linear(layer, digits, scale)
        ways["int8"] = lambda: whole(x)
    taken: dict[str, list[float]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for again in range(_REPEATS + 1):  # in turn; the first ones warm up
            for name, multiply in ways.items():
                begun = time.thread_time()
                multiply()
                taken.setdefault(name, []).append(time.thread_time() - begun)
            if again == 1:  # what takes twice as long will not pay, and may take a second each time
                ways = {name: way for name, way in ways.items() if taken[name][1] <= 2 * taken["fp32"][1]}
    finally:
        torch.set_num_threads(threads)
    least = {name: max(min(own[1:]), 1e-9) for name, own in taken.items()}
    return {name: round(least["fp32"] / least[name], 2) if name in least else 0.0 for name in PAYS}
