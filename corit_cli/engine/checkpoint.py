"""A trained detector on disk: ``model.safetensors`` (head and standardiser) beside ``config.json`` (everything else).

The backbone is not saved again; its name and SHA-256 are, and a checkpoint refuses any other. Where parts of it were
tuned, those tensors stand beside the head's. No pickle is ever loaded.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from corit_cli import __version__
from corit_cli.data.images import CropConfig
from corit_cli.engine.fit import Calibration, Thresholds
from corit_cli.engine.weights import state_sha256
from corit_cli.errors import CoritError
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings

FORMAT = 1
#: Before the names of the tower's tuned tensors in ``model.safetensors``, and of the localizer's.
TOWER, LOCALIZER = "tower.", "localizer."


@dataclass(frozen=True)
class Localizer:
    """What a heatmap is drawn by: ``head`` maps patch contrasts (..., F) to log odds of having been forged (...).

    ``settings`` and ``crops`` say which contrasts, in which windows: the detector itself may read none. ``common`` and
    ``rare`` are the smoothed values that one patch in ten and one in a hundred of untouched photographs exceed;
    ``forges`` names the forgeries that taught it.
    """

    head: Head
    settings: CoRITSettings
    crops: CropConfig
    common: float
    rare: float
    forges: tuple[str, ...] = ()


@dataclass
class Checkpoint:
    """A detector without its backbone.

    ``backbone`` holds ``name``, ``sha256`` and ``activation``, before any tuning; ``tuned`` the tower's tuned tensors
    by name, none where only the head was trained; ``localizer`` is what heatmaps are drawn by, if any. ``training`` and
    ``data`` record how and on what it was trained, ``metrics`` what it scored: they are carried along, not interpreted.
    """

    head: Head
    backbone: dict[str, Any]
    settings: CoRITSettings
    crops: CropConfig
    calibration: Calibration
    thresholds: Thresholds
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Tensor] = field(default_factory=dict)
    localizer: Localizer | None = None

    @property
    def sha256(self) -> str:
        """Identifies the trained weights."""
        return state_sha256(self._tensors)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        parts = {"": self.head.state_dict(), TOWER: self.tuned}
        if self.localizer is not None:
            parts[LOCALIZER] = self.localizer.head.state_dict()
        return {prefix + name: tensor for prefix, tensors in parts.items() for name, tensor in tensors.items()}

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write to ``folder``, all or nothing; other files in it stay. Raises CoritError when it exists and
        ``overwrite`` is not given."""
        if folder.exists() and not overwrite:
            raise CoritError(f"{folder} already exists: choose another --out, or give --overwrite")
        config = {
            "format": FORMAT,
            "corit": __version__,
            "backbone": self.backbone,
            "settings": asdict(self.settings),
            "crops": asdict(self.crops),
            "head": {"features": self.head.mean.shape[0], "hidden": self.head.hidden},
            "tuned": sorted(self.tuned),
            "calibration": asdict(self.calibration),
            "thresholds": asdict(self.thresholds),
            "training": self.training,
            "data": self.data,
            "metrics": self.metrics,
        }
        if self.localizer is not None:
            config["localizer"] = {
                "features": self.localizer.head.mean.shape[0],
                "settings": asdict(self.localizer.settings),
                "crops": asdict(self.localizer.crops),
                "common": self.localizer.common,
                "rare": self.localizer.rare,
                "forges": self.localizer.forges,
            }
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.contiguous() for k, v in self._tensors.items()}
        text = json.dumps(config, indent=2) + "\n"
        write_together(
            {
                folder / "model.safetensors": lambda path: save_file(tensors, path),
                folder / "config.json": lambda path: path.write_text(text),
            }
        )

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint. Raises CoritError when it is missing, damaged, or of another format."""
        if not folder.is_dir():
            raise CoritError(f"no checkpoint at {folder}: it is a folder that `corit train --out` makes")
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise CoritError(f"{folder} is not a corit checkpoint: it has no {name}")
        try:
            config = json.loads((folder / "config.json").read_text())
            if config["format"] != FORMAT:
                raise CoritError(
                    f"{folder} has checkpoint format {config['format']}, this version reads {FORMAT}: "
                    f"use corit {config.get('corit', '?')}"
                )
            head = Head(**config["head"])
            tensors = load_file(folder / "model.safetensors")
            tuned, local = (
                {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
                for prefix in (TOWER, LOCALIZER)
            )
            if set(tuned) != set(config.get("tuned", [])):
                raise RuntimeError("not the tuned weights it names")
            if not all(tensor.isfinite().all() for tensor in tuned.values()):
                raise RuntimeError("tuned weights that are not finite")
            head.load_state_dict(tensors, strict=True)
            return cls(
                head=head.eval(),
                backbone=config["backbone"],
                settings=CoRITSettings(**_tuples(config["settings"])),
                crops=CropConfig(**config["crops"]),
                calibration=Calibration(**config["calibration"]),
                thresholds=Thresholds(**config["thresholds"]),
                training=config["training"],
                data=config["data"],
                metrics=config["metrics"],
                tuned=tuned,
                localizer=_localizer(config.get("localizer"), local),
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CoritError(f"{folder}/config.json is damaged ({type(error).__name__}: {error})") from None
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise CoritError(f"{folder}/model.safetensors does not fit its config.json ({reason})") from None


def _localizer(about: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Localizer | None:
    if about is None and not tensors:
        return None
    if about is None:
        raise RuntimeError("a localizer that it does not name")
    head = Head(about["features"])
    head.load_state_dict(tensors, strict=True)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise RuntimeError("a localizer that is not finite")
    if "settings" not in about:
        raise ValueError("a localizer that does not say what it reads: train again with --local")
    settings, crops = CoRITSettings(**_tuples(about["settings"])), CropConfig(**about["crops"])
    if not settings.cgp:
        raise ValueError("a localizer that reads nothing")
    return Localizer(head.eval(), settings, crops, float(about["common"]), float(about["rare"]), tuple(about["forges"]))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: a reader never sees half a file.

    Raises CoritError when the disk is full or the folder cannot be written; ``path`` is then as it was.
    """
    write_together({path: write})


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """:func:`write_atomically` for files that belong together: all of them are replaced, or none.

    Raises CoritError when one cannot be written; all are then as they were.
    """
    new: dict[Path, Path] = {}
    path = next(iter(writers))
    try:
        for path, write in writers.items():
            new[path] = _temporary(path)
            write(new[path])
            new[path].chmod(0o666 & ~_umask())
        if len(new) == 1:
            new[path].replace(path)
        else:
            _swap(new)
    except (OSError, SafetensorError) as error:
        raise CoritError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        for temporary in new.values():
            temporary.unlink(missing_ok=True)


def _swap(new: Mapping[Path, Path]) -> None:
    """Put temporary files in their places. The last file goes first and comes last: even a process killed in between
    leaves no mixture, but a last file missing, and what was there beside it under the suffix ``.old``."""
    old = {path: temporary.with_suffix(".old") for path, temporary in new.items()}
    try:
        for path in reversed(new):
            if path.exists():
                path.replace(old[path])
        for path, temporary in new.items():
            temporary.replace(path)
    except BaseException:
        for path, temporary in new.items():
            if old[path].exists():
                old[path].replace(path)
            elif not temporary.exists():
                path.unlink(missing_ok=True)
        raise
    for kept in old.values():
        kept.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """An empty file beside ``path``."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
