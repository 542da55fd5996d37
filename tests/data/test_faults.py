from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corit_cli.data.faults import find_faults
from corit_cli.data.manifest import Sample
from corit_cli.errors import CoritError
from tests.conftest import photograph


def files(folder: Path, contents: list[tuple[str, int]]) -> list[Sample]:
    samples = []
    for number, (content, label) in enumerate(contents):
        path = folder / f"{number}.png"
        path.write_text(content)
        samples.append(Sample(path, label))
    return samples


def test_sound_data_has_no_faults(tmp_path: Path) -> None:
    found = find_faults(files(tmp_path, [("a", 0), ("b", 1), ("c", 0), ("d", 1)]), [0, 1], [2, 3])
    assert found.words == [] and found.leaked == 0


def test_an_image_in_both_parts_is_told_and_counted(tmp_path: Path) -> None:
    samples = files(tmp_path, [("a", 0), ("b", 1), ("a", 0), ("d", 1), ("e", 0)])
    found = find_faults(samples, [0, 1], [2, 3])
    assert found.leaked == 1 and "1 of 2 images for validation" in found.words[0] and "2.png" in found.words[0]
    assert find_faults(samples, [0, 1], [3, 4]).leaked == 0
    assert find_faults([*samples, samples[1]], [0, 1], [3, 5]).leaked == 1  # the same path twice


def test_a_split_is_said_to_be_left_out_where_it_is(tmp_path: Path) -> None:
    samples = [replace(s, split="later") for s in files(tmp_path, [("a", 0), ("b", 1), ("c", 0), ("d", 1)])]
    (said,) = find_faults(samples, [0], [1]).words
    assert said == "the split 'later' is neither train, val nor test: its 2 images are left out"
    assert find_faults(samples, [0, 1], [2, 3]).words == []


def test_an_image_in_both_classes_is_told_and_all_of_them_are_refused(tmp_path: Path) -> None:
    samples = files(tmp_path, [("a", 0), ("a", 1), ("c", 0), ("d", 1)])
    (said,) = find_faults(samples, [0, 1, 2, 3], []).words
    assert "1 images stand in both classes" in said and "0.png and" in said
    with pytest.raises(CoritError, match=r"every real image .* nothing to learn"):
        find_faults(files(tmp_path, [("a", 0), ("a", 1), ("d", 1)]), [0, 1, 2], [])


def test_an_image_in_several_sources_is_told(tmp_path: Path) -> None:
    named = zip(files(tmp_path, [("a", 0), ("a", 0), ("b", 0), ("b", 0), ("c", 1)]), "xyzzx", strict=True)
    (said,) = find_faults([replace(s, source=source) for s, source in named], [0, 1, 2, 3, 4], []).words
    assert said.startswith("1 images stand in several sources") and said.endswith("x and y")


def test_a_class_that_shows_nothing_is_refused(tmp_path: Path) -> None:
    samples = []
    for number in range(8):
        picture = Image.new("RGB", (40, 40), "gray") if number % 2 or number < 4 else photograph(number, (40, 40))
        picture.save(tmp_path / f"{number}.png", dpi=(70 + number, 70))  # no two files are the same
        samples.append(Sample(tmp_path / f"{number}.png", number % 2))
    with pytest.raises(CoritError, match=r"every fake image is blank.* nothing to learn"):
        find_faults(samples, [0, 1], [2, 3])
    photograph(1, (40, 40)).save(tmp_path / "7.png")
    assert find_faults(samples, [0, 1], [2, 3]).words == []


def test_what_is_missing_and_unknown_splits_are_told(tmp_path: Path) -> None:
    samples = files(tmp_path, [("a", 0), ("b", 1)])
    samples += [Sample(tmp_path / f"none{i}.png", 0) for i in range(5)]
    samples.append(Sample(samples[0].path, 0, split="holdout"))
    missing, split = find_faults(samples, [0], [1]).words
    assert missing.startswith("5 of the 8 files are missing: ") and missing.endswith("and 2 more")
    assert "'holdout' is neither train, val nor test: its 1 images" in split


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.booleans()), max_size=8))
def test_leaks_are_counted_as_one_would(tmp_path_factory: pytest.TempPathFactory, drawn: list) -> None:
    contents = [*drawn, ("real", 0, True), ("fake!", 1, True)]
    samples = files(tmp_path_factory.mktemp("leaks"), [(content, label) for content, label, _ in contents])
    train, val = ([i for i, (_, _, part) in enumerate(contents) if part == side] for side in (True, False))
    taught = {contents[i][0] for i in train}
    assert find_faults(samples, train, val).leaked == sum(contents[i][0] in taught for i in val)
