"""The Hugging Face Hub: repositories fetched into the client's own cache, or uploaded; its troubles said in one line.

Only files that are asked for by name are fetched, which are safetensors and JSON, and nothing in them is run. What is
in the cache is used without a network, and at once where a repository is pinned to a commit.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from corit_cli.errors import CoritError

#: Before the name of a repository on the Hub.
PREFIX = "hf-hub:"
PATIENCE = 5  # seconds that a connection may take
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
#: A branch, tag or commit. The client makes a path in its cache of it, which must stay there.
_REVISION = re.compile(r"(?!.*(\.\.|//))\w[\w./-]*")


@dataclass(frozen=True)
class Snapshot:
    """A repository's files at one commit, in ``folder``; ``name`` is ``hf-hub:USER/NAME@COMMIT``."""

    folder: Path
    name: str


def fetch(name: str, files: Sequence[str]) -> Snapshot:
    """``files`` of the repository ``[hf-hub:]USER/NAME[@REVISION]``, by default of its main branch, as far as it has
    them. Raises CoritError with a remedy where they cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    check_name(repository)
    if revision and not _REVISION.fullmatch(revision):
        raise CoritError(f"a revision on the Hub is a branch, a tag or a commit, not {revision!r}")
    wanted: dict = {"revision": revision or None, "allow_patterns": list(files)}
    folder = None
    try:
        if _COMMIT.fullmatch(revision):  # nothing newer can be there
            with suppress(LocalEntryNotFoundError):
                folder = Path(snapshot_download(repository, local_files_only=True, **wanted))
        if folder is None or not all((folder / file).is_file() for file in files):
            with at_once(), _without_bars():
                folder = Path(snapshot_download(repository, **wanted))
    except Exception as error:
        if is_offline(error):
            at = f"--revision {revision} " if revision else ""
            command = f"hf download {at}{repository} {' '.join(files)}"
            raise NotCached(f"Hub repository {name.removeprefix(PREFIX)}", command) from None
        raise CoritError(f"cannot load Hub repository {name.removeprefix(PREFIX)}: {why(error)}") from None
    return Snapshot(folder, f"{PREFIX}{repository}@{folder.name}")


def check_name(repository: str) -> str:
    """``repository``, without ``hf-hub:``. Raises CoritError unless it is called USER/NAME."""
    name = repository.removeprefix(PREFIX)
    if not _REPOSITORY.fullmatch(name):
        raise CoritError(f"a repository on the Hub is called USER/NAME, not {repository!r}")
    return name


def check_login() -> str:
    """Who the Hub takes this user for. Raises CoritError where there is no token, it is not taken, or no network."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise CoritError("pushing to the Hub takes a token: log in with `hf auth login`, or set HF_TOKEN")
    with _told("log in to the Hub"):
        return str(HfApi().whoami()["name"])


def upload(repository: str, files: Mapping[str, Path | bytes], message: str, private: bool = False) -> str:
    """Make ``repository`` unless it is there, and put ``files`` into it by one commit, whose hash is returned.
    Raises CoritError where that cannot be done, and where it is to be ``private`` and is there for all to see."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    with _told(f"push to {repository}"), _without_bars():
        HfApi().create_repo(repository, private=private or None, exist_ok=True)
        if private and not HfApi().repo_info(repository).private:
            raise CoritError(f"{repository} is on the Hub already, and public: push to another, or without --private")
        return str(HfApi().create_commit(repository, operations, commit_message=message).oid)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What goes wrong in talking to the Hub becomes one line."""
    try:
        with at_once():
            yield
    except CoritError:
        raise
    except Exception as error:
        told = "the network cannot be reached" if is_offline(error) else why(error)
        raise CoritError(f"cannot {what}: {told}") from None


def why(error: Exception) -> str:
    """An error of the Hub's client in a few words."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "its owner grants access one by one: ask for it on its page, and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is none of this name, or it is private: then log in with `hf auth login`, or set HF_TOKEN"
    status = _status(error)
    if status == 401:
        return "the Hub does not take this token: log in again with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "this token has no right to: it takes one that may write there"
    if status is not None:
        return f"the Hub answered {status}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _status(error: BaseException) -> int | None:
    """What the Hub answered, if an exception, or any it was raised from, is about an answer."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    cause = error.__cause__ or error.__context__
    return found if found is not None or cause is None else _status(cause)


@contextmanager
def _without_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


# --- where there is no network --------------------------------------------------------------------


@contextmanager
def at_once() -> Iterator[None]:
    """Where the Hub cannot be reached, look into the cache alone: no tries again, nothing in the log."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        with silenced() if constants.HF_HUB_OFFLINE else nullcontext():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


_quiet = threading.Lock()
_silent: list[int] = []  # what was disabled before, by every block that is entered


@contextmanager
def silenced() -> Iterator[None]:
    """No errors in the log, whose exceptions are told. Threads may be within at the same time."""
    with _quiet:
        _silent.append(logging.root.manager.disable)
        logging.disable(max(_silent[0], logging.ERROR))
    try:
        yield
    finally:
        with _quiet:
            before = _silent[0]
            _silent.pop()
            if not _silent:
                logging.disable(before)


def _reachable(address: str) -> bool:
    """Whether a connection can be made, to the proxy where there is one."""
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(address)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), PATIENCE).close()
    except (OSError, TypeError):
        return False
    return True


def is_offline(error: BaseException) -> bool:
    """Whether an exception, or any it was raised from, means that the network could not be reached: it could where
    there was an answer."""
    if _status(error) is not None:
        return False
    seen = f"{type(error).__name__}: {error}".lower()
    signs = ("connect", "resolve", "offline", "localentrynotfound", "timed out", "unreachable", "proxy", "urlopen")
    if any(sign in seen for sign in signs):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_offline(cause)


class NotCached(CoritError):
    """``what`` is not in the local cache, and there is no network; ``command`` fetches it where there is one."""

    def __init__(self, what: str, command: str) -> None:
        super().__init__(
            f"{what} is not in the local cache and the network cannot be reached: where there is one, run `{command}`"
        )
        self.what = what


@contextmanager
def cache_only() -> Iterator[None]:
    """Nothing is fetched, as if there were no network."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
