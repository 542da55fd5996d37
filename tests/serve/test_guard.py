"""Who is let in: tokens, names of the host, pages of other sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.detection.detector import Detector
from corit_cli.serve.guard import HEADERS, hostname, named_here
from corit_cli.serve.metrics import Metrics
from tests.conftest import photograph
from tests.hostile import encoded
from tests.serve.conftest import Running, form, served

PICTURE = ("a.png", encoded(photograph(0), "png"))
TOKEN = "a long token, that nobody guesses"


@pytest.fixture(scope="module")
def guarded(detector: Detector) -> Iterator[Running]:
    with served(detector, token=TOKEN, hosts=["Corit.Example"]) as found:
        yield found


def test_the_right_token_opens_all(guarded: Running) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    for path in ("/v1/detect", "/v1/report"):
        assert guarded.client.post(path, files=form(PICTURE), headers=headers).status_code == 200
    assert guarded.client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \xff"],
)
def test_a_wrong_token_learns_nothing(guarded: Running, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    answers = [
        guarded.client.post("/v1/detect", files=form(PICTURE), headers=headers),
        guarded.client.post("/v1/report?faces=nonsense", content=b"x", headers=headers),
        guarded.client.get("/metrics", headers=headers),
        guarded.client.get("/nothing/there", headers=headers),
        guarded.client.get("/v1/detect", headers=headers),
    ]
    said = {(a.status_code, a.text, tuple((k, v) for k, v in a.headers.items() if k != "date")) for a in answers}
    assert len(said) == 1 and answers[0].status_code == 401  # the same for what is there and what is not
    assert guarded.service.scorer.waiting == guarded.service.memory.taken == 0


@pytest.mark.parametrize(
    "token", ["pässe-\N{SNOWMAN}", "x\udcff"]
)  # the last as the environment has bytes that are no UTF-8
def test_a_token_is_compared_by_its_bytes(serve: Callable[..., Running], token: str) -> None:
    running = serve(token=token)
    for sent, status in ((token, 200), (token[:-1], 401)):
        authorization = b"Bearer " + sent.encode("utf-8", "surrogateescape")
        assert running.client.get("/metrics", headers={"authorization": authorization}).status_code == status


def test_what_fails_is_answered_as_all_else_is(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = serve()

    def fail(own: Metrics) -> bytes:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Metrics, "text", fail)
    answer = running.client.get("/metrics")
    assert answer.status_code == 500 and answer.json() == {"error": "the request failed"}
    assert HEADERS.items() <= dict(answer.headers).items()
    assert "a secret" in caplog.text
    monkeypatch.undo()
    assert 'corit_requests_total{path="/metrics",status="500"} 1.0' in running.client.get("/metrics").text


def test_what_is_open_without_a_token(guarded: Running) -> None:
    assert guarded.client.get("/health").json() == {"status": "ok", "token": True, "videos": True}
    assert guarded.client.get("/").status_code == guarded.client.get("/page/page.js").status_code == 200


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "192.0.2.7:80", "CORIT.example."])
def test_names_of_this_host(guarded: Running, host: str) -> None:
    assert guarded.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", ""])
def test_other_names_are_refused(guarded: Running, host: str) -> None:
    """As a page sends that has its own name point here."""
    for path in ("/", "/health", "/metrics"):
        answer = guarded.client.get(path, headers={"host": host, "authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 403 and "--allow-host" in answer.json()["error"]


@given(st.text())
def test_any_host_is_told_from_this_one(host: str) -> None:
    assert not named_here(host, {"localhost"}) or hostname(host) == "localhost" or set(hostname(host)) & set(".:")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "OWN"}, 200),
        ({"origin": "OWN", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(serve: Callable[..., Running], headers: dict[str, str], status: int) -> None:
    running = serve()
    own = f"http://127.0.0.1:{running.port}"
    headers = {name: own if value == "OWN" else value for name, value in headers.items()}
    assert running.client.post("/v1/detect", files=form(PICTURE), headers=headers).status_code == status
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert running.client.get("/", headers=linked).status_code == 200
