"""Uploads: a multipart body read as it comes, into memory alone, within limits.

Starlette's own reader of forms is not used: it puts files of more than a megabyte on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import PurePosixPath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from corit_cli.data.stored import Held
from corit_cli.serve.limits import MIB, Limits, Memory, Refused

LONGEST_NAME = 255  # characters of a file's name that are kept
_LONGEST_SUFFIX = 8
_LONGEST_HEADERS, _MOST_HEADERS = 8192, 16  # of one file, in bytes and in number


class Upload:
    """A file of a request: its name, as the client gave it but without folders, and its bytes in memory. Raises Refused
    where there are too many already."""

    def __init__(self, name: str, memory: Memory) -> None:
        self.name = name
        suffix = PurePosixPath(name).suffix.lower()
        memory.take(0, uploads=1)
        try:
            known = suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= _LONGEST_SUFFIX
            self.file = Held(suffix if known else "")
        except OSError:
            memory.give_back(0, uploads=1)
            raise Refused(503, "too many files are open: try again soon", retry_after=5) from None
        self._memory, self._taken, self._open = memory, 0, 1

    def write(self, data: bytes) -> None:
        """Append. Raises Refused where there is no room for it."""
        self._memory.take(len(data))
        self._taken += len(data)
        try:
            self.file.write(data)
        except (OSError, MemoryError):
            raise Refused(503, "out of memory: try again soon", retry_after=5) from None

    def close(self) -> None:
        """Forget it."""
        self.file.close()
        self._memory.give_back(self._taken, self._open)
        self._taken = self._open = 0


async def receive(request: Request, limits: Limits, memory: Memory) -> list[Upload]:
    """The files of a request, which the caller must close.

    Raises Refused for a body that is no form of files, is larger than the limits, or does not come in time; whatever
    is raised, nothing stays in memory.
    """
    form = Form(request.headers.get("content-type", ""), limits, memory)
    try:
        if int(request.headers.get("content-length") or 0) > limits.request:
            raise Refused(413, f"the request is larger than {limits.request / MIB:g} MiB")
        await asyncio.wait_for(_feed(form, request.stream()), limits.arrival)
        return form.finish()
    except BaseException as error:
        form.close()
        if isinstance(error, asyncio.TimeoutError):
            raise Refused(408, f"the request did not arrive within {limits.arrival:g} seconds") from None
        raise


async def _feed(form: Form, body: AsyncIterator[bytes]) -> None:
    async for chunk in body:
        form.feed(chunk)


class Form:
    """A body of multipart/form-data under way. It holds files only: options stand in the address."""

    def __init__(self, content_type: str, limits: Limits, memory: Memory) -> None:
        self._limits, self._memory = limits, memory
        self.uploads: list[Upload] = []
        self._received = 0
        self._ended = False
        self._field, self._value, self._disposition = b"", b"", b""
        kind, parameters = parse_options_header(content_type)
        boundary = parameters.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Refused(415, "send the files as multipart/form-data, as curl -F file=@photo.jpg does")
        callbacks = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        try:
            self._parser = MultipartParser(boundary, {f"on_{name}": getattr(self, f"_on_{name}") for name in callbacks})
        except FormParserError:
            raise Refused(400, "the form's boundary is malformed") from None

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body. Raises Refused where they are not what a form may hold."""
        self._received += len(chunk)
        if self._received > self._limits.request:
            raise Refused(413, f"the request is larger than {self._limits.request / MIB:g} MiB")
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise Refused(400, "the form is malformed") from None

    def finish(self) -> list[Upload]:
        """All files. Raises Refused where the form was cut off, or holds none."""
        if not self._ended:
            raise Refused(400, "the form is cut off")
        if not self.uploads:
            raise Refused(400, "no file was sent")
        return self.uploads

    def close(self) -> None:
        """Forget all files."""
        for upload in self.uploads:
            upload.close()

    # --- called by the parser, whose older versions bound neither the size nor the number of headers ---

    def _on_part_begin(self) -> None:
        self._field = self._value = self._disposition = b""
        self._headers = self._headed = 0

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, length: int) -> None:
        self._headed += length
        if self._headed > _LONGEST_HEADERS or self._headers >= _MOST_HEADERS:
            raise Refused(400, "the form is malformed: too many headers, or too long ones")

    def _on_header_end(self) -> None:
        self._headers += 1
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        _, parameters = parse_options_header(self._disposition.decode("latin-1"))
        name = parameters.get(b"filename")
        if name is None:
            raise Refused(400, "the form may hold files alone: options stand in the address, as in ?faces=off")
        if len(self.uploads) >= self._limits.files:
            raise Refused(413, f"more than {self._limits.files} files in one request")
        self.uploads.append(Upload(base_name(name) or f"<file {len(self.uploads) + 1}>", self._memory))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        upload = self.uploads[-1]
        if upload.file.size + end - start > self._limits.file:
            raise Refused(413, f"a file is larger than {self._limits.file / MIB:g} MiB")
        upload.write(memoryview(data)[start:end])

    def _on_end(self) -> None:
        self._ended = True


def base_name(name: bytes) -> str:
    """What a file is called, without the folders of any system; bytes that are no UTF-8 as surrogate escapes."""
    text = name.decode("utf-8", "surrogateescape")
    return text.replace("\\", "/").rpartition("/")[2][-LONGEST_NAME:]
