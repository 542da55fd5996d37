"""Make docs/detect.svg, the README's picture, by running the command it shows.

python docs/make_pictures.py
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from corit_cli.cli import detect, rows
from corit_cli.cli.app import app


class Wrapping(Console):
    """A console that breaks long lines itself: in a picture no terminal does, and they would be cut off."""

    def print(self, *objects: object, soft_wrap: bool | None = None, **how: Any) -> None:
        super().print(*objects, **how)


os.chdir(Path(__file__).parent.parent)
rows.out = detect.out = Wrapping(
    record=True,
    force_terminal=True,
    width=96,
    highlight=False,
    file=open(os.devnull, "w"),  # noqa: SIM115
)
rows.model_card = lambda: "docs/model-card.md"  # wherever this is run
with contextlib.suppress(SystemExit):
    app(["detect", "-r", "examples"])
rows.out.save_svg("docs/detect.svg", title="corit detect -r examples")
