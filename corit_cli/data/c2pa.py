"""C2PA manifests: what one declares, as far as anybody has checked it; and the IPTC vocabulary it declares it in."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import dataclass
from typing import Any

from corit_cli.data.metadata import MAX_TEXTS, clean
from corit_cli.data.stored import Buffer, Stored

#: IPTC's digital source types: what each means in plain words, and what it claims the picture to be.
SOURCE_TYPES: dict[str, tuple[str, str | None]] = {
    "trainedAlgorithmicMedia": ("made by a generative model", "ai-generated"),
    "compositeWithTrainedAlgorithmicMedia": ("a picture parts of which a generative model made", "ai-edited"),
    "algorithmicMedia": ("made by a program without a trained model", "generated"),
    "algorithmicallyEnhanced": ("a picture that a program improved", "edited"),
    "dataDrivenMedia": ("drawn from data", "generated"),
    "digitalCapture": ("captured by a digital camera", "camera"),
    "computationalCapture": ("captured by a camera that merges several exposures", "camera"),
    "negativeFilm": ("scanned from a film negative", "camera"),
    "positiveFilm": ("scanned from film", "camera"),
    "print": ("scanned from a print", None),
    "composite": ("put together from several pictures", "edited"),
    "compositeCapture": ("put together from several photographs", "edited"),
    "compositeSynthetic": ("put together from parts some of which are synthetic", "edited"),
    "humanEdits": ("edited by a person", "edited"),
    "minorHumanEdits": ("slightly edited by a person", "edited"),
    "digitalCreation": ("drawn by a person with a program", None),
    "digitalArt": ("drawn by a person with a program", None),
    "softwareImage": ("made by software", None),
    "screenCapture": ("a picture of a screen", None),
    "virtualRecording": ("a recording of a virtual scene", None),
}


@dataclass(frozen=True)
class Manifest:
    """A C2PA manifest. ``checked`` tells whether the package c2pa-python read it; if not, ``source_types`` are those
    named anywhere in it and the other fields are empty.

    ``state`` is Trusted, Valid (intact, the signer on no list of trust) or Invalid. ``actions`` and ``source_types``
    are those of the file and of the versions it was made from, newest first.
    """

    checked: bool
    state: str | None = None
    generator: str | None = None
    signer: str | None = None
    actions: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()


def read_manifest(file: Stored, content: bytes | None) -> Manifest | None:
    """What the manifest ``content`` of a ``file`` says, by the package c2pa-python where it is installed."""
    if content is None:
        return None
    names = re.findall(rb"digitalsourcetype/([A-Za-z]{4,64})", content)
    named = tuple(dict.fromkeys(n for name in names if (n := name.decode()) in SOURCE_TYPES))
    try:
        import c2pa
    except ImportError:
        return Manifest(checked=False, source_types=named)
    # Of bytes recent versions tell the format themselves; older ones raise.
    asset = (None, io.BytesIO(file)) if isinstance(file, Buffer) else (os.fspath(file),)
    try:
        quiet = c2pa.Settings.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}})
        with c2pa.Context(quiet) as context, c2pa.Reader(*asset, context=context) as reader:
            return _validated(json.loads(reader.json()))
    except Exception:  # of another library's native code, on files that may be hostile
        return Manifest(checked=False, source_types=named)


def _validated(store: dict[str, Any]) -> Manifest:
    """The active manifest of a store in c2pa-python's JSON, and the actions of its line of parents."""
    manifests = store["manifests"]
    active = manifests[store["active_manifest"]]
    line, label = [], store["active_manifest"]
    while label in manifests and manifests[label] not in line:
        line.append(manifests[label])
        parents = (i for i in line[-1].get("ingredients", ()) if i.get("relationship") == "parentOf")
        label = next((i.get("active_manifest") for i in parents), None)
    actions = [
        action
        for manifest in line
        for assertion in manifest.get("assertions", ())
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion["data"].get("actions", ())
    ]
    makers = [_named(maker) for maker in active.get("claim_generator_info", ())] or [active.get("claim_generator", "")]
    signature = active.get("signature_info", {})
    types = (str(action.get("digitalSourceType", "")).rstrip("/").rsplit("/", 1)[-1] for action in actions)
    return Manifest(
        checked=True,
        state=clean(store.get("validation_state", "Invalid")),
        generator=clean(", ".join(map(str, makers))) or None,
        signer=clean(signature.get("issuer") or signature.get("common_name") or "") or None,
        actions=tuple(clean(_action(action)) for action in actions[:MAX_TEXTS]),
        source_types=tuple(dict.fromkeys(clean(name) for name in types if name)),
    )


def _named(maker: object) -> str:
    """A program's name and version, given as text or as an object with both."""
    if isinstance(maker, dict):
        return f"{maker.get('name', '')} {maker.get('version', '')}".strip()
    return str(maker)


def _action(action: dict[str, Any]) -> str:
    name = str(action.get("action", "")).removeprefix("c2pa.")
    agent = _named(action.get("softwareAgent") or "")
    return f"{name} by {agent}" if agent else name
