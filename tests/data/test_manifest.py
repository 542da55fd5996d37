from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corit_cli.data.manifest import Sample, load_samples
from corit_cli.errors import CoritError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def load(root: Path) -> dict[str, Sample]:
    base = root if root.is_dir() else root.parent
    return {s.path.relative_to(base).as_posix(): s for s in load_samples(root)}


def fails(data: Path) -> str:
    with pytest.raises(CoritError) as error:
        load_samples(data)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- folders --------------------------------------------------------------------------------------


def test_plain_folders(tmp_path: Path) -> None:
    touch(tmp_path, "Real/b.jpg", "fake/a.PNG", "fake/notes.txt", "fake/.hidden.jpg", "fake/.cache/a.jpg", "cover.jpg")
    assert load_samples(tmp_path) == [Sample(tmp_path / "Real/b.jpg", 0), Sample(tmp_path / "fake/a.PNG", 1)]


@pytest.mark.parametrize("label", [0, 1])
def test_every_class_name(tmp_path: Path, label: int) -> None:
    real = ["real", "0_real", "nature", "authentic", "original", "pristine", "0", "reals", "genuine"]
    fake = ["fake", "1_fake", "ai", "generated", "synthetic", "manipulated", "1", "fakes", "deepfake", "deepfakes"]
    names = (real, fake)[label]
    touch(tmp_path, *(f"set{i}/{name.upper()}/a.jpg" for i, name in enumerate(names)))
    assert [s.label for s in load_samples(tmp_path)] == [label] * len(names)


def test_genimage_layout(tmp_path: Path) -> None:
    touch(tmp_path, "Midjourney/train/nature/a.jpg", "Midjourney/val/ai/b.png", "ADM/train/ai/c.png")
    found = load(tmp_path)
    real = found["Midjourney/train/nature/a.jpg"]
    assert (real.label, real.source, real.generator, real.split) == (0, "Midjourney", "", "train")
    fake = found["Midjourney/val/ai/b.png"]
    assert (fake.label, fake.source, fake.generator, fake.split) == (1, "Midjourney", "Midjourney", "val")
    assert found["ADM/train/ai/c.png"].generator == "ADM"


def test_cnndetection_layout(tmp_path: Path) -> None:
    touch(tmp_path, "test/progan/cat/0_real/a.png", "test/progan/cat/1_fake/a.png", "test/crn/1_fake/a.png")
    found = load(tmp_path)
    assert {(s.source, s.split) for s in found.values()} == {("progan", "test"), ("crn", "test")}
    assert [s.generator for s in found.values()] == ["crn", "", "progan"]


@pytest.mark.parametrize(
    ("name", "split"), [("Train", "train"), ("valid", "val"), ("validation", "val"), ("test", "test")]
)
def test_split_folders_above_or_below_the_class(tmp_path: Path, name: str, split: str) -> None:
    touch(tmp_path, f"{name}/real/a.jpg", f"fake/{name}/a.jpg")
    assert [(s.split, s.source, s.generator) for s in load_samples(tmp_path)] == [(split, "", "")] * 2


def test_words_come_before_numbers_and_deeper_names_first(tmp_path: Path) -> None:
    touch(tmp_path, "ai/fake/a.jpg", "fake/sdxl/0/a.jpg", "x/1/0/a.jpg")
    labels = {name: s.label for name, s in load(tmp_path).items()}
    assert labels == {"ai/fake/a.jpg": 1, "fake/sdxl/0/a.jpg": 1, "x/1/0/a.jpg": 0}


@pytest.mark.parametrize("path", ["fake/nature/a.jpg", "real/ai/a.jpg", "original/fake/a.jpg"])
def test_folders_that_name_both_classes_are_refused(tmp_path: Path, path: str) -> None:
    touch(tmp_path, path)
    assert "both classes" in fails(tmp_path)


def test_generator_below_the_class(tmp_path: Path) -> None:
    touch(tmp_path, "fake/sdxl/a.jpg", "real/coco/a.jpg")
    assert [(s.source, s.generator) for s in load_samples(tmp_path)] == [("", "sdxl"), ("", "")]


def test_names_above_the_root_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "fake/set/a.jpg")
    assert "which of its 1 images are fake" in fails(tmp_path / "fake" / "set")


def test_links_are_followed_but_not_upwards(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.jpg", "data/fake/a.jpg")
    (tmp_path / "data/real").symlink_to(tmp_path / "store")
    (tmp_path / "data/fake/loop").symlink_to(tmp_path / "data")
    assert {name: s.label for name, s in load(tmp_path / "data").items()} == {"fake/a.jpg": 1, "real/a.jpg": 0}


def test_folder_errors(tmp_path: Path) -> None:
    assert "does not exist" in fails(tmp_path / "none")
    assert "no images found" in fails(tmp_path)
    touch(tmp_path, "cats/a.jpg", "dogs/b.jpg")
    message = fails(tmp_path)
    assert "0_real" in message and "manipulated" in message


# --- manifests ------------------------------------------------------------------------------------

ROWS = [
    {"Image": "a.jpg", "target": "real", "colour": "red"},
    {"Image": "sub\\b.jpg", "target": 1, "source": "web", "generator": "sdxl", "split": "valid", "video_id": 7},
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    else:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
        path.write_text("\ufeff" + "\n".join(",".join(line) for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_manifest(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    assert load_samples(write(tmp_path / f"m{suffix}", ROWS)) == [
        Sample(tmp_path / "a.jpg", 0),
        Sample(tmp_path / "sub/b.jpg", 1, source="web", generator="sdxl", split="val", video_id="7"),
    ]


def test_a_row_that_is_there_twice_counts_once_and_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    told: list[str] = []
    manifest = write(tmp_path / "m.csv", [*ROWS, ROWS[1], ROWS[1]])
    assert load_samples(manifest, told.append) == load_samples(write(tmp_path / "once.csv", ROWS))
    assert told == [f"2 rows of {manifest} repeat others, and are left out"]


@pytest.mark.parametrize("column", ["label", "class", "target", "is_fake"])
@pytest.mark.parametrize(
    ("value", "label"),
    [(0, 0), (1, 1), (True, 1), (False, 0), ("FAKE", 1), ("Real", 0), ("true", 1), (1.0, 1), ("ai", 1)],
)
def test_label_values(tmp_path: Path, column: str, value: object, label: int) -> None:
    touch(tmp_path, "a.jpg")
    assert load_samples(write(tmp_path / "m.json", [{"path": "a.jpg", column: value}]))[0].label == label


def test_absolute_paths_and_quoted_cells(tmp_path: Path) -> None:
    touch(tmp_path, "images/a, b.jpg")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/m.csv").write_text(f'path,label,note\n"{tmp_path}/images/a, b.jpg",1,"two\nlines"\n')
    assert load_samples(tmp_path / "lists/m.csv") == [Sample(tmp_path / "images/a, b.jpg", 1)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.csv", "path,label\na.jpg,0\nb.jpg,maybe\n", "line 3: unknown label 'maybe'"),
        ("m.csv", "path,label\na.jpg,0\n,1\n", "line 3: no path"),
        ("m.csv", "photo,label\na.jpg,0\n", "has no path column (columns: photo, label): name it path or image"),
        ("m.csv", "path,label\n", "no images found"),
        ("m.csv", "path,kind\na.jpg,0\n", "has no label column (columns: path, kind)"),
        ("m.csv", "path;label\na.jpg;0\n", "looks semicolon-separated"),
        ("m.csv", "path\tlabel\na.jpg\t0\n", "looks tab-separated"),
        ("m.csv", "path,label\na.jpg,0\n./a.jpg,1\n", "line 3: "),
        ("m.jsonl", '{"path": "a.jpg", "label": 0}\n{"path": "a.jpg", "label": 1}\n', "a.jpg is real and fake at once"),
        ("m.jsonl", '{"path": "a.jpg", "label": 0}\n\n{"label": 0}\n', "line 3: no path"),
        ("m.jsonl", '{"path": "a.jpg", "label": 0}\n{oops\n', "line 2: not valid JSON"),
        ("m.jsonl", "7\n", "line 1: expected an object"),
        ("m.json", '[{"path": "a.jpg", "label": 0}, {"path": "b.jpg"}]', "item 2: unknown label ''"),
        ("m.json", '[{"path": "a.jpg", "label": 0}, "b.jpg"]', "item 2: expected an object"),
        ("m.json", '{"a": [\n1,, 2]}', "line 2: not valid JSON"),
        ("m.json", '"a.jpg"', "line 1: expected an object"),
        ("m.json", '{"a": {"b": 1}}', "DeepfakeBench"),
        ("m.txt", "a.jpg", "is not a folder or a .csv"),
    ],
)
def test_manifest_errors(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    message = fails(tmp_path / name)
    assert expected in message
    assert name in message


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [900, 985, 100_000])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_manifests_of_any_depth_are_one_line(tmp_path: Path, suffix: str, depth: int, opening: str) -> None:
    closing = {"[": "]"}.get(opening, "}")
    (tmp_path / f"m{suffix}").write_text(opening * depth + "1" + closing * depth)
    assert "\n" not in fails(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_manifests_of_spreadsheets(tmp_path: Path, encoding: str) -> None:
    touch(tmp_path, "ü.jpg")
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "m.csv").write_text(f"{mark}path,label\nü.jpg,fake\n", encoding=encoding)
    assert load_samples(tmp_path / "m.csv") == [Sample(tmp_path / "ü.jpg", 1)]


@pytest.mark.parametrize(
    ("name", "label", "split"),
    [
        ("training_real", 0, "train"),
        ("Fake", 1, ""),
        ("val-fake", 1, "val"),
        ("Real Images", 0, ""),
        ("test_ai", 1, "test"),
        ("fake.faces", 1, ""),
        ("ai_generated", 1, ""),
        ("AI-generated images", 1, ""),
        ("ai_art", 1, ""),
        ("fake (1)", 1, ""),
        ("real_2", 0, ""),
    ],
)
def test_names_of_folders(tmp_path: Path, name: str, label: int, split: str) -> None:
    touch(tmp_path, f"{name}/a.jpg", "really_not/b.jpg", "unreal/c.jpg", "real_or_fake/d.jpg", "not_fake/e.jpg")
    told: list[str] = []
    (found,) = load_samples(tmp_path, told.append)
    assert (found.label, found.split) == (label, split)
    assert told[0].startswith("4 images lie in folders that name no class") and "/, ..." in told[0]


def test_what_is_an_image_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    touch(tmp_path, "real/notes.txt", "real/b.jpg", "fake/song")
    Image.new("RGB", (9, 9)).save(tmp_path / "fake" / "no-suffix", "PNG")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg_large", "JPEG")
    told: list[str] = []
    found = load_samples(tmp_path, told.append)
    assert {s.path.name: s.label for s in found} == {"b.jpg": 0, "no-suffix": 1}
    assert told == ["1 images lie in folders that name no class and are left out: 1 in no folder"]


def test_manifest_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,label\n\xff\xfe,0\n")
    assert "not a readable manifest" in fails(tmp_path / "m.csv")


def test_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "0.jpg", "1.jpg")
    rows = [{"path": f"{i}.jpg", "label": i % 2} for i in range(5)]
    assert len(load_samples(write(tmp_path / "half.csv", rows[:4]))) == 4
    message = fails(write(tmp_path / "most.csv", rows))
    assert "3 of the 5" in message and "2.jpg" in message and str(tmp_path) in message


@pytest.mark.parametrize("place", ["lists", "."])
def test_deepfakebench(tmp_path: Path, place: str) -> None:
    frames = ["FF\\orig\\071\\0.png", "FF\\orig\\071\\1.png"], ["FF/df/071_054/0.png"], ["FF/orig/2/0.png"]
    touch(tmp_path, *(f.replace("\\", "/") for part in frames for f in part))
    video = [{"label": "whatever", "frames": f} for f in frames]
    content = {
        "FaceForensics++": {
            "FF-real": {"train": {"c23": {"071": video[0]}}, "val": {"c23": {"empty": {"label": "x", "frames": []}}}},
            "FF-DF": {"test": {"c23": {"071_054": video[1]}}},
            "YouTube-Real": {"val": {"2": video[2]}},
        }
    }
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "FF.json").write_text(json.dumps(content))
    assert sorted(load_samples(tmp_path / place / "FF.json"), key=lambda s: s.path) == [
        Sample(tmp_path / "FF/df/071_054/0.png", 1, "FaceForensics++", "FF-DF", "test", "071_054"),
        Sample(tmp_path / "FF/orig/071/0.png", 0, "FaceForensics++", "", "train", "071"),
        Sample(tmp_path / "FF/orig/071/1.png", 0, "FaceForensics++", "", "train", "071"),
        Sample(tmp_path / "FF/orig/2/0.png", 0, "FaceForensics++", "", "val", "2"),
    ]


def test_a_sample_is_a_path_and_a_class() -> None:
    assert Sample("a.jpg", True) == Sample(Path("a.jpg"), 1) and type(Sample("a.jpg", np.int64(0)).label) is int
    for label in (2, -1, "fake", None):
        with pytest.raises(CoritError, match="a label is 1 for a fake and 0 for a real image"):
            Sample(Path("a.jpg"), label)
