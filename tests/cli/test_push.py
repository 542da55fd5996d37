"""Detectors on the Hub, end to end: the installed ``corit`` and the Hub's real client against a server of our own."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from corit_cli.cli.app import app
from corit_cli.detection.checkpoint import Checkpoint
from tests.cli.conftest import one_line_error
from tests.conftest import photograph, save_tiny_detector
from tests.hub_server import TOKEN, Hub, hub


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as found:
        yield found


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def online(corit, server: Hub, environment: dict[str, str], tmp_path: Path) -> Callable:
    """``corit`` with the server as its Hub, and caches by name."""
    server.requests.clear()

    def run(*arguments: object, cache: str = "here", token: str | None = None, **variables: str):
        there = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / cache), "HF_HUB_DISABLE_XET": "1"}
        mine = {k: v for k, v in environment.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        mine |= there | ({"HF_TOKEN": token} if token else {}) | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return corit(*arguments, env=mine | variables)

    return run


def test_what_becomes_public_is_said(corit, detector: Path, tmp_path: Path) -> None:
    said = "names the autoencoders of its forgeries: ./taesd"
    assert said not in corit("push", detector, "user/tiny", "--dry-run").stderr
    forged = shutil.copytree(detector, tmp_path / "forged")
    config = json.loads((forged / "config.json").read_text())
    config["training"] |= {"recipe": {"forge": ["resample", "0.3*reconstruct@native:./taesd"]}}
    del config["corit"]  # made by hand
    (forged / "config.json").write_text(json.dumps(config))
    assert said in corit("push", forged, "user/tiny", "--dry-run").stderr


def test_a_detector_goes_to_the_hub_and_comes_back(
    online: Callable, server: Hub, detector: Path, tmp_path: Path
) -> None:
    (detector / "notes.txt").write_text("not to be uploaded")
    pushed = online("push", detector, "user/tiny", "--private", token=TOKEN)
    assert pushed.returncode == 0, pushed.stderr
    repository = server.repositories["user/tiny"]
    (commit, files), *others = repository.commits.items()
    assert repository.private and not others and set(files) == {"README.md", "config.json", "model.safetensors"}
    assert all(files[name] == (detector / name).read_bytes() for name in ("config.json", "model.safetensors"))
    assert f"hf-hub:user/tiny@{commit}" in pushed.stdout and "model.safetensors, " in pushed.stderr
    assert "local file" in pushed.stderr  # its backbone

    photo = tmp_path / "photo.png"
    photograph(0).save(photo)
    repository.private = False
    repository.commit({"evil.py": b"raise SystemExit(9)", "pytorch_model.bin": b"a pickle", "x.json": b"{}"})
    newest = repository.find("main")
    server.requests.clear()
    first = online("detect", photo, "-c", "hf-hub:user/tiny", "--json", cache="other")
    assert first.returncode == 0, first.stderr
    fetched = {path.rpartition("/")[2] for path in server.requests if path.startswith("GET /user/tiny/resolve/")}
    assert fetched == {"config.json", "model.safetensors"}
    found = json.loads(first.stdout)
    schema = json.loads((Path(__file__).parents[2] / "docs" / "detect.schema.json").read_text())
    jsonschema.validate(found, schema)
    assert found["detector"] == f"hf-hub:user/tiny@{newest}"
    assert found["detector_sha256"] == Checkpoint.load(detector).sha256
    here = json.loads(online("detect", photo, "-c", detector, "--json").stdout)
    assert here == found | {"detector": None}

    server.requests.clear()
    out = ("--csv", tmp_path / "rows.csv", "--html", tmp_path / "report.html")
    offline = online("detect", photo, "-c", "hf-hub:user/tiny", "--jsonl", *out, cache="other", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and not server.requests, offline.stderr
    row = json.loads(offline.stdout)
    jsonschema.validate(found | {"results": [row]}, schema)
    assert row == found["results"][0] | {name: found[name] for name in ("detector", "detector_sha256")}
    with (tmp_path / "rows.csv").open(newline="") as file:
        (cells,) = csv.DictReader(file)
    assert (cells["detector"], cells["detector_sha256"]) == (found["detector"], found["detector_sha256"])
    report = (tmp_path / "report.html").read_text()
    assert found["detector"] in report and found["detector_sha256"] in report
    assert f'checkpoint = "{found["detector"]}"' in (tmp_path / "report.html.run.toml").read_text()

    pinned = online("detect", photo, "-c", f"hf-hub:user/tiny@{newest}", "--jsonl", cache="other")
    assert pinned.stdout == offline.stdout and not server.requests  # a commit cannot change: nobody is asked
    older = online("detect", photo, "-c", f"hf-hub:user/tiny@{commit}", "--json", cache="third")
    assert json.loads(older.stdout)["detector"] == f"hf-hub:user/tiny@{commit}"
    again = online("push", detector, "user/tiny", token=TOKEN)
    assert again.returncode == 0 and len(repository.commits) == 3, again.stderr


def test_what_goes_wrong_is_one_line(online: Callable, server: Hub, detector: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photograph(0).save(photo)
    begun = time.monotonic()
    gone = online("detect", photo, "-c", "hf-hub:user/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    one_line_error(gone, "not in the local cache", "hf download user/tiny config.json model.safetensors")
    assert time.monotonic() - begun < 30
    one_line_error(online("push", tmp_path, "user/x", token=TOKEN), "is not a corit checkpoint")
    server.requests.clear()
    dry = online("push", detector, "user/x", "--dry-run")
    assert dry.returncode == 0 and "Would upload" in dry.stderr and not server.requests
    refused = online("push", detector, "someone/x", token=TOKEN)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: cannot push to someone/x: this token has no right")
    assert set(server.repositories) <= {"user/tiny", "user/trained"}


def test_train_and_push(online: Callable, server: Hub, detector: Path, dataset: Path, tmp_path: Path) -> None:
    tiny = ["--backbone", detector.parent / "tower.safetensors", "--native", "none", "--no-face", "--integrate", "2-3"]
    tiny += ["--spread", "none"]
    tiny += ["--cgp", "1-2", "--folds", 3, "--no-probe", "--push-to-hub", "user/trained"]
    one_line_error(online("train", dataset, *tiny, "--out", tmp_path / "det"), "takes a token")
    assert not (tmp_path / "det").exists()
    done = online("train", dataset, *tiny, "--out", tmp_path / "det", token=TOKEN)
    assert done.returncode == 0, done.stderr
    (files,) = server.repositories["user/trained"].commits.values()
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    kept = json.loads(files["config.json"])
    rates = kept["metrics"]["held_out_sources"]
    row = f"| as they are | {rates['real']} | {rates['fake']} | {rates['real_called_fake']:.1%} |"
    assert row in files["README.md"].decode()
    assert all(TOKEN not in path.read_text("latin-1") for path in (tmp_path / "det").iterdir())


def test_a_backbone_that_nobody_could_fetch_is_told(detector: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(detector, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    for name, told in (("ViT-L-14/openai", True), ("hf-hub:user/clip@v1", False)):
        config["backbone"]["name"] = name
        (folder / "config.json").write_text(json.dumps(config))
        result = CliRunner().invoke(app, ["push", str(folder), "user/odd", "--dry-run"])
        assert result.exit_code == 0 and ("no detector from the Hub may name" in result.stderr) == told
