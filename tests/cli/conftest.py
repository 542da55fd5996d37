"""The installed ``corit``, run as a user runs it: in a process of its own, in an empty folder, with an empty cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.conftest import make_tiles, random_tower


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone in a local file, ``tower.safetensors``, and photographs' tiles with forgeries in ``tiles``."""
    root = tmp_path_factory.mktemp("tiny")
    save_file(random_tower().state_dict(), root / "tower.safetensors")
    (root / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    make_tiles(root / "tiles")
    return root


def one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that a run ended as a user's mistake should: exit code 2, one line, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
