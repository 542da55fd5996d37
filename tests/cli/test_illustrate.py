from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corit_cli.cli.illustrate import _place, heatmap_path
from corit_cli.detection.heatmap import Heatmap
from corit_cli.files import content_sha256
from corit_cli.report.heatmap import save_overlay


def names(folder: Path, images: list[str], inputs: list[str] | None = None) -> list[str]:
    taken = {_place(path) for path in (images if inputs is None else inputs)}
    return [heatmap_path(folder, image, taken).name for image in images]


def test_a_heatmap_is_called_after_its_image(tmp_path: Path) -> None:
    assert names(tmp_path, ["x.png", "in/y.jpg", "z", "photo.v2.webp", ".hidden.png"]) == [
        "x.heatmap.png",
        "y.heatmap.png",
        "z.heatmap.png",
        "photo.v2.heatmap.png",
        ".hidden.heatmap.png",
    ]


def test_images_that_share_a_name_are_numbered(tmp_path: Path) -> None:
    images = ["a.jpg", "a.png", "other/a.jpg", "a-2.jpg", "A.jpg"]
    found = names(tmp_path, images)
    assert found[:3] == ["a.heatmap.png", "a-2.heatmap.png", "a-3.heatmap.png"]
    assert found[3:] == ["a-2-2.heatmap.png", "A-4.heatmap.png"]  # some file systems tell no A from a
    assert len(set(map(str.lower, found))) == len(images)


def test_no_heatmap_takes_the_place_of_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [str(tmp_path / name) for name in ("x.png", "x.heatmap.png")]
    assert names(tmp_path, inputs) == ["x-2.heatmap.png", "x.heatmap.heatmap.png"]
    (tmp_path / "maps").symlink_to(tmp_path)  # the same folder by another name
    assert names(tmp_path / "maps", inputs) == ["x-2.heatmap.png", "x.heatmap.heatmap.png"]
    monkeypatch.chdir(tmp_path)
    assert names(Path("."), ["./x.png"], inputs) == ["x-2.heatmap.png"]


def test_a_heatmap_of_an_earlier_run_is_replaced_by_one_of_the_same_file_alone(tmp_path: Path) -> None:
    grey = Image.new("RGB", (64, 64))
    flat = Heatmap(np.zeros((4, 4), np.float32), np.ones((4, 4), bool), (0, 0, 64, 64), (64, 64), 0.0, 1.0)
    file, maps = tmp_path / "x.png", tmp_path / "maps"
    file.write_text("one picture")
    maps.mkdir()
    save_overlay(grey, flat, 0.5, "fake", maps / "x.heatmap.png", str(file))
    with Image.open(maps / "x.heatmap.png") as there:
        assert there.info["Source"] == "x.png" and there.info["Source SHA-256"] == content_sha256(file)
    assert names(maps, [str(file)]) == ["x.heatmap.png"]
    file.write_text("another")
    assert names(maps, [str(file)]) == ["x-2.heatmap.png"]
    file.unlink()
    assert names(maps, [str(file)]) == ["x-2.heatmap.png"]
    (tmp_path / "y.heatmap.png").write_text("somebody's")
    assert names(tmp_path, ["y.png"]) == ["y-2.heatmap.png"]
    (tmp_path / "z.heatmap.png").symlink_to(tmp_path / "elsewhere")  # which is not there
    assert names(tmp_path, ["z.png"]) == ["z-2.heatmap.png"]


def test_very_long_names_are_cut(tmp_path: Path) -> None:
    for stem in ("n" * 251, "ü" * 120):
        (tmp_path / f"{stem}.png").touch()
        for path in names(tmp_path, [f"{stem}.png", f"{stem}.jpg"]):
            (tmp_path / f".{path}-temporary").touch()
