"""Programs that make or change pictures, told by the settings that they write into a file and by their names.

Settings have a form of their own. A name counts wherever it stands only if it can mean nothing else: many generators
are called what people, places and pictures are called, too, and of such a name no photographer, title or agency is
accused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Fields in which a program, or a service, gives its own name.
PROGRAMS = ("Software", "CreatorTool", "AISystemUsed", "generator")
#: Fields for people, titles and agencies, in which services sign as well.
PERSONS = ("Source", "Title", "Credit", "Artist", "Author")

_WEB_UI = (r'\bSteps"?\s*:\s*"?\d', r'\b(Sampler|CFG scale)"?\s*:', r'\bSeed"?\s*:')
# A generator by the field its settings stand in and by what must all occur there.
_SETTINGS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("SwarmUI", "parameters|UserComment", ("sui_image_params",)),
    ("Fooocus", "fooocus_scheme", ()),
    ("InvokeAI", "invokeai_metadata|invokeai_graph|sd-metadata|[Dd]ream", ()),
    ("NovelAI", "Comment", ('"sampler"', '"seed"')),
    ("ComfyUI", "prompt|Make|Model|ImageDescription|UserComment|XMP .*", ('"class_type"',)),
    ("ComfyUI", "workflow|Make|Model|ImageDescription|UserComment", ('"(last_node_id|nodes)"',)),
    # The text that the AUTOMATIC1111 web UI writes, and many programs after it.
    ("a Stable Diffusion program", "parameters|[Cc]omment|(XMP )?UserComment|ImageDescription", _WEB_UI),
    ("Midjourney", ".*[Dd]escription", ("Job ID: [0-9a-f-]{36}",)),
)
# Where settings name the model: of ComfyUI, of the AUTOMATIC1111 web UI and its like, of InvokeAI and others.
_MODELS = re.compile(
    r'"(?:ckpt_name|unet_name|model_name|sd_model_name)"\s*:\s*"([^"]{1,200})"|\bModel: ([^,\n]{1,200})|'
    r'"model"\s*:\s*(?:\{[^{}]{0,300}?"name"\s*:\s*)?"([^"]{1,200})"'
)


def _names(pattern: str) -> re.Pattern[str]:
    """The names as words of their own: no letter goes before or after."""
    return re.compile(rf"(?<![^\W\d_])(?:{pattern})(?![^\W\d_])", re.IGNORECASE)


_UNMISTAKABLE = (
    r"NovelAI|Midjourney|DALL[-·. ]E|Stable ?Diffusion|Adobe Firefly|Made with Google AI|Edited with Google AI|ComfyUI|"
    r"InvokeAI|Fooocus|Leonardo\.AI|Bing Image Creator|FLUX\.\d|ChatGPT|GPT-4o|SwarmUI|DreamStudio|Black Forest Labs|"
    r"Made with AI|Imagined with AI|Generated with AI|AI[- ]generated|AUTOMATIC1111|Stable Cascade|Google Gemini|"
    r"Gemini[ _]Generated[ _]Image|Google Imagen|Qwen-Image|This Person Does Not Exist"
)
_ANYWHERE = _names(_UNMISTAKABLE)
_GENERATORS = _names(
    rf"{_UNMISTAKABLE}|DALLE|Stable ?Diffusion ?XL|Firefly|Leonardo ?AI|Ideogram|Microsoft Designer|Draw Things|OpenAI|"
    r"Imagen \d|Gemini|Recraft|Playground ?AI|Easy Diffusion|NightCafe|Artbreeder|Craiyon|Civitai|SeaArt|TensorArt|"
    r"Tensor\.Art|Kandinsky|Hunyuan|Seedream|Nano Banana|Meta AI|Grok|Adobe Express AI|Krea\.?ai"
)
# Programs that are there to change pictures with a model.
_AI_EDITORS = _names(
    r"FaceApp|Facetune|Remini|Reface|Lensa|Luminar Neo|Topaz|Gigapixel|FaceFusion|DeepFaceLab|FaceSwap|SimSwap|"
    r"Photoleap|Clipdrop|Pixelcut|Generative Fill|Magic Editor|Generative Edit|Real-?ESRGAN|GFPGAN|CodeFormer|Upscayl|"
    r"MyHeritage"
)
_EDITORS = re.compile(
    r"Photoshop|Lightroom|Capture One|GIMP|Affinity Photo|Pixelmator|Snapseed|PicsArt|Canva|Luminar|"
    r"paint\.net|darktable|RawTherapee|PhotoScape|Pixlr|Fotor|Meitu|YouCam|BeautyPlus|ACDSee|PaintShop",
    re.IGNORECASE,
)
#: What goes before a name that is denied, up to two words further ahead.
_DENIED = re.compile(r"\b(?:not?|non|never|without)[\s-]+(?:\w+[\s-]+){0,2}$", re.IGNORECASE)


def settings_of(texts: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """The generator that wrote its settings into a file's ``texts``, and the fields they stand in."""
    found: dict[str, str] = {}
    maker = None
    for name, field_name, content in _SETTINGS:
        for key, text in texts.items():
            if re.fullmatch(field_name, key) and all(re.search(part, text) for part in content):
                maker = maker or name
                found.setdefault(key, text)
    return maker, found


def model_of(settings: Mapping[str, str]) -> str | None:
    """The first model that a generator's settings name."""
    found = (match for text in settings.values() if (match := _MODELS.search(text)))
    return next((next(filter(None, match.groups())) for match in found), None)


def generator_in(field: str, text: str) -> str | None:
    """The generator that a field's text names; names that mean other things, too, count for ``PROGRAMS`` alone."""
    names = _GENERATORS if field in PROGRAMS else _ANYWHERE
    return next((m[0] for m in names.finditer(text) if not _DENIED.search(text[: m.start()])), None)


def ai_editor_in(field: str, text: str) -> str | None:
    """The program that edits with models whose name stands in a field for programs."""
    found = _AI_EDITORS.search(text) if field in PROGRAMS else None
    return found and found[0]


def is_editor(text: str) -> bool:
    """Whether a text names a program for editing pictures."""
    return _EDITORS.search(text) is not None
