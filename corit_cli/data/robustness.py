"""What evaluated images are put through to see whether verdicts last: named chains of degradations.

A chain's family is its name up to the first dash. Each is applied to every image, at fixed strengths.
"""

from __future__ import annotations

from corit_cli.errors import CoritError

CHAINS: dict[str, tuple[str, ...]] = {
    **{f"jpeg-{quality}": (f"jpeg:{quality}",) for quality in (95, 90, 75, 50, 30)},
    **{f"webp-{quality}": (f"webp:{quality}",) for quality in (90, 75, 50)},
    **{f"resize-{factor}": (f"resize:{factor}",) for factor in (0.25, 0.5, 0.75, 1.5, 2)},
    **{f"blur-{sigma}": (f"blur:{sigma}",) for sigma in (0.5, 1, 2)},
    **{f"noise-{sigma}": (f"noise:{sigma}",) for sigma in (2, 5, 10)},
    **{f"crop-{fraction}": (f"crop:{fraction}",) for fraction in (0.9, 0.75, 0.5, 0.3)},
    **{f"tonemap-{limit}": (f"tonemap:{limit}",) for limit in (2, 4)},
    **{f"grade-{share}": (f"grade:{share}",) for share in (0.3, 0.6)},
    **{f"portrait-{sigma}": (f"portrait:{sigma}",) for sigma in (1, 2)},
    **{f"paint-{width}": (f"paint:{width}",) for width in (15, 50)},
    **{f"collage-{n}": (f"collage:{n}",) for n in (2, 3)},
    "grey-1": ("grey:1",),
    # Printed and scanned, and saved as scanners do.
    **{f"rescan-{strength}": (f"rescan:{strength}", "jpeg:90") for strength in (0.5, 1)},
    # A picture shown smaller or larger on a screen, photographed losslessly there, then posted.
    **{f"screenshot-{factor}": (f"resize:{factor}", "jpeg:90") for factor in (0.6, 1.25)},
    "screenshot-page": ("screenshot:0.8", "jpeg:90"),
    **{f"messenger-{side}": (f"fit:{side}", "jpeg:80") for side in (1280, 640)},
    # Saved, and saved again better or worse than before.
    "resaved-75-90": ("jpeg:75", "jpeg:90"),
    "resaved-90-75": ("jpeg:90", "jpeg:75"),
}
FAMILIES = tuple(dict.fromkeys(name.partition("-")[0] for name in CHAINS))


def parse_chains(text: str) -> tuple[str, ...]:
    """``all``, or families and names with commas between (``jpeg,resize-0.5``), to names of chains, in table order.

    Raises CoritError naming what is understood.
    """
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for part in wanted:
        if part != "all" and part not in FAMILIES and part not in CHAINS:
            raise CoritError(
                f"unknown robustness test {part!r}: give all, a family ({', '.join(FAMILIES)}) or a name such as "
                f"{next(iter(CHAINS))}"
            )
    if not wanted:
        raise CoritError(f"no robustness test named: give all or any of {', '.join(FAMILIES)}")
    return tuple(name for name in CHAINS if {"all", name, name.partition("-")[0]} & set(wanted))
