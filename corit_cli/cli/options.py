"""Options that several commands share, and the helpers that read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from corit_cli.data.images import CropConfig
from corit_cli.errors import CoritError
from corit_cli.model.settings import METHOD, CoRITSettings, parse_layers

MODEL = "What is read from CLIP"
RUN = "Running"


class Words(TypedDict):
    metavar: str
    autocompletion: Callable[[str], list[str]]


def words(*allowed: str) -> Words:
    """What makes an option show the words it takes, and complete them. It does not check them."""
    return {
        "metavar": "|".join(allowed),
        "autocompletion": lambda incomplete: [word for word in allowed if word.startswith(incomplete)],
    }


Device = Annotated[
    str, typer.Option("--device", **words("auto", "cpu", "cuda"), help="Where the model runs.", rich_help_panel=RUN)
]
Backbone = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="embedded (CLIP ViT-B/16, no network), an open_clip name such as ViT-L-14/openai, a Hub repository, "
        "or a .safetensors file.",
        rich_help_panel=MODEL,
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        **words("quick_gelu", "gelu"),
        help="Only for a .safetensors file with no config.json beside it.",
        rich_help_panel=MODEL,
    ),
]
View = Annotated[
    list[str] | None,
    typer.Option(
        "--view",
        metavar="NAME:STRENGTH",
        help="Contrast view: blur:SIGMA, resample:FACTOR, noise:SIGMA or jpeg:QUALITY. Repeat for several.",
        rich_help_panel=MODEL,
    ),
]
Integrate = Annotated[
    str | None,
    typer.Option(
        metavar="LAYERS", help="HRI: layers whose CLS token is read, as in 7-12 or 3,6-9.", rich_help_panel=MODEL
    ),
]
Cgp = Annotated[
    str | None,
    typer.Option(
        "--cgp", metavar="LAYERS", help="CGP: layers whose CLS contrast is read, as in 4-6.", rich_help_panel=MODEL
    ),
]
NoCgp = Annotated[bool, typer.Option("--no-cgp", help="Leave the contrast features out.", rich_help_panel=MODEL)]
Pool = Annotated[
    str | None,
    typer.Option(
        metavar="LAYERS",
        help="Layers whose patch contrasts are read, pooled to mean and spread.",
        rich_help_panel=MODEL,
    ),
]
InjectAt = Annotated[
    str | None,
    typer.Option(
        metavar="LAYERS",
        help="RSI: blocks after which the contrast is injected, as in 3,4,5,6; the first is its source. none: no RSI.",
        rich_help_panel=MODEL,
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        "--mask",
        metavar="MASK",
        help="RRM: none, quantile:LO-HI, soft:LO-HI, topk:SHARE, snr:SHARE.",
        rich_help_panel=MODEL,
    ),
]
Alpha = Annotated[float | None, typer.Option(help="RSI: strength of the injection.", rich_help_panel=MODEL)]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="FILE", help="Where features are kept.", rich_help_panel=RUN),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no features on disk.", rich_help_panel=RUN)]
CacheSize = Annotated[
    float, typer.Option(min=0.01, metavar="GB", help="Size the cache may reach.", rich_help_panel=RUN)
]
Crop = Annotated[
    str | None,
    typer.Option(
        **words("both", "native", "resize"),
        help="Windows of untouched pixels, the whole image resized as CLIP does, or both.",
        rich_help_panel=MODEL,
    ),
]
Crops = Annotated[
    int | None, typer.Option(min=1, help="Native windows an image is averaged over.", rich_help_panel=MODEL)
]


def corit_settings(
    view: list[str] | None,
    integrate: str | None,
    cgp: str | None,
    no_cgp: bool,
    pool: str | None,
    inject_at: str | None,
    mask: str | None,
    alpha: float | None,
    default: CoRITSettings = METHOD,
) -> CoRITSettings:
    """The settings that options ask for; what is not given is as in ``default``. Raises CoritError on nonsense."""
    if no_cgp and cgp is not None:
        raise CoritError("give --cgp or --no-cgp, not both")
    try:
        changes = {
            "views": None if view is None else tuple(view),
            "integrate": None if integrate is None else parse_layers(integrate),
            "cgp": () if no_cgp else None if cgp is None else parse_layers(cgp),
            "pool": None if pool is None else parse_layers(pool),
            "inject_at": None if inject_at is None else parse_layers(inject_at),
            "mask": mask,
            "alpha": alpha,
        }
        return replace(default, **{k: v for k, v in changes.items() if v is not None})
    except ValueError as error:
        raise CoritError(str(error)) from None


def crop_config(mode: str | None, crops: int | None, size: int) -> CropConfig:
    """How images are cut for a backbone that reads ``size`` pixels."""
    if mode == "resize" and crops is not None:
        raise CoritError("--crops counts native windows: --crop resize has none")
    changes = {"mode": mode, "crops": crops}
    return replace(CropConfig(size=size), **{k: v for k, v in changes.items() if v is not None})


def shipped_samples() -> Path:
    """The manifest of the sample set that corit brings along. Raises CoritError when it is missing."""
    from corit_cli.engine.weights import weights_dir

    manifest = weights_dir() / "samples" / "manifest.csv"
    if not manifest.is_file():
        raise CoritError(f"{manifest} is missing: install corit again, or give --data")
    return manifest
