from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import sys
import time
import types
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from corit_cli.data import metadata
from corit_cli.data.metadata import MAX_TEXT
from corit_cli.data.opening import ImageError
from corit_cli.data.provenance import SOURCE_TYPES, Provenance, read_provenance
from corit_cli.files import content_sha256

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
WEB_UI = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
COMFY = '{"3": {"class_type": "KSampler", "inputs": {"seed": 1}}}'
JUMBF_TYPE = b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((24, 16)).convert("RGB")


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    picture().save(path, pnginfo=info)
    return path


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(path: Path, name: bytes, data: bytes) -> Path:
    """A PNG with one more chunk just before its end, after the pixels."""
    plain = png(path).read_bytes()
    path.write_bytes(plain[:-12] + chunk(name, data) + plain[-12:])
    return path


def xmp(body: str = "", attributes: str = "") -> bytes:
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
        f'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" {attributes}>{body}'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def manifest(content: bytes = b"") -> bytes:
    """A JUMBF box of C2PA's type, around ``content``."""
    description = struct.pack(">I4s", 8 + 16 + 1 + 5, b"jumd") + JUMBF_TYPE + b"\x03c2pa\0"
    return struct.pack(">I4s", 8 + len(description) + len(content), b"jumb") + description + content


def says(p: Provenance) -> set[str | None]:
    return {finding.says for finding in p.findings}


def kinds(p: Provenance) -> set[str]:
    return {finding.kind for finding in p.findings}


@pytest.fixture(autouse=True)
def no_c2pa_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)


# --- nothing, cameras, software -------------------------------------------------------------------


def test_nothing_found_is_said_and_proves_nothing(tmp_path: Path) -> None:
    p = read_provenance(png(tmp_path / "a.png"))
    assert [f.kind for f in p.findings] == ["note"] and "proves nothing" in p.findings[0].text
    assert p.camera is p.generator is p.c2pa is p.jpeg_quality is None


def camera_exif(software: str = "Ver.1.01") -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "NIKON CORPORATION", "NIKON Z 6", software
    details = exif.get_ifd(0x8769)
    details[0x9003], details[0xA434] = "2024:05:06 07:08:09", "NIKKOR Z 50mm f/1.8"
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 1.0, 2.0), 3: "E", 4: (8.0, 3.0, 4.0)})
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_a_camera_is_read_from_exif(tmp_path: Path, suffix: str) -> None:
    picture().save(tmp_path / f"a.{suffix}", exif=camera_exif())
    p = read_provenance(tmp_path / f"a.{suffix}")
    assert (p.camera, p.lens) == ("NIKON Z 6", "NIKKOR Z 50mm f/1.8")
    assert (p.software, p.taken, p.gps) == ("Ver.1.01", "2024:05:06 07:08:09", True)
    assert says(p) == {"camera", None}
    assert "47" not in json.dumps(asdict(p)) and "anybody" in next(f.text for f in p.findings if f.kind == "camera")


def test_a_camera_is_read_from_a_tiff(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.tif", tiffinfo={0x010F: "Leica Camera AG", 0x0110: "LEICA Q3"})
    assert read_provenance(tmp_path / "a.tif").camera == "LEICA Q3"


def test_no_position_no_gps(tmp_path: Path) -> None:
    exif = camera_exif()
    exif.get_ifd(0x8825).clear()
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert not read_provenance(tmp_path / "a.jpg").gps


def test_an_editor_says_edited_and_other_software_nothing(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=camera_exif("Adobe Photoshop 25.0 (Windows)"))
    assert says(read_provenance(tmp_path / "a.jpg")) == {"edited", "camera", None}


def test_a_preview_is_noticed(tmp_path: Path) -> None:
    # An EXIF of one entry, and a second directory with a preview's offset.
    first = struct.pack("<HHHI4sI", 1, 0x0110, 2, 4, b"Cam\0", 26)
    second = struct.pack("<HHHIII", 1, 0x0201, 4, 1, 99, 0)
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + first + second)
    p = read_provenance(tmp_path / "a.jpg")
    assert p.thumbnail and p.camera == "Cam"


def test_jpeg_tables(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", quality=83)
    picture().save(tmp_path / "b.jpg", quality="web_high")
    picture().save(tmp_path / "c.jpg", qtables=[[*range(3, 67)]] * 2)
    found = [read_provenance(tmp_path / f"{name}.jpg") for name in "abc"]
    assert [p.jpeg_tables for p in found] == ["standard", "Photoshop", "other"]
    assert found[0].jpeg_quality == 83


# --- generators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "generator"),
    [
        ({"parameters": WEB_UI}, "a Stable Diffusion program"),
        ({"prompt": COMFY, "workflow": '{"nodes": []}'}, "ComfyUI"),
        ({"invokeai_metadata": '{"positive_prompt": "a cat"}'}, "InvokeAI"),
        ({"sd-metadata": "{}"}, "InvokeAI"),
        ({"parameters": '{"sui_image_params": {"prompt": "a cat"}}'}, "SwarmUI"),
        ({"parameters": WEB_UI, "fooocus_scheme": "a1111"}, "Fooocus"),
        ({"Comment": '{"steps": 28, "seed": 5, "sampler": "k_euler"}', "Software": "NovelAI"}, "NovelAI"),
        ({"Description": "a cat --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"}, "Midjourney"),
    ],
)
def test_generators_in_png_text(tmp_path: Path, texts: dict[str, str], generator: str) -> None:
    p = read_provenance(png(tmp_path / "a.png", **texts))
    assert p.generator == generator and "ai-generated" in says(p)
    assert p.parameters and all(texts[name].split()[0] in text for name, text in p.parameters.items())


@pytest.mark.parametrize(
    "texts", [{"prompt": "be prompt"}, {"parameters": "f/2.8, 1/60 s"}, {"Comment": "my holidays"}]
)
def test_other_text_is_no_generator(tmp_path: Path, texts: dict[str, str]) -> None:
    p = read_provenance(png(tmp_path / "a.png", **texts))
    assert p.generator is None and says(p) == {None}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("international", [False, True])
def test_text_of_every_kind_even_after_the_pixels(tmp_path: Path, packed: bool, international: bool) -> None:
    body = zlib.compress(WEB_UI.encode()) if packed else WEB_UI.encode()
    if international:
        path = with_chunk(tmp_path / "a.png", b"iTXt", b"parameters\0" + bytes([packed, 0]) + b"en\0name\0" + body)
    else:
        head = b"parameters\0" + (b"\0" if packed else b"")
        path = with_chunk(tmp_path / "a.png", b"zTXt" if packed else b"tEXt", head + body)
    assert "Euler a" in read_provenance(path).parameters["parameters"]


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "ascii"])
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_generators_in_user_comment(tmp_path: Path, encoding: str, suffix: str) -> None:
    exif = Image.Exif()
    kind = b"ASCII\0\0\0" if encoding == "ascii" else b"UNICODE\0"
    exif.get_ifd(0x8769)[0x9286] = kind + WEB_UI.encode(encoding)
    picture().save(tmp_path / f"a.{suffix}", exif=exif)
    p = read_provenance(tmp_path / f"a.{suffix}")
    assert p.generator == "a Stable Diffusion program" and p.parameters["UserComment"].startswith("a cat Negative")


def test_comfyui_in_webp_is_no_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = 'workflow:{"nodes": []}', f"prompt:{COMFY}"
    picture().save(tmp_path / "a.webp", exif=exif)
    p = read_provenance(tmp_path / "a.webp")
    assert p.generator == "ComfyUI" and p.camera is None and says(p) == {"ai-generated"}


# --- XMP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCE_TYPES)
def test_every_source_type_is_explained(tmp_path: Path, name: str) -> None:
    packet = xmp(f"<Iptc4xmpExt:DigitalSourceType>{IPTC}{name}</Iptc4xmpExt:DigitalSourceType>")
    picture().save(tmp_path / "a.jpg", xmp=packet)
    p = read_provenance(tmp_path / "a.jpg")
    (finding,) = (f for f in p.findings if f.kind == "declaration")
    meaning, claim = SOURCE_TYPES[name]
    assert p.source_types == (name,) and finding.says == claim and meaning in finding.text


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_xmp_in_every_container_as_attributes(tmp_path: Path, suffix: str) -> None:
    attributes = (
        f'Iptc4xmpExt:DigitalSourceType="{IPTC}trainedAlgorithmicMedia" xmp:CreatorTool="GIMP 2.10" '
        'photoshop:Credit="Made with Google AI"'
    )
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        with_chunk(path, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp("", attributes))
    elif suffix == "tif":
        picture().save(path, tiffinfo={700: xmp("", attributes)})
    else:
        picture().save(path, xmp=xmp("", attributes))
    p = read_provenance(path)
    assert p.source_types == ("trainedAlgorithmicMedia",)
    assert (p.creator_tool, p.credit) == ("GIMP 2.10", "Made with Google AI")
    assert kinds(p) >= {"declaration", "generator", "software"} and {"ai-generated", "edited"} <= says(p)


def test_an_unknown_source_type_is_quoted(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", xmp=xmp("", f'Iptc4xmpExt:DigitalSourceType="{IPTC}somethingNew"'))
    assert any("somethingNew" in f.text and f.says is None for f in read_provenance(tmp_path / "a.jpg").findings)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused(tmp_path: Path, encoding: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden")
    for subset in (f'<!ENTITY e SYSTEM "{secret.as_uri()}">', '<!ENTITY a "aa"><!ENTITY e "&a;&a;&a;">', ""):
        body = xmp("<xmp:CreatorTool>&e;</xmp:CreatorTool>" if subset else "", 'photoshop:Credit="x"').decode()
        packet = (f"<!DOCTYPE r [{subset}]>" + body[body.index("<x:xmpmeta") :]).encode(encoding)
        picture().save(tmp_path / "a.jpg", xmp=packet)
        p = read_provenance(tmp_path / "a.jpg")
        assert p.creator_tool is None and p.credit is None


def test_utf_16_packets_are_read(tmp_path: Path) -> None:
    packet = xmp("", 'photoshop:Credit="Ä"').decode().encode("utf-16")
    picture().save(tmp_path / "a.jpg", xmp=packet)
    assert read_provenance(tmp_path / "a.jpg").credit == "Ä"


# --- C2PA -----------------------------------------------------------------------------------------


def write_with_manifest(path: Path, box: bytes) -> None:
    data = io.BytesIO()
    if path.suffix == ".jpg":
        picture().save(data, "JPEG")
        half = len(box) // 2  # in two segments, the second repeating the box's header
        parts = [(1, box[:half]), (2, box[:8] + box[half:])]
        segments = b""
        for number, part in parts:
            body = b"JP" + struct.pack(">HI", 1, number) + part
            segments += b"\xff\xeb" + struct.pack(">H", 2 + len(body)) + body
        path.write_bytes(data.getvalue()[:2] + segments + data.getvalue()[2:])
    elif path.suffix == ".png":
        with_chunk(path, b"caBX", box)
    elif path.suffix == ".webp":
        picture().save(data, "WEBP")
        body = data.getvalue()[8:] + b"C2PA" + struct.pack("<I", len(box)) + box + b"\0" * (len(box) % 2)
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    elif path.suffix == ".tif":
        picture().save(path, tiffinfo={0xCD41: box})
    else:
        uuid = bytes.fromhex("d8fec3d61b0e483c92975828877ec481") + b"\0\0\0\0manifest\0" + b"\0" * 8
        data.write(struct.pack(">I4s8s", 16, b"ftyp", b"isom\0\0\0\0"))
        if path.suffix == ".avif":
            data = io.BytesIO()
            picture().save(data, "AVIF")
        path.write_bytes(data.getvalue() + struct.pack(">I4s", 8 + len(uuid) + len(box), b"uuid") + uuid + box)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "mp4"])
def test_a_manifest_is_found_in_every_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_with_manifest(path, manifest(b"qdigitalSourceType" + f"xF{IPTC}trainedAlgorithmicMedia".encode()))
    p = read_provenance(path)
    assert p.c2pa is not None and not p.c2pa.checked
    assert p.c2pa.source_types == ("trainedAlgorithmicMedia",)
    (finding,) = (f for f in p.findings if f.kind == "c2pa")
    assert finding.says == "ai-generated" and "not checked" in finding.text


def test_another_jumbf_box_is_no_manifest(tmp_path: Path) -> None:
    write_with_manifest(tmp_path / "a.jpg", manifest().replace(JUMBF_TYPE, b"j" * 16))
    assert read_provenance(tmp_path / "a.jpg").c2pa is None


def fake_package(monkeypatch: pytest.MonkeyPatch, store: dict) -> None:
    """Stands for c2pa-python: a Reader that gives this store."""

    class Managed:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

        from_dict = staticmethod(lambda settings: settings)

        def json(self) -> str:
            return json.dumps(store)

    package = types.SimpleNamespace(Settings=Managed, Context=Managed, Reader=Managed)
    monkeypatch.setitem(sys.modules, "c2pa", package)


def store(state: str) -> dict:
    def actions(*items: dict) -> list[dict]:
        return [{"label": "c2pa.actions.v2", "data": {"actions": list(items)}}]

    made = {"action": "c2pa.created", "digitalSourceType": IPTC + "trainedAlgorithmicMedia", "softwareAgent": "Maker"}
    other = {"action": "c2pa.created", "digitalSourceType": IPTC + "digitalCapture"}
    return {
        "active_manifest": "b",
        "validation_state": state,
        "manifests": {
            "a": {"assertions": actions(made)},
            "c": {"assertions": actions(other)},
            "b": {
                "claim_generator_info": [{"name": "Tool", "version": "2"}],
                "assertions": actions({"action": "c2pa.color_adjustments", "softwareAgent": {"name": "Tool"}}),
                "ingredients": [
                    {"relationship": "componentOf", "active_manifest": "c"},
                    {"relationship": "parentOf", "active_manifest": "a"},
                ],
                "signature_info": {"issuer": "An Organisation\u202e\x1b[31m"},
            },
        },
    }


def test_a_checked_manifest_follows_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_with_manifest(tmp_path / "a.jpg", manifest())
    fake_package(monkeypatch, store("Valid"))
    p = read_provenance(tmp_path / "a.jpg")
    assert p.c2pa is not None and p.c2pa.checked and p.c2pa.state == "Valid"
    assert (p.c2pa.generator, p.c2pa.signer) == ("Tool 2", "An Organisation [31m")
    assert p.c2pa.actions == ("color_adjustments by Tool", "created by Maker")
    assert p.c2pa.source_types == ("trainedAlgorithmicMedia",)
    assert {"ai-generated", "edited"} <= says(p) and "camera" not in says(p)
    assert (p.declared.kind, p.declared.by, p.declared.verified) == ("ai-generated", "Tool 2", False)
    fake_package(monkeypatch, store("Trusted"))
    signed = read_provenance(tmp_path / "a.jpg").declared
    assert signed.verified and "An Organisation" in signed.ground


def test_a_manifest_of_bytes_is_checked_as_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_with_manifest(tmp_path / "a.jpg", manifest())
    content = (tmp_path / "a.jpg").read_bytes()
    fake_package(monkeypatch, store("Valid"))
    given: list[tuple] = []
    monkeypatch.setattr(sys.modules["c2pa"], "Reader", lambda *what, context: given.append(what) or context)
    assert read_provenance(content).c2pa == read_provenance(tmp_path / "a.jpg").c2pa
    (kind, stream), path = given
    assert kind is None and stream.read() == content and path == (str(tmp_path / "a.jpg"),)


def test_an_invalid_manifest_claims_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_with_manifest(tmp_path / "a.jpg", manifest())
    fake_package(monkeypatch, store("Invalid"))
    p = read_provenance(tmp_path / "a.jpg")
    assert says(p) == {None} and any("does not fit" in f.text for f in p.findings)


def test_a_package_that_fails_leaves_what_the_scan_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_with_manifest(tmp_path / "a.jpg", manifest())
    fake_package(monkeypatch, {"unexpected": 1})
    p = read_provenance(tmp_path / "a.jpg")
    assert p.c2pa is not None and not p.c2pa.checked


# --- hostile files --------------------------------------------------------------------------------


def test_texts_are_cleaned_and_cut(tmp_path: Path) -> None:
    text = WEB_UI + "\x1b[2J\u202e" + "x" * 10 * MAX_TEXT
    p = read_provenance(with_chunk(tmp_path / "a.png", b"iTXt", b"parameters\0\0\0\0\0" + text.encode()))
    kept = p.parameters["parameters"]
    assert len(kept) <= MAX_TEXT and kept.isprintable() and "\x1b" not in json.dumps(asdict(p), ensure_ascii=False)
    assert all(len(f.text) < 600 for f in p.findings)


def test_bombs_are_bounded(tmp_path: Path) -> None:
    bomb = zlib.compress(b"Steps: 1 " * 20_000_000)  # 180 MB
    deep = xmp("<xmp:CreatorTool>" * 20_000 + "</xmp:CreatorTool>" * 20_000)
    cases = {
        "a": (b"zTXt", b"parameters\0\0" + bomb),
        "b": (b"tEXt", b"parameters\0" + b"Steps: 1 " * 100_000),
        "c": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + deep),
        "d": (
            b"eXIf",
            b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + struct.pack("<HHII", 0x10F, 2, 2**31, 0) * 65535,
        ),
    }
    for name, (kind, data) in cases.items():
        path = with_chunk(tmp_path / f"{name}.png", kind, data)
        start = time.perf_counter()
        read_provenance(path)
        assert time.perf_counter() - start < 5, name


def test_texts_of_one_name_and_further_exif_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may cost as much as a megabyte does."""
    first, second = (struct.pack("<4sIHHHI4sI", b"II*\0", 8, 1, 0x0110, 2, 4, name, 0) for name in (b"One\0", b"Two\0"))
    png(tmp_path / "a.png")
    plain = (tmp_path / "a.png").read_bytes()
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x"))
    more = chunk(b"eXIf", first) + 50 * chunk(b"eXIf", second) + 50 * text
    (tmp_path / "a.png").write_bytes(plain[:-12] + more + plain[-12:])
    asked = []
    for name in ("exif_values", "_png_text"):
        read = getattr(metadata, name)
        monkeypatch.setattr(metadata, name, lambda *what, n=name, r=read: (asked.append(n), r(*what))[1])
    raw = metadata.gather(tmp_path / "a.png", "PNG")
    assert raw.exif == {("main", 0x0110): b"One\0"} and raw.texts == {"Comment": "x"}
    assert asked.count("exif_values") == 1 and asked.count("_png_text") == metadata.MAX_TEXTS


def test_an_xmp_packet_that_is_too_large_is_told(tmp_path: Path) -> None:
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + b" " * (1 << 20) + b"</x:xmpmeta>"
    picture().save(tmp_path / "a.webp", xmp=packet)
    assert any("too large" in finding.text for finding in read_provenance(tmp_path / "a.webp").findings)


def test_an_exif_that_points_at_itself_ends(tmp_path: Path) -> None:
    loop = struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    with_chunk(tmp_path / "a.png", b"eXIf", b"II*\0\x08\0\0\0" + loop)
    assert read_provenance(tmp_path / "a.png").camera is None


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg", "pipe.mp4"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ImageError, match="not a regular file"):
        read_provenance(tmp_path / name)
    assert content_sha256(tmp_path / name) is None


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\0" * 100])
def test_what_is_no_image_is_an_image_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for path in (tmp_path / "a.jpg", tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(ImageError):
            read_provenance(path)


def rich_files() -> list[bytes]:
    """One file of each container with everything in it."""
    out = []
    packet = xmp("", f'Iptc4xmpExt:DigitalSourceType="{IPTC}digitalCapture"')
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        data = io.BytesIO()
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", WEB_UI, zip=True)
        info.add_itxt("Comment", WEB_UI, zip=True)
        extra = {"PNG": {"pnginfo": info}, "TIFF": {"tiffinfo": {700: packet}}}.get(kind, {"xmp": packet})
        picture().save(data, kind, exif=camera_exif(), **extra)
        out.append(data.getvalue())
    return out


RICH = rich_files()


@settings(max_examples=150, deadline=2000)
@given(st.data())
def test_no_damage_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(RICH)))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans()):
        content = content[:cut] + data.draw(st.binary(max_size=40))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(ImageError):
        json.dumps(asdict(read_provenance(path)))


@settings(max_examples=100, deadline=2000)
@given(
    st.sampled_from([b"", b"\xff\xd8", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x10ftypisom", b"II*\0"]), st.binary(max_size=300)
)
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, head: bytes, tail: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(head + tail)
    with contextlib.suppress(ImageError):
        read_provenance(path)
