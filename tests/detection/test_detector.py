from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from corit_cli.data.faces import Face, align
from corit_cli.data.images import read_image
from corit_cli.data.robustness import CHAINS
from corit_cli.data.settings import CropConfig
from corit_cli.data.stored import state
from corit_cli.data.variants import Variant
from corit_cli.data.windows import crop
from corit_cli.detection import asked, eye
from corit_cli.detection import detector as predict
from corit_cli.detection.asked import Asked
from corit_cli.detection.calibration import Calibration, Thresholds, Verdicts
from corit_cli.detection.checkpoint import Checkpoint, Localizer
from corit_cli.detection.detector import Detector
from corit_cli.detection.heatmap import heatmap
from corit_cli.detection.sources import named
from corit_cli.detection.verdicts import MILD, trimmed_mean
from corit_cli.errors import CoritError
from corit_cli.features.cache import Job, extract
from corit_cli.features.extractor import Extractor, pool
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.int8 import available
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings
from tests.conftest import OneFace, photograph, random_head, random_tower, save_tiny_detector

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2,), integrate=(2, 3))


class TwoFaces:
    """Stands in for the face finder: two faces in any picture wider than 60 pixels, none in others."""

    def __call__(self, image: Image.Image) -> list[Face]:
        if image.width <= 60:
            return []
        eyes = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)])
        boxes = [(2.0, 3.0, 34.0, 35.0), (40.0, 8.0, 60.0, 28.0)]
        return [Face(box, 0.9, np.array(box[:2]) + eyes * (box[2] - box[0])) for box in boxes]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    for module in (predict, asked, eye):
        monkeypatch.setattr(module, "finder", TwoFaces)
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), SETTINGS, CropConfig("both", 32))
    head = random_head(extractor)
    thresholds = Thresholds(0.45, 0.55)
    return Detector(
        Checkpoint(head, {"name": "tiny"}, SETTINGS, extractor.crops, Calibration(2.0), thresholds), extractor
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    photograph(1, (90, 60)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def logit(detector: Detector, image: Image.Image) -> float:
    with torch.inference_mode():
        return float(detector.head(pool(detector.extractor([crop(image, detector.extractor.crops)])[0])[None]))


def probability(detector: Detector, image: Image.Image) -> float:
    return float(detector.checkpoint.calibration(torch.tensor(logit(detector, image))))


def test_faces_are_scored_beside_the_whole(detector: Detector, file: Path) -> None:
    (plain,), (found,) = detector.predict([file]), detector.predict([file], faces="auto")
    assert plain.faces is None and found.probability == pytest.approx(plain.probability, abs=2e-6)
    image = read_image(file)
    expected = [probability(detector, align(image, face)) for face in TwoFaces()(image)]
    assert [face.probability for face in found.faces] == pytest.approx(expected, abs=2e-6)
    assert found.faces[0].box == (2, 3, 34, 35)
    assert found.faces[0].verdict == detector.checkpoint.thresholds.verdict(found.faces[0].probability)


def test_parts_are_the_readings_shares_of_the_log_odds(detector: Detector, file: Path) -> None:
    detector.head.weights[3], detector.head.bias[3] = torch.tensor([0.7, 1.5]), 0.2
    (found,) = detector.predict([file])
    assert list(found.parts) == ["hri", "cgp"]
    odds = float(np.log(found.probability / (1 - found.probability)))
    c = detector.checkpoint.calibration
    assert sum(found.parts.values()) + c.slope * 0.2 + c.bias == pytest.approx(odds, abs=1e-3)
    (faces,) = detector.predict([file], faces="only")
    assert faces.parts is None


def test_strictly_is_another_threshold_and_its_rates(detector: Detector, file: Path) -> None:
    (found,) = detector.predict([file])
    p = found.probability
    metrics = {"held_out_sources": {"real": 1}, "held_out_strict": {"real": 2}}
    checkpoint = replace(detector.checkpoint, thresholds=Thresholds(0, p, min(1.0, p + 0.01)), metrics=metrics)
    lenient = Detector(checkpoint, detector.extractor)
    assert [next(d.predict([file])).verdict for d in (lenient, lenient.strictly())] == ["fake", "uncertain"]
    assert lenient.strictly().checkpoint.metrics["held_out_sources"] == {"real": 2}


def test_paths_are_given_back_as_they_were_given(detector: Detector, file: Path, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    given = ["./a.png", ".//a.png", "x/../a.png", Path("a.png"), "./missing.png", "./missing.mp4"]
    assert [p.path for p in detector.predict(given)] == [str(path) for path in given]


def test_a_source_is_a_path_or_what_is_in_memory(detector: Detector, file: Path) -> None:
    opened, content = Image.open(file), file.read_bytes()
    array = np.asarray(opened)
    sources = [str(file), file, content, bytearray(content), memoryview(content), opened, array]
    names = [str(file)] * 2 + [f"<image {n}>" for n in range(3, 8)]
    for options in ({}, {"faces": "auto", "stability": True}):
        (expected,) = detector.predict([file], **options)
        many = list(detector.predict(sources, **options))
        assert [p.path for p in many] == names and all(p.error is None for p in many)
        for found in (*many, *(one for source in sources for one in detector.predict(source, **options))):
            assert found.probability == pytest.approx(expected.probability, abs=2e-6)
            assert found.verdict == expected.verdict and (found.faces is None) == (expected.faces is None)
    assert [next(detector.predict(source)).path for source in sources] == names[:2] + ["<image 1>"] * 5
    assert [p.path for p in detector.predict(iter([file, array]))] == [str(file), "<image 2>"]
    assert [p.path for p in detector.predict(np.stack([array, array]))] == ["<image 1>", "<image 2>"]


def test_a_source_may_change_once_it_is_taken(detector: Detector) -> None:
    arrays = [np.asarray(photograph(k, (64, 48))) for k in range(12)]
    expected = [p.probability for p in detector.predict(arrays)]
    assert len(set(expected)) > 6
    buffer = np.empty_like(arrays[0])
    picture = Image.new("RGB", (64, 48))

    def reused(kind: str):
        for array in arrays:
            buffer[:] = array
            if kind == "array":
                yield buffer
                continue
            picture.paste(Image.fromarray(array))
            yield picture
            picture.paste("red", (0, 0, 64, 48))

    for kind in ("array", "picture"):
        assert [p.probability for p in detector.predict(reused(kind))] == expected

    def closed(folder: Path):
        for k, array in enumerate(arrays):
            Image.fromarray(array).save(folder / f"{k}.png")
            with Image.open(folder / f"{k}.png") as image:
                yield image

    with tempfile.TemporaryDirectory() as folder:
        assert [p.probability for p in detector.predict(closed(Path(folder)))] == expected


def test_threads_may_share_a_picture_that_is_not_decoded_yet(tmp_path: Path) -> None:
    photograph(0, (640, 480)).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png").tobytes()
    for _ in range(4):
        with Image.open(tmp_path / "a.png") as image, ThreadPoolExecutor(3) as threads:
            taken = threads.map(lambda _, image=image: next(named(image)).source, range(3))
            assert all(read_image(source).tobytes() == expected for source in taken)


def test_a_picture_is_taken_as_it_stands(tmp_path: Path) -> None:
    photograph(0, (96, 64)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        image.getexif()[0x0112] = 6
        assert read_image(next(named(image)).source).size == (64, 96)
        image.save(tmp_path / "b.jpg", exif=image.getexif())
    with Image.open(tmp_path / "b.jpg") as image:
        del image.getexif()[0x0112]
        assert read_image(next(named(image)).source).size == (96, 64)
    huge = Image.new("1", (20_000, 20_000))  # more pixels than are read: not decoded, nor copied
    assert next(named(huge)).source is huge


def test_what_comes_before_the_sources_fail_is_told(detector: Detector) -> None:
    def broken():
        yield from (photograph(k, (64, 48)) for k in range(3))
        raise KeyError("the user's own")

    told = []
    with pytest.raises(KeyError, match="the user's own"):
        told.extend(detector.predict(broken()))
    assert len(told) == 3


def test_numbers_that_are_none_are_refused_at_once(detector: Detector, file: Path) -> None:
    for wrong in ({"frames": 0}, {"frames": 2.5}, {"workers": 0}, {"rate": 0}, {"rate": -1.0}, {"rate": float("nan")}):
        with pytest.raises(CoritError, match=f"{next(iter(wrong))} must be"):
            detector.predict(file, **wrong)


def test_a_checkpoint_in_memory_is_a_detector(detector: Detector, file: Path, tmp_path: Path) -> None:
    folder = save_tiny_detector(tmp_path / "own")
    saved, held = Detector.load(folder, "cpu"), Detector.load(Checkpoint.load(folder), "cpu")
    assert [p.probability for p in held.predict(file)] == [p.probability for p in saved.predict(file)]
    other = replace(saved.checkpoint, settings=replace(saved.checkpoint.settings, integrate=(1, 2)))
    with pytest.raises(CoritError, match="another extractor"):
        Detector(other, saved.extractor)


def test_loading_draws_none_of_the_callers_random_numbers(tmp_path: Path) -> None:
    folder = save_tiny_detector(tmp_path / "own")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Detector.load(folder, "cpu")
    assert torch.equal(torch.rand(2), expected)


def test_what_in_memory_is_no_image_is_a_row_with_an_error(detector: Detector, file: Path) -> None:
    small = Image.new("RGB", (8, 8))
    found = list(detector.predict([b"", b"a note", small, file.read_bytes()]))
    assert [p.path for p in found] == [f"<image {n}>" for n in range(1, 5)]
    assert all(p.state is None for p in found)
    assert found[0].error == "file is empty" and "not an image" in found[1].error and "too small" in found[2].error
    assert found[3].error is None and found[3].provenance.format == "PNG"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (42, "int"),
        (None, "NoneType"),
        (np.zeros((40, 40, 3), np.float32), "float32"),
        (np.zeros((40, 40), np.uint8), "uint8"),
        (np.zeros((40, 40, 4), np.uint8), r"\(40, 40, 4\)"),
    ],
    ids=["number", "nothing", "float", "grey", "alpha"],
)
def test_what_is_no_source_is_refused(detector: Detector, file: Path, wrong: object, named: str) -> None:
    words = rf"takes paths, bytes of image files, Pillow images and RGB arrays \(H, W, 3\) of uint8, .* not .*{named}"
    with pytest.raises(CoritError, match=words):
        list(detector.predict(wrong))
    with pytest.raises(CoritError, match=words):
        list(detector.predict([file, wrong]))


def test_a_detector_can_be_pickled(detector: Detector, file: Path) -> None:
    places = CoRITSettings(("blur:2.0",), cgp=(1, 2), integrate=())
    localizer = Localizer(Head(64).eval(), places, CropConfig("native", 32), 0.0, 1.0)
    detector = Detector(replace(detector.checkpoint, localizer=localizer), detector.extractor)
    before = list(detector.predict(file, stability=True, faces="auto"))
    again = pickle.loads(pickle.dumps(detector))
    after = list(again.predict(file, stability=True, faces="auto"))
    assert [replace(p, seconds=0) for p in after] == [replace(p, seconds=0) for p in before]
    image = read_image(file)
    np.testing.assert_array_equal(again.heatmap(image).map, detector.heatmap(image).map)


def test_two_threads_predict_as_one_does(detector: Detector, tmp_path: Path) -> None:
    files = []
    for seed in range(12):
        files.append(tmp_path / f"{seed}.png")
        photograph(seed, (90 + seed, 60)).save(files[-1])

    def predict_all(order: list[Path]) -> dict[str, tuple[float, str]]:
        return {p.path: (p.probability, p.verdict) for p in detector.predict(order, stability=True)}

    alone = predict_all(files)
    assert len({probability for probability, _ in alone.values()}) == 12
    with ThreadPoolExecutor(2) as pool:
        for together in pool.map(predict_all, (files, files[::-1])):
            assert list(together) in (list(alone), list(alone)[::-1])
            for path, (probability, _) in together.items():
                assert probability == pytest.approx(alone[path][0], abs=2e-6)


def test_faces_only(detector: Detector, file: Path, tmp_path: Path) -> None:
    photograph(2, (50, 50)).save(tmp_path / "none.png")
    found, without = detector.predict([file, tmp_path / "none.png"], faces="only")
    assert found.probability == max(face.probability for face in found.faces)
    assert without.error == "no face found" and without.probability is None
    assert next(iter(detector.predict([tmp_path / "none.png"], faces="auto"))).faces == ()


def test_stability_scores_degraded_copies(detector: Detector, file: Path) -> None:
    (found,) = detector.predict([file], stability=True, faces="auto")
    image = read_image(file)
    expected = {name: probability(detector, Variant(chain=CHAINS[name]).apply(image)) for name in MILD}
    assert found.stability.probabilities == pytest.approx(expected, abs=2e-6)
    values = [found.probability, *expected.values()]
    assert found.stability.spread == pytest.approx(max(values) - min(values), abs=3e-6)
    assert len(found.faces) == 2


def test_a_verdict_that_flips_is_uncertain(detector: Detector, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sure,) = detector.predict([file], stability=True)
    monkeypatch.setattr(predict, "flips", lambda verdict, others: True)
    (unsure,) = detector.predict([file], stability=True)
    assert unsure.verdict == "uncertain" and unsure.probability == sure.probability


def test_options_that_contradict_each_other(detector: Detector, file: Path) -> None:
    with pytest.raises(CoritError, match="stability"):
        next(iter(detector.predict([file], faces="only", stability=True)))
    with pytest.raises(CoritError, match="faces must be"):
        next(iter(detector.predict([file], faces="all")))


def test_provenance_is_told_unless_it_is_not_wanted(detector: Detector, file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    told, bad, memory = detector.predict([file, tmp_path / "bad.jpg", file.read_bytes()])
    (plain,) = detector.predict([file], provenance=False)
    assert plain.provenance is None and told.provenance.format == memory.provenance.format == "PNG"
    assert bad.provenance is None and bad.error


# --- videos ---------------------------------------------------------------------------------------


def test_a_heatmap_takes_a_detector_that_was_taught(detector: Detector) -> None:
    image = photograph(1, (90, 60))
    with pytest.raises(CoritError, match="--local"):
        detector.heatmap(image)
    settings, crops = CoRITSettings(("blur:2.0",), cgp=(1, 2), integrate=()), CropConfig("native", 32)
    taught = replace(detector.checkpoint, localizer=Localizer(Head(64).eval(), settings, crops, 0.0, 1.0))
    found = Detector(taught, detector.extractor)
    assert found.contrasts.settings == settings and found.contrasts.crops == crops
    expected = heatmap(found.contrasts, taught.localizer, image)
    np.testing.assert_array_equal(found.heatmap(image).map, expected.map)
    grey = image.convert("L")
    same = heatmap(found.contrasts, taught.localizer, grey.convert("RGB"))
    np.testing.assert_array_equal(found.heatmap(grey).map, same.map)  # and whatever else predict takes
    with pytest.raises(CoritError, match="no such file"):
        found.heatmap("nowhere.jpg")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Twelve frames, written without loss."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"FFV1"), 4.0, (96, 64))
    assert writer.isOpened()
    for number in range(12):
        writer.write(np.asarray(photograph(number, (96, 64)))[..., ::-1])
    writer.release()
    return path


def test_a_video_is_the_trimmed_mean_of_its_frames(detector: Detector, film: Path, file: Path) -> None:
    still, found = detector.predict([file, film], frames=6)
    assert still.video is None and len(found.video.moments) == 6 and found.error is None
    assert found.video.duration == pytest.approx(2.75, abs=0.3)
    logits = [logit(detector, photograph(m.frame, (96, 64))) for m in found.video.moments]
    # The codec keeps colours to within rounding.
    each = [float(detector.checkpoint.calibration(torch.tensor(value))) for value in logits]
    assert [m.probability for m in found.video.moments] == pytest.approx(each, abs=0.1)
    frames = [torch.logit(torch.tensor(m.probability)) / 2 for m in found.video.moments]
    expected = detector.checkpoint.calibration(torch.tensor(trimmed_mean([float(f) for f in frames])))
    assert found.probability == pytest.approx(float(expected), abs=1e-3)


def test_faces_of_a_video_are_followed(detector: Detector, film: Path) -> None:
    (found,) = detector.predict([film], frames=5, faces="auto")
    assert set(found.video.tracks) == {0, 1}
    for moment in found.video.moments:
        assert [face.track for face in moment.faces] == [0, 1] and moment.probability is not None
    (only,) = detector.predict([film], frames=5, faces="only")
    assert only.probability == max(only.video.tracks.values())
    assert all(moment.probability is None for moment in only.video.moments)
    assert only.video.tracks == pytest.approx(found.video.tracks, abs=1e-5)


def test_few_large_frames_of_a_video_are_held_at_once(tmp_path: Path) -> None:
    """In a process of its own, whose peak is this video's."""
    side, count = 3600, 16
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (side, side))
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:600] = 255
    for _ in range(count):
        writer.write(pixels)
    writer.release()
    script = """if True:
        import resource, sys
        from corit_cli.detection.detector import Detector
        detector = Detector.load(sys.argv[1], "cpu")
        for frames in (1, 16):  # the peak of one frame, and that of all
            (found,) = detector.predict([sys.argv[2]], faces="off", frames=frames)
            print(len(found.video.moments), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    """
    command = [sys.executable, "-c", script, str(save_tiny_detector(tmp_path)), str(tmp_path / "a.avi")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ((one, before), (many, after)) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (one, many) == (1, count), done.stderr
    assert after - before < 6 * 3 * side * side / 2**20  # MiB: four are cut at once, one is decoded


def test_a_video_that_is_none_is_a_row_with_an_error(detector: Detector, tmp_path: Path, file: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a film")
    results = list(detector.predict([tmp_path / "text.mp4", file, tmp_path / "missing.mp4"]))
    assert [r.error is None for r in results] == [False, True, False]
    for result in results:  # of what failed, too: its bytes are told of
        assert result.state == state(result.path) and (result.state is None) == ("missing" in result.path)
    assert "\n" not in results[0].error


def test_blank_pictures_are_nothing_to_judge(detector: Detector, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "white").save(tmp_path / "white.png")
    Image.new("RGBA", (90, 60), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.random.default_rng(0).integers(100, 104, (60, 90, 3), np.uint8)).save(tmp_path / "noise.png")
    for found in detector.predict([tmp_path / f"{name}.png" for name in ("white", "clear", "noise")]):
        assert found.error.startswith("nothing to judge") and found.verdict is None
    text = Image.new("RGB", (90, 60), "white")
    text.paste((0, 0, 0), (10, 10, 20, 14))
    assert next(detector.predict(text)).error is None


def test_a_few_pixels_make_no_picture_blank(detector: Detector) -> None:
    """Those alone that a thinned copy would show are grey, or the one line of a page lies between them."""
    pixels = np.asarray(photograph(1, (512, 384))).copy()
    pixels[1::3, 2::4] = 128
    thinned = Image.fromarray(pixels).resize((128, 128), Image.Resampling.NEAREST)
    assert np.asarray(thinned).std() == 0
    page = Image.new("RGB", (2000, 2000), "white")
    page.paste((0, 0, 0), (200, 105, 1800, 110))
    for picture in (Image.fromarray(pixels), page):
        assert next(detector.predict(picture)).error is None


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg", "pipe.mp4"])
def test_a_pipe_is_an_error_and_not_waited_for(detector: Detector, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    found = next(detector.predict(tmp_path / name, provenance=True))
    assert found.error == "not a regular file"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_every_frame_of_an_animated_picture_counts(detector: Detector, tmp_path: Path, kind: str) -> None:
    frames = [photograph(number, (96, 64)) for number in range(5)]
    path, extra = tmp_path / "a", {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **extra)
    (found,) = detector.predict(path)
    assert found.video.kind == ("pages" if kind == "TIFF" else "animation") and found.video.frames == 5
    assert [m.frame for m in found.video.moments] == list(range(5))
    assert f"5 of 5 {'pages' if kind == 'TIFF' else 'frames'} judged" in found.notes
    each = [m.probability for m in found.video.moments]
    if kind != "GIF":
        assert each == pytest.approx([probability(detector, frame) for frame in frames], abs=2e-6)
    logits = [float(torch.logit(torch.tensor(p, dtype=torch.float64))) / 2 for p in each]
    assert found.probability == pytest.approx(1 / (1 + np.exp(-2 * trimmed_mean(logits))), abs=1e-4)


def test_a_blank_frame_in_front_launders_nothing(detector: Detector, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (96, 64)), photograph(1, (96, 64)), Image.new("RGB", (96, 64), "white")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=100)
    (found,) = detector.predict(tmp_path / "a.png")
    assert found.probability == pytest.approx(probability(detector, frames[1]), abs=2e-6)
    assert "1 of 3 frames judged" in found.notes
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[2:], duration=100)
    assert next(detector.predict(tmp_path / "b.png")).error.startswith("nothing to judge")


def test_a_declaration_changes_no_probability(detector: Detector, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "Midjourney")
    photograph(1, (90, 60)).save(tmp_path / "a.png")
    photograph(1, (90, 60)).save(tmp_path / "b.png", pnginfo=info)
    plain, told = detector.predict([tmp_path / "a.png", tmp_path / "b.png"])
    assert (plain.probability, plain.verdict) == (told.probability, told.verdict)
    assert plain.declared is None and told.declared.kind == "ai-generated"


def test_a_detector_that_tells_degraded_pictures_says_so(detector: Detector, file: Path) -> None:
    (plain,) = detector.predict(file)
    told = Head(sum(width for name, width in detector.extractor.readings.items() if name != "face"))
    torch.nn.init.normal_(told.layers[0].weight)
    head = FusedHead(dict(detector.head.heads), told)
    for joint in head.joints:
        joint.weights[:] = detector.head.weights
    head.degraded_weights *= 2
    aware = Detector(replace(detector.checkpoint, head=head.eval()), detector.extractor)
    (found,) = aware.predict(file)
    each = head.each(extract(aware.extractor, [Job(file)])[0])
    assert plain.degraded is None and found.degraded == pytest.approx(head.degraded(each).item(), abs=1e-4)
    assert found.probability == pytest.approx(aware.of_pictures.calibration(head.fuse(each)).item(), abs=2e-6)
    assert found.parts.keys() == plain.parts.keys()
    (only,) = aware.predict(file, faces="only")
    assert only.degraded is None and only.parts is None


@pytest.fixture
def of_faces(one_face: OneFace) -> Detector:
    """A detector with a reading of faces, judged by thresholds of their own."""
    settings = replace(SETTINGS, face=(1, 3))
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig("both", 32))
    head = random_head(extractor)
    head.weights[:], head.bias[:] = torch.rand(8, 3) + 0.5, torch.linspace(-1, 1, 8)
    faces = Verdicts(Calibration(0.5, 0.1), Thresholds(0.2, 0.3))
    checkpoint = Checkpoint(
        head, {"name": "tiny"}, settings, extractor.crops, Calibration(2.0), Thresholds(0.45, 0.55), faces
    )
    return Detector(replace(checkpoint, face_readings=extractor.face_readings), extractor)


def telling_degraded(detector: Detector) -> Detector:
    """The same, which tells degraded pictures and trebles what is said of them."""
    told = Head(sum(width for name, width in detector.extractor.readings.items() if name != "face"))
    torch.nn.init.normal_(told.layers[0].weight, std=0.1)
    head = FusedHead(dict(detector.head.heads), told)
    for joint, scale in zip(head.joints, (1, 3), strict=True):
        joint.weights[:], joint.bias[:] = scale * detector.head.weights, scale * detector.head.bias
    return Detector(replace(detector.checkpoint, head=head.eval()), detector.extractor)


def test_a_face_is_shown_with_the_windows_of_its_picture(of_faces: Detector) -> None:
    (whole, face), _ = eye.Eye(of_faces.extractor.crops, "auto").pictures(photograph(0, (160, 120)))
    # The same ones, so that they are counted and read once.
    assert whole[-1] is None and face[-1] is not None
    assert all(one is other for one, other in zip(whole[:-1], face[:-1], strict=True))


@pytest.mark.parametrize("telling", [False, True])
def test_frames_without_a_face_are_no_error_where_faces_alone_are_asked_for(
    of_faces: Detector, tmp_path: Path, telling: bool
) -> None:
    frames = [photograph(k, (64, 48)) for k in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    detector = telling_degraded(of_faces) if telling else of_faces
    (found,) = detector.predict(tmp_path / "a.gif", faces="only")
    assert found.error == "no face found"


@pytest.mark.parametrize("telling", [False, True])
def test_a_detector_from_before_faces_were_joined_hears_their_own_reading(
    of_faces: Detector, tmp_path: Path, telling: bool
) -> None:
    photograph(0, (160, 120)).save(tmp_path / "face.png")
    told = telling_degraded(of_faces) if telling else of_faces
    old = Detector(replace(told.checkpoint, face_readings=("face",)), told.extractor)
    cut = old.eye(Asked("only")).pictures(photograph(0, (160, 120)))[0]
    # Nothing else is read for it, unless it matters whether the picture was degraded.
    assert [window is None for window in cut[0]] == [not telling] * (len(cut[0]) - 1) + [False]
    each = old.head.each(extract(old.extractor, [Job(tmp_path / "face.png")])[0])
    expected = (0.5 * old.head.fuse(old.head.hearing(each, ["face"])) + 0.1).sigmoid().item()
    ((face,),) = (found.faces for found in old.predict(tmp_path / "face.png"))
    assert face.probability == pytest.approx(expected, abs=2e-6)


def test_a_reading_of_faces_judges_faces_and_not_the_picture(
    of_faces: Detector, one_face: OneFace, tmp_path: Path
) -> None:
    photograph(0, (160, 120)).save(tmp_path / "face.png")
    photograph(1, (64, 48)).save(tmp_path / "none.png")
    paths = [tmp_path / "face.png", tmp_path / "none.png"]
    z, _ = extract(of_faces.extractor, [Job(path) for path in paths])
    each = of_faces.head.each(z)
    face, each[:, 2] = each[:1].clone(), float("nan")  # no face has a part in the verdict on the picture
    whole, none = of_faces.predict(paths)
    for found, logit in zip((whole, none), of_faces.head.fuse(each).tolist(), strict=True):
        assert found.probability == pytest.approx(float(torch.tensor(2 * logit).sigmoid()), abs=2e-6)
    assert list(whole.parts) == list(none.parts) == ["hri", "cgp"] and none.faces == ()
    face[:, 0] = float("nan")  # with it the picture's untouched pixels are judged, not what the whole shows
    expected = (0.5 * of_faces.head.fuse(face) + 0.1).sigmoid().item()
    (face,) = whole.faces
    assert face.probability == pytest.approx(expected, abs=2e-6)
    assert face.verdict == Thresholds(0.2, 0.3).verdict(face.probability)
    (only,) = of_faces.predict(paths[0], faces="only")
    assert (only.probability, only.verdict) == (face.probability, face.verdict) and only.of_faces
    assert not whole.of_faces
    asked = one_face.asked
    (off,) = of_faces.predict(paths[0], faces="off")
    assert off.probability == whole.probability and off.faces is None and one_face.asked == asked


def test_a_face_is_weighed_by_how_degraded_its_picture_looks(of_faces: Detector, tmp_path: Path) -> None:
    photograph(0, (160, 120)).save(tmp_path / "face.png")
    aware = telling_degraded(of_faces)
    (found,), (plain,) = (d.predict(tmp_path / "face.png") for d in (aware, of_faces))
    (face,), (before,) = found.faces, plain.faces
    assert found.degraded > 0.1
    faces = aware.of_faces.calibration
    logit, first = ((torch.tensor(f.probability).logit() - faces.bias) / faces.slope for f in (face, before))
    assert float(logit) == pytest.approx(float(first) * (1 + 2 * found.degraded), rel=1e-3)
    (only,) = aware.predict(tmp_path / "face.png", faces="only")
    assert only.faces == found.faces


def test_without_faces_a_detector_judges_as_where_there_is_none(of_faces: Detector, tmp_path: Path) -> None:
    photograph(0, (160, 120)).save(tmp_path / "face.png")
    bare = of_faces.without_faces()
    assert bare.extractor.readings == {"hri": 64, "cgp": 32} and bare.without_faces() is bare
    (off,), (found,) = of_faces.predict(tmp_path / "face.png", faces="off"), bare.predict(tmp_path / "face.png")
    assert found.probability == off.probability and found.faces is None


def test_faces_too_small_for_their_reading_are_not_judged(of_faces: Detector, tmp_path: Path, monkeypatch) -> None:
    for module in (predict, asked, eye):
        monkeypatch.setattr(module, "finder", TwoFaces)
    photograph(0, (160, 120)).save(tmp_path / "face.png")
    (found,) = of_faces.predict(tmp_path / "face.png")
    assert found.faces == () and "face" not in found.parts
    (only,) = of_faces.predict(tmp_path / "face.png", faces="only")
    assert only.error == "no face of 64 pixels or more found"


def test_a_picture_is_judged_without_opencv(of_faces: Detector, tmp_path: Path, monkeypatch) -> None:
    def absent() -> None:
        raise CoritError("OpenCV cannot be loaded")

    for module in (predict, asked):
        monkeypatch.setattr(module, "finder", absent)
    photograph(0, (160, 120)).save(tmp_path / "face.png")
    (found,) = of_faces.predict(tmp_path / "face.png")
    assert found.error is None and found.faces is None and "face" not in found.parts
    with pytest.raises(CoritError, match="OpenCV"):
        next(of_faces.predict(tmp_path / "face.png", faces="auto"))


def test_a_file_at_a_url_is_fetched_once(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph(3).save(tmp_path / "a.jpg", quality=88)
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return (tmp_path / "a.jpg").read_bytes()

    monkeypatch.setattr("corit_cli.detection.eye.fetch", fetch)
    far, near = detector.predict(["s3://bucket/a.jpg", str(tmp_path / "a.jpg")])
    assert fetched == ["s3://bucket/a.jpg"]
    assert far.probability == near.probability and far.provenance == near.provenance is not None


def test_what_is_no_number_is_an_error(detector: Detector, file: Path) -> None:
    detector.extractor.backbone.tower.blocks[0].proj.weight.data *= 1e38
    (found,) = detector.predict([file])
    assert found.probability is None and found.error == "what the detector finds is no number"


@pytest.mark.skipif(not available(), reason="this machine's torch does not multiply 8-bit integers")
def test_the_shipped_detector_says_the_same_in_8_bits() -> None:
    files = [p for p in sorted((Path(__file__).parents[2] / "examples").rglob("*")) if p.suffix in (".jpg", ".png")]
    full, low = (Detector.load(precision=name, device="cpu") for name in ("fp32", "int8"))
    pairs = list(zip(full.predict(files, faces="off"), low.predict(files, faces="off"), strict=True))
    assert len(pairs) > 4 and {a.verdict for a, _ in pairs} >= {"real", "fake"}
    for a, b in pairs:
        assert a.verdict == b.verdict and a.probability == pytest.approx(b.probability, abs=0.003)
    assert any(a.probability != b.probability for a, b in pairs)


@pytest.mark.parametrize(
    ("precision", "device", "there"),
    [("int8", "cuda", "fp32"), ("int8", "cpu", "int8"), ("bf16", "cuda", "bf16"), ("fp32", "cuda", "fp32")],
)
def test_products_of_integers_are_a_processors(
    detector: Detector, precision: str, device: str, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector.extractor.precision = precision
    monkeypatch.setattr(predict, "pick_device", lambda name: name)
    names = ("backbone", "settings", "crops", "device", "precision")
    monkeypatch.setattr(predict, "Extractor", lambda *made: SimpleNamespace(**dict(zip(names, made, strict=True))))
    found = detector.on(device).extractor
    assert (found.device, found.precision) == (device, there)
