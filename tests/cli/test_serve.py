"""``corit serve`` end to end: the installed command, on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import jsonschema
import pytest

from tests import hostile
from tests.cli.conftest import one_line_error
from tests.conftest import CORIT, photograph, save_tiny_detector

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "detect.schema.json").read_text())


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("served"))


Start = Callable[..., tuple[subprocess.Popen, str]]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path, detector: Path) -> Iterator[Start]:
    """``start(*options)`` gives the process and its address; it is killed in the end if need be."""
    with ExitStack() as stack:

        def run(*options: object, **more: str) -> tuple[subprocess.Popen, str]:
            command = [CORIT, "serve", "-c", detector, "--port", 0, "--device", "cpu", *options]
            (tmp_path / "empty").mkdir(exist_ok=True)
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=tmp_path / "empty",
                env=environment | {"TMPDIR": str(tmp_path / "empty")} | more,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            line = next(line for line in process.stderr if line.startswith("corit serve: "))
            return process, re.search(r"http://\S+", line)[0]

        yield run


def end(process: subprocess.Popen, sign: int = signal.SIGTERM) -> tuple[float, str]:
    """Seconds that it took to end, and what it wrote."""
    begun = time.monotonic()
    process.send_signal(sign)
    out, log = process.communicate(timeout=60)
    assert process.returncode == 0 and out == ""
    return time.monotonic() - begun, log


def test_what_can_never_have_room_is_not_told_to_come_again(start: Start) -> None:
    _, address = start("--queue", 2, "--memory", 0.02)
    for files in ([("file", (f"{i}.png", b"1")) for i in range(3)], [("file", ("a.png", bytes(30_000)))]):
        answer = httpx.post(f"{address}v1/detect", files=files, timeout=60, trust_env=False)
        assert answer.status_code == 413 and "retry-after" not in answer.headers, answer.text


def test_answers_are_those_of_the_command(start: Start, corit, detector: Path, tmp_path: Path) -> None:
    (tmp_path / "secret-names").mkdir()
    files = hostile.write(tmp_path / "secret-names", 1)
    photograph(0, (300, 200)).save(tmp_path / "secret-names" / "sound.jpg")
    files.append(tmp_path / "secret-names" / "sound.jpg")
    process, address = start("--max-files", 1000)
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        answer = client.post("v1/detect", files=[("f", (path.name, path.read_bytes())) for path in files])
        report = client.post("v1/report", files={"f": ("sound.jpg", files[-1].read_bytes())})
        assert report.status_code == 200 and "Report on one file" in report.text
        assert client.post("secret-names", files={"f": ("secret-names", b"x")}).status_code == 404
    printed = corit("detect", "-c", detector, *files, "--json", "--device", "cpu", cwd=tmp_path / "secret-names")
    expected = json.loads(printed.stdout)
    for row, path in zip(expected["results"], files, strict=True):
        assert row["path"] == str(path)
        row["path"] = path.name
    jsonschema.validate(answer.json(), SCHEMA)
    assert answer.json() == expected
    assert os.listdir(tmp_path / "empty") == []
    seconds, log = end(process)
    assert seconds < 10
    assert log.count("POST /v1/detect 200") == 1
    assert not any(word in log for word in ("secret", "sound", "Traceback", *(path.name for path in files)))


def test_the_token_may_stand_in_the_environment(start: Start) -> None:
    process, address = start(CORIT_TOKEN="swordfish")
    assert httpx.get(f"{address}metrics", trust_env=False).status_code == 401
    headers = {"authorization": "Bearer swordfish"}
    assert httpx.get(f"{address}metrics", headers=headers, trust_env=False).status_code == 200
    assert "swordfish" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    _, log = end(process, signal.SIGINT)
    assert "swordfish" not in log


def test_when_told_to_end_it_answers_what_it_has_and_ends(start: Start) -> None:
    process, address = start("--max-file", 200, "--max-request", 400, "--timeout", 600)
    port = httpx.URL(address).port
    waiting = socket.create_connection(("127.0.0.1", port))  # a body that never comes
    waiting.sendall(
        b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    content = hostile.encoded(photograph(0, (1500, 1000)), "png")
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f.png"\r\n\r\n' + content + b"\r\n"
    body = 20 * form + b"--x--\r\n"
    under_way = socket.create_connection(("127.0.0.1", port))
    under_way.sendall(
        b"POST /v1/detect?stability=true HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" % len(body) + body
    )
    while "corit_waiting_files 20.0" not in httpx.get(f"{address}metrics", trust_env=False).text:
        time.sleep(0.05)
    seconds, log = end(process)
    assert seconds < 15 and "Traceback" not in log
    answer = b"".join(iter(lambda: under_way.recv(1 << 16), b""))
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503"))
    assert answer.startswith(b"HTTP/1.1 200") or b"shutting down" in answer
    assert b"shutting down" in b"".join(iter(lambda: waiting.recv(1 << 16), b""))
    for client in (waiting, under_way):
        client.close()


def test_mistakes_are_one_line(corit, detector: Path, tmp_path: Path) -> None:
    one_line_error(corit("serve", "--token", ""), "the token is empty")
    for token in ("pass\N{SNOWMAN}", "x\udcff", "a\tb"):
        one_line_error(corit("serve", "--token", token), "the token may hold")
    one_line_error(corit("serve", "--port", "0", "-c", tmp_path), "not a corit checkpoint")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one_line_error(corit("serve", "--port", taken.getsockname()[1]), "cannot listen on 127.0.0.1")


def test_without_its_packages_one_line_says_what_to_install(corit, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "lacking" / "fastapi").mkdir(parents=True)
    (tmp_path / "lacking" / "fastapi" / "__init__.py").write_text("raise ModuleNotFoundError(name='fastapi')")
    path = f"{tmp_path / 'lacking'}:{environment.get('PYTHONPATH', '')}"
    one_line_error(
        corit("serve", env=environment | {"PYTHONPATH": path}), "needs the package fastapi: pip install '.[serve]'"
    )


def test_help_needs_neither_torch_nor_fastapi(corit, environment: dict[str, str]) -> None:
    code = (
        "import sys; sys.argv = ['corit', 'serve', '--help']\n"
        "from corit_cli.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: print([m for m in ('torch', 'fastapi', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([CORIT.parent / "python", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("[]\n") and "--allow-host" in done.stdout
