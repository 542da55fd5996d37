from __future__ import annotations

import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corit_cli.data.forge import parse_forge
from corit_cli.data.images import read_image
from corit_cli.data.settings import CropConfig
from corit_cli.data.variants import Variant
from corit_cli.features import cache as module
from corit_cli.features.cache import FeatureCache, Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import baseline
from tests.conftest import photograph, random_tower
from tests.features.conftest import CROPS, SETTINGS, counting


def test_a_bad_file_is_an_error_and_the_rest_goes_on(extractor: Extractor, files: list[Path]) -> None:
    files[2].write_text("not a picture")
    z, errors = extract(extractor, [Job(f) for f in (*files, files[0].parent / "missing.png")])
    assert set(errors) == {2, 7}
    assert z[2].isnan().all() and z[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_the_cache_answers_the_second_run(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    jobs = [Job(f) for f in files]
    cache = FeatureCache(tmp_path / "cache.sqlite")
    first, _ = extract(extractor, jobs, cache)
    cache.close()
    sizes = counting(extractor)
    cache = FeatureCache(tmp_path / "cache.sqlite")
    second, _ = extract(extractor, jobs, cache)
    assert sizes == [] and torch.equal(first, second)
    # A copy under another name is the same image; an edited file is another.
    (tmp_path / "copy.png").write_bytes(files[0].read_bytes())
    photograph(99, (80, 50)).save(files[1])
    extract(extractor, [Job(tmp_path / "copy.png"), Job(files[1])], cache)
    assert sum(sizes) == 3


def test_an_interrupted_run_goes_on_where_it_stopped(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_after_four(count: int = 1, note: str = "") -> None:
        done.append(count)
        if sum(done) >= 4:
            raise Stop

    done: list[int] = []
    cache = FeatureCache(tmp_path / "cache.sqlite")
    with pytest.raises(Stop):
        extract(extractor, [Job(f) for f in files], cache, stop_after_four)
    sizes = counting(extractor)
    extract(extractor, [Job(f) for f in files], FeatureCache(tmp_path / "cache.sqlite"))
    assert sum(sizes) == 9  # three files of three windows were left


def test_two_runs_share_one_file(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    one, two = (FeatureCache(tmp_path / "cache.sqlite") for _ in range(2))
    extract(extractor, [Job(files[0])], one)
    extract(extractor, [Job(files[1])], two)
    sizes = counting(extractor)
    extract(extractor, [Job(f) for f in files[:2]], one)
    assert sizes == []


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"settings": baseline(4)}, False),
        ({"settings": replace(SETTINGS, integrate=(2,))}, True),
        ({"settings": replace(SETTINGS, cgp=(), integrate=(3,), views=("noise:0.1",))}, True),
        ({"settings": replace(SETTINGS, views=("noise:0.1",))}, False),
        ({"settings": replace(SETTINGS, inject_at=(1,))}, False),
        ({"crops": CropConfig("resize", 32)}, False),
        ({"crops": CropConfig("resize", 32), "settings": replace(SETTINGS, cgp=())}, True),
        ({"crops": CropConfig("native", 32, 2), "settings": replace(SETTINGS, integrate=())}, True),
        ({"crops": CropConfig("native", 32, 1)}, False),
        ({"backbone": Backbone(random_tower(), "tiny", "1" * 64)}, False),
    ],
)
def test_what_can_be_shared_is_shared_and_nothing_else(
    change: dict, shared: bool, extractor: Extractor, files: list[Path], tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path / "cache.sqlite")
    extract(extractor, [Job(files[0])], cache)
    other = Extractor(**{"backbone": extractor.backbone, "settings": SETTINGS, "crops": CROPS, **change})
    sizes = counting(other)
    z, _ = extract(other, [Job(files[0])], cache)
    assert (sizes == []) == shared
    torch.testing.assert_close(z, extract(other, [Job(files[0])])[0], atol=1e-6, rtol=1e-5)


def test_only_readers_that_lack_something_are_run(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache.sqlite")
    jobs = [Job(f) for f in files[:3]]
    extract(extractor, jobs[:2], cache)
    blurrier = Extractor(extractor.backbone, replace(SETTINGS, views=("blur:2.0",)), CROPS)
    runs = []
    for number, reader in enumerate(blurrier.readers):
        start = reader.corit.start
        reader.corit.start = lambda x, n=number, start=start: (runs.append((n, len(x))), start(x))[1]
    z, errors = extract(blurrier, jobs, cache)
    # Two native windows an image for the contrast; of the third image, which nobody has read, the resized one, too.
    assert {n: sum(k for m, k in runs if m == n) for n in (0, 1)} == {0: 1, 1: 6} and not errors
    torch.testing.assert_close(z, extract(blurrier, jobs)[0], atol=1e-6, rtol=1e-5)


def test_what_was_read_first_stays_and_is_what_is_given(
    extractor: Extractor, files: list[Path], tmp_path: Path
) -> None:
    """Another run's values may be rounded otherwise: here they are zeros, to be told from those of this run."""
    jobs, cache = [Job(f) for f in files], FeatureCache(tmp_path / "cache.sqlite")
    deep, shallow = (
        Extractor(extractor.backbone, replace(SETTINGS, cgp=(), integrate=layers), CROPS) for layers in ((2, 4), (2, 3))
    )
    extract(deep, jobs, cache)
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        db.execute("UPDATE features SET z = zeroblob(length(z))")
    given, _ = extract(shallow, jobs, cache)  # layer 3 is missing, so all is read
    assert not given[:, :32].any() and given[:, 32:].all(1).any()
    assert not extract(deep, jobs, cache)[0].any()
    assert torch.equal(extract(shallow, jobs, cache)[0], given)


def test_a_row_of_another_size_is_mended(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    jobs, cache = [Job(f) for f in files], FeatureCache(tmp_path / "cache.sqlite")
    first, _ = extract(extractor, jobs, cache)
    cache.close()
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        db.execute("UPDATE features SET z = substr(z, 1, 8)")
    cache = FeatureCache(tmp_path / "cache.sqlite")
    assert torch.equal(extract(extractor, jobs, cache)[0], first)
    sizes = counting(extractor)
    assert torch.equal(extract(extractor, jobs, cache)[0], first) and sizes == []


@pytest.mark.parametrize(
    "damage", ["z = 7", "z = NULL", "z = 'text'", "z = x''", "z = x'00'", "used = NULL", "used = 'x'"]
)
def test_a_damaged_row_is_as_none_and_is_mended(
    extractor: Extractor, files: list[Path], tmp_path: Path, damage: str
) -> None:
    jobs, cache = [Job(f) for f in files], FeatureCache(tmp_path / "cache.sqlite")
    first, _ = extract(extractor, jobs, cache)
    cache.close()
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        db.execute(f"UPDATE features SET {damage}")
    cache = FeatureCache(tmp_path / "cache.sqlite")
    assert torch.equal(extract(extractor, jobs, cache)[0], first)
    sizes = counting(extractor)
    assert torch.equal(extract(extractor, jobs, cache)[0], first) and sizes == []


def test_a_variant_is_another_image(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache.sqlite")
    variants = [Variant(), Variant(codec=(60, 60)), Variant(degradations=("blur:1-3",), seed=1)]
    variants += [replace(variants[2], seed=s) for s in (2, 3, 4)]
    z, _ = extract(extractor, [Job(files[0], v) for v in variants], cache)
    again, _ = extract(extractor, [Job(files[0], v) for v in variants], cache)
    assert torch.equal(z, again)
    assert not torch.allclose(z[0], z[1], atol=1e-3)
    assert len({tuple(row.tolist()) for row in z[2:]}) == 4  # another strength each


def test_that_a_picture_has_no_face_to_forge_is_kept(files: list[Path], tmp_path: Path) -> None:
    settings = replace(SETTINGS, face=(2,))
    whole = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CROPS)
    cache, job = FeatureCache(tmp_path / "cache.sqlite"), Job(files[0], Variant(forge=parse_forge("face_blend")))
    for read in (None, lambda *_: pytest.fail("it was read again")):
        z, errors = extract(whole.of(["face"]), [job], cache, read=read)
        assert z.isnan().all() and not errors
    _, errors = extract(whole, [job], cache)
    assert errors == {0: "no face found"}  # what else is read would be of the picture as it was


def test_an_image_is_decoded_once_for_its_copies(
    extractor: Extractor, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(path: Path):
        reads.append(path)
        return read_image(path)

    monkeypatch.setattr(module, "read_image", counted)
    jobs = [Job(f, Variant(chain=(f"jpeg:{quality}",))) for f in files[:2] for quality in range(30, 90)]
    extract(extractor, jobs)
    assert len(reads) <= 12  # threads that begin an image at the same time may each decode it


def test_threads_that_share_an_image_do_not_meddle(extractor: Extractor, tmp_path: Path) -> None:
    photograph(0, (400, 300)).save(tmp_path / "large.png")
    qualities = (95, 30) * 30
    jobs = [Job(tmp_path / "large.png", Variant(chain=(f"jpeg:{quality}",))) for quality in qualities]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        z, _ = extract(extractor, jobs)
    finally:
        sys.setswitchinterval(before)
    one_by_one = torch.cat([extract(extractor, [job])[0] for job in jobs[:2]])
    torch.testing.assert_close(z, one_by_one.repeat(30, 1), atol=1e-6, rtol=1e-5)


def test_the_cache_stays_within_its_bound(extractor: Extractor, tmp_path: Path) -> None:
    bound = 200_000
    cache = FeatureCache(tmp_path / "cache.sqlite", max_bytes=bound)
    for i in range(2000):
        cache.put([f"key {i}"], torch.zeros(256))
    assert cache.get(["key 1999"]) is not None and cache.get(["key 0"]) is None
    cache.close()
    (kept,) = sqlite3.connect(tmp_path / "cache.sqlite").execute("SELECT count(*) FROM features").fetchone()
    assert 0 < kept * 1024 <= bound


def test_a_cache_that_cannot_be_used_is_reported_and_left(
    extractor: Extractor, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cache.sqlite").write_text("this is not a database, but it is long enough to look at")
    said: list[str] = []
    cache = FeatureCache(tmp_path / "cache.sqlite", warn=said.append)
    z, errors = extract(extractor, [Job(files[0])], cache)
    assert z.isfinite().all() and not errors
    assert len(said) == 1 and "cache" in said[0]


def test_threads_may_share_a_cache(tmp_path: Path) -> None:
    told: list[str] = []
    cache = FeatureCache(str(tmp_path / "f.sqlite"), warn=told.append)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: cache.put([f"{k}"], torch.full((3,), float(k))), range(40)))
        found = list(pool.map(lambda k: cache.get([f"{k}"]), range(40)))
    assert [float(z[0]) for z in found] == list(range(40)) and not told
    assert float(cache.get(["7"])[0]) == 7
    cache.close()


def test_a_cache_that_cannot_be_trimmed_is_closed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    cache = FeatureCache(tmp_path / "f.sqlite")
    monkeypatch.setattr(cache, "_trim", full)
    cache.close()
    cache.close()
    assert cache.get(["a"]) is None
