"""Make docs/detect.svg, the README's picture, by running the command it shows.

python docs/make_pictures.py
"""

import contextlib
import os
from pathlib import Path

from rich.console import Console

from corit_cli.cli import detect, rows
from corit_cli.cli.app import app

os.chdir(Path(__file__).parent.parent)
rows.out = detect.out = Console(
    record=True,
    force_terminal=True,
    width=96,
    highlight=False,
    file=open(os.devnull, "w"),  # noqa: SIM115
)
with contextlib.suppress(SystemExit):
    app(["detect", "-r", "examples"])
rows.out.save_svg("docs/detect.svg", title="corit detect -r examples")
