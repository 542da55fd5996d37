"""Which files are real and which are fake: folders, CSV and JSON manifests, DeepfakeBench's JSON."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from corit_cli.data.kinds import IMAGE, IMAGE_SUFFIXES, sniff
from corit_cli.errors import CoritError

_CLASSES = {
    **dict.fromkeys(("real", "0_real", "nature", "authentic", "original", "pristine", "0", "reals", "genuine"), 0),
    **dict.fromkeys(("fake", "1_fake", "ai", "generated", "synthetic", "manipulated", "1"), 1),
    **dict.fromkeys(("fakes", "deepfake", "deepfakes"), 1),
}
#: Words that may stand beside a class in a folder's name.
_BESIDE = frozenset(("images", "image", "imgs", "img", "photos", "pictures", "faces", "frames", "data", "set", "art"))
_LABELS = {**_CLASSES, "false": 0, "true": 1, "0.0": 0, "1.0": 1}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
#: What columns that hold paths may be called.
PATH_NAMES = ("path", "image", "file", "filename")
_COLUMNS = {
    "path": PATH_NAMES,
    "label": ("label", "is_fake", "target", "class"),
    **{name: (name,) for name in ("source", "generator", "split", "video_id")},
}


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it; ``label`` is 1 for a fake and 0 for a real image, "" means unknown. Raises
    CoritError for another label."""

    path: Path
    label: int
    source: str = ""
    generator: str = ""
    split: str = ""
    video_id: str = ""

    def __post_init__(self) -> None:
        if self.label not in (0, 1):
            raise CoritError(f"a label is 1 for a fake and 0 for a real image, not {self.label!r}")
        object.__setattr__(self, "label", int(self.label))
        if not isinstance(self.path, Path):
            object.__setattr__(self, "path", Path(self.path))


def load_samples(data: Path, warn: Callable[[str], object] = lambda message: None) -> list[Sample]:
    """The labelled images of a folder or a manifest, sorted by path.

    * A folder, nested in any way in which some folder's name gives the class (0 and 1 only where no word does). The
      first folder above it, splits aside, is the source, and for fakes the generator; a fake class with nothing above
      it takes its generator from the first folder below. Images outside are left out, which ``warn`` is told. What is
      an image is told by its first bytes or its suffix.
    * A ``.csv`` with a header, a ``.jsonl``, or a ``.json`` list of objects, with the columns path and label and any
      of source, generator, split and video_id, which names a video once for all sources (images of the same one are
      never divided). Relative paths start from the manifest's folder.
    * DeepfakeBench's ``.json``: dataset, label, split, perhaps compression, video, frames.

    What is there twice, all columns alike, is taken once, which ``warn`` is told, too.

    Raises CoritError when nothing is found, a row cannot be understood, or most of the files listed are missing. A
    few missing files are left for whoever opens them to report.
    """
    data = Path(data)
    if data.is_dir():
        samples = list(_from_folder(data, warn))
    elif not data.is_file():
        raise CoritError(f"{data} does not exist: give a folder, or a .csv, .jsonl or .json manifest")
    elif data.suffix.lower() in (".csv", ".jsonl", ".json"):
        try:
            samples = list(_from_manifest(data))
        except RecursionError:
            raise CoritError(f"{data} is not a readable manifest: it is nested too deeply") from None
        missing = [s.path for s in samples if not os.path.isfile(s.path)]
        if 2 * len(missing) > len(samples):
            raise CoritError(
                f"{len(missing)} of the {len(samples)} files in {data} are missing, "
                f"{', '.join(path.name for path in missing[:3])} among them: {missing[0].name} was looked for in "
                f"{missing[0].parent} (relative paths start from the manifest's folder)"
            )
    else:
        raise CoritError(f"{data} is not a folder or a .csv, .jsonl or .json manifest")
    if not samples:
        raise CoritError(f"no images found in {data}")
    distinct = dict.fromkeys(samples)
    if len(distinct) < len(samples):
        warn(f"{len(samples) - len(distinct)} rows of {data} repeat others, and are left out")
    return sorted(distinct, key=lambda s: s.path)


# --- folders --------------------------------------------------------------------------------------


def _from_folder(root: Path, warn: Callable[[str], object]) -> Iterator[Sample]:
    images = classified = 0
    outside: Counter[str] = Counter()
    for path in _image_files(root):
        images += 1
        folders = path.relative_to(root).parts[:-1]
        names = [name.lower() for name in folders]
        classes = [_class_of(name) for name in names]
        found = [i for i, label in enumerate(classes) if label is not None]
        if not found:
            outside[f"in {'/'.join(folders[:2])}/" if folders else "in no folder"] += 1
            continue
        classified += 1
        words = {classes[i] for i in found if not names[i].isdigit()}
        if len(words) > 1:
            raise CoritError(f"the folders above {path} name both classes: rename one, or give a manifest")
        at = max(found, key=lambda i: (not names[i].isdigit(), i))  # fake/video/0/ is the first shot of a fake
        label = classes[at]
        above, below = ([f for f in part if f.lower() not in _SPLITS] for part in (folders[:at], folders[at + 1 :]))
        yield Sample(
            path=path,
            label=label,
            source=above[0] if above else "",
            generator=next(iter(above or below), "") if label else "",
            split=next((_SPLITS[word] for name in names for word in _words(name) if word in _SPLITS), ""),
        )
    if images and not classified:
        real, fake = (", ".join(n for n, c in _CLASSES.items() if c == label) for label in (0, 1))
        raise CoritError(
            f"no folder under {root} says which of its {images} images are fake: "
            f"name folders for real images one of {real}; for fakes one of {fake}"
        )
    if outside:
        where = ", ".join(f"{count} {place}" for place, count in outside.most_common(3))
        more = ", ..." if len(outside) > 3 else ""
        warn(f"{outside.total()} images lie in folders that name no class and are left out: {where}{more}")


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_ .()]+", name) if word]


def _class_of(name: str) -> int | None:
    """The class that a folder's name in small letters gives: by itself, as in ``real``, or with words that say
    nothing of it, as in ``training_real``, or as several words of one class."""
    if name in _CLASSES:
        return _CLASSES[name]
    words = [word for word in _words(name) if word not in _SPLITS and word not in _BESIDE and not word.isdigit()]
    classes = {_CLASSES.get(word) for word in words}
    return classes.pop() if len(classes) == 1 else None


def _image_files(root: Path) -> Iterator[Path]:
    """Image files at any depth, hidden ones left out; links are followed unless they lead back up."""
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        folders[:] = [f for f in folders if f[0] != "." and not here.resolve().is_relative_to((here / f).resolve())]
        yield from (here / f for f in files if f[0] != "." and _is_image(here / f))


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    kind = sniff(path)
    return kind is not None and kind.media == IMAGE


# --- manifests ------------------------------------------------------------------------------------


def _from_manifest(file: Path) -> Iterator[Sample]:
    try:
        content = file.read_bytes()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # as spreadsheets save it
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if file.suffix.lower() == ".csv":
            reader = csv.DictReader(io.StringIO(text))
            _check_header(reader.fieldnames or ())
            rows = [(f"line {reader.line_num}", row) for row in reader]
        elif file.suffix.lower() == ".jsonl":
            rows = [(f"line {n}", _json(line, n)) for n, line in enumerate(io.StringIO(text), 1) if line.strip()]
        else:
            content = _json(text)
            if isinstance(content, dict):
                yield from _from_deepfakebench(file, content)
                return
            rows = [(f"item {n}", row) for n, row in enumerate(content, 1)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CoritError(f"{file} is not a readable manifest: {error}") from None
    except ValueError as error:
        raise CoritError(f"{file} {error}") from None
    labels: dict[str, int] = {}
    for where, row in rows:
        try:
            sample = _sample(file.parent, row)
            if labels.setdefault(os.path.normpath(sample.path), sample.label) != sample.label:
                raise ValueError(f"{sample.path} is real and fake at once: each file has one label")
            yield sample
        except ValueError as error:
            raise CoritError(f"{file} {where}: {error}") from None


def _check_header(columns: Sequence[str]) -> None:
    """Raise ValueError, with what to do, for a header that lacks what every row needs."""
    names = [str(name).strip().lower() for name in columns]
    if not names:
        return
    for mark, said in ((";", "semicolon-separated"), ("\t", "tab-separated"), ("|", "separated by bars")):
        if len(names) == 1 and mark in names[0]:
            raise ValueError(f"looks {said}: save it with commas between")
    for field in ("path", "label"):
        if not set(names) & set(_COLUMNS[field]):
            found = ", ".join(names)
            raise ValueError(f"has no {field} column (columns: {found}): name it {' or '.join(_COLUMNS[field])}")


def _json(text: str, line: int | None = None) -> list | dict:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {line or error.lineno}: not valid JSON ({error.msg})") from None
    if not isinstance(content, list | dict):
        raise ValueError(f"line {line or 1}: expected an object, not {content!r}")
    return content


def _sample(folder: Path, row: object) -> Sample:
    """Raises ValueError, without the place, for a row that has no path or no understandable label."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with path and label, not {row!r}")
    cells = {str(k).strip().lower(): str(v).strip() for k, v in row.items() if v is not None}
    values = {field: next((cells[n] for n in names if cells.get(n)), "") for field, names in _COLUMNS.items()}
    path, label = values.pop("path"), values.pop("label").lower()
    if not path:
        raise ValueError(f"no path (the columns looked for: {', '.join(_COLUMNS['path'])})")
    if label not in _LABELS:
        raise ValueError(f"unknown label {label!r} (column {', '.join(_COLUMNS['label'])}): give real or fake, 0 or 1")
    split = values["split"].lower()
    values["split"] = _SPLITS.get(split, split)
    return Sample(folder / _posix(path), _LABELS[label], **values)


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _from_deepfakebench(file: Path, content: dict) -> Iterator[Sample]:
    videos = list(_videos(content, ()))
    if not videos:
        raise CoritError(
            f"{file} is neither a list of objects with path and label nor a DeepfakeBench file with frames"
        )
    # The frames stand beside the JSON's folder or one of its parents: settled once, by the frames that exist.
    probe = [_posix(str(frames[0])) for _, frames in videos[:100]]
    bases = [file.parent, *file.parent.absolute().parents]
    base = next((b for b in bases if any(os.path.isfile(b / frame) for frame in probe)), file.parent)
    for keys, frames in videos:
        dataset, kind, split, video = keys[0], keys[1], keys[2], keys[-1]
        label = int("real" not in kind.lower())
        for frame in frames:
            path = base / PurePosixPath(_posix(str(frame)))
            yield Sample(path, label, dataset, kind if label else "", _SPLITS.get(split.lower(), split), video)


def _videos(node: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list]]:
    """(keys, frames) of every video that lies under at least dataset, label and split."""
    if not isinstance(node, dict):
        return
    if len(keys) >= 4 and isinstance(node.get("frames"), list):
        if node["frames"]:
            yield keys, node["frames"]
        return
    for key, child in node.items():
        yield from _videos(child, (*keys, key))


# --- what is kept of them --------------------------------------------------------------------------


def describe(samples: Sequence[Sample], train_part: Sequence[int], val_part: Sequence[int]) -> dict[str, Any]:
    """Counts by source and class, and a fingerprint of the file list, for the checkpoint."""
    table: dict[str, dict[str, int]] = {}
    for part, indices in (("train", train_part), ("val", val_part)):
        for i in indices:
            kind = f"{part}_{'fake' if samples[i].label else 'real'}"
            row = table.setdefault(samples[i].source or "unnamed", {})
            row[kind] = row.get(kind, 0) + 1
    lines = (f"{samples[i].path.name} {samples[i].label}" for i in (*train_part, *val_part))
    return {"fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest(), "sources": table}
