"""CoRIT: deepfake and AI-image forensics.

>>> from corit_cli import Detector
>>> for p in Detector.load().predict(["photo.jpg"]):
...     print(p.path, p.verdict, p.probability)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corit_cli.engine.predict import Detector, Prediction

__version__ = "0.1.0"
__all__ = ["Detector", "Prediction", "__version__"]


def __getattr__(name: str) -> object:
    # Imported on first use: the command line must not wait for torch to print its help.
    if name in ("Detector", "Prediction"):
        from corit_cli.engine import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
