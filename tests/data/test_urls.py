from __future__ import annotations

import io
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from corit_cli.data.opening import ImageError
from corit_cli.data.urls import changed, fetch, file_system, is_url, local_copy
from corit_cli.errors import CoritError
from tests.conftest import photograph, tiny_detector

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def url() -> Iterator[str]:
    fs, data = fsspec.filesystem("memory"), io.BytesIO()
    photograph(3).save(data, "png")
    fs.pipe_file("/urls/a.png", data.getvalue())
    yield "memory://urls/a.png"
    fs.rm("/urls", recursive=True)


@pytest.mark.parametrize("path", ["s3://b/a.jpg", "gs://b/a.jpg", "memory://a", "file:///a.jpg", "abfs+ssl://x"])
def test_urls(path: str) -> None:
    assert is_url(path)


@pytest.mark.parametrize("path", ["/a.jpg", "a.jpg", "a:/b.jpg", "://a", "C://a.jpg", "./s3://a"])
def test_paths(path: str) -> None:
    assert not is_url(path)


def test_bytes_are_fetched_and_copies_go(url: str, tmp_path: Path) -> None:
    with local_copy(url) as path:
        assert Path(path).read_bytes() == fetch(url) and path.endswith(".png")
    assert not os.path.exists(path)
    with local_copy(str(tmp_path)) as same:
        assert same == str(tmp_path)
    odd = tmp_path / "a\udcfe.png"
    odd.write_bytes(fetch(url))
    with local_copy(str(odd)) as path:  # OpenCV dies of a name that is no text
        assert path.isascii() and Path(path).read_bytes() == fetch(url)
    with pytest.raises(ImageError, match="no such file"):
        fetch("memory://urls/nothing.png")


@pytest.mark.parametrize(
    "url",
    [
        "reference://a.jpg::data:application/json;base64,e30=",
        "REFERENCE://a.jpg",
        "zip://a.jpg::data:text/plain;base64,AA==",
        "zip://a.jpg::reference://b",
        "data:text/plain,://",
        "generic://a",
        "dir::file:///tmp",
        "async_wrapper::file:///tmp/a.jpg",
        "simplecache::jupyter://localhost/a.jpg",
    ],
)
def test_kinds_of_urls_that_run_what_they_are_told_to_are_not_opened(url: str) -> None:
    with pytest.raises(CoritError, match=r"URLs of kind [a-z_]+ are not"):
        file_system(url)


def test_an_unknown_scheme_is_the_users_to_mend() -> None:
    with pytest.raises(CoritError, match="nonsense://a cannot be opened"):
        file_system("nonsense://a")


def test_times_of_any_kind_become_nanoseconds() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=timezone.utc)
    expected = 1767323045_250000000
    for info in ({"mtime": moment.timestamp()}, {"LastModified": moment}, {"updated": "2026-01-02T03:04:05.250Z"}):
        assert changed(info) == expected
    assert changed({}) is None and changed({"created": "yesterday"}) is None


def test_a_picture_at_a_url_is_judged_as_the_file_is(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(fetch(url))
    detector = tiny_detector(tmp_path / "tiny")
    there, here, missing = detector.predict([url, str(tmp_path / "a.png"), "memory://urls/no.png"])
    assert (there.path, there.probability, there.error) == (url, here.probability, None)
    assert missing.error == "no such file"
