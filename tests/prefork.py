"""The installed ``corit``, run by a fork of a process that has loaded torch already: of the seconds that a command
takes on a small file, most are that."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_LOADED = "torch numpy PIL.Image cv2 sklearn.linear_model safetensors.torch rich.progress rich.table "
_LOADED += "pydantic.type_adapter pydantic.functional_validators tests.prefork"
_FORKS.set_forkserver_preload(_LOADED.split())
#: Of the environment, what an interpreter or a library reads as it starts: a fork has started.
_READ_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "OMP_", "KMP_", "MKL_", "TORCH")


def fits(environment: Mapping[str, str]) -> bool:
    """Whether a fork does what a fresh interpreter would in this ``environment``."""
    return _at_start(environment) == _at_start(os.environ)


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


def run(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    pipes: Path,
    input: str = "",
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """As :func:`subprocess.run` with captured text, of a Python script; ``pipes`` is an empty folder."""
    names = [pipes / name for name in ("stdin", "stdout", "stderr")]
    for name in names:
        os.mkfifo(name)
    process = _FORKS.Process(target=_run, args=(list(command), dict(env), str(cwd), [str(n) for n in names]))
    said: dict[Path, str] = {}

    def read(name: Path) -> None:
        said[name] = name.read_text(encoding="utf-8")

    def write() -> None:
        with suppress(BrokenPipeError), names[0].open("w", encoding="utf-8") as file:
            file.write(input)

    process.start()
    threads = [threading.Thread(target=read, args=(name,), daemon=True) for name in names[1:]]
    threads.append(threading.Thread(target=write, daemon=True))
    for thread in threads:
        thread.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(command, timeout or 0)
    for thread in threads[:2]:
        thread.join()
    for name in names:
        name.unlink()
    return subprocess.CompletedProcess(command, process.exitcode, said[names[1]], said[names[2]])


def _run(command: list[str], environment: dict[str, str], folder: str, pipes: list[str]) -> None:
    """In the fork: what a fresh interpreter would begin with, then the script."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, (pipe, flags) in enumerate(zip(pipes, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        opened = os.open(pipe, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    streams = (("r", "surrogateescape"), ("w", "surrogateescape"), ("w", "backslashreplace"))
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", errors=errors, closefd=False)
        for number, (mode, errors) in enumerate(streams)
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # who keep them open
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
