"""Troubles with the Hub, said in one line: its real client against a server of our own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.detector import Detector
from corit_cli.errors import CoritError
from corit_cli.model import loading
from corit_cli.model.hub import NotCached, at_once, check_login, check_name, fetch, is_offline, silenced, upload
from corit_cli.model.loading import load_backbone
from tests.conftest import save_tiny_detector
from tests.hub_server import TOKEN, Hub, Repository, hub


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with some repositories, in place of the real one, and an empty cache."""
    with hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        place = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        found.repositories["user/other"] = Repository()
        found.repositories["user/other"].commit({"README.md": b"no detector"})
        found.repositories["user/hidden"] = Repository(private=True, commits={"1" * 40: {"config.json": b"{}"}})
        found.repositories["user/gated"] = Repository(gated=True)
        yield found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("user/nowhere", "there is none of this name, or it is private"),
        ("user/hidden", "there is none of this name, or it is private"),
        ("user/gated", "grants access one by one"),
        ("user/other", "is not a corit detector: it has no config.json"),
        ("user/other@v9", "user/other@v9: it has no such revision"),
        ("a/b/c", "is called USER/NAME, not 'a/b/c'"),
        ("", "is called USER/NAME"),
        ("../../etc@main", "is called USER/NAME"),
    ],
)
def test_what_cannot_be_fetched(server: Hub, name: str, words: str) -> None:
    with pytest.raises(CoritError, match=words) as caught:
        Checkpoint.find(f"hf-hub:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "revision", ["{outside}", "../../../../outside", "a//b", "a/../../../../../outside", ".", "-x"]
)
def test_no_revision_is_a_path_out_of_the_cache(
    server: Hub, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a server knows every revision."""
    monkeypatch.setattr(Repository, "find", lambda self, revision: next(iter(self.commits), None))
    with pytest.raises(CoritError, match="is a branch, a tag or a commit"):
        fetch(f"hf-hub:user/other@{revision.format(outside=tmp_path / 'outside')}", ["README.md"])
    places = [*tmp_path.rglob("outside"), *(folder / "outside" for folder in tmp_path.parents)]
    assert not any(place.exists() for place in places) and not server.requests
    assert fetch("hf-hub:user/other@v2.0-rc_1", ["README.md"]).folder.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("status", ["404", "401", "500"])
def test_what_open_clip_cannot_fetch_is_no_lack_of_network(
    server: Hub, status: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, caplog
) -> None:
    pytest.importorskip("open_clip")
    server.broken = status == "500"
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    monkeypatch.setenv("HF_TOKEN", TOKEN if status == "404" else "wrong")
    with pytest.raises(CoritError, match="open_clip cannot load ViT-B-32/laion2b_s34b_b79k") as caught:
        load_backbone("ViT-B-32/laion2b_s34b_b79k")
    assert not isinstance(caught.value, NotCached) and "\n" not in str(caught.value)
    assert status != "500" or "the Hub answered 500" in str(caught.value)
    assert not caplog.records and capfd.readouterr().err == ""


def test_open_clip_is_not_asked_for_a_detector_from_the_hub(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = save_tiny_detector(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(loading, "_load_open_clip", lambda name: pytest.fail(f"open_clip was asked for {name}"))
    for name in ("ViT-B-32/openai", "RN50", "x" * 5000):
        config["backbone"]["name"] = name
        files = {"config.json": json.dumps(config).encode()}
        files["model.safetensors"] = (folder / "model.safetensors").read_bytes()
        server.repositories["user/odd"] = Repository()
        server.repositories["user/odd"].commit(files)
        with pytest.raises(CoritError, match=r"hf-hub:user/odd@.* reads open_clip's"):
            Detector.load("hf-hub:user/odd", "cpu")


def test_a_hub_that_is_out_of_order_is_not_an_offline_one(server: Hub) -> None:
    server.broken = True
    with pytest.raises(CoritError, match="the Hub answered 500") as caught:
        Checkpoint.find("hf-hub:user/other")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_pushed(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(CoritError, match="takes a token: log in with `hf auth login`, or set HF_TOKEN"):
        check_login()
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(CoritError, match="does not take this token"):
        check_login()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert check_login() == "user"
    with pytest.raises(CoritError, match="cannot push to someone/x: this token has no right"):
        upload("someone/x", {"README.md": b"x"}, "message")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for action in (check_login, lambda: upload("user/x", {"README.md": b"x"}, "message")):
        with pytest.raises(CoritError, match="the network cannot be reached") as caught:
            action()
        assert TOKEN not in str(caught.value)
    assert set(server.repositories) == {"user/other", "user/hidden", "user/gated"}


def test_what_is_to_be_private_goes_into_no_public_repository(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(CoritError, match="user/other is on the Hub already, and public"):
        upload("user/other", {"secret.md": b"x"}, "message", private=True)
    assert len(server.repositories["user/other"].commits) == 1
    for _ in range(2):  # a new one, and one that is there
        commit = upload("user/mine", {"secret.md": b"x"}, "message", private=True)
    assert server.repositories["user/mine"].private and "secret.md" in server.repositories["user/mine"].commits[commit]


def test_a_token_sees_what_is_private(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = fetch("user/hidden", ["config.json"])
    assert found.name == f"hf-hub:user/hidden@{'1' * 40}" and (found.folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["x", "a/b/c", "/b", "a/", "a/b@main", "../b", "a b/c", ""])
def test_names_that_no_repository_has(name: str) -> None:
    with pytest.raises(CoritError, match="USER/NAME"):
        check_name(name)


def test_names_of_repositories() -> None:
    assert check_name("hf-hub:user/my-detector.v2") == check_name("user/my-detector.v2") == "user/my-detector.v2"


@pytest.mark.parametrize("offline", [False, True])
def test_what_the_caller_silenced_stays_silenced(server: Hub, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    for level in (logging.NOTSET, logging.INFO, logging.CRITICAL):
        logging.disable(level)
        try:
            with at_once():
                assert logging.root.manager.disable == (max(level, logging.ERROR) if offline else level)
            assert logging.root.manager.disable == level
        finally:
            logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTPS_PROXY"])
def test_a_hub_behind_a_proxy_is_not_out_of_reach(server: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.2:9")
    with at_once():
        assert constants.HF_HUB_OFFLINE
    monkeypatch.setenv(name, server.url)
    with at_once():
        assert not constants.HF_HUB_OFFLINE


def test_what_means_that_there_is_no_network() -> None:
    assert is_offline(ConnectionError("connection refused")) and not is_offline(ValueError("too long"))
    try:
        raise ValueError("too long") from TimeoutError("timed out")
    except ValueError as error:
        assert is_offline(error)


def test_blocks_that_silence_the_log_may_overlap() -> None:
    first, second = silenced(), silenced()
    before = logging.root.manager.disable
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.root.manager.disable >= logging.ERROR
    second.__exit__(None, None, None)
    assert logging.root.manager.disable == before
