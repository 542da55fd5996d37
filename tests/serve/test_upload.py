"""Bodies: read as other readers do, refused where they are too much, and never kept."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from corit_cli.data import video
from corit_cli.data.stored import Held, opened
from corit_cli.serve import server, upload
from corit_cli.serve.limits import Limits, Memory, Refused
from corit_cli.serve.upload import Form, base_name
from tests.conftest import photograph
from tests.data.test_video import write as make_video
from tests.hostile import encoded
from tests.serve.conftest import Gate, Running, form

PICTURE = encoded(photograph(0), "png")
TYPE = "multipart/form-data; boundary=bound"
names = st.text(st.characters(codec="utf-8", exclude_characters='"\r\n\\/;'), min_size=1, max_size=30)


def body(files: list[tuple[str, bytes]]) -> bytes:
    parts = (
        b'--bound\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in files
    )
    return b"".join(parts) + b"--bound--\r\n"


def read(upload: object) -> bytes:
    with opened(upload.file.source) as file:
        return file.read()


@given(st.lists(st.tuples(names, st.binary(max_size=300)), min_size=1, max_size=4), st.integers(1, 70))
def test_forms_are_read_as_starlette_reads_them(files: list[tuple[str, bytes]], step: int) -> None:
    data, memory = body(files), Memory(1 << 20, 100)
    chunks = [data[i : i + step] for i in range(0, len(data), step)]

    async def stream():
        for chunk in chunks:
            yield chunk

    async def theirs() -> list[tuple[str, bytes]]:
        parsed = await MultiPartParser(Headers({"content-type": TYPE}), stream()).parse()
        return [(file.filename, await file.read()) for _, file in parsed.multi_items()]

    own = Form(TYPE, Limits(), memory)
    for chunk in chunks:
        own.feed(chunk)
    found = [(upload.name, read(upload)) for upload in own.finish()]
    assert found == asyncio.run(theirs()) == files
    assert memory.taken == sum(len(content) for _, content in files)
    own.close()
    assert memory.taken == 0


@given(st.binary(max_size=400), st.integers(1, 50))
def test_no_body_breaks_the_reader(data: bytes, step: int) -> None:
    memory = Memory(1 << 20, 100)
    own = Form(TYPE, Limits(), memory)
    try:
        for start in range(0, len(data), step):
            own.feed(b"--bound\r\n" * (start == 0) + data[start : start + step])
        own.finish()
    except Refused as refused:
        assert refused.status in (400, 413)
    own.close()
    assert memory.taken == 0


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        (b"X: y\r\n" * 15, True),
        (b"X: y\r\n" * 16, False),
        (b"X: " + b"y" * 8000 + b"\r\n", True),
        (b"X: " + b"y" * 8192 + b"\r\n", False),
        (b"x" * 8193 + b": y\r\n", False),
        (b"X: %s\r\n" % (b"y" * 600) * 14, False),  # together
    ],
)
def test_headers_of_a_file_are_few_and_short(headers: bytes, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the parser has no bounds."""
    boundless = partial(upload.MultipartParser, max_header_count=1 << 30, max_header_size=1 << 30)
    monkeypatch.setattr(upload, "MultipartParser", boundless)
    data = body([("a.png", PICTURE)]).replace(b"Content-Disposition", headers + b"Content-Disposition", 1)
    for step in (100, len(data)):
        own = Form(TYPE, Limits(), Memory(1 << 20, 100))
        with nullcontext() if fine else pytest.raises(Refused, match="headers"):
            for start in range(0, len(data), step):
                own.feed(data[start : start + step])
            assert len(own.finish()) == 1
        own.close()


@given(st.binary(max_size=300))
def test_a_name_has_no_folders(name: bytes) -> None:
    found = base_name(name)
    assert "/" not in found and "\\" not in found and len(found) <= 255
    assert name.decode("utf-8", "surrogateescape").endswith(found)


def test_a_file_in_memory_has_a_path_and_nothing_else(tmp_path: Path) -> None:
    held = Held(".png")
    held.write(b"abc" * 1000)
    held.write(memoryview(b"def"))
    with ThreadPoolExecutor(4) as pool:  # each reads from the start
        assert set(pool.map(lambda _: opened(held.source).read(), range(8))) == {b"abc" * 1000 + b"def"}
    place = held.source
    held.close()
    held.close()
    with pytest.raises(OSError):
        opened(place)


def test_where_no_file_can_be_in_memory_bytes_are(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Running]
) -> None:
    usual = serve().detect(("a.png", PICTURE)).json()
    monkeypatch.delattr("os.memfd_create")
    running = serve()
    assert running.detect(("a.png", PICTURE)).json() == usual
    film = running.detect(("a.mp4", b"\0\0\0\x18ftypisom" + bytes(100))).json()["results"][0]
    assert film["error"] == "an MP4 video, which cannot be read from memory: run corit detect on the file"
    assert running.client.get("/health").json()["videos"] is False
    assert running.client.post("/v1/report", files=form(("a.png", PICTURE))).status_code == 200


LIMITS = Limits(file=20_000, request=50_000, files=3)


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([("a.png", bytes(20_001))], "a file is larger than"),
        ([("a.png", bytes(19_000))] * 3, "the request is larger than"),
        ([("a.png", PICTURE)] * 4, "more than 3 files"),
    ],
)
def test_what_is_too_much_is_refused(serve: Callable[..., Running], files: list, error: str) -> None:
    running = serve(LIMITS)
    data, headers = body(files), {"content-type": TYPE}
    for content in (data, (data[i : i + 999] for i in range(0, len(data), 999))):  # with its length, and without
        answer = running.client.post("/v1/detect", content=content, headers=headers)
        assert answer.status_code == 413 and error in answer.json()["error"], answer.text
    assert running.service.memory.taken == 0
    assert running.detect(("a.png", PICTURE)).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (body([]), TYPE, 400),
        (b"", TYPE, 400),
        (body([("a.png", PICTURE)])[:-10], TYPE, 400),
        (b'--bound\r\nContent-Disposition: form-data; name="faces"\r\n\r\noff\r\n--bound--\r\n', TYPE, 400),
        (b"--bound\r\n" + b"X: y\r\n" * 5000 + b"\r\n\r\n--bound--", TYPE, 400),
        (b"--bound\r\nX: " + b"y" * 100_000 + b"\r\n\r\n\r\n--bound--", TYPE, 400),
        (PICTURE, "image/png", 415),
        (PICTURE, "multipart/form-data", 415),
        (PICTURE, "multipart/form-data; boundary=" + "b" * 1000, 400),
    ],
)
def test_bodies_that_are_no_form_of_files(running: Running, content: bytes, kind: str, status: int) -> None:
    answer = running.client.post("/v1/detect", content=content, headers={"content-type": kind})
    assert answer.status_code == status and answer.json()["error"], answer.text
    assert running.service.memory.taken == 0


def test_what_reads_forms_logs_nothing_of_its_own(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A form that is none is the client's mistake, and told to the client."""
    for name in ("corit_cli.serve", "uvicorn", "python_multipart"):
        logger = logging.getLogger(name)
        for what, value in (("handlers", [*logger.handlers]), ("level", logger.level), ("propagate", True)):
            monkeypatch.setattr(logger, what, value)
    server._log_to_stderr()
    answer = running.client.post("/v1/detect", content=b"--wrong\r\n", headers={"content-type": TYPE})
    assert answer.status_code == 400
    assert not [record for record in caplog.records if record.name.startswith("python_multipart")]
    assert logging.getLogger("python_multipart.multipart").hasHandlers()  # else Python itself would write it


def test_a_full_queue_says_when_to_come_again(serve: Callable[..., Running], gate: Gate) -> None:
    running = serve(Limits(waiting=2))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(running.detect, ("a.png", PICTURE)) for _ in range(2)]
        while running.service.scorer.waiting < 2:
            time.sleep(0.01)
        answer = running.detect(("a.png", PICTURE))
        assert answer.status_code == 503 and 1 <= int(answer.headers["retry-after"]) <= 60
        gate.open.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert running.detect(("a.png", PICTURE), ("b.png", PICTURE)).status_code == 200
    assert running.detect(*[("a.png", PICTURE)] * 3).status_code == 503


def test_all_uploads_together_have_a_limit(serve: Callable[..., Running], gate: Gate) -> None:
    running = serve(Limits(held=int(1.5 * len(PICTURE))))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.detect, ("a.png", PICTURE))
        assert gate.reached.wait(30)
        answer = running.detect(("b.png", PICTURE))
        assert answer.status_code == 503 and answer.headers["retry-after"]
        gate.open.set()
        assert first.result().status_code == 200
    assert running.detect(("b.png", PICTURE)).status_code == 200


def test_uploads_held_at_once_have_a_limit(serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(Limits(uploads=2))
    for files, status in ((3, 503), (2, 200), (3, 503), (2, 200)):
        answer = running.detect(*[("a.png", PICTURE)] * files)
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status == 503)
        assert running.service.memory.taken == running.service.memory.open == 0

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("os.memfd_create", none_left)
    answer = running.detect(("a.png", PICTURE))
    assert answer.status_code == 503 and "too many files are open" in answer.json()["error"]
    assert running.service.memory.taken == running.service.memory.open == 0


@given(st.integers(64, 1 << 20), st.integers(64, 1 << 20), st.booleans())
def test_limits_are_what_the_system_affords(one: int, other: int, may_be_raised: bool) -> None:
    found = [min(one, other), max(one, other)]

    def set_to(_: int, limits: tuple[int, int]) -> None:
        if not may_be_raised:
            raise ValueError
        found[:] = limits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.resource, "getrlimit", lambda _: tuple(found))
        patch.setattr(server.resource, "setrlimit", set_to)
        limits = server.affordable(Limits())
    taken = limits.uploads + 2 * limits.connections + server.SPARE
    assert taken <= max(found[0], server.SPARE + 3)
    if found[0] >= Limits.uploads + 2 * Limits.connections + server.SPARE:
        assert limits == Limits()


def test_a_flood_of_connections_is_hung_up_on(serve: Callable[..., Running]) -> None:
    running = serve(Limits(connections=3))
    with ExitStack() as stack:
        flood = [stack.enter_context(socket.create_connection(("127.0.0.1", running.port), 5)) for _ in range(5)]
        assert running.client.get("/health").status_code == 503
        flood += [stack.enter_context(socket.create_connection(("127.0.0.1", running.port), 5)) for _ in range(5)]
        for client in flood[6:]:
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
    until(lambda: running.client.get("/health").status_code == 200)


def test_an_answer_that_takes_too_long(serve: Callable[..., Running], gate: Gate) -> None:
    running = serve(Limits(answer=0.2))
    answer = running.detect(("a.png", PICTURE))
    assert answer.status_code == 504 and "0.2 seconds" in answer.json()["error"]
    gate.open.set()
    until(lambda: running.service.scorer.waiting == running.service.memory.taken == 0)


@pytest.mark.parametrize("why", ["its time", "the service ends"])
def test_a_video_that_nobody_waits_for_is_left(
    serve: Callable[..., Running], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one whose header lies about its end all frames would be decoded, a second for every twenty."""
    film = bytearray(make_video(tmp_path / "a.avi", 400).read_bytes())
    struct.pack_into("<I", film, film.index(b"strh") + 40, 20)
    grab, begun = video._Reader._grab, threading.Event()

    def slowly(reader: video._Reader) -> bool:
        begun.set()
        time.sleep(0.05)
        return grab(reader)

    monkeypatch.setattr(video._Reader, "_grab", slowly)
    running = serve(Limits(answer=0.3 if why == "its time" else 60))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.detect, ("a.avi", bytes(film)))
        assert begun.wait(30)
        if why == "the service ends":
            running.service.scorer.abandon()
        assert answer.result().status_code == (504 if why == "its time" else 503)
    until(lambda: running.service.scorer.waiting == running.service.memory.taken == 0, seconds=5)


def head(length: int) -> bytes:
    return b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (
        TYPE.encode(),
        length,
    )


def received(client: socket.socket) -> bytes:
    """A whole answer, which is JSON."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += client.recv(10_000)
    return answer


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_clients_that_vanish(serve: Callable[..., Running], gate: Gate) -> None:
    running, data = serve(), body([("a.png", PICTURE)])
    for part in (10, len(data) // 2, len(data)):  # while sending, and while waiting
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(head(len(data)) + data[:part])
            if part == len(data):
                assert gate.reached.wait(30)
            else:
                time.sleep(0.1)
    gate.open.set()
    until(lambda: running.service.memory.taken == running.service.scorer.waiting == 0)
    assert running.detect(("a.png", PICTURE)).status_code == 200
    assert 'status="499"' in running.client.get("/metrics").text


def test_what_nobody_waits_for_leaves_the_queue(serve: Callable[..., Running], gate: Gate) -> None:
    running, data = serve(Limits(waiting=3)), body([("a.png", PICTURE)])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.detect, ("first.png", PICTURE))
        assert gate.reached.wait(30)
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(head(len(data)) + data)
                until(lambda: running.service.scorer.waiting == 2)
            until(lambda: running.service.scorer.waiting == 1)
        assert running.service.memory.taken == len(PICTURE)
        gate.open.set()
        assert first.result().status_code == 200


def test_clients_that_send_a_byte_at_a_time(serve: Callable[..., Running]) -> None:
    running, data = serve(Limits(arrival=0.5)), body([("a.png", PICTURE)])
    slow = [socket.create_connection(("127.0.0.1", running.port), timeout=20) for _ in range(30)]
    for client in slow:
        client.sendall(head(len(data)))

    def drip() -> None:
        for i in range(40):
            for client in slow:
                try:
                    client.sendall(data[i : i + 1])
                except OSError:
                    return
            time.sleep(0.05)

    dripping = threading.Thread(target=drip)
    dripping.start()
    assert running.detect(("a.png", PICTURE)).status_code == 200  # nobody else waits for them
    for client in slow:
        answer = received(client)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.5 seconds" in answer
        client.close()
    dripping.join()
    assert running.service.memory.taken == 0


def test_heads_that_never_end_and_bodies_after_the_answer(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD", 0.3)
    running = serve()
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        client.sendall(b"POST /v1/detect HT")
        assert client.recv(100) == b""
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        client.sendall(head(10**12))
        assert b" 413 " in client.recv(10_000)
        with pytest.raises(OSError):
            for _ in range(200):
                client.sendall(b"x")
                time.sleep(0.05)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:  # no hurry between two requests
        for _ in range(5):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert received(client).startswith(b"HTTP/1.1 200")
            time.sleep(0.15)


def test_answers_that_nobody_takes(serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALLED", 0.3)
    running = serve()
    large = encoded(photograph(1, (1200, 900), grain=40), "png")
    data = body([("a.png", large)] * 8)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", running.port))
    client.sendall(head(len(data)).replace(b"/v1/detect", b"/v1/report") + data)
    until(lambda: 'corit_requests_total{path="/v1/report",status="200"} 1.0' in running.client.get("/metrics").text)
    time.sleep(0.6)
    client.settimeout(10)
    answer = b"".join(iter(lambda: client.recv(1 << 20), b""))
    length = int(re.search(rb"content-length: (\d+)", answer)[1])
    assert len(answer) < length  # it was hung up on
    client.close()
