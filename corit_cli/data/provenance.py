"""What a file says of itself: camera, software, generator settings, declarations and C2PA manifests.

Anybody can write such data and anybody can strip it, so it is evidence of another kind than the pixels' score and is
never mixed into a probability. No pixel is decoded and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from corit_cli.data.c2pa import SOURCE_TYPES, Manifest, read_manifest
from corit_cli.data.declared import AI_EDITED, AI_GENERATED, CAMERA, Declared, declared
from corit_cli.data.exif import POSITION, PREVIEW, TEXT_TAGS, text_of, user_comment
from corit_cli.data.generators import PERSONS, PROGRAMS, ai_editor_in, generator_in, is_editor, model_of, settings_of
from corit_cli.data.images import FileInfo, inspect
from corit_cli.data.metadata import Raw, clean, gather, is_bmff
from corit_cli.data.opening import ImageError
from corit_cli.data.stored import Stored


@dataclass(frozen=True)
class Finding:
    """One plain sentence. ``kind`` is camera, software, generator, declaration, c2pa or note; ``says`` is what it
    claims the picture to be: ai-generated, ai-edited, camera, generated or edited (by a program without a model), or
    None where it claims nothing. ``by`` is what it names as the maker, ``verified`` whether a trusted signature vouches
    for it."""

    kind: str
    text: str
    says: str | None = None
    by: str | None = None
    verified: bool = False


@dataclass(frozen=True)
class Provenance:
    """What one file says of itself; texts are cleaned and cut to ``MAX_TEXT`` characters.

    ``parameters`` are a generator's settings by the name of the field they stand in, ``model`` is the one they name.
    ``source_types`` are IPTC's names from the XMP, without their address. ``gps`` says only that a position is there.
    ``declared`` is what the findings come to.
    """

    format: str
    camera: str | None = None
    lens: str | None = None
    software: str | None = None
    taken: str | None = None
    gps: bool = False
    thumbnail: bool = False
    generator: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    creator_tool: str | None = None
    credit: str | None = None
    source_types: tuple[str, ...] = ()
    c2pa: Manifest | None = None
    jpeg_quality: int | None = None
    jpeg_tables: str | None = None
    model: str | None = None
    findings: tuple[Finding, ...] = ()
    declared: Declared | None = None


def read_provenance(file: Stored) -> Provenance:
    """Read what a file, given by its path or its bytes, says of itself.

    Of videos only XMP and C2PA are read. Raises ImageError when the file is missing or neither an image nor such a
    container; damage further in only costs findings.
    """
    try:
        info = inspect(file)
    except ImageError:
        if not is_bmff(file):
            raise
        info = FileInfo("ISO media", 0, 0, 0, None)
    try:
        raw = gather(file, info.format)
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror or error})") from error
    return _describe(file, info, raw)


_SHOWN = 160  # characters of a text quoted in a sentence


def _describe(file: Stored, info: FileInfo, raw: Raw) -> Provenance:
    exif = {name: text_of(raw.exif.get(key)) for key, name in TEXT_TAGS.items() if key in raw.exif}
    if ("exif", 0x9286) in raw.exif:
        exif["UserComment"] = user_comment(raw.exif["exif", 0x9286])
    texts = {**raw.texts, **raw.xmp, **{name: text for name, text in exif.items() if text}}
    texts = {name: text for name, text in texts.items() if text.strip()}
    generator, parameters = settings_of(texts)
    make, model = (clean(exif.get(name) or "") if name not in parameters else "" for name in ("Make", "Model"))
    # Many cameras repeat the maker in the model's name.
    camera = model if make and model.lower().startswith(make.split()[0].lower()) else f"{make} {model}".strip()
    source_type = raw.xmp.get("DigitalSourceType", "")
    provenance = Provenance(
        format=info.format,
        camera=camera or None,
        lens=clean(exif.get("LensModel") or "") or None,
        software=clean(texts.get("Software", "")) or None,
        taken=clean(exif.get("DateTimeOriginal") or "") or None,
        gps=raw.exif.keys() >= POSITION,
        thumbnail=PREVIEW in raw.exif,
        generator=generator,
        parameters={clean(name)[:_SHOWN]: clean(text) for name, text in parameters.items()},
        creator_tool=clean(raw.xmp.get("CreatorTool", "")) or None,
        credit=clean(raw.xmp.get("Credit") or raw.credit or "") or None,
        source_types=(clean(source_type.rstrip("/").rsplit("/", 1)[-1]),) if source_type else (),
        c2pa=read_manifest(file, raw.manifest),
        jpeg_quality=info.jpeg_quality,
        jpeg_tables=raw.jpeg_tables,
        model=(clean(model_of(parameters) or "")[:_SHOWN]) or None,
    )
    findings = tuple(_findings(provenance, texts, raw.cut))
    if all(finding.kind == "note" for finding in findings):
        nothing = (
            "Nothing in the file says how the picture was made; most platforms strip such data, so this proves nothing."
        )
        findings = (Finding("note", nothing), *findings)
    return replace(provenance, findings=findings, declared=declared(findings))


def _findings(p: Provenance, texts: dict[str, str], cut: bool) -> Iterator[Finding]:
    if p.c2pa:
        yield from _c2pa_findings(p.c2pa)
    elif "provenance" in texts:
        yield Finding("c2pa", "The file points to a C2PA manifest kept elsewhere, which was not fetched.")
    for name in p.source_types:
        meaning, says = SOURCE_TYPES.get(name, (f"of the type {_quote(name)}", None))
        yield Finding("declaration", f"The file declares its picture to be {meaning} (IPTC digital source type).", says)
    if p.generator:
        fields = ", ".join(p.parameters)
        model = f", model {_quote(p.model)}" if p.model else ""
        text = f"The file carries the settings of {p.generator}{model} (in {fields})."
        yield Finding("generator", text, AI_GENERATED, f"{p.generator}{model}")
    signed = {key: clean(texts[key]) for key in (*PROGRAMS, *PERSONS) if key in texts and key not in p.parameters}
    signed |= {"Credit": p.credit} if p.credit else {}
    for key, text in signed.items():
        if name := generator_in(key, text):
            says = AI_EDITED if name.lower().startswith("edited") else AI_GENERATED
            yield Finding("generator", f"The field {key} names a generator: {_quote(text)}.", says, name)
        elif name := ai_editor_in(key, text):
            text = f"The field {key} names a program that edits with models: {_quote(text)}."
            yield Finding("software", text, AI_EDITED, name)
        elif key in ("Software", "CreatorTool") and is_editor(text):
            ending = ", a program for editing; what was changed, if anything, it does not say."
            yield Finding("software", f"The file was saved by {_quote(text)}{ending}", "edited")
        elif key in ("Software", "CreatorTool"):
            yield Finding("software", f"The field {key} names {_quote(text)}.")
    if p.camera:
        lens = f" with the lens {_quote(p.lens)}" if p.lens else ""
        taken = f", taken {_quote(p.taken)}" if p.taken else ""
        text = f"The file names a camera, {_quote(p.camera)}{lens}{taken}; anybody could have written this."
        yield Finding("camera", text, CAMERA, p.camera)
    yield from _notes(p)
    if cut:
        yield Finding("note", "It holds a text that is too large to be read as a whole.")


def _notes(p: Provenance) -> Iterator[Finding]:
    if p.jpeg_quality:
        tables = {
            "standard": "the standard tables, as most programs do",
            "Photoshop": "the tables of Adobe Photoshop",
            "other": "tables of its own, as cameras and some programs do",
        }.get(p.jpeg_tables or "", "tables that cannot be read")
        yield Finding("note", f"It was last saved as a JPEG of quality {p.jpeg_quality} or so, with {tables}.")
    if p.thumbnail:
        yield Finding("note", "It holds a preview picture, as files from cameras do.")
    if p.gps:
        yield Finding("note", "It holds the position at which it says it was taken.")


def _quote(text: str) -> str:
    return f'"{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"}"'


def _c2pa_findings(m: Manifest) -> Iterator[Finding]:
    if not m.checked:
        known = " or ".join(SOURCE_TYPES[name][0] for name in m.source_types)
        text = "The file holds a C2PA manifest, which was not checked (this needs the package c2pa-python)"
        claims = {SOURCE_TYPES[name][1] for name in m.source_types}
        says = next((kind for kind in (AI_GENERATED, AI_EDITED) if kind in claims), None)  # a version may be a camera's
        says = claims.pop() if len(claims) == 1 else says
        yield Finding("c2pa", f"{text}; it names a picture {known}." if known else f"{text}.", says)
        return
    whose = f"by {_quote(m.signer)}" if m.signer else "by somebody it does not name"
    if m.state not in ("Valid", "Trusted"):
        text = (
            f"The file holds a C2PA manifest signed {whose} that does not fit it: one of them was changed afterwards."
        )
        yield Finding("c2pa", text)
        return
    trust = "who is on a list of trusted signers" if m.state == "Trusted" else "whose identity is not vouched for"
    made = f", made with {_quote(m.generator)}" if m.generator else ""
    yield Finding("c2pa", f"The file holds an intact C2PA manifest{made} and signed {whose}, {trust}.")
    if m.actions:
        edits = any(not action.startswith(("created", "opened", "converted", "published")) for action in m.actions)
        text = f"The manifest lists what was done: {_quote('; '.join(m.actions))}."
        yield Finding("c2pa", text, "edited" if edits else None)
    for name in m.source_types:
        meaning, says = SOURCE_TYPES.get(name, (f"of the type {_quote(name)}", None))
        signed = f" (a manifest signed {whose}, {trust})"
        text = f"The manifest declares the picture to be {meaning}{signed}."
        yield Finding("c2pa", text, says, m.generator, verified=m.state == "Trusted")
