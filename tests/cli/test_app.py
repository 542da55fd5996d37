from __future__ import annotations

import subprocess
import sys

from corit_cli import __version__


def test_help_lists_the_commands_that_exist(corit) -> None:
    result = corit("--help")
    assert result.returncode == 0
    for command in ("detect", "train", "evaluate", "gsnr", "cor-sweep"):
        assert command in result.stdout
        assert corit(command, "--help").returncode == 0


def test_version(corit) -> None:
    assert corit("--version").stdout == f"corit {__version__}\n"


def test_help_does_not_load_the_heavy_libraries() -> None:
    code = (
        "import sys; from corit_cli.cli.app import app; "
        "print({'torch', 'open_clip', 'sklearn', 'matplotlib', 'cv2'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_the_embedded_path_does_not_load_open_clip() -> None:
    code = (
        "import sys; from corit_cli import Detector; Detector.load(); "
        "print({'open_clip', 'timm', 'torchvision', 'cv2', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_unknown_commands_and_options_are_usage_errors(corit) -> None:
    assert corit("conjure").returncode == 2
    assert corit("detect", "--nonsense").returncode == 2
    assert corit("detect").returncode == 2
