from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corit_cli.data.faces import align
from corit_cli.data.images import read_image
from corit_cli.data.settings import CropConfig
from corit_cli.data.windows import crop
from corit_cli.errors import CoritError
from corit_cli.features import extractor as module
from corit_cli.features.cache import FeatureCache, Job, extract
from corit_cli.features.extractor import Extractor, mean_over_windows, pixels, pool
from corit_cli.model.backbone import Block
from corit_cli.model.corit import CoRIT
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings, baseline
from tests.conftest import TINY, OneFace, photograph, random_tower
from tests.features.conftest import CROPS, SETTINGS, counting


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


def test_native_class_tokens_stand_beside_those_of_the_whole_and_are_a_reading_of_their_own(files: list[Path]) -> None:
    settings = CoRITSettings(("blur:1.0",), cgp=(1, 2), patches=True, integrate=(2, 3), native=(1, 3))
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CROPS)
    d = TINY.width
    assert extractor.readings == {"hri": 2 * d, "native": 2 * d, "cgp": 4 * d}
    kinds = [
        ("cls", 2),
        ("cls", 3),
        ("native", 1),
        ("native", 3),
        ("cgp", 1),
        ("cgp", 2),
        ("patches", 1),
        ("patches", 2),
    ]
    assert extractor.parts == kinds
    z, _ = extract(extractor, [Job(files[3])])
    windows = crop(read_image(files[3]), CROPS)
    expected = [read(replace(settings, cgp=()), windows[:1]), read(replace(settings, integrate=(1, 3)), windows[1:])]
    torch.testing.assert_close(z[0], torch.cat(expected), atol=1e-6, rtol=1e-5)
    fewer = replace(settings, integrate=(3,), native=(3,), cgp=(1,), patches=False)
    torch.testing.assert_close(extractor.select(z, fewer), z.unflatten(1, (8, d))[:, [1, 3, 4]].flatten(1))
    tokens = extractor.of(["native"])  # without the views, and found where the whole was kept
    assert tokens.parts == kinds[2:4] and not tokens.readers[0].corit.views
    assert {key for own in tokens.fingerprints() for key in own} < {
        key for own in extractor.fingerprints() for key in own
    }
    torch.testing.assert_close(extract(tokens, [Job(files[3])])[0], z[:, 2 * d : 4 * d], atol=1e-6, rtol=1e-5)
    assert extractor.of(["cgp"]).parts == kinds[2:]
    injected = Extractor(extractor.backbone, replace(settings, inject_at=(1,)), CROPS).of(["native"])
    assert injected.parts == kinds[2:] and injected.readers[0].corit.views  # its class tokens depend on them
    with pytest.raises(CoritError, match="nothing is read"):
        Extractor(extractor.backbone, CoRITSettings(cgp=(), integrate=(), native=(1,)), CropConfig("resize", 32))


def test_the_spread_of_patches_belongs_to_the_reading_of_its_windows_class_tokens(files: list[Path]) -> None:
    settings = CoRITSettings(("blur:1.0",), cgp=(1,), integrate=(3,), native=(2,), spread=(1, 2), face=(2,))
    backbone, d = Backbone(random_tower(), "tiny", "0" * 64), TINY.width
    extractor = Extractor(backbone, settings, CROPS)
    assert extractor.readings == {"hri": 3 * d, "native": 3 * d, "cgp": d, "face": d}
    kinds = ["cls", "spread", "spread", "native", "native spread", "native spread", "cgp", "face"]
    assert [kind for kind, _ in extractor.parts] == kinds
    z = extract(extractor, [Job(files[3])])[0][:, : 7 * d]  # the tiny picture has no face
    windows = crop(read_image(files[3]), CROPS)
    whole = read(replace(settings, cgp=()), windows[:1])
    native = read(replace(settings, integrate=(2,)), windows[1:])
    torch.testing.assert_close(z[0], torch.cat([whole, native]), atol=1e-6, rtol=1e-5)
    # It depends on no view, and what reads no class token of a window reads no spread there.
    prints = [
        {key for own in Extractor(backbone, s, CROPS).fingerprints() for key in own}
        for s in (settings, replace(settings, views=("blur:2.0",)))
    ]
    assert len(prints[0] - prints[1]) == 2
    assert Extractor(backbone, replace(settings, native=()), CROPS).readings == {"hri": 3 * d, "cgp": d, "face": d}
    contrasts = Extractor(backbone, replace(settings, integrate=()), CropConfig("native", 32))
    assert contrasts.readings == {"cgp": d, "face": d}


@pytest.mark.parametrize("crops", [CropConfig("native", 32, 3), CropConfig("resize", 32)])
def test_windows_of_one_kind_are_read_for_everything(crops: CropConfig, files: list[Path]) -> None:
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), SETTINGS, crops)
    z, _ = extract(extractor, [Job(files[3])])
    torch.testing.assert_close(z[0], read(SETTINGS, crop(read_image(files[3]), crops)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("unread", "windows"), [({"cgp": ()}, slice(0, 1)), ({"integrate": ()}, slice(1, 3))])
def test_windows_that_nobody_reads_are_not_run(unread: dict, windows: slice, files: list[Path]) -> None:
    settings = replace(SETTINGS, **unread)
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CROPS)
    sizes = counting(extractor)
    z, _ = extract(extractor, [Job(files[3])])
    assert sum(sizes) == windows.stop - windows.start
    expected = read(settings, crop(read_image(files[3]), CROPS)[windows])
    torch.testing.assert_close(z[0], expected, atol=1e-5, rtol=1e-5)


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


def test_select_gives_what_a_smaller_reading_gives(extractor: Extractor, files: list[Path]) -> None:
    wide = Extractor(extractor.backbone, replace(SETTINGS, integrate=(2, 3, 4)), CROPS)
    z, _ = extract(wide, [Job(f) for f in files])
    for settings in (SETTINGS, baseline(4), replace(SETTINGS, cgp=(3,), integrate=())):
        direct, _ = extract(Extractor(extractor.backbone, settings, CROPS), [Job(f) for f in files])
        torch.testing.assert_close(wide.select(z, settings), direct, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError):
        wide.select(z, replace(SETTINGS, integrate=(1,)))


def test_windows_must_fit_the_backbone(extractor: Extractor) -> None:
    with pytest.raises(CoritError, match="32"):
        Extractor(extractor.backbone, SETTINGS, CropConfig("both", 224))
    with pytest.raises(CoritError, match="layer 9"):
        Extractor(extractor.backbone, replace(SETTINGS, integrate=(9,)), CROPS)


@torch.inference_mode()  # a plain window has no contrast but rounding, which must be the same
def test_uint8_windows_are_scaled_to_one(extractor: Extractor) -> None:
    windows = np.full((3, 32, 32, 3), 255, np.uint8)
    for reading, reader in zip(extractor([windows])[0], extractor.readers, strict=True):
        torch.testing.assert_close(reading[:1], reader.corit(torch.ones(1, 3, 32, 32)).z)


def test_pixels_are_channels_first_in_the_unit_interval() -> None:
    windows = torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(8)]))
    images = pixels(windows, torch.device("cpu"))
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32
    assert float(images[1, 2, 3, 4]) == pytest.approx(int(windows[1, 3, 4, 2]) / 255)
    whole = pixels(windows.unflatten(0, (4, 2)), "cpu")  # with two windows an image
    assert whole.shape == (4, 2, 3, 32, 32) and torch.equal(whole[2, 1], images[5])


def test_a_mean_over_windows_is_each_images_own() -> None:
    images = torch.randn(3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    asked = []

    def read(rows: torch.Tensor) -> torch.Tensor:
        asked.append(rows.shape)
        return rows.flatten(1).square()

    found = mean_over_windows(images, [1, 3], read)
    torch.testing.assert_close(found, images[:, [1, 3]].flatten(2).square().mean(1))
    assert asked == [(6, 3, 2, 2)]


def test_pooled_readings_are_means_side_by_side(extractor: Extractor) -> None:
    readings = [torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[5.0]])]
    assert pool(readings).tolist() == [2.0, 4.0, 5.0]


# --- the backbone's interpolation ---------------------------------------------------------------------------------


def bilinear() -> Extractor:
    tower = random_tower(replace(TINY, interpolation="bilinear"))
    return Extractor(Backbone(tower, "tiny", "0" * 64), SETTINGS, CROPS)


def test_windows_are_resized_as_the_backbone_expects(extractor: Extractor, files: list[Path]) -> None:
    """The resized window alone: native ones are the image's own pixels."""
    other, image = bilinear(), read_image(files[3])
    assert (extractor.crops.interpolation, other.crops.interpolation) == ("bicubic", "bilinear")
    smooth, sharp = crop(image, other.crops), crop(image, extractor.crops)
    np.testing.assert_array_equal(smooth[1:], sharp[1:])
    width = int(32 * image.width / image.height)
    left = round((width - 32) / 2)
    for windows, filter in ((smooth, Image.Resampling.BILINEAR), (sharp, Image.Resampling.BICUBIC)):
        resized = image.resize((width, 32), filter)
        np.testing.assert_array_equal(windows[0], np.asarray(resized.crop((left, 0, left + 32, 32))))
    assert (smooth[0] != sharp[0]).any()
    whole, native = (reader.corit.width for reader in other.readers)
    a, b = (extract(e, [Job(files[3])])[0][0].split([whole, native]) for e in (extractor, other))
    assert not torch.allclose(a[0], b[0], atol=1e-4)
    torch.testing.assert_close(a[1], b[1], atol=1e-6, rtol=1e-5)


def test_features_of_another_interpolation_are_not_shared(extractor: Extractor) -> None:
    for ours, theirs in zip(extractor.fingerprints(), bilinear().fingerprints(), strict=True):
        assert not set(ours) & set(theirs)


def test_another_tower_brings_its_own_interpolation(extractor: Extractor) -> None:
    assert extractor.on(bilinear().backbone).crops.interpolation == "bilinear"
    assert bilinear().with_settings(baseline(4)).crops.interpolation == "bilinear"


def test_a_face_is_a_reading_of_its_own_and_missing_where_there_is_none(
    one_face: OneFace, tmp_path: Path, files: list[Path]
) -> None:
    settings = replace(SETTINGS, face=(1, 3))
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CROPS)
    d = TINY.width
    assert extractor.readings == {"hri": 2 * d, "cgp": 2 * d, "face": 2 * d}
    assert extractor.parts[-2:] == [("face", 1), ("face", 3)] and extractor.crops.windows[-1] == "face"
    large = tmp_path / "large.png"
    photograph(0, (160, 120)).save(large)
    cache = FeatureCache(tmp_path / "cache.sqlite")
    z, errors = extract(extractor, [Job(large), Job(files[3])], cache)
    assert not errors
    image = read_image(large)
    window = np.array(align(image, one_face(image)[0], 32))[None]
    expected = read(replace(settings, cgp=(), integrate=(1, 3)), window)
    torch.testing.assert_close(z[0, -2 * d :], expected, atol=1e-6, rtol=1e-5)
    assert z[1, -2 * d :].isnan().all() and z[:, : -2 * d].isfinite().all()
    # The others are what they are without it, and the cache knows of what is missing.
    plain, _ = extract(Extractor(extractor.backbone, SETTINGS, CROPS), [Job(large), Job(files[3])])
    assert torch.equal(plain, z[:, : -2 * d])
    asked, sizes = one_face.asked, counting(extractor)
    again, _ = extract(extractor, [Job(large), Job(files[3])], cache)
    torch.testing.assert_close(again, z, equal_nan=True, atol=0, rtol=0)
    assert one_face.asked == asked and sizes == []
    alone, _ = extract(extractor.of(["face"]), [Job(large)])
    torch.testing.assert_close(alone[0], z[0, -2 * d :], atol=1e-6, rtol=1e-5)


def test_no_face_is_looked_for_where_only_others_are_read(one_face: OneFace, files: list[Path]) -> None:
    settings = replace(SETTINGS, face=(3,))
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CROPS)
    extract(extractor.of(["cgp"]), [Job(files[3])])
    assert one_face.asked == 0


def test_a_job_that_is_there_twice_is_done_once(extractor: Extractor, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    broken = Job(tmp_path / "broken.png")
    sizes, done = counting(extractor), []
    z, errors = extract(
        extractor, [Job(files[0]), broken, Job(files[0]), broken], advance=lambda n=1, note="": done.append(n)
    )
    assert sum(sizes) == 3 and sum(done) == 4 and set(errors) == {1, 3}
    assert torch.equal(z[0], z[2]) and z[1].isnan().all()


def test_another_precision_has_other_keys_and_nearly_the_same_features(
    extractor: Extractor, files: list[Path], tmp_path: Path
) -> None:
    e = extractor
    low = Extractor(e.backbone, e.settings, e.crops, "cpu", "bf16")
    prints = [{key for reader in one.fingerprints() for key in reader} for one in (e, low)]
    assert prints[0].isdisjoint(prints[1])
    cache = FeatureCache(tmp_path / "f.sqlite")
    jobs = [Job(f) for f in files]
    exact, rough = extract(e, jobs, cache)[0], extract(low, jobs, cache)[0]
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough).min() > 0.99
    assert low.with_settings(e.settings).precision == low.on(e.backbone).precision == low.only([0]).precision == "bf16"


def test_readers_share_passes_as_far_as_they_fit(
    extractor: Extractor, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [crop(read_image(file), CROPS) for file in files[:2]]
    seen: list[int] = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, *how: (seen.append(len(x)), forward(self, x, *how))[1])
    together, shared = extractor(images), list(seen)
    seen.clear()
    monkeypatch.setattr(module, "MERGED", 0)
    apart = extractor(images)
    # Two resized windows, and four native ones with their views.
    assert shared[0] == 2 + 2 * 4 and seen[:2] == [2, 2 * 4] and len(shared) < len(seen)
    for one, other in zip(together, apart, strict=True):
        for z, w in zip(one, other, strict=True):
            torch.testing.assert_close(z, w, rtol=1e-5, atol=1e-6)
