"""What a checkpoint from anywhere must be for a run to end well: its numbers finite, its records what reports read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from corit_cli.errors import CoritError

#: No weight, and no number of a calibration, that training finds is larger, and no spread of a feature smaller: with
#: such, a probability would be no number.
LARGEST, SMALLEST = 1e6, 1e-9
#: Of error rates how many images they are of; older checkpoints have one number for both classes.
_COUNTS = ("real", "fake", "images")
#: As how many independent ones they count, which need not be a whole number.
_INDEPENDENT = ("independent_real", "independent_fake")
#: The largest count that a float holds exactly.
COUNT = 2**53


def check_records(metrics: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Raise CoritError for what no report, model card or protocol can be made of: they read it when all else is done.
    What is missing is not on record."""
    for name in metrics:
        if name.startswith("held_out"):
            for key, value in table(f"metrics.{name}", metrics[name]).items():
                called = f"metrics.{name}.{key}"
                number(called, value, 0, COUNT if key in (*_COUNTS, *_INDEPENDENT) else 1)
                if key in _COUNTS:
                    check(called, value, float(value).is_integer())
                if key in _INDEPENDENT:
                    check(called, value, value == 0 or value >= 1)
    places = table("metrics.localizer", metrics.get("localizer") or {})
    if places:
        number("metrics.localizer.tried_on", places["tried_on"], 0, COUNT)
        for kind, found in table("metrics.localizer.pixel_auc", places["pixel_auc"]).items():
            for name in ("forged", "original"):
                number(f"metrics.localizer.pixel_auc.{kind}.{name}", found[name], 0, 1)
    for name, counts in table("data.sources", data.get("sources", {})).items():
        for part, count in table(f"data.sources.{name}", counts).items():
            number(f"data.sources.{name}.{part}", count, 0, COUNT)
    number("data.leaked", data.get("leaked", 0), 0, COUNT)
    kept = {name: table(f"training.{name}", training.get(name) or {}) for name in ("settings", "recipe", "tune")}
    forge = kept["recipe"].get("forge", [])
    check("training.recipe.forge", forge, isinstance(forge, list) and all(isinstance(one, str) for one in forge))


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        least = SMALLEST if name.endswith(".scale") else -LARGEST
        if not ((tensor.float() >= least) & (tensor.float() <= LARGEST)).all():
            raise RuntimeError(f"{name} is not finite, or not between {least:g} and {LARGEST:g}")


def table(called: str, value: object) -> dict[str, Any]:
    check(called, value, isinstance(value, dict))
    return value


def number(called: str, value: object, least: float = -LARGEST, most: float = LARGEST) -> None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    check(called, value, plain and least <= value <= most)


def check(called: str, value: object, right: bool) -> None:
    if not right:
        raise CoritError(f"{called} cannot be {value!r:.60}")


def check_room(weights: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError where there are not so many weights, before memory is taken for them."""
    if weights > sum(tensor.numel() for tensor in tensors.values()):
        raise RuntimeError("it names more weights than there are")
