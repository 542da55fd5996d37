"""A service around a tiny random detector, on a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from corit_cli.detection.detector import Detector
from corit_cli.serve.app import Service
from corit_cli.serve.limits import Limits
from corit_cli.serve.server import Server, listen
from tests.conftest import save_tiny_detector


@dataclass
class Running:
    """A service under way, and a client of it."""

    service: Service
    client: httpx.Client
    port: int

    def detect(self, *files: tuple[str, bytes], **options: object) -> httpx.Response:
        return self.client.post("/v1/detect", files=form(*files), params=options)


def form(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", file) for file in files]


@contextmanager
def served(detector: Detector, limits: Limits | None = None, **how: object) -> Iterator[Running]:
    """The service while the block runs. No socket is left, and the scoring thread ends."""
    service = Service(detector, limits, **how)
    listener = listen("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # so that answers that nobody takes pile up here
    server = Server(service)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(service, client, port)
    server.should_exit = True
    thread.join(10)
    assert service.close(10) and not thread.is_alive()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="session")
def detector(folder: Path) -> Detector:
    return Detector.load(folder, "cpu")


@pytest.fixture
def serve(detector: Detector) -> Iterator[Callable[..., Running]]:
    """``serve(Limits(...), token=...)``, ended after the test."""
    with ExitStack() as stack:
        yield lambda *what, **how: stack.enter_context(served(detector, *what, **how))


@pytest.fixture(scope="module")
def running(detector: Detector) -> Iterator[Running]:
    """One for all tests that leave it as it is."""
    with served(detector) as found:
        yield found


class Gate:
    """Lets the detector look at files only once it is opened."""

    def __init__(self, detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        predict = Detector.predict

        def late(own: Detector, sources: object, *what: object, **how: object) -> Iterator[object]:
            self.reached.set()
            assert self.open.wait(60)
            yield from predict(own, sources, *what, **how)

        monkeypatch.setattr(Detector, "predict", late)


@pytest.fixture
def gate(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(detector, monkeypatch)
    yield found
    found.open.set()
