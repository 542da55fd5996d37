"""The installed ``corit``, run as a user runs it: in a process of its own, in an empty folder, with an empty cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.conftest import make_tiles, random_tower

CORIT = Path(sys.executable).parent / "corit"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home" / "cache"),
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone in a local file, ``tower.safetensors``, and photographs' tiles with forgeries in ``tiles``."""
    root = tmp_path_factory.mktemp("tiny")
    save_file(random_tower().state_dict(), root / "tower.safetensors")
    (root / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    make_tiles(root / "tiles")
    return root


@pytest.fixture
def corit(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``corit("detect", path, ...)``; the result has ``returncode``, ``stdout`` and ``stderr``."""
    home = tmp_path / "cwd"
    home.mkdir()

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [str(CORIT), *map(str, arguments)]
        settings = {"cwd": home, "env": environment, "capture_output": True, "text": True, "timeout": 300, **options}
        return subprocess.run(command, **settings)

    return run


def one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that a run ended as a user's mistake should: exit code 2, one line, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
