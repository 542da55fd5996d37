"""An unfinished run on disk: one safetensors file, whose metadata holds the rest as JSON. No pickle is ever loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from corit_cli.errors import CoritError
from corit_cli.files import write_atomically


@dataclass
class State:
    """All that a run needs to go on after ``len(history)`` epochs as if it had never stopped.

    ``weights`` are those trained so far, ``best`` those with the lowest held-out loss, ``optimizer`` its moments by
    "position.name", ``random`` the generator that shuffles. Step sizes follow from the epoch.
    """

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: Tensor
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write to ``path``, all or nothing; ``about`` says which run this is."""
        groups = {"weights": self.weights, "best": self.best, "optimizer": self.optimizer}
        tensors = {f"{group}/{name}": t.contiguous() for group, ts in groups.items() for name, t in ts.items()}
        record = json.dumps({"about": about, "history": self.history})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda p: save_file(tensors | {"random": self.random}, p, {"corit": record}))

    @classmethod
    def load(cls, path: Path, about: Mapping[str, Any]) -> State:
        """What :meth:`save` wrote. Raises CoritError when it is damaged, or of another run than ``about``."""
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads(file.metadata()["corit"])
            tensors = load_file(path)
            random = tensors.pop("random")
            for key, tensor in tensors.items():
                group, _, name = key.partition("/")
                groups[group][name] = tensor
            before = record["about"]
            state = cls(**groups, random=random, history=record["history"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CoritError(f"{path} is damaged ({error}): begin anew with --overwrite") from None
        changed = _differences(before, json.loads(json.dumps(about)))
        if changed:
            raise CoritError(
                f"{path.parent} holds a run with other {', '.join(changed)}: repeat its command, or begin anew with "
                "--overwrite"
            )
        return state


def _differences(a: Any, b: Any, name: str = "") -> list[str]:
    """The names of the entries in which two documents differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = list(dict.fromkeys((*a, *b)))
        return [n for key in keys for n in _differences(a.get(key), b.get(key), f"{name} {key}".strip())]
    return [] if a == b else [name]


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state by "position.name", copied to the CPU."""
    every = optimizer.state_dict()["state"]
    return {
        f"{position}.{name}": value.detach().to("cpu", copy=True)
        for position, values in every.items()
        for name, value in values.items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that :func:`moments` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in found.items():
        position, _, name = key.partition(".")
        state.setdefault(int(position), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
