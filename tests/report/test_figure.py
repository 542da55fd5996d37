"""Figures look the same wherever they are drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from corit_cli.report.figure import LOOKS

DRAW = """
import sys
from pathlib import Path
from corit_cli.report.figure import as_svg, draw, save
with draw((2, 2)) as (figure, axes):
    axes.plot([1, 2])
save(figure, Path("a.png"))
print(as_svg(figure, "salt"))
assert "matplotlib.pyplot" not in sys.modules
"""


def test_settings_of_a_folder_s_own_change_nothing(tmp_path: Path) -> None:
    """A matplotlibrc in the current folder is read by matplotlib, and may have LaTeX run what it says."""
    found = []
    for name, settings in (("plain", ""), ("own", "text.usetex: True\naxes.facecolor: red\nlines.linewidth: 9\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "matplotlibrc").write_text(settings)
        run = subprocess.run([sys.executable, "-c", DRAW], cwd=folder, capture_output=True, text=True, check=True)
        found.append((run.stdout, (folder / "a.png").read_bytes()))
    assert found[0] == found[1]


def test_every_look_is_told_apart_without_colours() -> None:
    assert len({look.line for look in LOOKS}) == len({look.mark for look in LOOKS}) == len(LOOKS)
