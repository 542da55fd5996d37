"""``corit detect`` end to end, with the embedded CLIP and the shipped detector."""

from __future__ import annotations

import csv
import json
import os
import pty
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from corit_cli.cli.inputs import collect
from corit_cli.model.settings import PRECISIONS
from tests import hostile
from tests.cli.conftest import one_line_error
from tests.conftest import CORIT, photograph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files and bad ones of many kinds."""
    root = tmp_path / "files"
    root.mkdir()
    image = photograph(0, (300, 240))
    image.save(root / "good.jpg")
    image.convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(root / "deep.png")
    image.save(root / "moving.gif", save_all=True, append_images=[photograph(1, (300, 240))])
    Image.new("RGB", (1, 1)).save(root / "dot.png")
    (root / "text.jpg").write_text("this is not a picture")
    (root / "cut.jpg").write_bytes((root / "good.jpg").read_bytes()[:3000])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("not looked at")
    (root / "below").mkdir()
    image.save(root / "below" / "deeper.png")
    return root


def test_a_folder_of_good_and_bad_files(corit, folder: Path, tmp_path: Path) -> None:
    result = corit("detect", folder, "-r", "--jsonl", "--csv", tmp_path / "out.csv")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    rows = {Path(row["path"]).name: row for row in map(json.loads, result.stdout.splitlines())}
    assert set(rows) == {p.name for p in folder.rglob("*.*")} - {"notes.txt"}
    for name, row in rows.items():
        told = {"path", "probability", "verdict", "error", "declared", "ground", "notes", "faces"}
        if row["error"] is None:
            told |= {"provenance", *(["video"] if name == "moving.gif" else ["parts", "degraded"])}
        assert told <= set(row) <= told | {"provenance"}
        if name in ("text.jpg", "cut.jpg", "empty.png", "dot.png"):
            assert row["error"] and row["verdict"] is None and row["probability"] is None
        else:
            assert row["error"] is None
            assert 0 <= row["probability"] <= 1 and row["verdict"] in ("real", "fake", "uncertain")
    # The same pixels give the same answer, whatever file they come in.
    assert rows["good.jpg"]["probability"] != rows["deeper.png"]["probability"]
    with (tmp_path / "out.csv").open(newline="") as file:
        table = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert set(table) == set(rows)
    assert float(table["good.jpg"]["seconds"]) > 0 and table["text.jpg"]["error"] == rows["text.jpg"]["error"]


def test_a_folder_of_hostile_files(corit, tmp_path: Path) -> None:
    (tmp_path / "hostile").mkdir()
    paths = hostile.write(tmp_path / "hostile", 4)
    result = corit("detect", tmp_path / "hostile", "--json")
    told = [line for line in result.stderr.splitlines() if not line.startswith("detecting: ")]  # as it is after a while
    assert result.returncode == 1 and told == []
    rows = {row["path"]: row for row in json.loads(result.stdout)["results"]}
    assert set(rows) == set(map(str, paths))
    for path, row in rows.items():
        assert (row["error"] is None) == (row["verdict"] is not None)
        assert row["error"] is None or not Path(path).name.startswith("sound")


def test_ways_to_name_files_and_forms_of_output(corit, folder: Path) -> None:
    good = folder / "good.jpg"
    one = corit("detect", good, "--json")
    assert one.returncode == 0 and one.stderr == ""
    document = json.loads(one.stdout)
    assert document["results"][0]["path"] == str(good)
    assert len(document["detector_sha256"]) == 64
    thresholds = document["thresholds"]
    assert set(document["results"][0]["parts"]) == {"hri", "native", "cgp"}
    strict = json.loads(corit("detect", good, "--json", "--strict").stdout)
    assert strict["thresholds"]["fake"] > thresholds["fake"] and strict["thresholds"]["real"] == thresholds["real"]
    assert strict["results"][0]["probability"] == document["results"][0]["probability"]
    p = document["results"][0]["probability"]
    expected = "fake" if p >= thresholds["fake"] else "real" if p <= thresholds["real"] else "uncertain"
    assert document["results"][0]["verdict"] == expected

    assert corit("detect", good, "--json").stdout == one.stdout  # the same bytes

    listed = corit("detect", "-", input=f"{good}\n\n{folder / 'below' / 'deeper.png'}\n")
    assert listed.returncode == 0
    lines = [line.split("\t") for line in listed.stdout.splitlines()]
    assert [line[3] for line in lines] == [str(good), str(folder / "below" / "deeper.png")]
    assert lines[0][0] == expected and float(lines[0][1]) == pytest.approx(p, abs=1e-4)


def test_fail_on_speaks_to_pipelines(corit, folder: Path) -> None:
    good = folder / "good.jpg"
    verdict = json.loads(corit("detect", good, "--jsonl").stdout)["verdict"]
    assert corit("detect", good, "--fail-on", "uncertain").returncode == (0 if verdict == "real" else 3)
    assert corit("detect", good, "--fail-on", "fake").returncode == (3 if verdict == "fake" else 0)


def test_mistakes_are_one_line(corit, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    one_line_error(corit("detect", tmp_path / "nothing"), "no images or videos in")
    one_line_error(corit("detect", folder / "good.jpg", "--json", "--jsonl"), "not both")
    one_line_error(corit("detect", folder / "good.jpg", "-c", tmp_path / "nowhere"), "no checkpoint")
    one_line_error(corit("detect", folder / "good.jpg", "-c", folder), "not a corit checkpoint")
    one_line_error(corit("detect", folder / "good.jpg", "--device", "abacus"), "unknown device")
    old = tmp_path / "old.csv"
    old.write_text("kept")
    one_line_error(corit("detect", folder / "good.jpg", "--faces", "all", "--csv", old), "faces must be one of")
    one_line_error(corit("detect", folder / "good.jpg", "--faces", "only", "--stability"), "does not go with")
    one_line_error(corit("detect", folder / "good.jpg", "--rate", "1", "--frames", "4"), "not both")
    one_line_error(corit("detect", folder / "good.jpg", "--csv", "-"), "/dev/stdout is standard output")
    one_line_error(corit("detect", folder / "good.jpg", "--heatmap", "-"), "takes a folder")
    one_line_error(
        corit("detect", folder / "good.jpg", "--html", tmp_path / "no" / "a.html"), "cannot write", "no folder"
    )
    assert old.read_text() == "kept"
    missing = corit("detect", folder / "missing.jpg")
    assert missing.returncode == 1 and "no such file" in missing.stdout


def test_a_full_disk_is_one_line(corit, folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = corit(
            "detect", folder / "good.jpg", "--jsonl", capture_output=False, stdout=full, stderr=subprocess.PIPE
        )
    assert result.returncode != 0 and "Traceback" not in result.stderr
    result = corit("detect", folder / "good.jpg", "--csv", "/dev/full")
    one_line_error(result, "cannot write /dev/full: No space left")
    for kind in ("--csv", "--html"):  # as somebody who may replace it
        assert corit("detect", folder / "good.jpg", kind, "/dev/full").returncode == 2
        assert Path("/dev/full").is_char_device()


def test_what_a_file_declares_stands_in_every_output(corit, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", '{"4": {"class_type": "Loader", "inputs": {"ckpt_name": "flux1-dev.safetensors"}}}')
    path = tmp_path / "made.png"
    photograph(0, (300, 240)).save(path, pnginfo=info)
    result = corit("detect", path, "--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html", "--fail-on", "fake")
    assert result.returncode == 3 and "\tai-generated" in result.stdout
    (row,) = csv.DictReader((tmp_path / "a.csv").open(newline=""))
    (told,) = json.loads(corit("detect", path, "--json").stdout)["results"]
    for said in (row, told):
        assert said["declared"] == "ai-generated"
        assert "ComfyUI" in said["ground"] and "flux1-dev" in said["ground"]
    page = (tmp_path / "a.html").read_text()
    assert "File declares: made by ComfyUI" in page and "(a claim); pixels: " + told["verdict"] in page
    off = corit("detect", path, "--jsonl", "--no-provenance", "--fail-on", "fake")
    assert off.returncode == (3 if told["verdict"] == "fake" else 0) and "provenance" not in json.loads(off.stdout)
    assert json.loads(off.stdout)["probability"] == told["probability"] and told["verdict"] != "fake"


def test_json_follows_its_schema(corit, folder: Path) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "detect.schema.json").read_text())
    assert ["auto", *schema["properties"]["precision"]["enum"]] == list(PRECISIONS)
    jsonschema.Draft202012Validator.check_schema(schema)
    odd = folder / "b\udcff.jpg"
    photograph(3, (300, 240)).save(odd)
    several = (odd, folder / "moving.gif", folder / "text.jpg")
    asked = ((folder,), (*several, "--faces", "off", "--stability"), (folder, "--faces", "only"))
    for options in (*asked, (folder, "--faces", "off", "--no-provenance", "--list-skipped")):
        text = corit("detect", *options, "--json").stdout
        document = json.loads(text)
        jsonschema.validate(document, schema)
        faces = [row["faces"] for row in document["results"] if "parts" in row]
        assert all((found is None) == ("off" in options) for found in faces)
        assert any(os.fsencode(row["path"]).endswith(b"b\xff.jpg") for row in document["results"])
    broken = {**document, "results": [{**document["results"][0], "declared": "camera obscura"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def in_terminal(environment: dict[str, str], *arguments: object) -> str:
    """What a person sees of ``corit detect``."""
    leader, follower = pty.openpty()
    command = [str(CORIT), "detect", *map(str, arguments)]
    with subprocess.Popen(
        command, env={**environment, "TERM": "dumb"}, stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        seen = b""
        with suppress(OSError):  # the other side is closed
            while block := os.read(leader, 4096):
                seen += block
        process.wait(60)
    os.close(leader)
    return seen.decode()


def test_a_person_is_told_what_a_verdict_means_and_what_to_do(corit, folder: Path, environment: dict[str, str]) -> None:
    good = folder / "good.jpg"
    seen = " ".join(in_terminal(environment, good, "--faces", "off").split())
    for words in (
        "declared",
        "uncertain: the detector does not decide",
        "of real files fake",
        "--explain",
        "limits: /",
        "/model-card.md",
    ):
        assert words in seen
    assert "does not decide." not in in_terminal(environment, good, "--quiet", "--faces", "off")
    told = corit("detect", good, "--explain", "--faces", "off")
    assert told.returncode == 0
    for words in ("What this means:", "Of sources", "What the file says", "What to do next:", "--stability"):
        assert words in told.stdout
    assert "does not decide. " not in corit("detect", good).stderr  # nothing in a pipe
    one_line_error(corit("detect", good, "--explain", "--json"), "for people to read")


def test_an_interrupt_keeps_what_was_found(folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for i in range(200):
        shutil.copy(folder / "good.jpg", many / f"{i:03}.jpg")
    out = tmp_path / "out.csv"
    process = subprocess.Popen(
        [str(CORIT), "detect", str(many), "--csv", str(out)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (not out.exists() or out.read_text().count("\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    rows = out.read_text().splitlines()
    assert 3 <= len(rows) < 201 and all(row.count(",") >= 4 for row in rows)


class TestCollect:
    def test_folders_globs_and_names(self, folder: Path) -> None:
        names = lambda *p, r=False: [Path(f).name for f in collect([str(x) for x in p], r)]  # noqa: E731
        assert "notes.txt" not in names(folder) and "deeper.png" not in names(folder)
        assert "deeper.png" in names(folder, r=True)
        assert names(folder / "notes.txt") == ["notes.txt"]  # a file that is named is taken
        assert names(folder / "*.png") == ["deep.png", "dot.png", "empty.png"]
        assert names(folder / "**/*.png") == ["deeper.png", "deep.png", "dot.png", "empty.png"] or set(
            names(folder / "**/*.png")
        ) == {"deeper.png", "deep.png", "dot.png", "empty.png"}
        assert names(folder / "good.jpg", folder).count("good.jpg") == 1  # once, however often it is named
        assert names(folder / "no*thing.png") == ["no*thing.png"]  # becomes an error row

    def test_hidden_files_are_left(self, tmp_path: Path) -> None:
        (tmp_path / ".thumbs").mkdir()
        for name in ("a.jpg", ".b.jpg", ".thumbs/c.jpg"):
            (tmp_path / name).touch()
        assert [Path(f).name for f in collect([str(tmp_path)], True)] == ["a.jpg"]

    def test_names_with_glob_characters_are_files_first(self, tmp_path: Path) -> None:
        (tmp_path / "a[1].jpg").touch()
        (tmp_path / "a1.jpg").touch()
        assert list(collect([str(tmp_path / "a[1].jpg")], False)) == [str(tmp_path / "a[1].jpg")]


def test_everything_that_is_looked_at(corit, folder: Path, tmp_path: Path) -> None:
    report, maps = tmp_path / "report.html", tmp_path / "maps"
    maps.mkdir()
    (maps / "good.heatmap.png").write_text("an input, though no picture")
    options = ("--faces", "auto", "--stability", "--heatmap", maps, "--html", report, "--jsonl")
    result = corit("detect", folder / "good.jpg", maps / "good.heatmap.png", *options)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    good, text = map(json.loads, result.stdout.splitlines())
    assert good["faces"] == [] and len(good["stability"]["probabilities"]) == 6 and text["error"]
    assert good["provenance"]["format"] == "JPEG"
    assert {path.name for path in maps.iterdir()} == {"good.heatmap.png", "good-2.heatmap.png"}
    assert (maps / "good.heatmap.png").read_text() == "an input, though no picture"
    assert Image.open(maps / "good-2.heatmap.png").width >= 300
    page = report.read_text()
    assert "good.jpg" in page and "good.heatmap.png" in page and "http" not in page.replace("http-equiv", "")
