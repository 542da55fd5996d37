"""What a file declares itself to be, in sum; where each declaration stands is tested with provenance."""

from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from corit_cli.data.c2pa import SOURCE_TYPES
from corit_cli.data.declared import AI_EDITED, AI_GENERATED, CAMERA, Declared, declared
from corit_cli.data.provenance import Finding, read_provenance
from tests.conftest import photograph

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
CLAIMS = st.builds(
    Finding,
    st.just("note"),
    st.text(min_size=1, max_size=5),
    st.sampled_from([AI_GENERATED, AI_EDITED, CAMERA, "edited", "generated", None]),
    st.one_of(st.none(), st.just("X")),
    st.booleans(),
)


@given(st.lists(CLAIMS, max_size=4))
def test_the_strongest_claim_counts_in_any_order(claims: list[Finding]) -> None:
    found = [declared(order) for order in permutations(claims)]
    kinds = {one and one.kind for one in found}
    assert len(kinds) == 1
    expected = next((k for k in (AI_GENERATED, AI_EDITED, CAMERA) if any(c.says == k for c in claims)), None)
    assert kinds == {expected}
    if found[0]:
        own = [c for c in claims if c.says == expected]
        assert found[0].ground == " ".join(c.text for c in own)
        assert found[0].verified == any(c.verified for c in own)


def test_a_claim_is_called_one() -> None:
    assert declared([Finding("generator", "t", AI_GENERATED, "ComfyUI")]).words == "made by ComfyUI (a claim)"
    signed = declared([Finding("c2pa", "t", AI_EDITED, None, verified=True)])
    assert signed.words == "edited with a generative model (a verified signature)"
    assert declared([Finding("camera", "t", CAMERA, "NIKON Z 6")]).words == "taken by NIKON Z 6 (a claim)"


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    photograph(1).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("texts", "by"),
    [
        (
            {"prompt": '{"4": {"class_type": "X", "inputs": {"ckpt_name": "flux1-dev.safetensors"}}}'},
            'ComfyUI, model "flux1-dev.safetensors"',
        ),
        (
            {"parameters": "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Model: sd_xl"},
            'a Stable Diffusion program, model "sd_xl"',
        ),
        ({"invokeai_metadata": '{"model": {"key": "k", "name": "juggernaut"}}'}, 'InvokeAI, model "juggernaut"'),
        ({"Software": "NovelAI"}, "NovelAI"),
        ({"Software": "Adobe Firefly 3"}, "Adobe Firefly"),
        ({"Source": "ChatGPT"}, "ChatGPT"),
    ],
)
def test_a_generator_and_its_model_are_named(tmp_path: Path, texts: dict[str, str], by: str) -> None:
    found = read_provenance(png(tmp_path / "a.png", **texts)).declared
    assert found.kind == AI_GENERATED and found.by == by and not found.verified


@pytest.mark.parametrize(
    "texts",
    [
        {"Software": "GIMP 2.10", "Comment": "holiday parameters: none"},
        {"Software": "Adobe Photoshop 25.0"},
        {"parameters": "f/2.8"},
        {},
    ],
)
def test_what_declares_nothing(tmp_path: Path, texts: dict[str, str]) -> None:
    assert read_provenance(png(tmp_path / "a.png", **texts)).declared is None


CREDIT = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:p="http://ns.adobe.com/photoshop/1.0/" p:Credit="{}"/></rdf:RDF></x:xmpmeta>'
)
ARTIST, DESCRIPTION = 0x013B, 0x010E


def said(field: str | int, text: str) -> Declared | None:
    """What a picture declares whose PNG text, EXIF tag or XMP Credit is ``text``."""
    data = io.BytesIO()
    if field == "Credit":
        photograph(1).save(data, "JPEG", xmp=CREDIT.format(text).encode())
    elif isinstance(field, int):
        exif = Image.Exif()
        exif[field] = text
        photograph(1).save(data, "JPEG", exif=exif)
    else:
        info = PngImagePlugin.PngInfo()
        info.add_text(field, text)
        photograph(1).save(data, "PNG", pnginfo=info)
    return read_provenance(data.getvalue()).declared


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("Credit", "International Gemini Observatory/NOIRLab/NSF/AURA"),
        ("Credit", "Not AI-generated / Photo: J. Doe"),
        ("Credit", "Topaz News Agency"),
        ("Credit", "not made with Midjourney"),
        (ARTIST, "Jane Dalley"),
        (ARTIST, "Gemini Rose"),
        (ARTIST, "Leonardo Aiello"),
        (ARTIST, "Leonardo Ai"),
        (ARTIST, "Grokhovsky"),
        (ARTIST, "John Doe - NO AI GENERATED CONTENT"),
        (DESCRIPTION, "Steps: 3 on the stairs. Sampler of beers. Seed stock"),
        ("Title", "A firefly at night"),
        ("Title", "Visitors before a Kandinsky"),
        ("Title", "Reminiscence"),
        ("Author", "Preface Studio"),
        ("Source", "Gemini South telescope"),
        ("Description", "grep --v 1 Job"),
        ("Software", "Reminisce 2.0"),
        ("Software", "Non-AI-generated by JOSM"),
    ],
)
def test_people_places_and_titles_are_no_generators(field: str | int, text: str) -> None:
    assert said(field, text) is None


@pytest.mark.parametrize(
    ("field", "text", "by"),
    [
        ("Software", "Google Gemini", "Google Gemini"),
        ("Software", "Gemini 2.5 Flash Image", "Gemini"),
        ("Software", "DALL·E 3", "DALL·E"),
        ("Software", "DALLE3", "DALLE"),
        ("Software", "Adobe Firefly 3", "Adobe Firefly"),
        ("Credit", "Made with Google AI", "Made with Google AI"),
        ("Credit", "no. 7 of a series, AI-generated", "AI-generated"),
        (ARTIST, "Midjourney", "Midjourney"),
        ("Title", "AI generated image", "AI generated"),
        ("Author", "DALL-E 2", "DALL-E"),
        ("Description", f"a cat --v 6 Job ID: {'0a' * 4}-1234-1234-1234-{'0a' * 6}", "Midjourney"),
    ],
)
def test_generators_sign_in_many_fields(field: str | int, text: str, by: str) -> None:
    found = said(field, text)
    assert (found.kind, found.by) == (AI_GENERATED, by)


def test_a_signature_vouches_for_no_other_maker() -> None:
    claims = [Finding("generator", "a", AI_GENERATED, "ComfyUI"), Finding("c2pa", "b", AI_GENERATED, verified=True)]
    assert declared(claims).words == "made by a generative model (a verified signature)"


@pytest.mark.parametrize("software", ["FaceApp 5.1", "Remini", "Luminar Neo 1.18", "Edited with Google AI"])
def test_programs_that_edit_with_models(tmp_path: Path, software: str) -> None:
    assert read_provenance(png(tmp_path / "a.png", Software=software)).declared.kind == AI_EDITED


@pytest.mark.parametrize("name", SOURCE_TYPES)
def test_source_types(tmp_path: Path, name: str) -> None:
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'i:DigitalSourceType="{IPTC}{name}"/></rdf:RDF></x:xmpmeta>'
    )
    photograph(1).save(tmp_path / "a.jpg", xmp=packet.encode())
    found = read_provenance(tmp_path / "a.jpg").declared
    expected = {
        "trainedAlgorithmicMedia": AI_GENERATED,
        "compositeWithTrainedAlgorithmicMedia": AI_EDITED,
        **dict.fromkeys(("digitalCapture", "computationalCapture", "negativeFilm", "positiveFilm"), CAMERA),
    }.get(name)
    assert (found and found.kind) == expected


def test_bytes_declare_what_their_file_does(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", Software="Midjourney")
    assert read_provenance(path.read_bytes()) == read_provenance(path)


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_a_phone_picture_names_its_camera(tmp_path: Path, suffix: str) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Apple", "iPhone 15"
    photograph(1).save(tmp_path / f"a.{suffix}", exif=exif.tobytes())
    found = read_provenance(tmp_path / f"a.{suffix}").declared
    assert (found.kind, found.by) == (CAMERA, "Apple iPhone 15")
