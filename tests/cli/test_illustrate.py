from __future__ import annotations

from pathlib import Path

import pytest

from corit_cli.cli.illustrate import _place, heatmap_path


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


def test_a_file_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.heatmap.png").touch()
    assert names(tmp_path, ["x.png"]) == ["x.heatmap.png"]


def test_very_long_names_are_cut(tmp_path: Path) -> None:
    for stem in ("n" * 251, "ü" * 120):
        (tmp_path / f"{stem}.png").touch()
        for path in names(tmp_path, [f"{stem}.png", f"{stem}.jpg"]):
            (tmp_path / f".{path}-temporary").touch()
