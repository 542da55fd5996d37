from __future__ import annotations

import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from corit_cli.data.images import CropConfig, crop, read_image
from corit_cli.data.variants import Variant
from corit_cli.engine import features
from corit_cli.engine.features import Extractor, FeatureCache, Job, ahead, extract, stream
from corit_cli.engine.weights import Backbone
from corit_cli.errors import CoritError
from corit_cli.model.corit import CoRIT
from corit_cli.model.settings import CoRITSettings, baseline
from tests.conftest import photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(), integrate=(2, 3))
CROPS = CropConfig("both", 32, 2)


@pytest.fixture
def extractor() -> Extractor:
    return Extractor(Backbone(random_tower(), "tiny", "0" * 64), SETTINGS, CROPS)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        photograph(i, (70 + 5 * i, 50)).save(paths[-1])
    return paths


def counting(extractor: Extractor) -> list[int]:
    """The sizes of the batches that reach the model from now on."""
    sizes: list[int] = []
    for reader in extractor.readers:
        model = reader.corit.forward
        reader.corit.forward = lambda images, model=model: (sizes.append(len(images)), model(images))[1]
    return sizes


def read(settings: CoRITSettings, windows: np.ndarray) -> torch.Tensor:
    """The features of windows (n, S, S, 3), averaged, straight from the model: (F,)."""
    images = torch.from_numpy(windows).permute(0, 3, 1, 2) / 255
    return CoRIT(random_tower(), settings)(images).z.mean(0).detach()


def test_class_tokens_come_from_the_whole_and_contrasts_from_native_windows(
    extractor: Extractor, files: list[Path]
) -> None:
    z, errors = extract(extractor, [Job(f) for f in files])
    assert not errors and z.shape == (7, extractor.width)
    windows = crop(read_image(files[3]), CROPS)
    whole = read(replace(SETTINGS, cgp=()), windows[:1])
    native = read(replace(SETTINGS, integrate=()), windows[1:])
    torch.testing.assert_close(z[3], torch.cat([whole, native]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("crops", [CropConfig("native", 32, 3), CropConfig("resize", 32)])
def test_windows_of_one_kind_are_read_for_everything(crops: CropConfig, files: list[Path]) -> None:
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), SETTINGS, crops)
    z, _ = extract(extractor, [Job(files[3])])
    torch.testing.assert_close(z[0], read(SETTINGS, crop(read_image(files[3]), crops)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("unread", "windows"), [({"cgp": ()}, slice(0, 1)), ({"integrate": ()}, slice(1, 3))])
def test_windows_that_nobody_reads_are_not_run(unread: dict, windows: slice, files: list[Path]) -> None:
    settings = replace(SETTINGS, **unread)
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CROPS)
    sizes = counting(extractor)
    z, _ = extract(extractor, [Job(files[3])])
    assert sum(sizes) == windows.stop - windows.start
    expected = read(settings, crop(read_image(files[3]), CROPS)[windows])
    torch.testing.assert_close(z[0], expected, atol=1e-6, rtol=1e-5)


def test_batches_hold_windows_of_several_files(extractor: Extractor, files: list[Path]) -> None:
    sizes = counting(extractor)
    extract(extractor, [Job(f) for f in files])
    assert sum(sizes) == 21 and max(sizes) > 3


def test_a_small_image_is_run_once(extractor: Extractor, tmp_path: Path) -> None:
    photograph(1, (32, 32)).save(tmp_path / "small.png")
    sizes = counting(extractor)
    z, _ = extract(extractor, [Job(tmp_path / "small.png")])
    assert sizes == [1, 1]  # once a reader
    window = crop(read_image(tmp_path / "small.png"), CropConfig("resize", 32))
    torch.testing.assert_close(z[0], read(SETTINGS, window), atol=1e-6, rtol=1e-5)


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

    def stop_after_four(count: int) -> None:
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
        reader.corit.register_forward_hook(lambda module, args, out, n=number: runs.append((n, len(args[0]))))
    z, errors = extract(blurrier, jobs, cache)
    # Two native windows an image for the contrast; of the third image, which nobody has read, the resized one, too.
    assert {n: sum(k for m, k in runs if m == n) for n in (0, 1)} == {0: 1, 1: 6} and not errors
    torch.testing.assert_close(z, extract(blurrier, jobs)[0], atol=1e-6, rtol=1e-5)


def test_a_variant_is_another_image(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache.sqlite")
    variants = [Variant(), Variant(codec=(60, 60)), Variant(degradations=("blur:2",), seed=1)]
    variants += [replace(variants[2], seed=s) for s in (2, 3, 4)]
    z, _ = extract(extractor, [Job(files[0], v) for v in variants], cache)
    again, _ = extract(extractor, [Job(files[0], v) for v in variants], cache)
    assert torch.equal(z, again)
    assert not torch.allclose(z[0], z[1], atol=1e-3)
    assert len({tuple(row.tolist()) for row in z[2:]}) > 1  # applied with probability one half


def test_an_image_is_decoded_once_for_its_copies(
    extractor: Extractor, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(path: Path):
        reads.append(path)
        return read_image(path)

    monkeypatch.setattr(features, "read_image", counted)
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


def test_select_gives_what_a_smaller_reading_gives(extractor: Extractor, files: list[Path]) -> None:
    wide = Extractor(extractor.backbone, replace(SETTINGS, integrate=(2, 3, 4)), CROPS)
    z, _ = extract(wide, [Job(f) for f in files])
    for settings in (SETTINGS, baseline(4), replace(SETTINGS, cgp=(3,), integrate=())):
        direct, _ = extract(Extractor(extractor.backbone, settings, CROPS), [Job(f) for f in files])
        torch.testing.assert_close(wide.select(z, settings), direct, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError):
        wide.select(z, replace(SETTINGS, integrate=(1,)))


def test_reading_ahead_is_bounded_and_in_order() -> None:
    started: list[int] = []
    results = ahead(lambda i: (started.append(i), i)[1], iter(range(1000)), workers=2, window=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(started) <= 8
    assert list(results) == list(range(3, 1000))


def test_a_stream_takes_a_generator_lazily(extractor: Extractor, files: list[Path]) -> None:
    taken: list[int] = []

    def endless():
        while True:
            taken.append(1)
            yield files[0]

    results = stream(extractor, endless(), lambda path: ([crop(read_image(path), CROPS)], None))
    next(results)
    results.close()
    assert len(taken) < 100


def test_an_item_of_a_stream_may_have_any_number_of_pictures(extractor: Extractor) -> None:
    windows = [np.full((3, 32, 32, 3), level, np.uint8) for level in range(20)]
    counts = [2, 0, 17, 1]
    starts = np.cumsum([0, *counts])

    def load(i: int) -> tuple[list[np.ndarray], str]:
        if not counts[i]:
            raise CoritError("nothing in it")
        return windows[starts[i] : starts[i + 1]], f"item {i}"

    items = list(stream(extractor, range(4), load))
    assert [(item.item, len(item.readings), item.about) for item in items] == [
        (0, 2, "item 0"),
        (1, 0, None),
        (2, 17, "item 2"),
        (3, 1, "item 3"),
    ]
    assert [item.error for item in items] == [None, "nothing in it", None, None]
    for windows_, reading in zip(windows, [r for item in items for r in item.readings], strict=True):
        torch.testing.assert_close(reading, extractor([windows_])[0])


def test_windows_must_fit_the_backbone(extractor: Extractor) -> None:
    with pytest.raises(CoritError, match="32"):
        Extractor(extractor.backbone, SETTINGS, CropConfig("both", 224))
    with pytest.raises(CoritError, match="layer 9"):
        Extractor(extractor.backbone, replace(SETTINGS, integrate=(9,)), CROPS)


def test_uint8_windows_are_scaled_to_one(extractor: Extractor) -> None:
    windows = np.full((3, 32, 32, 3), 255, np.uint8)
    for reading, reader in zip(extractor([windows])[0], extractor.readers, strict=True):
        torch.testing.assert_close(reading[:1], reader.corit(torch.ones(1, 3, 32, 32)).z)
