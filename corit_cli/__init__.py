"""CoRIT: deepfake and AI-image forensics.

>>> from corit_cli import Detector
>>> for p in Detector.load().predict("photo.jpg"):
...     print(p.path, p.verdict, p.probability)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.detection.detector import Detector
    from corit_cli.detection.verdicts import Prediction
    from corit_cli.errors import CoritError
    from corit_cli.evaluation.evaluate import evaluate
    from corit_cli.training.train import train

__all__ = ["CoritError", "Detector", "Prediction", "__version__", "evaluate", "train"]
#: Where each name is found, imported on first use: the command line must not wait for torch to print its help.
_HOMES = {
    "CoritError": "errors",
    "Detector": "detection.detector",
    "Prediction": "detection.verdicts",
    "evaluate": "evaluation.evaluate",
    "train": "training.train",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"corit_cli.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
