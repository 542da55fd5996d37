"""What the service says of files is what the command says of them."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from corit_cli.detection.detector import Detector
from corit_cli.report.document import as_dict
from tests import hostile
from tests.conftest import photograph
from tests.data.test_video import write as make_video
from tests.serve.conftest import Gate, Running, form

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "detect.schema.json").read_text())


def picture(seed: int, suffix: str = "png", size: tuple[int, int] = (64, 48)) -> bytes:
    return hostile.encoded(photograph(seed, size), suffix)


def said_by_predict(detector: Detector, files: list[tuple[str, bytes]], folder: Path, **how: object) -> list[dict]:
    """Rows as the command has them, of the files on the disk, called by their names alone."""
    paths = []
    for number, (name, content) in enumerate(files):
        (folder / str(number)).mkdir(parents=True)
        paths.append(folder / str(number) / name)
        paths[-1].write_bytes(content)
    found = detector.predict(map(str, paths), **how)
    rows = [as_dict(replace(p, path=name)) for p, (name, _) in zip(found, files, strict=True)]
    return json.loads(json.dumps(rows))


def test_rows_are_those_of_the_command(running: Running, detector: Detector, tmp_path: Path) -> None:
    files = [(f"{n}.{suffix}", picture(n, suffix)) for n, suffix in enumerate(("png", "jpg", "webp", "gif", "tif"))]
    moving = tmp_path / "moving.gif"
    photograph(1).save(moving, save_all=True, append_images=[photograph(2), photograph(3)])
    targa = tmp_path / "known by its name.tga"
    photograph(4).save(targa)
    film = make_video(tmp_path / "film.mp4", 12)
    files += [(p.name, p.read_bytes()) for p in (moving, targa, film)] + [
        ("no picture.jpg", b"text"),
        ("empty.png", b""),
    ]
    answer = running.detect(*files)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    jsonschema.validate(document, SCHEMA)
    expected = said_by_predict(detector, files, tmp_path / "files")
    assert document["results"] == expected
    assert [row["path"] for row in expected if row["error"]] == ["no picture.jpg", "empty.png"]
    assert document["detector_sha256"] == detector.checkpoint.sha256


def test_options_are_those_of_the_command(running: Running, detector: Detector, tmp_path: Path) -> None:
    files = [("a.png", picture(1, size=(120, 100)))]
    for number, how in enumerate(
        ({"stability": True}, {"provenance": False}, {"faces": "off"}, {"faces": "auto"}, {"frames": 2})
    ):
        found = running.detect(*files, **{name: str(value).lower() for name, value in how.items()})
        assert found.json()["results"] == said_by_predict(detector, files, tmp_path / str(number), **how)
    strict = running.detect(*files, strict="true").json()
    assert strict["thresholds"]["fake"] == detector.strictly().checkpoint.thresholds.fake


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"faces": "all"}, "faces: "),
        ({"frames": "0"}, "frames: "),
        ({"frames": "257"}, "frames: "),
        ({"rate": "100"}, "rate: "),
        ({"stability": "true", "faces": "only"}, "does not go with"),
    ],
)
def test_mistakes_are_one_line(running: Running, options: dict[str, str], word: str) -> None:
    answer = running.detect(("a.png", picture(0)), **options)
    assert answer.status_code == 400 and word in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_an_option_that_is_given_twice_is_refused(running: Running) -> None:
    for place in ("/v1/detect", "/v1/report"):
        answer = running.client.post(f"{place}?frames=2&strict=true&frames=3", files=form(("a.png", picture(0))))
        assert answer.status_code == 400 and answer.json() == {"error": "frames is given more than once"}


def test_hostile_files_get_a_result_or_an_error(running: Running, detector: Detector, tmp_path: Path) -> None:
    files = [(path.name, path.read_bytes()) for path in hostile.write(tmp_path, 3)]
    random.Random(0).shuffle(files)
    rows = []
    for start in range(0, len(files), 20):
        answer = running.detect(*files[start : start + 20])
        assert answer.status_code == 200
        rows += answer.json()["results"]
    assert rows == said_by_predict(detector, files, tmp_path / "again")
    assert running.client.get("/health").json() == {"status": "ok", "token": False, "videos": True}
    for address in ("/", "/health"):  # as what watches a service asks
        answer = running.client.head(address)
        assert answer.status_code == 200 and answer.content == b""
    assert running.service.memory.taken == 0


def test_requests_that_come_together_are_scored_together(
    serve: Callable[..., Running], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(running.detect, ("first.png", picture(0)))
        assert gate.reached.wait(30)
        rest = [
            pool.submit(running.detect, (f"{n}.png", picture(n)), (f"{n}b.png", picture(-n % 99))) for n in range(9)
        ]
        other = pool.submit(running.detect, ("other.png", picture(5)), faces="auto", strict="true")
        while running.service.scorer.waiting < 20:
            pass
        gate.open.set()
        for n, answer in enumerate(rest):
            assert [row["path"] for row in answer.result().json()["results"]] == [f"{n}.png", f"{n}b.png"]
        assert first.result().status_code == other.result().status_code == 200
    told = running.client.get("/metrics").text
    runs = float(re.search(r"^corit_runs_total (\S+)$", told, re.M)[1])
    assert runs <= 3  # the other options are a run of their own
    assert sum(float(n) for n in re.findall(r"^corit_files_total\{.*\} (\S+)$", told, re.M)) == 20
    assert "corit_waiting_files 0.0" in told and "corit_held_bytes 0.0" in told


def test_a_failure_within_does_not_end_the_thread(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()
    with monkeypatch.context() as broken:
        broken.setattr(Detector, "_judge", lambda *what: 1 / 0)
        answer = running.detect(("a.png", picture(0)))
    assert answer.status_code == 500 and answer.json() == {"error": "scoring failed (ZeroDivisionError)"}
    assert running.detect(("a.png", picture(0))).status_code == 200
    assert running.service.memory.taken == 0


def test_the_report_is_that_of_the_command(running: Running) -> None:
    content = picture(3, size=(80, 60))
    answer = running.client.post("/v1/report", files=form(("a.png", content), ("b.png", b"nothing")))
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-disposition"] == 'attachment; filename="corit-report.html"'
    text = answer.text
    row = running.detect(("a.png", content)).json()["results"][0]
    assert f"{row['probability']:.6f}" in text and "Report on 2 files" in text
    assert hashlib.sha256(content).hexdigest() in text and hashlib.md5(content).hexdigest() in text
    assert "This file could not be scored: not an image that can be read" in text
    assert "/proc/" not in text and "<code>POST /v1/report</code>" in text


def test_names_and_metadata_cannot_speak_html(running: Running, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"{evil}\nSteps: 3, Sampler: x, CFG scale: 7, Seed: 1")
    photograph(0).save(tmp_path / "a.png", pnginfo=info)
    name = f'{evil}"\r\nX-Evil: 1.png'
    content = (tmp_path / "a.png").read_bytes()
    answer = running.client.post("/v1/report", files=form((name, content)))
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers and evil not in answer.text and "&lt;img src=x" in answer.text
    row = running.detect((name, content)).json()["results"][0]
    assert row["declared"] == "ai-generated" and evil in row["provenance"]["parameters"]["parameters"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "C:\\x\\passwd"])
def test_names_lead_nowhere(running: Running, name: str) -> None:
    row = running.detect((name, picture(0))).json()["results"][0]
    assert row["path"] in ("passwd", "boot.ini") and row["error"] is None


def test_bytes_of_a_name_that_are_no_utf8(running: Running) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="\xff\xfe.png"\r\n\r\n'
        + picture(0)
        + b"\r\n--x--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for path in ("/v1/detect", "/v1/report"):
        answer = running.client.post(path, content=body, headers=headers)
        assert answer.status_code == 200
    assert (
        running.client.post("/v1/detect", content=body, headers=headers).json()["results"][0]["path"]
        == "\udcff\udcfe.png"
    )


def test_a_playlist_is_no_video(running: Running, tmp_path: Path) -> None:
    """What FFmpeg would follow to other files is not shown to it, whatever it is called."""
    secret = tmp_path / "secret.ts"
    secret.write_bytes(b"GGGG")
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    for name in ("a.mp4", "a.m3u8", "a.avi"):
        row = running.detect((name, playlist)).json()["results"][0]
        assert row["error"] == "not an image that can be read" and "video" not in row


def test_the_page_and_what_it_loads(running: Running) -> None:
    page = running.client.get("/")
    assert page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
    places = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(places) == 5
    for place in places:
        assert place.startswith("/page/")
        found = running.client.get(place)
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
    assert page.text.count('class="videos"') == 2 and "video/*," in page.text  # what the script drops elsewhere
    assert not re.search(r"<script>|<style>|\son\w+=|style=", page.text)  # the policy would not run them
    for place in ("/", "/page/casebook.css", "/page/page.js"):
        given = {name: "/etc/passwd" for name in ("file", "path", "self")}  # gives no file but its own
        assert running.client.get(place, params=given).content == running.client.get(place).content
    assert running.client.get("/page/../app.py").status_code == 404
    assert running.client.get("/page/%2e%2e/app.py").status_code == 404
    for gone in ("/docs", "/redoc", "/openapi.json", "/v1/detect"):
        assert running.client.get(gone).status_code in (404, 405)
    refused = running.client.get("/v1/detect")
    assert refused.headers["allow"] == "POST" and refused.json() == {"error": "method not allowed"}


def test_nothing_of_an_upload_is_written_to_the_disk(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every file that is opened to be written, by Python's own account, while large uploads are looked at."""
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if watching and event == "open" and isinstance(arguments[2], int) and arguments[2] & 3:
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    before = set(Path("/tmp").iterdir())
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    large = hostile.encoded(Image.fromarray(pixels), "png")
    film = make_video(tmp_path / "film.mp4", 12).read_bytes()
    opened.clear()
    assert len(large) > 3_000_000
    assert running.detect(("a.png", large), ("b.png", large), ("film.mp4", film)).status_code == 200
    assert running.client.post("/v1/report", files=form(("a.png", large), ("film.mp4", film))).status_code == 200
    watching = False
    assert not opened
    assert not {path for path in set(Path("/tmp").iterdir()) - before if path.stat().st_size > 1_000_000}


def test_the_answer_has_no_word_of_the_server(running: Running) -> None:
    answer = running.client.get("/health")
    assert "server" not in answer.headers and "access-control-allow-origin" not in answer.headers
