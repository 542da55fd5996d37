"""A Ray cluster to work on: one that runs, or one of this machine's own for the time being."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from corit_cli.errors import CoritError
from corit_cli.version import __version__

#: The address that starts a Ray of this command's own.
LOCAL = "local"


def ray_module() -> ModuleType:
    """Ray. Raises CoritError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise CoritError("--ray needs the package ray: install corit[ray]") from None


@contextmanager
def session(address: str) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at ``address`` while the block runs; ``local`` starts one and stops it again.

    Raises CoritError when there is no such cluster, and when a node of it has not the same corit.
    """
    _keep_quiet()
    _reach(address)
    with _hushed():
        ray = ray_module()
        try:
            how = {"include_dashboard": False} if address == LOCAL else {}
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **how)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise CoritError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
    try:
        with _hushed():
            check_nodes(ray)
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise CoritError at once where nobody listens at ``address``: Ray itself would wait for minutes."""
    if address.startswith("ray://"):
        raise CoritError("run the command on a node of the cluster (ray job submit does), with --ray auto")
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
    except (OSError, OverflowError) as error:
        raise CoritError(f"no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}") from None


def _keep_quiet() -> None:
    """Leave standard error to this command: Ray has logs of its own."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that this will be its way
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # its errors are raised as well
    warnings.filterwarnings("ignore", module=r"ray\.")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing reaches standard error: Ray's core says there that it was told to be quiet."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def check_nodes(ray: ModuleType) -> None:
    """Raise CoritError unless corit of this version is installed on every node that has CPUs or GPUs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def installed() -> str | None:  # a function in a function travels whole: it must run where corit is missing
        from importlib import import_module

        try:
            return import_module("corit_cli.version").__version__
        except ImportError:
            return None

    nodes = [node for node in ray.nodes() if node["Alive"] and set(node["Resources"]) & {"CPU", "GPU"}]
    ask = ray.remote(num_cpus=0, max_retries=1)(installed)
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [ask.options(scheduling_strategy=strategy).remote() for strategy in strategies]
    for node, answer in zip(nodes, asked, strict=True):
        try:
            version = ray.get(answer, timeout=300)
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise CoritError(f"node {_name(node)} cannot be used: {str(error).splitlines()[0]}") from None
        if version != __version__:
            has = "has no corit" if version is None else f"has corit {version}"
            raise CoritError(f"node {_name(node)} {has}: install corit {__version__} in its Python")


def room(ray: ModuleType, cpus: float, kind: str = "CPU") -> int:
    """How many workers of so many CPUs (or of what ``kind`` says) the nodes have room for. Raises CoritError where no
    node has room for one: Ray would wait for such a node."""
    found = sum(int(node["Resources"].get(kind, 0) / cpus) for node in ray.nodes() if node["Alive"])
    if not found:
        raise CoritError(f"no node of the cluster has {cpus:g} {kind}s for a worker: see --num-cpus")
    return found


def _name(node: dict) -> str:
    return f"{node.get('NodeManagerHostname') or ''} ({node['NodeManagerAddress']})".strip()
