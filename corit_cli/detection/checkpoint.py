"""A trained detector on disk: ``model.safetensors`` (head and standardiser) beside ``config.json`` (everything else).

The backbone is not saved again; its name and SHA-256 are, and a checkpoint refuses any other. Where parts of it were
tuned, those tensors stand beside the head's. No pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from corit_cli.config import restored
from corit_cli.data.settings import CropConfig
from corit_cli.detection import sound
from corit_cli.detection.calibration import Calibration, Thresholds, Verdicts
from corit_cli.errors import CoritError
from corit_cli.files import write_together
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.hub import PREFIX, fetch
from corit_cli.model.loading import state_sha256
from corit_cli.model.settings import FACE, CoRITSettings, HeadKind
from corit_cli.seeds import undisturbed
from corit_cli.texts import printable
from corit_cli.version import __version__

FORMAT = 4
#: Up to format 3 a face was judged by its own reading alone; format 2 has no head that tells degraded pictures.
READABLE = (2, 3, FORMAT)
#: The files of a checkpoint, which are all that is fetched from the Hub.
FILES = ("config.json", "model.safetensors")
#: What reading a checkpoint whose ``config.json`` is damaged raises, or whose tensors are, or are of another.
WRONG_CONFIG = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, CoritError)
WRONG_TENSORS = (SafetensorError, RuntimeError, OSError)
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

    ``backbone`` holds ``name``, ``sha256`` and ``activation``, before any tuning; ``tuned`` the tensors that tuning
    changed (``model/scope.py``), none where only the head was trained. ``faces`` is how what its ``face_readings`` say
    of a face is judged, ``localizer`` what heatmaps are drawn by, where there is one. ``training`` and ``data`` record
    how and on what it was trained, ``metrics`` what it scored: they are carried along, not interpreted. ``origin`` is
    ``hf-hub:USER/NAME@COMMIT`` where it was fetched from the Hub; it is not saved.
    """

    head: FusedHead
    backbone: dict[str, Any]
    settings: CoRITSettings
    crops: CropConfig
    calibration: Calibration
    thresholds: Thresholds
    faces: Verdicts | None = None
    face_readings: tuple[str, ...] = (FACE,)
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Tensor] = field(default_factory=dict)
    localizer: Localizer | None = None
    origin: str | None = None

    def strictly(self) -> Checkpoint:
        """The same with the strict threshold, and with no error rates but those that were measured there."""
        metrics = {name: rates for name, rates in self.metrics.items() if name != "held_out_degraded"}
        for usual, strict in (("held_out_sources", "held_out_strict"), ("held_out_faces", "held_out_faces_strict")):
            metrics.pop(usual, None)
            if strict in metrics:
                metrics[usual] = metrics[strict]
        faces = self.faces and self.faces.strictly()
        return replace(self, thresholds=self.thresholds.strictly(), faces=faces, metrics=metrics)

    @property
    def sha256(self) -> str:
        """Identifies all that a probability depends on: trained weights, backbone, settings, windows, calibration."""
        depends = {
            "weights": state_sha256(self.tensors),
            "backbone": self.backbone["sha256"],
            "settings": asdict(self.settings),
            "crops": asdict(self.crops),
            "calibration": asdict(self.calibration),
            "faces": self.faces and asdict(self.faces.calibration),
            "face_readings": self.face_readings,
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    @property
    def identity(self) -> dict[str, str | None]:
        """What outputs call it by: where on the Hub it was fetched from, if it was, and its fingerprint."""
        return {"detector": self.origin, "detector_sha256": self.sha256}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All trained weights by name."""
        groups = {"": self.head.state_dict(), TOWER: self.tuned}
        if self.localizer is not None:
            groups[LOCALIZER] = self.localizer.head.state_dict()
        return {prefix + name: tensor for prefix, tensors in groups.items() for name, tensor in tensors.items()}

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write to ``folder``, all or nothing; other files in it stay. Raises CoritError when it exists and
        ``overwrite`` is not given, and where :meth:`load` would refuse what is written."""
        if folder.exists() and not overwrite:
            raise CoritError(f"{folder} already exists: choose another --out, or give --overwrite")
        config = {
            "format": FORMAT,
            "corit": __version__,
            "backbone": self.backbone,
            "settings": asdict(self.settings),
            "crops": asdict(self.crops),
            "head": {name: _shape(head) for name, head in self.head.heads.items()},
            "degradation": self.head.degradation and _shape(self.head.degradation),
            "tuned": sorted(self.tuned),
            "calibration": asdict(self.calibration),
            "thresholds": asdict(self.thresholds),
            "faces": self.faces and asdict(self.faces),
            "face_readings": self.face_readings,
            "training": self.training,
            "data": self.data,
            "metrics": self.metrics,
        }
        if self.localizer is not None:
            config["localizer"] = {
                "features": self.localizer.head.features,
                "settings": asdict(self.localizer.settings),
                "crops": asdict(self.localizer.crops),
                "common": self.localizer.common,
                "rare": self.localizer.rare,
                "forges": self.localizer.forges,
            }
        # Landmarks are most of a head's bytes, and were rounded when they were chosen.
        tensors = {k: (v.half() if k.endswith(".landmarks") else v).contiguous() for k, v in self.tensors.items()}
        text = json.dumps(config, indent=2) + "\n"
        try:
            self._of(json.loads(text), dict(tensors))
        except (*WRONG_CONFIG, *WRONG_TENSORS) as error:
            raise CoritError(f"this detector is not saved, for it could not be read again ({_what(error)})") from None
        folder.mkdir(parents=True, exist_ok=True)
        write_together(
            {
                folder / "model.safetensors": lambda path: save_file(tensors, path),
                folder / "config.json": lambda path: path.write_text(text),
            }
        )

    @classmethod
    def find(cls, name: str | Path) -> Checkpoint:
        """Read a checkpoint in a folder, or on the Hub: ``hf-hub:USER/NAME[@REVISION]``. Raises CoritError when it is
        missing, damaged, of another format, or cannot be fetched."""
        if not str(name).startswith(PREFIX):
            return cls.load(Path(name))
        found = fetch(str(name), FILES)
        missing = [file for file in FILES if not (found.folder / file).is_file()]
        if missing:
            raise CoritError(f"{found.name} is not a corit detector: it has no {missing[0]}")
        return replace(cls.load(found.folder), origin=found.name)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint. Raises CoritError when it is missing, damaged, or of another format."""
        if not folder.is_dir():
            raise CoritError(f"no checkpoint at {folder}: it is a folder that `corit train --out` makes")
        for name in FILES:
            if not (folder / name).is_file():
                raise CoritError(f"{folder} is not a corit checkpoint: it has no {name}")
        try:
            config = json.loads((folder / "config.json").read_text())
            kept = config["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(folder, error) from None
        if kept not in READABLE:
            raise CoritError(
                f"{folder} has checkpoint format {kept}, this version reads {READABLE[0]} to {FORMAT}: "
                f"use corit {config.get('corit', '?')}"
            )
        try:
            return cls._of(config, load_file(folder / "model.safetensors"))
        except WRONG_CONFIG as error:
            raise _damaged(folder, error) from None
        except WRONG_TENSORS as error:
            reason = str(error).splitlines()[0]
            raise CoritError(f"{folder}/model.safetensors does not fit its config.json ({reason})") from None

    @classmethod
    @undisturbed()
    def _of(cls, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
        """From the contents of both files; may raise all that is ``WRONG_CONFIG`` or ``WRONG_TENSORS``."""
        backbone = sound.table("backbone", config["backbone"])
        for name in ("name", "sha256", *backbone):
            sound.check(f"backbone.{name}", backbone[name], isinstance(backbone[name], str))
        sound.check_records(*(sound.table(name, config[name]) for name in ("metrics", "data", "training")))
        sound.check_tensors(tensors)
        tuned, local = (
            {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            for prefix in (TOWER, LOCALIZER)
        )
        if set(tuned) != set(config.get("tuned", [])):
            raise RuntimeError("its tuned weights are not those that config.json names")
        head, face_readings = _fused(config["head"], config.get("degradation"), tensors), _face_readings(config)
        return cls(
            head=head,
            backbone=backbone,
            settings=restored(CoRITSettings, config["settings"]),
            crops=restored(CropConfig, config["crops"]),
            calibration=_calibration("calibration", config["calibration"]),
            thresholds=restored(Thresholds, config["thresholds"]),
            faces=_verdicts(config.get("faces")),
            face_readings=face_readings,
            training=config["training"],
            data=config["data"],
            metrics=config["metrics"],
            tuned=tuned,
            localizer=_localizer(config.get("localizer"), local),
        )


def _face_readings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Those a face is judged by; before format 4 its own alone."""
    found = tuple(config.get("face_readings", (FACE,)))
    if FACE in config["head"] and not {FACE} <= set(found) <= set(config["head"]):
        raise CoritError("faces are judged by readings that it does not have")
    return found


def _verdicts(about: Mapping[str, Any] | None) -> Verdicts | None:
    if about is None:
        return None
    return Verdicts(_calibration("faces.calibration", about["calibration"]), restored(Thresholds, about["thresholds"]))


def _calibration(called: str, about: Mapping[str, Any]) -> Calibration:
    for name, value in about.items():
        sound.number(f"{called}.{name}", value)
    return restored(Calibration, about)


def _damaged(folder: Path, error: Exception) -> CoritError:
    return CoritError(f"{folder}/config.json is damaged ({_what(error)})")


def _what(error: Exception) -> str:
    return printable(str(error) if isinstance(error, CoritError) else f"{type(error).__name__}: {error}")


def _shape(head: Head) -> dict[str, int]:
    return {"features": head.features, **asdict(head.kind)}


def _head(called: str, about: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Head:
    """An empty head of a kind that ``tensors`` may be the weights of."""
    features, hidden, landmarks = sizes = [about[name] for name in ("features", "hidden", "landmarks")]
    for size in sizes:
        sound.number(f"the size of {called}", size, 0, sound.COUNT)
    sound.check_room(landmarks * (features + landmarks) + (hidden or 1) * (landmarks or features), tensors)
    return Head(features, HeadKind(hidden, landmarks))


def _fused(
    about: Mapping[str, Mapping[str, int]], degradation: Mapping[str, int] | None, tensors: Mapping[str, Tensor]
) -> FusedHead:
    if not about:
        raise CoritError("it names no head")
    sound.check_room(len(about) << len(about), tensors)
    heads = {name: _head(f"head.{name}", one, tensors) for name, one in about.items()}
    fused = FusedHead(heads, None if degradation is None else _head("degradation", degradation, tensors))
    if degradation is not None and degradation["features"] > sum(h.features for n, h in heads.items() if n != FACE):
        raise CoritError("what tells degraded pictures reads more than there is")
    fused.load_state_dict(tensors, strict=True)
    return fused.eval()


def _localizer(about: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Localizer | None:
    if about is None and not tensors:
        return None
    if about is None:
        raise RuntimeError("it holds a localizer that config.json does not mention")
    head = _head("localizer", {"features": about["features"], "hidden": 0, "landmarks": 0}, tensors)
    head.load_state_dict(tensors, strict=True)
    head.eval()
    if "settings" not in about:
        raise CoritError("its localizer does not say what it reads: train again with --local")
    settings, crops = restored(CoRITSettings, about["settings"]), restored(CropConfig, about["crops"])
    if not settings.cgp:
        raise CoritError("its localizer reads nothing")
    common, rare = about["common"], about["rare"]
    sound.number("localizer.common", common)
    sound.number("localizer.rare", rare)
    if common >= rare:
        raise CoritError(f"localizer.common, {common}, is not below localizer.rare, {rare}")
    return Localizer(head, settings, crops, float(common), float(rare), tuple(about["forges"]))
